import { openSync, readFileSync, writeSync, closeSync } from 'node:fs'

import test, { type ExecutionContext } from 'ava'
import { join, member, merge, RingfenceError, type Channel, type Codec } from 'ringfence'

import { abstractAddress, addressOf, isBound, kinds, untilBound } from './support/address.js'
import { pattern } from './support/bytes.js'
import { joinHere, listenHere, pair, Partner, type PartnerError } from './support/partner.js'
import { isPending, within, turns, until } from './support/until.js'

const closed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_CLOSED' } as const
const lost = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_PEER_LOST' } as const

function fill(channel: Channel, size = 1000): number {
  let count = 0
  while (channel.trySend(pattern(count, size))) count += 1
  return count
}

/** Every way to send fails with this error. */
async function nothingIsSent(t: ExecutionContext, channel: Channel, error: { code: string }): Promise<void> {
  await t.throwsAsync(channel.send('late'), error, 'send')
  await t.throwsAsync(channel.send(pattern(0, 20_000)), error, 'send of more')
  t.throws(() => channel.trySend('late'), error, 'trySend')
  t.throws(() => channel.reserve(5), error, 'reserve')
  await t.throwsAsync(channel.waitWritable(), error, 'waitWritable')
}

/** Every way to read fails with this error. A loop ends if this side has closed the channel. */
async function nothingIsRead(
  t: ExecutionContext,
  channel: Channel,
  error: { code: string },
  byThisSide = error === closed,
): Promise<void> {
  await t.throwsAsync(channel.receive(), error, 'receive')
  await t.throwsAsync(channel.waitReadable(), error, 'waitReadable')
  t.throws(() => channel.tryReceive(), error, 'tryReceive')
  t.throws(() => channel.receiveEach(() => {}), error, 'receiveEach')
  const next = channel[Symbol.asyncIterator]().next()
  if (byThisSide) t.true((await next).done, 'for await')
  else await t.throwsAsync(next, error, 'for await')
}

test.serial('after end the peer reads the remainder, then the end; the other direction stays open', async (t) => {
  const { channel, partner } = await pair(t, { there: { allowHalfOpen: true } })
  void channel.send('one')
  void channel.send('two')
  await channel.end()
  await nothingIsSent(t, channel, closed)
  const there = await partner.run(async (kit) => {
    const texts = []
    for await (const message of kit.channel) texts.push(String(message))
    await kit.channel.send('still')
    return [...texts, String(kit.channel.readableEnded)]
  })
  t.deepEqual(there, ['one', 'two', 'true'])
  t.is(String(await channel.receive()), 'still')
  t.false(channel.readableEnded)
  t.true(await isPending(channel.closed))
})

for (const first of ['here', 'there'] as const) {
  test.serial(
    `once both sides have ended, ${first} first, and everything was read, the channel closes itself`,
    async (t) => {
      const { channel, partner, address } = await pair(t)
      const endThere = () => partner.run((kit) => kit.channel.end())
      await channel.send('to there')
      await partner.run((kit) => kit.channel.send('to here'))
      if (first === 'here') {
        await channel.end()
        await endThere()
      } else {
        await endThere()
        await channel.end()
      }
      t.true(await isPending(channel.closed), 'neither has read')
      t.is(String(await channel.receive()), 'to here')
      t.is(await channel.receive(), undefined)
      t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'to there')
      t.is(await partner.run((kit) => kit.channel.receive()), undefined)

      t.is((await channel.closed).reason, 'closed')
      t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'closed')
      t.is(await channel.receive(), undefined, 'an end that was read stays an end')
      t.false(isBound(address))
      await nothingIsSent(t, channel, closed)
    },
  )
}

/** Unhandled rejections that this call causes. */
async function unhandledOf(deed: () => void): Promise<unknown[]> {
  const unhandled: unknown[] = []
  const onUnhandled = (error: unknown) => void unhandled.push(error)
  process.on('unhandledRejection', onUnhandled)
  deed()
  await turns(2)
  process.off('unhandledRejection', onUnhandled)
  return unhandled
}

