// Tokens: 64-bit numbers that are sent beside the messages, as realtime signals.

import { readdirSync, readlinkSync } from 'node:fs'
import { performance } from 'node:perf_hooks'

import test, { type ExecutionContext } from 'ava'
import type { Channel, RingfenceError } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { listenHere, nextChannel, pair, Partner } from './support/partner.js'
import { isPending, within, blockUntil, until } from './support/until.js'

/** The next `count` tokens. */
async function take(channel: Channel, count: number): Promise<bigint[]> {
  const found: bigint[] = []
  const taking = (async () => {
    for await (const token of channel.tokens()) if (found.push(token) === count) break
  })()
  await within(taking, `${count} tokens`)
  return found
}

/** Makes the partner return every token, increased by one. */
function echo(partner: Partner): Promise<void> {
  return partner.run(({ channel, keep }) => {
    keep['echo'] = (async () => {
      for await (const token of channel.tokens()) channel.sendToken(BigInt.asUintN(64, token + 1n))
    })()
  })
}

test('tokens go both ways, keep their order, and have 64 bits', async (t) => {
  const partner = await Partner.start(t)
  // The partner watches with a thread, as without libuv.
  await partner.run(() => void Object.defineProperty(process.versions, 'bun', { value: '1.0.0' }))
  const { channel } = await pair(t, { partner })
  await echo(partner)
  const tokens = [0, 0n, 1, 2 ** 53 - 1, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n]
  for (const token of tokens) channel.sendToken(token)
  t.deepEqual(
    await take(channel, tokens.length),
    tokens.map((token) => BigInt.asUintN(64, BigInt(token) + 1n)),
  )
  for (let token = 0; token < 500; token += 1) channel.sendToken(token)
  t.deepEqual(
    await take(channel, 500),
    Array.from({ length: 500 }, (_, token) => BigInt(token) + 1n),
  )
  const count = tokens.length + 500
  const counted = { tokensSent: count, tokensReceived: count, tokensDropped: 0 }
  t.like(channel.stats(), counted)
  t.like(await partner.run(({ channel: there }) => there.stats()), counted)
  t.throws(() => channel.sendToken(-1), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  await channel.close()
  t.like(channel.stats(), counted, 'the figures stay after the end')
})

test('each client of a service has its own tokens, even two clients in one process', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address)
  const partners = await Promise.all([Partner.start(t), Partner.start(t)])
  const channels = new Map<bigint, Channel>()
  for (const number of [1n, 2n, 3n, 4n]) {
    const partner = partners[Number(number % 2n)]!
    const connecting = partner.run(
      async (kit, where: string, own: bigint) => {
        const channel = await kit.ringfence.connect(where)
        kit.keep[String(own)] = (async () => {
          for await (const token of channel.tokens()) channel.sendToken(token * 10n + own)
        })()
      },
      address,
      number,
    )
    channels.set(number, await nextChannel(listener))
    await connecting
  }
  for (const channel of channels.values()) for (const token of [7, 8]) channel.sendToken(token)
  for (const [number, channel] of channels) t.deepEqual(await take(channel, 2), [70n + number, 80n + number])
})

