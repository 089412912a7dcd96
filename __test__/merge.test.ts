// Many to one: the turns of sources, the source of each message, and the end of a source.

import { readFileSync } from 'node:fs'
import { Readable } from 'node:stream'

import test, { type ExecutionContext } from 'ava'
import {
  connect,
  merge,
  RingfenceError,
  subscribe,
  type Channel,
  type Closed,
  type Listener,
  type Merge,
  type Options,
  type Publisher,
  type Subscription,
} from 'ringfence'

import { abstractAddress, untilBound } from './support/address.js'
import { pattern } from './support/bytes.js'
import { listenHere, nextChannel, pair, Partner } from './support/partner.js'
import { RustPartner, rustPartner } from './support/rust.js'
import { isPending, within, until } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const closed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_CLOSED' } as const

/** The bytes of the ring that one turn may take, and the record that may exceed them. */
const TURN = 16 * 1024 + 1024

interface Sender {
  partner: Partner
  channel: Channel
}

/** A service in this process, and `count` clients, each in its own process. */
async function service(t: ExecutionContext, count: number, there: Options = {}) {
  const address = abstractAddress()
  const listener = await listenHere(t, address)
  const senders: Sender[] = []
  for (let number = 0; number < count; number += 1) senders.push(await agentOf(t, listener, there))
  return { listener, senders }
}

async function agentOf(t: ExecutionContext, listener: Listener, there: Options = {}): Promise<Sender> {
  const partner = await Partner.start(t)
  const [channel] = await Promise.all([nextChannel(listener), partner.connect(listener.address, there)])
  return { partner, channel }
}

const say = (partner: Partner, ...texts: string[]) =>
  partner.run(async (kit, words: string[]) => {
    for (const word of words) await kit.channel.send(word)
  }, texts)

/** Fills the ring of a sender. Returns the number of messages. */
const fill = (partner: Partner, size: number) =>
  partner.run((kit, length: number) => {
    let count = 0
    while (kit.channel.trySend(new Uint8Array(length))) count += 1
    return count
  }, size)

/** A text, with the number of its sender. */
const numbered = (senders: Sender[], [source, message]: [Channel, Buffer]): [number, string] => [
  senders.findIndex(({ channel }) => channel === source),
  message.toString(),
]

/** The number of bytes of other sources before the first message of this one. */
async function bytesBefore(merged: Merge<Channel>, wanted: Channel): Promise<number> {
  let bytes = 0
  for await (const [source, message] of merged) {
    if (source === wanted) return bytes
    bytes += message.length + 8
  }
  return Infinity
}

function drainedBefore(merged: Merge<Channel>, wanted: Channel): number {
  let bytes = 0
  let before = Infinity
  merged.receiveEach((_bytes, _offset, length, source) => {
    if (source === wanted) before = Math.min(before, bytes)
    bytes += length + 8
  }, Infinity)
  return before
}

for (const size of [64, 1000]) {
  test.serial(
    `a source that floods with ${size} bytes gets no more than its turn before a quiet one is read`,
    async (t) => {
      const { senders } = await service(t, 2, { capacity: 1 << 20 })
      const [flood, quiet] = senders as [Sender, Sender]
      t.true((await fill(flood.partner, size)) * size > 400_000)
      await say(quiet.partner, 'first')
      await using merged = merge([flood.channel, quiet.channel])
      t.true((await bytesBefore(merged, quiet.channel)) <= TURN)

      // It was found empty, and now has a message.
      for (let round = 0; round < 3; round += 1) {
        t.is((await merged.receive())![0], flood.channel)
        await fill(flood.partner, size)
        await say(quiet.partner, 'again')
        const before = await bytesBefore(merged, quiet.channel)
        t.true(before <= 2 * TURN, `${before} bytes came before it`)
      }
      await fill(flood.partner, size)
      await say(quiet.partner, 'to a visitor')
      t.true(drainedBefore(merged, quiet.channel) <= 2 * TURN)
    },
  )
}