test.serial('a send on a channel that has ended says why, and is no unhandled rejection', async (t) => {
  for (const [way, error] of [
    ['close', closed],
    ['kill', lost],
  ] as const) {
    const { channel, partner } = await pair(t)
    if (way === 'close') await channel.close()
    else await partner.kill()
    await channel.closed
    for (const end of [() => {}, () => channel.end()]) {
      await end()
      t.deepEqual(await unhandledOf(() => void channel.send('late')), [], way)
      await nothingIsSent(t, channel, error)
    }
  }
})

test.serial('a send after this side’s own end is an unhandled rejection, like any mistake', async (t) => {
  const { channel } = await pair(t)
  await channel.end()
  let late!: Promise<void>
  t.is((await unhandledOf(() => void (late = channel.send('late')))).length, 1)
  await t.throwsAsync(late, closed)
})

for (const kind of ['channel', 'typed channel'] as const) {
  test.serial(`sends of a ${kind} without a handler crash no process, whatever happens to the peer`, async (t) => {
    const ways: [title: string, deed: (channel: Channel) => unknown][] = [
      ['end', (channel) => channel.end()],
      ['close', (channel) => channel.close()],
    ]
    for (const [way, deed] of ways) {
      const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
      await partner.run((kit, isTyped) => {
        const { channel: there, keep, ringfence } = kit
        const typed = there.with(ringfence.json<string>())
        const send = () => {
          // These promises have no handlers.
          if (isTyped) void typed.send('x'.repeat(400))
          else void there.send('x'.repeat(400))
          void there.waitWritable(100)
          keep['sent'] = ((keep['sent'] as number | undefined) ?? 0) + 1
        }
        keep['timer'] = setInterval(() => {
          for (let number = 0; number < 10; number += 1) send()
        }, 1)
      }, kind === 'typed channel')
      const sent = () => partner.run(({ keep }) => (keep['sent'] as number | undefined) ?? 0)
      const buffered = () => partner.run(({ channel: there }) => there.bufferedAmount)
      await until(async () => (await buffered()) > 4096, 'the ring is full')
      await deed(channel)
      // The end arrives while messages are queued.
      const received = await partner.run(({ channel: there }) => there.receive())
      t.is(received, undefined, way)
      const before = await sent()
      await until(async () => (await sent()) > before + 50, 'it sends on')
      const code = way === 'end' ? 'ERR_RINGFENCE_CLOSED' : /PEER_LOST|CLOSED/
      const late = await t.throwsAsync<PartnerError>(partner.run(({ channel: there }) => there.send('late')))
      t.regex(late!.code!, new RegExp(code), 'one that is waited for')
      t.throws(() => channel.sendToken(-1), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
      await channel.close()
      await partner.run(async ({ channel: there }) => (await there.closed).reason)
      const after = await sent()
      await until(async () => (await sent()) > after + 50, 'it sends on after the end')
      await partner.run(({ keep }) => clearInterval(keep['timer'] as NodeJS.Timeout))
      await partner.kill()
    }
  })
}

test.serial('sends during a close of this side crash no process', async (t) => {
  const { channel } = await pair(t, { options: { capacity: 4096 } })
  fill(channel, 500)
  const last = channel.send('last')
  const lingering = channel.close({ linger: 60_000 })
  t.deepEqual(await unhandledOf(() => void channel.send('late')), [])
  await t.throwsAsync(channel.send('late'), closed)
  channel.destroy()
  await t.throwsAsync(last, closed)
  await lingering

  const address = abstractAddress()
  const membership = await member(address)
  const partner = await Partner.start(t)
  await partner.run(async (kit, where) => {
    kit.keep['membership'] = await kit.ringfence.member(where)
  }, address)
  const partners = membership[Symbol.asyncIterator]()
  const own = (await partners.next()).value as Channel
  const leaving = membership.close()
  t.deepEqual(await unhandledOf(() => void own.send('late')), [])
  await leaving
  await t.throwsAsync(own.send('late'), closed)
})

test.serial('end resolves once everything that was sent before is in the ring', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const sent = [channel.send(pattern(0, 30_000)), channel.send('after it')]
  const ended = channel.end()
  t.is(channel.end(), ended, 'a second end is the first one')
  t.true(await isPending(ended))
  await t.throwsAsync(channel.send('too late'), closed)
  const lengths = await partner.run(async (kit) => {
    const found = []
    for await (const message of kit.channel) found.push(message.length)
    return found
  })
  t.deepEqual(lengths, [30_000, 8])
  await Promise.all(sent)
  await ended
})