test('a value that is no 64-bit number is INVALID_ARGUMENT', async (t) => {
  const { channel } = await pair(t)
  const wrong = [-1, -1n, 2n ** 64n, 2 ** 53, 0.5, Number.NaN, Infinity, '1', null, undefined, {}, true]
  for (const token of wrong) {
    const error = t.throws(() => channel.sendToken(token as never), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
    t.regex(error?.message ?? '', /a token must be a bigint/)
    if (typeof token === 'bigint') t.true(error?.message.endsWith(`not ${token}n`))
    if (typeof token === 'number') t.true(error?.message.endsWith(`not ${token}`))
  }
})

test('several loops share the tokens, and leaving one loses none', async (t) => {
  const { channel, partner } = await pair(t)
  const found: bigint[] = []
  const loops = Array.from({ length: 3 }, async () => {
    for await (const token of channel.tokens()) {
      found.push(token)
      if (token % 10n === 0n) break
    }
  })
  const send = (from: number, to: number) =>
    partner.run(
      ({ channel: there }, first: number, last: number) => {
        for (let token = first; token <= last; token += 1) there.sendToken(token)
      },
      from,
      to,
    )
  await send(1, 30)
  await within(Promise.all(loops), 'three loops to be left')
  t.deepEqual(
    found,
    Array.from({ length: 30 }, (_, index) => BigInt(index + 1)),
  )
  // These wait until a loop takes them.
  await send(31, 40)
  t.deepEqual(await take(channel, 10), [31n, 32n, 33n, 34n, 35n, 36n, 37n, 38n, 39n, 40n])
})

test('a waiting loop gets the next token, even if another loop asks before it resumes', async (t) => {
  const { channel, partner } = await pair(t)
  const waits = channel.tokens()[Symbol.asyncIterator]().next()
  t.true(await isPending(waits))
  // This side gets no notification, since its event loop is blocked.
  void partner.run(async ({ channel: there }) => {
    for (const token of [1, 2]) there.sendToken(token)
    await new Promise((resolve) => setTimeout(resolve, 50))
    await there.send('both are sent')
  })
  blockUntil(() => channel.tryReceive() !== undefined, 'the tokens are sent')
  const asks = channel.tokens()[Symbol.asyncIterator]().next()
  t.is((await within(waits, 'the first token')).value, 1n)
  t.is((await within(asks, 'the second token')).value, 2n)
})

test('tokens end with the channel: if the peer ends it, after the pending ones', async (t) => {
  for (const how of ['close', 'exit', 'kill'] as const) {
    const { channel, partner } = await pair(t)
    const waiting = (async () => {
      const found = []
      for await (const token of channel.tokens()) found.push(token)
      return found
    })()
    t.true(await isPending(waiting))
    if (how !== 'close') partner.mayFail()
    void partner
      .run(async ({ channel: there }, end) => {
        for (const token of [1, 2, 3]) there.sendToken(token)
        if (end === 'close') await there.close()
        else if (end === 'exit') process.exit()
        else process.kill(process.pid, 'SIGKILL')
      }, how)
      .catch(() => {})
    t.deepEqual(await within(waiting, 'the end of the tokens'), [1n, 2n, 3n], how)
    t.is((await channel.closed).reason, how === 'close' ? 'closed' : 'lost')
    t.throws(() => channel.sendToken(1), { code: 'ERR_RINGFENCE_PEER_LOST' })
    t.is(channel.stats().tokensDropped, 0)
  }
})

test('tokens that arrived before the peer ended can be taken afterwards', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async ({ channel: there }) => {
    for (const token of [1, 2, 3]) there.sendToken(token)
    await there.close()
  })
  t.is((await within(channel.closed, 'the end')).reason, 'closed')
  t.is(channel.stats().tokensReceived, 3)
  t.deepEqual(await take(channel, 2), [1n, 2n])
  const rest = []
  for await (const token of channel.tokens()) rest.push(token)
  t.deepEqual(rest, [3n])
})

test('a close of this side ends the tokens at once', async (t) => {
  const { channel, partner } = await pair(t)
  const waiting = channel.tokens()[Symbol.asyncIterator]().next()
  t.true(await isPending(waiting))
  await channel.close()
  t.deepEqual(await waiting, { done: true, value: undefined })
  t.throws(() => channel.sendToken(1), { code: 'ERR_RINGFENCE_CLOSED' })
  await t.throwsAsync(
    partner.run(async ({ channel: there }) => {
      await there.closed
      there.sendToken(1)
    }),
    { code: 'ERR_RINGFENCE_PEER_LOST' },
  )
})

// Serial, since the count is that of the process.
test.serial('a signal that is no token is counted, and no loop gets it', async (t) => {
  const { channel, partner } = await pair(t)
  const next = channel.tokens()[Symbol.asyncIterator]().next()
  const before = channel.stats().tokensStray
  await partner.run((_kit, pid: number) => {
    for (let count = 0; count < 10; count += 1) process.kill(pid, 50)
  }, process.pid)
  await until(() => channel.stats().tokensStray === before + 10, 'all are counted')
  t.true(await isPending(next))
  await partner.run(({ channel: there }) => there.sendToken(7))
  t.deepEqual(await within(next, 'the token'), { done: false, value: 7n })
})