test.serial('a quiet source is read within a few turns, although many others are empty', async (t) => {
  const { listener, senders } = await service(t, 2, { capacity: 1 << 20 })
  const [flood, quiet] = senders as [Sender, Sender]
  const idle = await Partner.start(t)
  const [others] = await Promise.all([
    Promise.all(Array.from({ length: 40 }, () => nextChannel(listener))),
    idle.run(async (kit, address: string) => {
      kit.keep['all'] = await Promise.all(
        Array.from({ length: 40 }, () => kit.ringfence.connect(address, { capacity: 4096 })),
      )
    }, listener.address),
  ])
  await using merged = merge([flood.channel, ...others, quiet.channel])
  await fill(flood.partner, 64)
  // All others have been found empty once.
  for (let count = 0; count < 1000; count += 1) t.is((await merged.receive())![0], flood.channel)
  await fill(flood.partner, 64)
  await say(quiet.partner, 'now')
  // Four of the empty sources are checked after each turn.
  t.true((await bytesBefore(merged, quiet.channel)) <= 13 * TURN)
})

test.serial('a turn also ends after a while: if each message takes long, few come before a quiet source', async (t) => {
  const { senders } = await service(t, 2, { capacity: 1 << 20 })
  const [flood, quiet] = senders as [Sender, Sender]
  await using merged = merge([flood.channel, quiet.channel])
  await fill(flood.partner, 8)
  let before = -1
  let count = 0
  for await (const [source] of merged) {
    if (source === quiet.channel) break
    const end = performance.now() + 0.5
    while (performance.now() < end);
    count += 1
    if (before !== -1) before += 1
    // The time for one message has already been measured.
    else if (count >= 300) {
      await say(quiet.partner, 'now')
      before = 0
    }
  }
  // The bytes of a turn would allow 724. All loops of a thread share one clock: after many quick messages in earlier
  // tests, it may be read only after 256 more.
  t.true(before < 300, `${before} messages`)
})

test.serial('each message has its source, and each source is read in order', async (t) => {
  const count = 300
  const { senders } = await service(t, 3, { capacity: 65_536 })
  const sending = senders.map(({ partner }, number) =>
    partner.run(
      async (kit, own: number, messages: number) => {
        for (let index = 0; index < messages; index += 1) {
          // A few are longer than half the ring, and are sent in fragments.
          const size = index % 50 === 7 ? 100_000 : (index * 37 * (own + 1)) % 5000
          await kit.channel.send(kit.bytes.pattern(own * 1000 + index, size))
        }
        await kit.channel.end()
      },
      number,
      count,
    ),
  )
  const merged = merge(senders.map(({ channel }) => channel))
  const next = [0, 0, 0]
  const check = (source: Channel, message: Uint8Array) => {
    const own = senders.findIndex(({ channel }) => channel === source)
    t.is(source.peer.pid, senders[own]!.partner.pid)
    const wanted = pattern(own * 1000 + next[own]!, message.length)
    if (!wanted.equals(message)) t.fail(`message ${next[own]} of ${own} is another`)
    next[own]! += 1
  }
  const ended = new Map<Channel, [Closed['reason'], number]>()
  merged.on('disconnect', (source, { reason }) =>
    ended.set(source, [reason, next[senders.findIndex(({ channel }) => channel === source)]!]),
  )
  // All ways to read, in turns.
  let turn = 0
  while (await within(merged.waitReadable(), 'the next message')) {
    turn += 1
    if (turn % 2 === 0)
      merged.receiveEach(
        (bytes, offset, length, source) => check(source, bytes.subarray(offset, offset + length)),
        1 + (turn % 7),
      )
    else {
      const message = await merged.receive()
      if (message !== undefined) check(...message)
    }
    if (turn % 5 === 0)
      for await (const [source, message] of merged) {
        check(source, message)
        break
      }
  }
  t.deepEqual(next, [count, count, count])
  t.deepEqual(
    senders.map(({ channel }) => ended.get(channel)),
    [
      ['closed', count],
      ['closed', count],
      ['closed', count],
    ],
  )
  t.deepEqual(merged.sources, [])
  t.is(await merged.receive(), undefined)
  await Promise.all(sending)
})