test.serial(
  'after close the peer reads the messages in the ring, then the end; both sides report closed',
  async (t) => {
    const { channel, partner, address } = await pair(t, { here: { capacity: 65536 } })
    const count = fill(channel)
    await channel.close()
    t.is((await channel.closed).reason, 'closed')
    const there = await partner.run(async (kit) => {
      const { reason } = await kit.channel.closed
      let found = 0
      for await (const message of kit.channel) {
        if (!message.equals(kit.bytes.pattern(found, 1000))) throw new Error(`message ${found} is another`)
        found += 1
      }
      return { reason, found, ended: kit.channel.readableEnded, again: await kit.channel.receive() }
    })
    t.deepEqual(there, { reason: 'closed', found: count, ended: true, again: undefined })
    // Only the host frees the address, and one of the two is the host.
    t.false(isBound(address))
  },
)

test.serial('pending sends and a pending waitWritable reject with CLOSED when this side closes', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  fill(channel)
  const waiting = [channel.send('x'.repeat(100)), channel.send(pattern(0, 9000)), channel.send(pattern(0, 100_000))]
  const writable = channel.waitWritable(1000)
  t.true(await isPending(waiting[0]!))
  const over = channel.close()
  for (const send of waiting) await t.throwsAsync(send, closed)
  await t.throwsAsync(writable, closed)
  await over
  t.is(await partner.run((kit) => kit.channel.receiveEach(() => {}, Infinity)), 4)
})

test.serial('close flushes what was sent in the same tick and fits into the ring', async (t) => {
  const { channel, partner } = await pair(t)
  const sent = [channel.send('one'), channel.send(pattern(0, 100_000)), channel.send('three')]
  await channel.close()
  await t.notThrowsAsync(Promise.all(sent))
  const lengths = partner.run(async (kit) => {
    const found = []
    for await (const message of kit.channel) found.push(message.length)
    return found
  })
  t.deepEqual(await lengths, [3, 100_000, 5])
})

test.serial('linger is the time that pending sends have to finish', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  fill(channel)
  const sent = channel.send(pattern(0, 100_000))
  const over = channel.close({ linger: 60_000 })
  await t.throwsAsync(channel.send('too late'), closed)
  t.true(await isPending(over))
  t.true(await isPending(channel.closed))
  const lengths = partner.run(async (kit) => {
    const found = []
    for await (const message of kit.channel) found.push(message.length)
    return found
  })
  await sent
  await over
  t.deepEqual(await lengths, [1000, 1000, 1000, 1000, 100_000])
})

test.serial('sends that are still pending after linger reject with CLOSED', async (t) => {
  const { channel } = await pair(t, { here: { capacity: 4096 } })
  const sent = channel.send(pattern(0, 100_000))
  const over = channel.close({ linger: 30 })
  await t.throwsAsync(sent, closed)
  await over
  t.is((await channel.closed).reason, 'closed')
})

test.serial('a second close is the first one, and a destroy does not wait for it', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const sent = channel.send(pattern(0, 100_000))
  const first = channel.close({ linger: 600_000 })
  t.is(channel.close(), first)
  t.true(await isPending(first))
  channel.destroy()
  await t.throwsAsync(sent, closed)
  await first
  t.deepEqual(await channel.closed, { reason: 'closed' })
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'lost')
})

test.serial('the loss of the peer ends a linger', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const sent = channel.send(pattern(0, 100_000))
  const over = channel.close({ linger: 600_000 })
  await partner.run((kit) => kit.channel.send('never read'))
  await partner.kill()
  await t.throwsAsync(sent, lost)
  await over
  t.is((await channel.closed).reason, 'lost')
  // This side has closed, so nothing is kept for a reader.
  await nothingIsRead(t, channel, closed)
})

test.serial('a pending read returns the end when this side closes, and a later one rejects with CLOSED', async (t) => {
  const { channel, partner } = await pair(t)
  const waiting = channel.receive()
  const readable = channel.waitReadable()
  const { channel: looped } = await pair(t)
  const next = looped[Symbol.asyncIterator]().next()
  await Promise.all([channel.close(), looped.close()])
  t.is(await waiting, undefined)
  t.false(await readable)
  t.true((await next).done)
  await nothingIsRead(t, channel, closed)
  await nothingIsSent(t, channel, closed)
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'closed')
})

