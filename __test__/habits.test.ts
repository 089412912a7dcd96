// Behaviour that users of node:net, EventTarget and web streams expect without reading the documentation.

import { once } from 'node:events'
import { createContext, runInContext } from 'node:vm'

import test from 'ava'
import { connect, listen, member, RingfenceError, type MessageInput, type Channel, type Options } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pattern } from './support/bytes.js'
import { joinHere, pair, Partner } from './support/partner.js'
import { isPending, within, until } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const halfOpen = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_CLOSED', message: /allowHalfOpen/ } as const

// allowHalfOpen

/** Reads to the end, by one of the ways that report it. Runs in both processes. */
async function readToTheEnd(channel: Channel, way: string): Promise<void> {
  if (way === 'receive') while ((await channel.receive()) !== undefined);
  if (way === 'waitReadable') while (await channel.waitReadable()) channel.receiveEach(() => {})
  if (way === 'for await') for await (const message of channel) void message
  if (way === 'duplex') for await (const chunk of channel.duplex()) void chunk
}

for (const way of ['receive', 'waitReadable', 'for await', 'duplex']) {
  test.serial(`two processes that only read to the end, by ${way}, do not wait for each other`, async (t) => {
    const { channel, partner } = await pair(t)
    const there = partner.run(
      async (kit, how: string, read: string) => {
        await kit.channel.send('to here')
        // oxlint-disable-next-line no-new-func
        await new Function(`return (${read})`)()(kit.channel, how)
        return (await kit.channel.closed).reason
      },
      way,
      readToTheEnd.toString(),
    )
    await channel.send('to there')
    // This is the only explicit end. The other side ends because it reads the end.
    await channel.end()
    await within(readToTheEnd(channel, way), 'the end')
    t.is((await within(channel.closed, 'the channel here')).reason, 'closed')
    t.is(await within(there, 'the channel over there'), 'closed')
  })
}

test.serial('two sides that have both ended stay open until one reads to the end', async (t) => {
  const { channel, partner } = await pair(t)
  await channel.send('wanted')
  await channel.end()
  await partner.run((kit) => kit.channel.end())
  t.true(await isPending(channel.closed))
  t.is(await channel.receive(), undefined)
  t.is((await within(channel.closed, 'the end here')).reason, 'closed')
  // The last messages are still available to the other side.
  const there = await partner.run(async (kit) => {
    const message = String(await kit.channel.receive())
    return [message, await kit.channel.receive(), (await kit.channel.closed).reason]
  })
  t.deepEqual(there, ['wanted', undefined, 'closed'])
})

test.serial(
  'this side ends once the end was read: earlier sends arrive, and a later one names the option',
  async (t) => {
    const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
    await partner.run(async (kit) => {
      await kit.channel.send('last')
      await kit.channel.end()
    })
    t.is(String(await channel.receive()), 'last')
    // The peer has ended, but no read has reported that yet.
    const sent = [channel.send(pattern(0, 50_000)), channel.send('behind it')]
    t.is(await channel.receive(), undefined)
    await t.throwsAsync(channel.send('late'), halfOpen)
    t.throws(() => channel.trySend('late'), halfOpen)
    t.throws(() => channel.reserve(1), halfOpen)
    await t.throwsAsync(channel.waitWritable(), halfOpen)
    const lengths = await partner.run(async (kit) => {
      const found: number[] = []
      for await (const message of kit.channel) found.push(message.length)
      return found
    })
    await Promise.all(sent)
    t.deepEqual(lengths, [50_000, 9])
    t.is((await channel.closed).reason, 'closed')
    await t.throwsAsync(channel.send('later'), halfOpen, 'also once the channel has ended')
    await t.notThrowsAsync(channel.end())
  },
)

test.serial('a later send names the option, even after the peer is gone', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => kit.channel.end())
  await partner.kill()
  t.is((await channel.closed).reason, 'closed')
  t.is(await channel.receive(), undefined)
  await t.throwsAsync(channel.send('late'), halfOpen)
})