test.serial('messages of a killed source are read, then its end is reported, and the others continue', async (t) => {
  const { senders } = await service(t, 2)
  const [doomed, other] = senders as [Sender, Sender]
  const ends: [number, Closed['reason'], number][] = []
  const merged = merge([doomed.channel, other.channel])
  merged.on('disconnect', (source, { reason }) =>
    ends.push([senders.findIndex(({ channel }) => channel === source), reason, merged.sources.length]),
  )
  await say(doomed.partner, 'one', 'two')
  await doomed.partner.kill()
  await doomed.channel.closed
  t.is(merged.sources.length, 2)
  t.deepEqual(numbered(senders, (await merged.receive())!), [0, 'one'])
  t.deepEqual(numbered(senders, (await merged.receive())!), [0, 'two'])
  const waiting = merged.receive()
  await until(() => ends.length > 0, 'the end is told')
  t.deepEqual(ends, [[0, 'lost', 1]])
  t.true(await isPending(waiting))
  await say(other.partner, 'still here')
  t.deepEqual(numbered(senders, (await waiting)!), [1, 'still here'])
  await other.partner.run((kit) => kit.channel.close())
  t.is(await within(merged.receive(), 'the end'), undefined)
  t.deepEqual(ends[1], [1, 'closed', 0])
})

test.serial('a source that has ended is removed, even if no call reads', async (t) => {
  const { channel, partner } = await pair(t)
  const merged = merge([channel])
  t.is(await merged.receive({ signal: AbortSignal.timeout(1) }).catch((error) => error.code), 'ABORT_ERR')
  const ended = new Promise<[Channel, Closed]>((resolve) => merged.once('disconnect', (...end) => resolve(end)))
  await partner.kill()
  const [source, end] = await within(ended, 'the end')
  t.is(source, channel)
  t.is(end.reason, 'lost')
  t.is(end.error!.code, 'ERR_RINGFENCE_PEER_LOST')
  t.deepEqual(merged.sources, [])
})

test.serial('replacing an ended source in a listener does not end the merge', async (t) => {
  const { listener, senders } = await service(t, 1)
  const [first] = senders as [Sender]
  const second = await agentOf(t, listener)
  const merged = merge([first.channel])
  merged.on('disconnect', (source) => source === first.channel && merged.add(second.channel))
  const received = merged.receive()
  await first.partner.run((kit) => kit.channel.end())
  await say(second.partner, 'from the second')
  t.is(String((await within(received, 'a message'))![1]), 'from the second')
})

test.serial('an exception of a listener of the end is an uncaught exception, and loses nothing', async (t) => {
  const reader = await Partner.start(t)
  const address = abstractAddress()
  await reader.run(async (kit, where: string) => {
    kit.keep['listener'] = await kit.ringfence.listen(where)
  }, address)
  const heard = reader.run(async (kit) => {
    const merged = kit.ringfence.merge()
    const said: string[] = []
    merged.on('disconnect', () => {
      throw new Error('of a listener')
    })
    process.on('uncaughtException', (error) => said.push(error.message))
    // The first source may be gone again when the second connects.
    let count = 0
    for await (const channel of kit.keep['listener'] as Listener) {
      merged.add(channel)
      count += 1
      if (count === 2) break
    }
    for await (const [, message] of merged) said.push(String(message))
    await kit.until.until(() => said.length === 3, 'the listener was called for both')
    return said
  })
  const first = await connect(address)
  const second = await connect(address)
  await first.close()
  await second.send('on')
  await second.close()
  // The first source may be read only after both have connected, and its end found after the second's message.
  t.deepEqual((await heard).sort(), ['of a listener', 'of a listener', 'on'])
})

test.serial('a source has one reader: a second merge and direct reads are refused, and lose nothing', async (t) => {
  const { channel, partner } = await pair(t)
  await say(partner, 'one', 'two', 'three')
  const merged = merge([channel])
  t.throws(() => merge([channel]), invalid)
  t.throws(() => channel.tryReceive(), invalid)
  t.throws(() => channel.receiveEach(() => {}), invalid)
  t.throws(() => channel.duplex(), invalid)
  await t.throwsAsync(channel.receive(), invalid)
  await t.throwsAsync(channel.waitReadable(), invalid)
  await t.throwsAsync(async () => {
    for await (const _ of channel);
  }, invalid)
  t.is(merged.add(channel), merged)
  t.is(merged.sources.length, 1)
  t.is(String((await merged.receive())![1]), 'one')
  // Only reading belongs to the merge.
  await channel.send('sent meanwhile')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'sent meanwhile')
  t.is((await channel.verify()).pid, partner.pid)

  t.true(merged.delete(channel))
  t.false(merged.delete(channel))
  t.is(String(await channel.receive()), 'two')
  const other = merge([channel])
  t.is(String((await other.receive())![1]), 'three')
  const waiting = other.receive()
  await other[Symbol.asyncDispose]()
  t.is(await waiting, undefined)
  await say(partner, 'after disposal')
  t.is(String(await channel.receive()), 'after disposal')
  await t.throwsAsync(other.receive(), closed)
  await t.throwsAsync(other.waitReadable(), closed)
  t.throws(() => other.receiveEach(() => {}), closed)
  t.throws(() => other.add(channel), closed)
  for await (const _ of other) t.fail()
})