test.serial('after close each call is CLOSED or does nothing', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => kit.channel.send('never read'))
  await channel.close()
  await nothingIsRead(t, channel, closed)
  await nothingIsSent(t, channel, closed)
  await t.notThrowsAsync(channel.end())
  await t.notThrowsAsync(channel.close())
  t.is(channel.ref(), channel)
  t.is(channel.unref(), channel)
  t.true(channel.readableEnded)
  t.is(channel.peer.pid, partner.pid)
  t.true(channel.evidence.length > 0)
  t.is((await channel.closed).reason, 'closed')
  const stream = channel.duplex()
  const failed = new Promise<Error>((resolve) => stream.on('error', resolve))
  stream.resume()
  t.is(((await failed) as RingfenceError).code, 'ERR_RINGFENCE_CLOSED')
})

for (const linger of [-1, NaN, '5', null, {}, 5n, Symbol('linger')]) {
  test.serial(`a linger of ${typeof linger} ${String(linger)} is INVALID_ARGUMENT, and closes nothing`, async (t) => {
    const { channel, partner } = await pair(t)
    const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
    await t.throwsAsync(channel.close({ linger: linger as number }), invalid)
    await channel.send('still open')
    t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still open')
  })
}

test.serial('once the peer has closed, pending and later sends are PEER_LOST', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  fill(channel)
  const waiting = [channel.send('x'.repeat(100)), channel.send(pattern(0, 9000)), channel.waitWritable(1000)]
  t.true(await isPending(waiting[0]!))
  await partner.run(async (kit) => {
    await kit.channel.send('the last')
    await kit.channel.close()
  })
  for (const promise of waiting) await t.throwsAsync(promise, lost)
  t.is((await channel.closed).reason, 'closed')
  await nothingIsSent(t, channel, lost)
  t.is(String(await channel.receive()), 'the last')
  t.is(await channel.receive(), undefined)
})

test.serial(
  'after the peer’s SIGKILL everything that it had sent arrives, then PEER_LOST; the reason is lost',
  async (t) => {
    const { channel, partner } = await pair(t)
    const count = await partner.run((kit) => {
      let sent = 0
      while (kit.channel.trySend(kit.bytes.pattern(sent, sent % 3000))) sent += 1
      return sent
    })
    await partner.kill()
    for (let number = 0; number < count; number += 1) {
      const message = await channel.receive()
      if (!message?.equals(pattern(number, number % 3000))) return t.fail(`message ${number} of ${count} is another`)
    }
    await t.throwsAsync(channel.receive(), lost)
    t.false(channel.readableEnded)
    t.is((await channel.closed).reason, 'lost')
    return nothingIsSent(t, channel, lost)
  },
)

test.serial(
  'a peer may be killed at any moment of a transfer: messages that it had sent arrive in order',
  async (t) => {
    const address = addressOf('abstract', t)
    for (let round = 0; round < 10; round += 1) {
      const partner = await Partner.start(t)
      const { channel } = await pair(t, { address, partner })
      const size = [20, 900, 9000, 700_000][round % 4]!
      void partner.run(async (kit, length: number) => {
        for (let number = 0; ; number += 1) {
          await kit.channel.send(kit.bytes.pattern(number, length))
          kit.keep['sent'] = number + 1
          if (number % 5 === 0) await new Promise((resolve) => setImmediate(resolve))
        }
      }, size)
      let received = 0
      const read = (async () => {
        for await (const message of channel) {
          if (!message.equals(pattern(received, size))) throw new Error(`message ${received} is another`)
          received += 1
        }
      })()
      // Between two turns of its event loop it reports how much it has sent. In the meantime it is in the middle of a
      // message.
      let sent = 0
      while (sent < 20 + round * 7) sent = await partner.run((kit) => (kit.keep['sent'] as number) ?? 0)
      await partner.kill()
      await t.throwsAsync(read, lost)
      t.true(received >= sent, `${received} received, ${sent} were sent`)
      t.is((await channel.closed).reason, 'lost')
      t.false(isBound(address))
    }
  },
)