test.serial('a lost peer is PEER_LOST for reads and sends', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.kill()
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
  await channel.closed
  await t.throwsAsync(channel.send('late'), { code: 'ERR_RINGFENCE_PEER_LOST' })
})

test.serial('allowHalfOpen: true allows sending after the end of the peer, until end', async (t) => {
  const { channel, partner } = await pair(t, { here: { allowHalfOpen: true } })
  await partner.run((kit) => kit.channel.end())
  t.is(await channel.receive(), undefined)
  t.false(await channel.waitReadable())
  await channel.send('still here')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still here')
  await channel.end()
  t.is(await partner.run((kit) => kit.channel.receive()), undefined)
  t.is((await channel.closed).reason, 'closed')
})

test.serial("a stream has the channel's allowHalfOpen: a write at 'end' goes through, as with a socket", async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => kit.channel.end())
  const stream = channel.duplex()
  stream.on('end', () => stream.write('in the nick of time'))
  stream.resume()
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'in the nick of time')
  t.is(await partner.run((kit) => kit.channel.receive()), undefined)
  t.is((await channel.closed).reason, 'closed')
  await t.throwsAsync(channel.send('late'), halfOpen)
})

test.serial('clients of a service and members have the option as well', async (t) => {
  const partner = await Partner.start(t)
  const service = abstractAddress()
  const listener = await listen(service, { allowHalfOpen: true })
  t.teardown(() => listener.close({ channels: 'close' }))
  const [agent] = await Promise.all([listener[Symbol.asyncIterator]().next(), partner.connect(service)])
  await partner.run((kit) => kit.channel.end())
  t.is(await agent.value!.receive(), undefined)
  await agent.value!.send('open')

  const place = abstractAddress()
  const membership = await member(place, { allowHalfOpen: true })
  t.teardown(() => membership.close())
  await partner.run(async (kit, where: string) => {
    const there = await kit.ringfence.member(where)
    await there.channel!.end()
  }, place)
  const next = await membership[Symbol.asyncIterator]().next()
  t.is(await next.value!.receive(), undefined)
  await next.value!.send('open')
})

// Loops over a channel that this side closes

test.serial('a loop ends if this side closes the channel, whether the loop waits or runs', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    for (let number = 0; number < 5; number += 1) await kit.channel.send(String(number))
  })
  const seen: string[] = []
  for await (const message of channel) {
    seen.push(String(message))
    if (seen.length === 2) await channel.close()
  }
  t.deepEqual(seen, ['0', '1'])
  for await (const message of channel) t.fail(String(message))
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_CLOSED' })
})

// AbortError

test.serial('a call that a signal has cancelled rejects with an AbortError', async (t) => {
  const { channel } = await pair(t)
  const controller = new AbortController()
  const waiting = channel.receive({ signal: controller.signal })
  controller.abort(new Error('enough'))
  const error = await t.throwsAsync(waiting, { name: 'AbortError', code: 'ABORT_ERR' })
  t.true(error instanceof RingfenceError)
  t.is((error.cause as Error).message, 'enough')
  t.regex(String(error), /^AbortError: /)
  await t.throwsAsync(connect(abstractAddress(), { signal: AbortSignal.abort(), wait: true }), { name: 'AbortError' })
  t.is(new RingfenceError('CLOSED', 'another').name, 'RingfenceError')
})

// Symbol.dispose

test.serial('disposing cancels a reservation, unless it was committed', async (t) => {
  const { channel, partner } = await pair(t)
  for (const size of [5, 5000]) {
    const reservation = channel.reserve(size)!
    reservation.bytes.fill(1)
    reservation[Symbol.dispose]()
    t.throws(() => reservation.commit(), invalid)
  }
  const committed = channel.reserve(4)!
  committed.bytes.fill(65)
  committed.commit()
  committed[Symbol.dispose]()
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'AAAA')
  await channel.end()
  t.is(await partner.run((kit) => kit.channel.receive()), undefined)
})