test.serial('a source that a call waits for is refused, and so are those beside it', async (t) => {
  const { senders } = await service(t, 2)
  const [first, second] = senders as [Sender, Sender]
  const waiting = second.channel.receive()
  t.throws(() => merge([first.channel, second.channel]), invalid)
  await say(first.partner, 'to the first')
  t.is(String(await first.channel.receive()), 'to the first')
  await say(second.partner, 'to the second')
  t.is(String(await waiting), 'to the second')
  t.deepEqual(merge([first.channel, second.channel]).sources, [first.channel, second.channel])
})

test('wrong sources, options and visitors are INVALID_ARGUMENT', async (t) => {
  t.throws(() => merge(5 as never), invalid)
  t.throws(() => merge(null as never), invalid)
  t.throws(() => merge([{}] as never), invalid)
  t.throws(() => merge().add('a channel' as never), invalid)
  t.throws(() => merge().receiveEach(5 as never), invalid)
  t.throws(() => merge().receiveEach(() => {}, -1), invalid)
  await t.throwsAsync(merge().receive({ sinal: 1 } as never), invalid)
  await t.throwsAsync(merge().waitReadable({ signal: {} as never }), invalid)
})

test.serial(
  'a merge that never had a source waits for one; a merge with none left has ended until one is added',
  async (t) => {
    const { channel, partner } = await pair(t)
    const merged = merge()
    const received = merged.receive()
    const readable = merged.waitReadable()
    t.true(await isPending(received))
    merged.add(channel)
    await say(partner, 'one')
    t.is(String((await received)![1]), 'one')
    t.true(await isPending(readable))
    merged.delete(channel)
    t.false(await readable)
    t.is(await merged.receive(), undefined)
    merged.add(channel)
    await say(partner, 'two')
    t.true(await merged.waitReadable())
    t.is(String((await merged.receive())![1]), 'two')
  },
)

test.serial('waiting calls are served in order, and an abort loses nothing', async (t) => {
  const { senders } = await service(t, 2)
  const merged = merge(senders.map(({ channel }) => channel))
  const over = new AbortController()
  const calls = [merged.receive(), merged.receive({ signal: over.signal }), merged.receive(), merged.receive()]
  t.true(await isPending(calls[0]!))
  over.abort()
  await t.throwsAsync(calls[1]!, { code: 'ABORT_ERR' })
  await say(senders[0]!.partner, 'one')
  t.is(String((await calls[0]!)![1]), 'one')
  await say(senders[1]!.partner, 'two')
  t.is(String((await calls[2]!)![1]), 'two')
  await say(senders[0]!.partner, 'three')
  t.is(String((await calls[3]!)![1]), 'three')
})

test.serial('a visitor may delete the source that it visits, and close the merge', async (t) => {
  const { senders } = await service(t, 2)
  const [first, second] = senders as [Sender, Sender]
  for (const { partner } of senders) await say(partner, 'one', 'two', 'three')
  const merged = merge(senders.map(({ channel }) => channel))
  const visits: string[] = []
  t.is(
    merged.receiveEach((bytes, offset, length, source) => {
      visits.push(String(Buffer.from(bytes.subarray(offset, offset + length))))
      if (source === first.channel) merged.delete(source)
      // Without a limit, visits end after a time that a busy machine may exceed here.
    }, Infinity),
    4,
  )
  t.deepEqual(visits, ['one', 'one', 'two', 'three'])
  t.is(String(first.channel.tryReceive()), 'two')
  await say(second.partner, 'four', 'five')
  t.is(
    merged.receiveEach(() => void merged.close()),
    1,
  )
  t.is(String(second.channel.tryReceive()), 'five')
  const wrong = new Error('of the visitor')
  const again = merge([first.channel])
  t.throws(
    () =>
      again.receiveEach(() => {
        throw wrong
      }),
    { is: wrong },
  )
  t.is(
    again.receiveEach(() => {}),
    0,
  )
})