test.serial('a message whose sender is killed while writing it does not arrive; earlier ones do', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 4096 } })
  await partner.run((kit) => {
    void kit.channel.send('whole')
    void kit.channel.send(kit.bytes.pattern(0, 50_000))
  })
  const first = await channel.receive()
  // The rest of the ring already holds the beginning of the second message, and reading has started.
  t.is(channel.tryReceive(), undefined)
  await partner.kill()
  t.is(String(first), 'whole')
  await t.throwsAsync(channel.receive(), lost)
  t.is((await channel.closed).reason, 'lost')
})

test.serial('pending sends reject with PEER_LOST when the peer is killed', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const waiting = [channel.send('x'.repeat(100)), channel.send(pattern(0, 9000)), channel.send(pattern(0, 1_000_000))]
  const writable = channel.waitWritable(1000)
  await partner.kill()
  await Promise.allSettled(waiting)
  await t.throwsAsync(waiting[2]!, lost)
  await t.throwsAsync(writable, lost)
  t.is((await channel.closed).reason, 'lost')
  await nothingIsSent(t, channel, lost)
})

test.serial('pending reads reject with PEER_LOST when the peer is killed', async (t) => {
  const { channel, partner } = await pair(t)
  const waiting = [channel.receive(), channel.receive()]
  const readable = channel.waitReadable()
  for (const each of [...waiting, readable]) each.catch(() => {})
  await partner.kill()
  for (const each of [...waiting, readable]) await t.throwsAsync(each, lost)
})

test.serial('a peer that exits without a close leaves its messages readable, and is lost', async (t) => {
  for (const way of ['exit', 'throw'] as const) {
    const { channel, partner } = await pair(t)
    partner.mayFail()
    void partner.run(async (kit, how: string) => {
      await kit.channel.send('the last')
      if (how === 'exit') process.exit(0)
      setImmediate(() => {
        throw new Error('this is not caught')
      })
    }, way)
    t.is(String(await channel.receive()), 'the last')
    await t.throwsAsync(channel.receive(), lost)
    t.is((await channel.closed).reason, 'lost')
    await partner.exited
  }
})

test.serial('an end or a close is clean if the process exits before it resolves', async (t) => {
  for (const call of ['end', 'close'] as const) {
    const { channel, partner } = await pair(t)
    partner.mayFail()
    void partner.run((kit, name: typeof call) => {
      void kit.channel.send('the last')
      void kit.channel[name]()
      process.exit(0)
    }, call)
    t.is(String(await channel.receive()), 'the last', call)
    t.is(await channel.receive(), undefined, call)
    t.is((await channel.closed).reason, 'closed', call)
    await partner.exited
  }
})

for (const kind of kinds) {
  test.serial(`once closed has resolved, ${kind} addresses are free: the host may join there at once`, async (t) => {
    const address = addressOf(kind, t)
    for (const who of ['here', 'there', 'killed'] as const) {
      const joined = joinHere(t, address)
      await untilBound(address)
      const partner = await Partner.start(t)
      await partner.join(address)
      const channel = await joined
      t.is(channel.role, 'host')
      if (who === 'here') void channel.close()
      else if (who === 'there') await partner.run((kit) => kit.channel.close())
      else await partner.kill()
      await channel.closed
      t.false(isBound(address))

      const next = await Partner.start(t)
      const [again] = await Promise.all([join(address), next.join(address)])
      t.is(again.peer.pid, next.pid)
      await again.close()
    }
  })
}

test.serial('await using closes the channel at the end of its block', async (t) => {
  const { partner, address } = await (async () => {
    const made = await pair(t)
    await using channel = made.channel
    await channel.send('from the block')
    t.is(channel[Symbol.asyncDispose] instanceof Function, true)
    return made
  })()
  const there = await partner.run(async (kit) => [
    String(await kit.channel.receive()),
    await kit.channel.receive(),
    (await kit.channel.closed).reason,
  ])
  t.deepEqual(there, ['from the block', undefined, 'closed'])
  // The host has freed it already, whichever side that was.
  t.false(isBound(address))
})

test.serial('await using closes the channel if its block throws', async (t) => {
  const { channel, partner } = await pair(t)
  const thrown = new Error('enough')
  const error = await t.throwsAsync(async () => {
    await using mine = channel
    await mine.send('from the block')
    throw thrown
  })
  t.is(error, thrown)
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'closed')
})