// MessageInput

test.serial('any MessageInput is a message: the bytes of the view', async (t) => {
  const { channel, partner } = await pair(t)
  const bytes = Uint8Array.from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
  const sources: [MessageInput, number, number][] = [
    [bytes.buffer, 0, 16],
    [new DataView(bytes.buffer, 3, 5), 3, 8],
    [new Uint16Array(bytes.buffer, 2, 3), 2, 8],
    [new Float64Array(bytes.buffer, 8, 1), 8, 16],
    [new Uint8ClampedArray(bytes.buffer, 1, 2), 1, 3],
    [new BigInt64Array(bytes.buffer), 0, 16],
    [runInContext('new Uint8Array([0, 1, 2]).buffer', createContext()) as ArrayBuffer, 0, 3],
    [new ArrayBuffer(0), 0, 0],
  ]
  for (const [source] of sources) {
    await channel.send(source)
    t.true(channel.trySend(source))
  }
  await channel.end()
  const found = await partner.run(async (kit) => {
    const all: number[][] = []
    for await (const message of kit.channel) all.push([...message])
    return all
  })
  t.deepEqual(
    found,
    sources.flatMap(([, from, to]) => [[...bytes.subarray(from, to)], [...bytes.subarray(from, to)]]),
  )
})

test.serial('an ArrayBuffer that was transferred is not a message', async (t) => {
  const { channel } = await pair(t)
  const gone = new ArrayBuffer(8)
  structuredClone(gone, { transfer: [gone] })
  await t.throwsAsync(channel.send(gone), invalid)
  t.throws(() => channel.trySend(gone), invalid)
})

// bufferedAmount

test.serial('bufferedAmount counts the bytes of messages that are not in the ring yet', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  t.is(channel.bufferedAmount, 0)
  const sent = [channel.send('12345')]
  t.is(channel.bufferedAmount, 5, 'it is on its way')
  await sent[0]
  t.is(channel.bufferedAmount, 0)
  let total = 5
  for (const size of [100, 30_000, 7, 0, 3000, 9000, 1]) {
    sent.push(channel.send(pattern(size, size)))
    total += size
  }
  const before = channel.bufferedAmount
  // The ring holds a part of it, and at most its capacity.
  t.true(before > total - 5 - 4096 && before <= total - 5, `${before} of ${total}`)
  const found = partner.run(async (kit, wanted: number) => {
    let read = 0
    while (read < wanted) read += (await kit.channel.receive())!.length
    return read
  }, total)
  await Promise.all(sent)
  t.is(channel.bufferedAmount, 0)
  t.is(await found, total)
  while (channel.trySend('full'));
  void channel.send(pattern(0, 5000)).catch(() => {})
  t.true(channel.bufferedAmount > 0)
  await channel.close()
  t.is(channel.bufferedAmount, 0)
})

// 'connection'

test.serial(
  "channels go to the listeners of 'connection', those that came before too, and to no loop meanwhile",
  async (t) => {
    const address = abstractAddress()
    const listener = await listen(address)
    t.teardown(() => listener.close({ channels: 'close' }))
    const early = await Partner.start(t)
    await early.connect(address)
    await until(() => listener.channels.length === 1, 'the first is there')
    const waiting: number[] = []
    const take = (channel: Channel) => void waiting.push(channel.peer.pid)
    listener.on('connection', take)
    t.deepEqual(waiting, [], 'not before the caller has gone on')
    await until(() => waiting.length === 1, 'the first was told')
    const late = await Partner.start(t)
    await late.connect(address)
    await until(() => waiting.length === 2, 'the second was told')
    t.deepEqual(waiting, [early.pid, late.pid])
    await t.throwsAsync(async () => {
      for await (const channel of listener) t.fail(String(channel.peer.pid))
    }, invalid)

    // Without a listener, loops get the channels again.
    listener.off('connection', take)
    const third = await Partner.start(t)
    const [next] = await Promise.all([listener[Symbol.asyncIterator]().next(), third.connect(address)])
    t.is(next.value?.peer.pid, third.pid)
  },
)