test.serial('receiveEach visits the available messages of all sources, at most max', async (t) => {
  const { senders } = await service(t, 3)
  const merged = merge(senders.map(({ channel }) => channel))
  t.is(
    merged.receiveEach(() => t.fail()),
    0,
  )
  for (const { partner } of senders) await say(partner, 'a', 'b', 'c', 'd')
  t.is(
    merged.receiveEach(() => {}, 0),
    0,
  )
  t.is(
    merged.receiveEach(() => {}, 5),
    5,
  )
  t.is(
    merged.receiveEach(() => {}),
    7,
  )
})

test.serial('if this side closes a source, it is removed, and the merge continues', async (t) => {
  const { senders } = await service(t, 2)
  const [first, second] = senders as [Sender, Sender]
  const merged = merge(senders.map(({ channel }) => channel))
  const ends: unknown[] = []
  merged.on('disconnect', (...end) => ends.push(end))
  const received = merged.receive()
  await first.channel.close()
  await say(second.partner, 'on')
  t.is((await received)![0], second.channel)
  t.deepEqual(ends, [[first.channel, { reason: 'closed' }]])
})

test.serial('100 sources of ten processes, with each kind of end', async (t) => {
  const address = abstractAddress()
  // A hundred concurrent handshakes take a while on a busy machine.
  const handshakeTimeout = 60_000
  const listener = await listenHere(t, address, { handshakeTimeout })
  const partners = await Promise.all(Array.from({ length: 10 }, () => Partner.start(t)))
  const merged = merge()
  const taking = (async () => {
    for (let count = 0; count < 100; count += 1) merged.add(await nextChannel(listener))
  })()
  await Promise.all(
    partners.map((partner) =>
      partner.run(async (kit, where: string) => {
        const all = await Promise.all(
          Array.from({ length: 10 }, () => kit.ringfence.connect(where, { capacity: 4096, handshakeTimeout: 60_000 })),
        )
        kit.keep['all'] = all
        for (const [index, channel] of all.entries())
          for (let number = 0; number < 20; number += 1) await channel.send(`${process.pid} ${index} ${number}`)
      }, address),
    ),
  )
  await taking
  t.is(merged.sources.length, 100)
  const reasons = new Map<string, number>()
  merged.on('disconnect', (_, { reason }) => reasons.set(reason, (reasons.get(reason) ?? 0) + 1))
  // Half of the processes are killed with all their messages unread. The others end or close.
  for (const [index, partner] of partners.entries()) {
    if (index % 2 === 0) await partner.kill()
    else
      await partner.run(async (kit) => {
        for (const [number, channel] of (kit.keep['all'] as Channel[]).entries())
          await (number % 2 === 0 ? channel.end() : channel.close())
      })
  }
  const next = new Map<string, number>()
  for await (const [source, message] of merged) {
    const [pid, index, number] = message.toString().split(' ')
    t.is(Number(pid), source.peer.pid)
    const key = `${pid} ${index}`
    t.is(Number(number), next.get(key) ?? 0)
    next.set(key, Number(number) + 1)
  }
  t.is(next.size, 100)
  t.deepEqual(new Set(next.values()), new Set([20]))
  t.is(reasons.get('lost'), 50)
  t.is(reasons.get('closed'), 50)
})

test.serial('a merge that waits for 30 idle sources does not wake until one sends', async (t) => {
  const reader = await Partner.start(t)
  const writer = await Partner.start(t)
  const address = abstractAddress()
  await reader.run(async (kit, where: string) => {
    kit.keep['listener'] = await kit.ringfence.listen(where)
  }, address)
  const taking = reader.run(async (kit) => {
    const listener = kit.keep['listener'] as Listener
    const merged = kit.ringfence.merge()
    kit.keep['merged'] = merged
    for await (const channel of listener) if (merged.add(channel).sources.length === 30) break
    const received: string[] = []
    kit.keep['received'] = received
    kit.keep['loop'] = (async () => {
      for await (const [, message] of merged) received.push(message.toString())
    })()
  })
  await writer.run(async (kit, where: string) => {
    kit.keep['all'] = await Promise.all(
      Array.from({ length: 30 }, () => kit.ringfence.connect(where, { capacity: 4096 })),
    )
  }, address)
  await taking
  /** The number of times that the reader's main thread has slept. */
  const slept = () =>
    Number(
      /^voluntary_ctxt_switches:\s*(\d+)/m.exec(
        readFileSync(`/proc/${reader.pid}/task/${reader.pid}/status`, 'utf8'),
      )![1],
    )
  // Work left from the start wakes the reader a few more times. If idle sources woke it, it would never sleep that
  // long.
  await until(async () => {
    const before = slept()
    await new Promise((resolve) => setTimeout(resolve, 300))
    return slept() === before
  }, 'the reader sleeps through a while')
  await writer.run(async (kit) => {
    for (const [number, channel] of (kit.keep['all'] as Channel[]).entries()) await channel.send(`from ${number}`)
  })
  const received = await reader.run(async (kit) => {
    await kit.until.until(() => (kit.keep['received'] as string[]).length === 30, 'all have come')
    return kit.keep['received'] as string[]
  })
  t.deepEqual(received.sort(), Array.from({ length: 30 }, (_, number) => `from ${number}`).sort())
})