/** The address in the process of the region that it writes, from /proc. */
function ownRegion(pid: number): number {
  const line = readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .find((one) => / rw-s .*(memfd|\/dev\/shm|\/SYSV|deleted)/.test(one))
  if (line === undefined) throw new Error('no region is mapped')
  return Number.parseInt(line, 16)
}

/** Writes a word into the memory of another process, which that process could have written itself. */
function writeWord(pid: number, offset: number, word: bigint): void {
  const memory = openSync(`/proc/${pid}/mem`, 'r+')
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(word)
  writeSync(memory, bytes, 0, 8, ownRegion(pid) + offset)
  closeSync(memory)
}

const TAIL = 128
const HEAD = 256

test.serial(
  'a peer with a malformed ring is RING_CORRUPT: the channel closes as corrupt, the process continues',
  async (t) => {
    for (const backing of ['memfd', 'shm'] as const) {
      const { channel, partner } = await pair(t, { options: { backing } })
      await partner.run((kit) => kit.channel.send('true'))
      t.is(String(await channel.receive()), 'true')
      writeWord(partner.pid, TAIL, 2n ** 40n)
      const corrupt = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_RING_CORRUPT' } as const
      t.throws(() => channel.tryReceive(), corrupt)
      t.is((await channel.closed).reason, 'corrupt')
      await nothingIsRead(t, channel, corrupt)
      await nothingIsSent(t, channel, corrupt)
    }
  },
)

test.serial('a peer with a forged read position is RING_CORRUPT as well', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  fill(channel)
  const waiting = channel.send('x'.repeat(1000))
  t.true(await isPending(waiting))
  writeWord(partner.pid, HEAD, 2n ** 40n)
  const corrupt = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_RING_CORRUPT' } as const
  await t.throwsAsync(
    (async () => {
      while (!channel.trySend('x'.repeat(1000)));
    })(),
    corrupt,
  )
  await t.throwsAsync(waiting, corrupt)
  t.is((await channel.closed).reason, 'corrupt')
  await nothingIsSent(t, channel, corrupt)
  await nothingIsRead(t, channel, corrupt)
})

const text: Codec<string> = { encode: String, decode: (bytes) => Buffer.from(bytes).toString() }

/** Reads to the end of the peer's messages, and returns them. */
type ReadAll = (channel: Channel) => Promise<unknown[]>

/** Reads in a loop, as a program would, until the channel has closed or `isOver` returns true. */
async function readAgain(channel: Channel, read: (found: (message: unknown) => void) => void, isOver = () => false) {
  const all: unknown[] = []
  let closes = false
  void channel.closed.then(() => (closes = true))
  const isDone = () => {
    read((message) => void all.push(message))
    return closes || isOver()
  }
  await until(isDone, 'the end is told')
  return all
}

function tryAll(channel: { tryReceive(): unknown }, found: (message: unknown) => void): void {
  for (let message = channel.tryReceive(); message !== undefined; message = channel.tryReceive()) found(message)
}

const drainAll = (channel: Channel, found: (message: unknown) => void) =>
  channel.receiveEach((bytes, offset, length) => found(Buffer.from(bytes.subarray(offset, offset + length))))

const iterated = async (messages: AsyncIterable<unknown>) => {
  const all: unknown[] = []
  for await (const message of messages) all.push(message)
  return all
}

