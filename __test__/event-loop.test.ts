// The event loop turns during an endless stream of messages, however long each takes: timers, signals and aborts work.

import { getEventListeners, once } from 'node:events'

import test from 'ava'
import type { Channel, RingfenceError } from 'ringfence'

import { pair, type Pair } from './support/partner.js'
import { within } from './support/until.js'

/** The number of messages. Each is handled for 20 µs, so all take at least a fifth of a second. */
const COUNT = 10_000
/** The least number of turns of the event loop in that time. One every 2 ms would make about a hundred. */
const TURNS = 20

/** 20 µs of work. */
function work(): void {
  const end = performance.now() + 0.02
  while (performance.now() < end);
}

/** Makes the partner fill the ring, and go on sending. */
async function flood({ partner }: Pair, size: number): Promise<void> {
  await partner.run((kit, length: number) => {
    const { channel } = kit
    const message = new Uint8Array(length)
    while (channel.trySend(message));
    kit.keep['flood'] = (async () => {
      for (;;) {
        await channel.waitWritable(length)
        while (channel.trySend(message));
      }
    })().catch(() => {})
  }, size)
}

/** Counts the events that arrive beside a loop. */
class Listening {
  turns = 0
  timers = 0
  signals = 0
  #over = false
  readonly #timer = setInterval(() => (this.timers += 1), 10)
  readonly #heed = () => (this.signals += 1)