test.serial('the event loop turns while two sources flood a merge', async (t) => {
  const { senders } = await service(t, 2, { capacity: 4 << 20 })
  for (const { partner } of senders) await fill(partner, 8)
  const merged = merge(senders.map(({ channel }) => channel))
  let timers = 0
  const timer = setInterval(() => (timers += 1), 5)
  let count = 0
  for await (const _ of merged) {
    const end = performance.now() + 0.02
    while (performance.now() < end);
    count += 1
    if (count === 5000) break
  }
  clearInterval(timer)
  t.true(timers > 5, `${timers} timers in 100 ms`)
})

test.serial('messages() reads from all clients of a service, which connect and disconnect', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address)
  const early = await Partner.start(t)
  await early.connect(address)
  await say(early, 'early')
  const messages = listener.messages()
  const late = await Partner.start(t)
  await late.connect(address)
  await say(late, 'late')
  const heard: string[] = []
  const loop = (async () => {
    for await (const [channel, message] of messages) {
      t.true(channel.peer.pid === (String(message).startsWith('early') ? early.pid : late.pid))
      heard.push(String(message))
      await channel.send(`to ${message}`)
    }
  })()
  await until(() => heard.length === 2, 'both are heard')
  t.deepEqual([...heard].sort(), ['early', 'late'])
  const answer = (partner: Partner) => partner.run(async (kit) => String(await kit.channel.receive()))
  t.is(await answer(early), 'to early')
  await early.kill()
  await say(late, 'late, and alone')
  t.is(await answer(late), 'to late')
  await listener.close()
  await say(late, 'late, and after the end')
  t.true(await isPending(loop))
  await late.run((kit) => kit.channel.end())
  await within(loop, 'the end of the loop')
  t.deepEqual(heard.slice(2), ['late, and alone', 'late, and after the end'])
  for await (const _ of listener.messages()) t.fail()
})

test.serial('calls of messages() share the messages, and leaving a loop loses nothing', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address)
  const { partner } = await (async () => {
    const agent = await Partner.start(t)
    await agent.connect(address)
    return { partner: agent }
  })()
  await say(partner, 'one', 'two', 'three')
  for (const wanted of ['one', 'two', 'three'])
    for await (const [, message] of listener.messages()) {
      t.is(String(message), wanted)
      break
    }
  const iterator = listener.messages()[Symbol.asyncIterator]()
  const next = iterator.next()
  t.true(await isPending(next))
  await iterator.return!()
  t.true((await next).done)
  await say(partner, 'four')
  const { value } = await listener.messages()[Symbol.asyncIterator]().next()
  t.is(String((value as [Channel, Buffer])[1]), 'four')
})

test.serial('messages() excludes loops over the listener, and connection listeners', async (t) => {
  const first = await listenHere(t, abstractAddress())
  const loop = first[Symbol.asyncIterator]()
  const waiting = loop.next()
  t.throws(() => first.messages(), invalid)
  await loop.return!()
  t.true((await waiting).done)
  first.messages()
  await t.throwsAsync(async () => {
    for await (const _ of first);
  }, invalid)
  t.throws(() => first.on('connection', () => {}), invalid)
  t.is(first.listenerCount('connection'), 0)

  const second = await listenHere(t, abstractAddress())
  const listen = () => {}
  second.on('connection', listen)
  t.throws(() => second.messages(), invalid)
  second.off('connection', listen)
  const messages = second.messages()
  await second.close()
  for await (const _ of messages) t.fail()
})