/** Each way to read a channel. All of them report the end of the peer's sending. */
const ways: Record<string, ReadAll> = {
  receive: async (channel) => {
    const all: unknown[] = []
    for (let message = await channel.receive(); message; message = await channel.receive()) all.push(message)
    return all
  },
  tryReceive: (channel) => readAgain(channel, (found) => tryAll(channel, found)),
  'tryReceive and readableEnded': (channel) =>
    readAgain(
      channel,
      (found) => {
        const message = channel.tryReceive()
        if (message !== undefined) found(message)
      },
      () => channel.readableEnded,
    ),
  receiveEach: (channel) => readAgain(channel, (found) => drainAll(channel, found)),
  'receiveEach and readableEnded': (channel) =>
    readAgain(
      channel,
      (found) => {
        if (!channel.readableEnded) drainAll(channel, found)
      },
      () => channel.readableEnded,
    ),
  'waitReadable and tryReceive': async (channel) => {
    const all: unknown[] = []
    while (await channel.waitReadable()) all.push(channel.tryReceive())
    return all
  },
  'for await': iterated,
  'a typed for await': (channel) => iterated(channel.with(text)),
  'a typed receive': async (channel) => {
    const all: unknown[] = []
    const typed = channel.with(text)
    for (let message = await typed.receive(); message !== undefined; message = await typed.receive()) all.push(message)
    return all
  },
  'a typed tryReceive': (channel) => readAgain(channel, (found) => tryAll(channel.with(text), found)),
  'a duplex': (channel) => iterated(channel.duplex()),
  'a duplex by its events': (channel) =>
    new Promise((resolve, reject) => {
      const all: unknown[] = []
      const stream = channel.duplex()
      stream.on('data', (message) => all.push(message))
      stream.on('error', reject)
      stream.on('close', () => resolve(all))
    }),
  'web streams': (channel) => iterated(channel.readable),
  'a port': (channel) =>
    new Promise((resolve) => {
      const all: unknown[] = []
      const port = channel.with(text).port()
      port.on('message', (message) => all.push(message))
      port.on('close', () => resolve(all))
    }),
  'a merge': async (channel) => (await iterated(merge([channel]))).map((found) => (found as [Channel, Buffer])[1]),
  'a merge by receiveEach': async (channel) => {
    const all: unknown[] = []
    const merged = merge([channel])
    while (await merged.waitReadable())
      merged.receiveEach((bytes, offset, length) => all.push(Buffer.from(bytes.subarray(offset, offset + length))))
    return all
  },
}

async function endsByItself(t: ExecutionContext, channel: Channel, partner: Partner, read: () => Promise<unknown[]>) {
  await partner.run(async (kit) => {
    await kit.channel.send('one')
    await kit.channel.send('two')
    await kit.channel.end()
  })
  const all = await within(read(), 'the end of the messages')
  t.is(all.join(), all.length === 1 ? 'onetwo' : 'one,two')
  await t.throwsAsync(channel.send('late'), closed)
  t.is((await within(channel.closed, 'the end here')).reason, 'closed')
  t.is(
    await within(
      partner.run(async (kit) => (await kit.channel.closed).reason),
      'the end there',
    ),
    'closed',
  )
}

for (const [way, read] of Object.entries(ways))
  test.serial(`a channel whose peer has ended closes itself once the end was read: by ${way}`, async (t) => {
    const { channel, partner } = await pair(t)
    await endsByItself(t, channel, partner, () => read(channel))
  })

test.serial('a channel whose peer has ended closes itself once the end was read: by messages()', async (t) => {
  const address = addressOf('abstract', t)
  const listener = await listenHere(t, address)
  const partner = await Partner.start(t)
  const messages = listener.messages()
  await partner.connect(address)
  await partner.run((kit) => kit.channel.send('zero'))
  const first = await messages[Symbol.asyncIterator]().next()
  const [channel] = first.value!
  await endsByItself(t, channel, partner, async () => {
    const all = iterated(messages)
    await within(channel.closed, 'the end of the channel')
    await listener.close()
    return (await all).map((found) => (found as [Channel, Buffer])[1])
  })
})

test.serial('with allowHalfOpen no way of reading ends the sending', async (t) => {
  for (const way of ['receive', 'tryReceive and readableEnded', 'receiveEach and readableEnded', 'a merge']) {
    const { channel, partner } = await pair(t, { here: { allowHalfOpen: true } })
    await partner.run((kit) => kit.channel.end())
    t.deepEqual(await ways[way]!(channel), [], way)
    t.is(channel.tryReceive(), undefined)
    await channel.send('still')
    t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still')
  }
})

test.serial('a stream that is still writing when its peer ends sends everything', async (t) => {
  // Reading with `tryReceive` below the stream must not end the sending before the stream does.
  const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
  const stream = channel.duplex()
  await partner.run((kit) => kit.channel.end())
  for (let number = 0; number < 20; number += 1) stream.write(pattern(number, 3000))
  stream.resume()
  const all = await partner.run(async (kit) => {
    let bytes = 0
    for await (const message of kit.channel) bytes += message.length
    return bytes
  })
  t.is(all, 60_000)
  t.is((await within(channel.closed, 'the end')).reason, 'closed')
})