  constructor() {
    process.on('SIGUSR2', this.#heed)
    const turn = () => {
      this.turns += 1
      if (!this.#over) setImmediate(turn)
    }
    setImmediate(turn)
    process.kill(process.pid, 'SIGUSR2')
  }

  stop(): void {
    this.#over = true
    clearInterval(this.#timer)
    process.off('SIGUSR2', this.#heed)
  }
}

type Loop = (channel: Channel, count: (messages?: number) => boolean) => Promise<void>

const visitor = (count: () => boolean) => () => {
  if (!count()) throw new Error('enough')
}

const readers: Record<string, Loop> = {
  'for await': async (channel, count) => {
    for await (const _ of channel) if (!count()) break
  },
  receive: async (channel, count) => {
    do await channel.receive()
    while (count())
  },
  'waitReadable and tryReceive': async (channel, count) => {
    do {
      await channel.waitReadable()
      channel.tryReceive()
    } while (count())
  },
  'waitReadable and receiveEach': async (channel, count) => {
    const visit = visitor(count)
    for (;;) {
      await channel.waitReadable()
      channel.receiveEach(visit)
    }
  },
  'waitReadable and a bounded receiveEach': async (channel, count) => {
    const visit = visitor(count)
    for (;;) {
      await channel.waitReadable()
      channel.receiveEach(visit, 50)
    }
  },
  'a duplex and its data': (channel, count) =>
    new Promise((resolve) => {
      const stream = channel.duplex()
      stream.on('data', () => {
        if (count()) return
        stream.destroy()
        resolve()
      })
    }),
  'a duplex and for await': async (channel, count) => {
    for await (const _ of channel.duplex()) if (!count()) break
  },
}

for (const [way, read] of Object.entries(readers)) {
  // A stream that is read by a loop makes one chunk of many short messages.
  for (const size of way === 'a duplex and for await' ? [1024] : [8, 1024]) {
    test.serial(`${way}: the event loop turns while a peer floods it with messages of ${size} bytes`, async (t) => {
      const both = await pair(t, { there: { capacity: 16 << 20 } })
      both.partner.mayFail()
      await flood(both, size)
      const loop = new Listening()
      let count = 0
      await read(both.channel, () => {
        work()
        count += 1
        return count < COUNT
      }).catch((error: Error) => t.is(error.message, 'enough'))
      t.is(count, COUNT)
      t.true(loop.turns >= TURNS, `${loop.turns} turns`)
      t.true(loop.timers > 0, 'a timer of 10 ms has fired')
      t.is(loop.signals, 1)
      loop.stop()
      await both.channel.close()
    })
  }
}

const senders: Record<string, Loop> = {
  'send of 8 bytes': async (channel, count) => {
    do await channel.send('8 bytes!')
    while (count())
  },
  'send of 10,000 bytes': async (channel, count) => {
    const message = new Uint8Array(10_000)
    do await channel.send(message)
    while (count())
  },
  'waitWritable and trySend': async (channel, count) => {
    do {
      await channel.waitWritable(8)
      channel.trySend('8 bytes!')
    } while (count())
  },
}

for (const [way, send] of Object.entries(senders)) {
  test.serial(`${way}: the event loop turns while there is always room`, async (t) => {
    // All of it fits, so this side never waits for the peer.
    const { channel } = await pair(t, { here: { capacity: 256 << 20 }, options: { handshakeTimeout: 60_000 } })
    const loop = new Listening()
    let count = 0
    await send(channel, () => {
      work()
      count += 1
      return count < COUNT
    })
    t.true(loop.turns >= TURNS, `${loop.turns} turns`)
    t.true(loop.timers > 0, 'a timer of 10 ms has fired')
    t.is(loop.signals, 1)
    loop.stop()
  })
}

for (const way of ['synchronous', 'asynchronous']) {
  test.serial(`serve: the event loop turns between ${way} handlers that many requests wait for`, async (t) => {
    const { channel, partner } = await pair(t)
    const count = 2000
    await partner.run((kit, calls: number) => {
      const { channel: there } = kit
      void Promise.all(Array.from({ length: calls }, () => there.call('?'))).then(() => there.close())
    }, count)
    const loop = new Listening()
    let served = 0
    const answer = () => {
      for (let part = 0; part < 5; part += 1) work()
      served += 1
      return '!'
    }
    await channel.serve(way === 'synchronous' ? answer : async () => answer())
    t.is(served, count)
    t.true(loop.turns >= TURNS, `${loop.turns} turns`)
    t.is(loop.signals, 1)
    loop.stop()
  })
}

test.serial('tokens(): the event loop turns while tokens are available', async (t) => {
  const { channel, partner } = await pair(t)
  const count = 2000
  await partner.run(({ channel: there }, last: number) => {
    for (let token = 0; token < last; token += 1) there.sendToken(token)
  }, count)
  const loop = new Listening()
  let next = 0n
  for await (const token of channel.tokens()) {
    const end = performance.now() + 0.1
    while (performance.now() < end);
    if (token !== next) return t.fail(`token ${token} came as ${next}`)
    next += 1n
    if (next === BigInt(count)) break
  }
  t.true(loop.turns >= TURNS, `${loop.turns} turns`)
  t.is(loop.signals, 1)
  loop.stop()
})

test.serial('an abort by a timer ends a loop of receive, though there is always a message', async (t) => {
  const both = await pair(t, { there: { capacity: 16 << 20 } })
  both.partner.mayFail()
  await flood(both, 8)
  const over = new AbortController()
  setTimeout(() => over.abort(), 10)
  let count = 0
  const error = await t.throwsAsync<RingfenceError>(async () => {
    for (; count < 100_000; count += 1) {
      await both.channel.receive({ signal: over.signal })
      work()
    }
  })
  t.is(error?.code, 'ABORT_ERR', `after ${count} messages`)
  t.is(getEventListeners(over.signal, 'abort').length, 0)
  await both.channel.close()
})

test.serial('receiveEach visits only what was available when it was called, however fast the peer sends', async (t) => {
  const both = await pair(t, { there: { capacity: 65_536 } })
  both.partner.mayFail()
  await flood(both, 1000)
  let visits = 0
  const endless = new Error('it does not end')
  const count = both.channel.receiveEach(() => {
    visits += 1
    // Reading makes room, and the partner has time to fill it.
    const end = performance.now() + 0.1
    while (performance.now() < end);
    if (visits > 2000) throw endless
  }, Infinity)
  t.is(count, visits)
  t.true(count > 0 && count <= 65, `${count} messages of 1,000 bytes, from a ring of 64 KiB`)
  await both.channel.close()
})

test.serial('receiveEach without a limit stops in time, and leaves the remainder', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 1 << 20 } })
  const there = await partner.run((kit) => {
    let sent = 0
    while (kit.channel.trySend(kit.bytes.pattern(sent, 100))) sent += 1
    return sent
  })
  let number = 0
  const visit = () => {
    const end = performance.now() + 0.1
    while (performance.now() < end);
    number += 1
  }
  const first = channel.receiveEach(visit)
  t.true(first > 0 && first < there, `${first} of ${there} messages, each for 0.1 ms`)
  while (number < there) {
    t.true(await within(channel.waitReadable(), 'the rest'))
    channel.receiveEach(visit)
  }
  t.is(number, there)
  await partner.run((kit) => kit.channel.end())
  t.false(await channel.waitReadable())
})

test.serial('receiveEach with a limit visits that many messages, however long it takes', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    for (let number = 0; number < 300; number += 1) await kit.channel.send(kit.bytes.pattern(number, 100))
  })
  const slow = () => {
    const end = performance.now() + 0.1
    while (performance.now() < end);
  }
  t.is(channel.receiveEach(slow, 100), 100)
  t.is(channel.receiveEach(slow, Infinity), 200)
})

test.serial('a stream that is destroyed while it yields to the event loop ends without an error', async (t) => {
  const both = await pair(t, { there: { capacity: 1 << 20 } })
  both.partner.mayFail()
  await flood(both, 8)
  const stream = both.channel.duplex()
  let chunks = 0
  setImmediate(() => stream.destroy())
  stream.on('data', () => {
    work()
    chunks += 1
  })
  await within(once(stream, 'close'), 'the stream to be over')
  t.true(chunks > 0)
  t.is((await both.channel.closed).reason, 'closed')
})