test.serial('subscriptions are read beside channels, and each is removed with its own reason', async (t) => {
  const publishers = await Promise.all([Partner.start(t), Partner.start(t), Partner.start(t)])
  const subscriptions = await Promise.all(
    publishers.map(async (partner, index) => {
      const address = abstractAddress()
      await partner.run(
        async (kit, where: string, stall: number) => {
          kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 65_536, stall })
        },
        address,
        index === 2 ? 1 : 60_000,
      )
      const subscription = await subscribe(address)
      t.teardown(() => subscription.close())
      return subscription
    }),
  )
  const [ending, doomed, stalled] = subscriptions as [Subscription, Subscription, Subscription]
  const { channel, partner } = await pair(t)
  // It is not read, so it blocks its publisher.
  await publishers[2]!.run(async (kit) => {
    const publisher = kit.keep['publisher'] as Publisher
    await kit.until.until(() => publisher.subscribers.length === 1, 'the publisher knows of it')
    while (publisher.subscribers.length > 0) await publisher.send(new Uint8Array(1000))
  })
  const merged = merge<Channel | Subscription>([channel, ...subscriptions])
  const ends = new Map<unknown, string>()
  merged.on('disconnect', (source, { reason }) => ends.set(source, reason))
  t.throws(() => ending.tryReceive(), invalid)
  await say(partner, 'from the channel')
  for (const publisher of publishers.slice(0, 2))
    await publisher.run(async (kit) => {
      for (let number = 0; number < 100; number += 1)
        await (kit.keep['publisher'] as Publisher).send(`number ${number}`)
    })
  await publishers[0]!.run((kit) => (kit.keep['publisher'] as Publisher).end())
  await publishers[1]!.kill()
  const heard = new Map<unknown, string[]>()
  for (let count = 0; count < 201; count += 1) {
    const [source, message] = (await within(merged.receive(), 'a message'))!
    heard.set(source, [...(heard.get(source) ?? []), String(message)])
  }
  const waiting = merged.receive()
  await until(() => ends.size === 3, 'three ends are told')
  const numbers = Array.from({ length: 100 }, (_, number) => `number ${number}`)
  t.deepEqual(heard.get(ending), numbers)
  t.deepEqual(heard.get(doomed), numbers)
  t.deepEqual(heard.get(channel), ['from the channel'])
  t.is(ends.get(ending), 'closed')
  t.is(ends.get(doomed), 'lost')
  t.is(ends.get(stalled), 'evicted')
  t.is(merged.sources.length, 1)
  await say(partner, 'last')
  t.is(String((await waiting)![1]), 'last')
})

test.serial('a source that was disconnected, and evicted before it was read, is not closed cleanly', async (t) => {
  const there = await Partner.start(t)
  const address = abstractAddress()
  await there.run(async (kit, where: string) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 16_384, stall: 100 })
  }, address)
  const subscription = await subscribe(address, { wait: true })
  const merged = merge([subscription])
  const ended = new Promise<Closed>((resolve) => merged.on('disconnect', (_, how) => resolve(how)))
  await there.run(async (kit) => {
    const publisher = kit.keep['publisher'] as Publisher
    await kit.until.until(() => publisher.subscribers.length === 1, 'it has a subscriber')
    for (let number = 0; number < 20; number += 1) await publisher.send('unread')
    await publisher.subscribers[0]!.disconnect()
    for (let number = 0; number < 100; number += 1) await publisher.send(kit.bytes.pattern(number, 1000))
  })
  const reading = merged.receiveEach(() => {})
  const { reason, error } = await within(ended, 'the end')
  t.is(reason, 'evicted')
  t.is(error?.code, 'ERR_RINGFENCE_EVICTED')
  await merged.close()
  await reading
})

test.serial('a merge reads a channel whose web stream has no pending read', async (t) => {
  const { partner, channel } = await pair(t)
  const reader = channel.readable.getReader()
  const reading = reader.read()
  await new Promise(setImmediate)
  t.throws(() => merge([channel]), invalid)
  await say(partner, 'streamed')
  t.is(String((await reading).value), 'streamed')
  const merged = merge([channel])
  await say(partner, 'merged')
  t.is(String((await merged.receive())![1]), 'merged')
  merged.delete(channel)
  await partner.run((kit) => kit.channel.end())
  t.is(await within(reader.closed, 'the end of the stream'), undefined)
})