test('a full queue is NO_SPACE, and accepted tokens arrive', async (t) => {
  const partner = await Partner.start(t, { through: ['prlimit', '--sigpending=200', '--'] })
  const { channel } = await pair(t, { partner })
  await partner.stop()
  let sent = 0
  const error = t.throws(
    () => {
      for (; ; sent += 1) channel.sendToken(sent)
    },
    { code: 'ERR_RINGFENCE_NO_SPACE' },
  )
  t.regex(error?.message ?? '', /RLIMIT_SIGPENDING/)
  partner.resume()
  const found = await partner.run(async ({ channel: there }, count: number) => {
    const tokens = []
    if (count > 0) for await (const token of there.tokens()) if (tokens.push(Number(token)) === count) break
    return tokens
  }, sent)
  t.deepEqual(
    found,
    Array.from({ length: sent }, (_, token) => token),
  )
  // The signals of all processes of this user count.
  await until(() => {
    try {
      channel.sendToken(1)
      return true
    } catch (full) {
      if ((full as RingfenceError).code !== 'ERR_RINGFENCE_NO_SPACE') throw full
      return false
    }
  }, 'there is room in the queue again')
  await channel.send('and the channel is what it was')
})

test('waiting for tokens keeps a process alive as long as its channel does', async (t) => {
  const { partner } = await pair(t)
  await partner.run(({ channel, keep }) => {
    keep['waiting'] = channel.tokens()[Symbol.asyncIterator]().next()
    channel.unref()
  })
  const exit = await within(partner.detach(), 'the partner to exit')
  t.is(exit.code, 0)
})

test('tokens from before the end are taken, even if nothing else keeps the process alive', async (t) => {
  const { channel, partner } = await pair(t)
  for (let token = 0; token < 20; token += 1) channel.sendToken(token)
  await partner.run(({ channel: there }) => void there.unref())
  await channel.close()
  await partner.run(async ({ channel: there }) => {
    await there.closed
    there.unref()
    process.exitCode = 3
    process.once('disconnect', async () => {
      for await (const token of there.tokens()) {
        // Long enough that the event loop turns in between.
        for (const end = performance.now() + 1; performance.now() < end;);
        if (token === 19n) process.exitCode = 0
      }
    })
  })
  const exit = await within(partner.detach(), 'the partner to exit')
  t.is(exit.code, 0)
})

/** The number of turns of the event loop of this process. */
const turns = () => performance.nodeTiming.uvMetricsInfo.loopCount

test.serial('a token that no loop takes does not keep the event loop busy, and the next loop gets it', async (t) => {
  const { channel, partner } = await pair(t)
  const send = (token: number) => partner.run(({ channel: there }, next: number) => there.sendToken(next), token)
  const waits = take(channel, 1)
  await send(1)
  t.deepEqual(await waits, [1n])
  await send(2)
  await until(async () => {
    const before = turns()
    await new Promise((resolve) => setTimeout(resolve, 50))
    return turns() - before < 10
  }, 'the event loop rests')
  t.deepEqual(await take(channel, 1), [2n])
  const next = channel.tokens()[Symbol.asyncIterator]().next()
  t.true(await isPending(next))
  await send(3)
  t.is((await within(next, 'the third token')).value, 3n)
})

/** The event descriptors of this process. */
function events(): number {
  let count = 0
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`).includes('[eventfd]')) count += 1
    } catch {
      // It was closed in the meantime.
    }
  }
  return count
}

async function useTokens(t: ExecutionContext, partner: Partner): Promise<void> {
  const { channel } = await pair(t, { partner, address: abstractAddress() })
  await echo(partner)
  channel.sendToken(1)
  t.deepEqual(await take(channel, 1), [2n])
  await partner.run(({ channel: there }) => there.close())
  await channel.closed
}

test.serial('a channel that has ended keeps no descriptor for its tokens', async (t) => {
  const partner = await Partner.start(t)
  await useTokens(t, partner)
  const before = events()
  for (let round = 0; round < 10; round += 1) await useTokens(t, partner)
  t.true(events() <= before, `${before} before, ${events()} after`)
})