test.serial("a loop that waits when a listener of 'connection' comes is told; once takes one channel", async (t) => {
  const address = abstractAddress()
  const listener = await listen(address)
  t.teardown(() => listener.close({ channels: 'close' }))
  const waiting = listener[Symbol.asyncIterator]().next()
  const connection = once(listener, 'connection') as Promise<[Channel]>
  await t.throwsAsync(waiting, invalid)
  const partners = await Promise.all([Partner.start(t), Partner.start(t)])
  await partners[0]!.connect(address)
  t.is((await connection)[0].peer.pid, partners[0]!.pid)
  const [next] = await Promise.all([listener[Symbol.asyncIterator]().next(), partners[1]!.connect(address)])
  t.is(next.value?.peer.pid, partners[1]!.pid)
})

test.serial(
  "removeAllListeners takes those of 'connection', and not what the listener itself hears of them by",
  async (t) => {
    const address = abstractAddress()
    const listener = await listen(address)
    t.teardown(() => listener.close({ channels: 'close' }))
    for (const name of [[], ['connection'], ['newListener'], ['removeListener']] as ['connection'?][]) {
      listener.on('connection', () => t.fail('it was removed'))
      await Promise.resolve()
      listener.removeAllListeners(...name)
      if (name[0] !== 'connection') listener.removeAllListeners('connection')
      // Loops get the channels again.
      const looped = listener[Symbol.asyncIterator]().next()
      const partner = await Partner.start(t)
      await partner.connect(address)
      t.is((await looped).value?.peer.pid, partner.pid)
      // The next listener gets them, too.
      const event = once(listener, 'connection') as Promise<[Channel]>
      const other = await Partner.start(t)
      await other.connect(address)
      t.is((await within(event, 'the event'))[0].peer.pid, other.pid)
    }
  },
)

test.serial('an exception of a connection listener ends neither the service nor later connections', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  const there = await partner.run(async (kit, where: string) => {
    const uncaught: string[] = []
    process.on('uncaughtException', (error) => uncaught.push(error.message))
    const service = await kit.ringfence.listen(where)
    kit.keep['service'] = service
    let count = 0
    service.on('connection', (channel: Channel) => {
      count += 1
      if (count === 1) throw new Error('the first')
      void channel.send('welcome')
    })
    kit.keep['uncaught'] = uncaught
    return count
  }, address)
  t.is(there, 0)
  const first = await connect(address)
  t.teardown(() => first.close())
  // The service may hear of two clients in the other order.
  const told = () => partner.run((kit) => (kit.keep['uncaught'] as string[]).length > 0)
  await until(told, 'the first is there')
  const second = await connect(address)
  t.teardown(() => second.close())
  t.is(String(await second.receive()), 'welcome')
  t.deepEqual(await partner.run((kit) => kit.keep['uncaught']), ['the first'])
})

// Options

test.serial('an unknown option of a call is INVALID_ARGUMENT', async (t) => {
  const address = abstractAddress()
  for (const options of [{ mode: 0o600 }, { group: 'users' }, { maxPeers: 5 }, { alowHalfOpen: true }]) {
    await t.throwsAsync(connect(address, options as Options), invalid, JSON.stringify(options))
  }
  for (const allowHalfOpen of [1, 'true', null]) {
    await t.throwsAsync(joinHere(t, address, { allowHalfOpen } as unknown as Options), invalid)
  }
  const { channel } = await pair(t)
  await t.throwsAsync(channel.receive({ sginal: 5 } as {}), invalid)
  await t.throwsAsync(channel.waitReadable({ timeout: 5 } as {}), invalid)
  await t.throwsAsync(channel.close({ Linger: 5 } as {}), invalid)
})