test.serial('a Node merge reads Rust sources beside Node ones', async (t) => {
  const sizes = Array.from({ length: 200 }, (_, index) => (index * 61) % 9000)
  const options: Options = {
    capacity: 8192,
    maxMessageSize: 100_000,
    policy: { executable: [process.execPath, rustPartner] },
  }
  const rust = await Promise.all(
    [0, 1].map(async () => {
      const address = abstractAddress()
      const partner = new RustPartner(t, { deed: 'produce', address, capacity: 8192, longest: 100_000, sizes })
      await untilBound(address)
      const { join } = await import('ringfence')
      const channel = await join(address, options)
      t.teardown(() => channel.close())
      return { partner, channel }
    }),
  )
  const node = await pair(t)
  await say(node.partner, 'from Node')
  await node.partner.run((kit) => kit.channel.end())
  const next = new Map<Channel, number>()
  for await (const [source, message] of merge([node.channel, ...rust.map(({ channel }) => channel)])) {
    const number = next.get(source) ?? 0
    next.set(source, number + 1)
    if (source === node.channel) t.is(String(message), 'from Node')
    else t.true(pattern(number, sizes[number]!).equals(message), `message ${number}`)
  }
  t.deepEqual(
    [...next.values()].sort((one, other) => one - other),
    [1, 200, 200],
  )
})

const readAll: Record<string, (merged: Merge<Channel>, got: (message: Buffer) => void) => Promise<void>> = {
  'for await': async (merged, got) => {
    for await (const [, message] of merged) got(message)
  },
  batches: async (merged, got) => {
    for await (const messages of merged.batches()) for (const [, message] of messages) got(message)
  },
  'a generator over batches': async (merged, got) => {
    async function* each() {
      for await (const messages of merged.batches()) yield* messages
    }
    for await (const [, message] of each()) got(message)
  },
  receive: async (merged, got) => {
    for (let next; (next = await merged.receive()) !== undefined;) got(next[1])
  },
  'several calls of receive': async (merged, got) => {
    const each = async () => {
      const next = await merged.receive()
      if (next !== undefined) got(next[1])
    }
    await Promise.all(Array.from({ length: 4 }, each))
  },
  'a Readable that reads ahead': async (merged, got) => {
    for await (const [, message] of Readable.from(merged, { highWaterMark: 16 })) got(message as Buffer)
  },
  readable: async (merged, got) => {
    for await (const [, message] of merged.readable) got(message)
  },
  'a piped readable': async (merged, got) => {
    await merged.readable
      .pipeThrough(new TransformStream())
      .pipeTo(new WritableStream({ write: ([, message]) => got(message) }))
  },
  receiveEach: async (merged, got) => {
    while (await merged.waitReadable())
      merged.receiveEach((bytes, offset, length) => got(Buffer.from(bytes.subarray(offset, offset + length))))
  },
}

for (const [way, read] of Object.entries(readAll))
  for (const isWaiting of [false, true])
    test.serial(`${way}, ${isWaiting ? 'waiting' : 'ready'}: disconnect follows the last message`, async (t) => {
      const { channel, partner } = await pair(t)
      const merged = merge([channel])
      const events: string[] = []
      merged.on('disconnect', (_, { reason }) => {
        events.push(reason)
        void merged.close()
      })
      const send = () =>
        partner.run(async (kit) => {
          for (const text of ['one', 'two', 'three']) kit.channel.trySend(text)
          await kit.channel.close()
        })
      if (!isWaiting) {
        await send()
        await channel.closed
      }
      const reading = read(merged, (message) => events.push(message.toString()))
      if (isWaiting) await send()
      await within(reading, 'the end')
      t.deepEqual(events, ['one', 'two', 'three', 'closed'])
    })

test.serial('a program that polls finds the end of a merge without a turn of the event loop', async (t) => {
  const { channel, partner } = await pair(t)
  const merged = merge([channel])
  await partner.run(async (kit) => {
    kit.channel.trySend('one')
    await kit.channel.close()
  })
  await channel.closed
  const found: string[] = []
  for (let polls = 0; !merged.readableEnded && polls < 1000; polls += 1) {
    const next = merged.tryReceive()
    if (next !== undefined) found.push(String(next[1]))
    else await Promise.resolve()
  }
  t.true(merged.readableEnded)
  t.deepEqual(found, ['one'])
})
