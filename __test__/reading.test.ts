import { getEventListeners } from 'node:events'

import test from 'ava'
import { RingfenceError, type Channel } from 'ringfence'

import { pattern, random } from './support/bytes.js'
import { pair, type Partner } from './support/partner.js'
import { isPending } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const aborted = { instanceOf: RingfenceError, code: 'ABORT_ERR' } as const

/** Makes the partner send messages `first` to `first + count - 1`, of one size or of mixed sizes, and then return. */
function sendThere(partner: Partner, count: number, size: number | 'mixed' = 100, first = 0): Promise<void> {
  return partner.run(
    async (kit, from: number, to: number, bytes: number | 'mixed') => {
      for (let number = from; number < to; number += 1) {
        const next = kit.bytes.random(number)()
        const length = bytes === 'mixed' ? Math.floor(next ** 6 * 300_000) : bytes
        await kit.channel.send(kit.bytes.pattern(number, length))
      }
    },
    first,
    first + count,
    size,
  )
}

/** Sends texts from the partner. They are in the ring once it returns. */
function sayThere(partner: Partner, ...texts: string[]): Promise<void> {
  return partner.run(async (kit, words: string[]) => {
    for (const text of words) await kit.channel.send(text)
  }, texts)
}

test.serial('receive returns the messages in order, then undefined once the peer has ended', async (t) => {
  const { channel, partner } = await pair(t)
  await sayThere(partner, 'one', 'two', 'three')
  await partner.run((kit) => kit.channel.end())
  const texts = []
  for (let count = 0; count < 3; count += 1) texts.push(String(await channel.receive()))
  t.deepEqual(texts, ['one', 'two', 'three'])
  t.is(await channel.receive(), undefined)
  t.is(await channel.receive(), undefined)
  t.is(channel.tryReceive(), undefined)
  t.is(
    channel.receiveEach(() => t.fail()),
    0,
  )
})

test.serial('receive waits for a message that comes later', async (t) => {
  const { channel, partner } = await pair(t)
  for (const text of ['soon', 'later', '']) {
    const received = channel.receive()
    t.true(await isPending(received))
    await sayThere(partner, text)
    t.is(String(await received), text)
  }
})

test.serial('tryReceive returns a message if one is available, else undefined', async (t) => {
  const { channel, partner } = await pair(t)
  t.is(channel.tryReceive(), undefined)
  await sayThere(partner, 'one', 'two')
  t.is(String(channel.tryReceive()), 'one')
  t.is(String(channel.tryReceive()), 'two')
  t.is(channel.tryReceive(), undefined)
})

test.serial('receiveEach visits available messages, at most max, and returns the number', async (t) => {
  const { channel, partner } = await pair(t)
  t.is(
    channel.receiveEach(() => t.fail()),
    0,
  )
  await sendThere(partner, 10)
  const seen: Buffer[] = []
  const visit = (bytes: Uint8Array, offset: number, length: number) => {
    seen.push(Buffer.from(bytes.subarray(offset, offset + length)))
  }
  t.is(channel.receiveEach(visit, 0), 0)
  t.is(channel.receiveEach(visit, 3), 3)
  t.is(channel.receiveEach(visit, 1), 1)
  t.is(channel.receiveEach(visit, Infinity), 6)
  t.deepEqual(
    seen,
    Array.from({ length: 10 }, (_, number) => pattern(number, 100)),
  )
})

test.serial('receiveEach visits large messages and fragments as well', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 65536 } })
  const sizes = [0, 10, 8000, 20_000, 32_768, 32_769, 200_000, 5, 140_000, 10_000]
  const sent = partner.run(async (kit, lengths: number[]) => {
    for (const [number, length] of lengths.entries()) await kit.channel.send(kit.bytes.pattern(number, length))
  }, sizes)
  let next = 0
  while (next < sizes.length) {
    await channel.waitReadable()
    channel.receiveEach((bytes, offset, length) => {
      t.true(pattern(next, sizes[next]!).equals(bytes.subarray(offset, offset + length)), `${sizes[next]} bytes`)
      next += 1
    })
  }
  await sent
})

test.serial('for await yields every message, and finishes at the end', async (t) => {
  const { channel, partner } = await pair(t)
  const sent = sendThere(partner, 500, 'mixed').then(() => partner.run((kit) => kit.channel.end()))
  let number = 0
  for await (const message of channel) {
    if (!message.equals(pattern(number, message.length))) return t.fail(`message ${number} is another`)
    number += 1
  }
  t.is(number, 500)
  return sent
})

test.serial('leaving a for await loop neither closes the channel nor loses a message', async (t) => {
  const { channel, partner } = await pair(t)
  await sayThere(partner, 'one', 'two', 'three', 'four', 'five')
  for await (const message of channel) {
    t.is(String(message), 'one')
    break
  }
  await t.throwsAsync(
    async () => {
      for await (const message of channel) throw new Error(String(message))
    },
    { message: 'two' },
  )
  const first = channel[Symbol.asyncIterator]()
  const second = channel[Symbol.asyncIterator]()
  t.is(String((await first.next()).value), 'three')
  t.deepEqual(await first.return!(), { done: true, value: undefined })
  t.is(String((await second.next()).value), 'four')
  t.is(String(await channel.receive()), 'five')

  await channel.send('still open')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still open')
})

test.serial(
  'receive, tryReceive, receiveEach, waitReadable and for await may be mixed, and no message is lost',
  async (t) => {
    const count = 4000
    const { channel, partner } = await pair(t, { there: { capacity: 131_072 } })
    const sent = sendThere(partner, count, 'mixed').then(() => partner.run((kit) => kit.channel.end()))
    const next = random(2)
    let number = 0
    const check = (message: Uint8Array) => {
      if (!pattern(number, message.length).equals(message)) throw new Error(`message ${number} is another`)
      number += 1
    }
    while (!channel.readableEnded) {
      const way = Math.floor(next() * 5)
      if (way === 0) {
        const message = await channel.receive()
        if (message !== undefined) check(message)
      } else if (way === 1) {
        const message = channel.tryReceive()
        if (message !== undefined) check(message)
      } else if (way === 2) {
        channel.receiveEach(
          (bytes, offset, length) => check(bytes.subarray(offset, offset + length)),
          Math.ceil(next() * 9),
        )
      } else if (way === 3) {
        await channel.waitReadable()
      } else {
        let left = Math.ceil(next() * 5)
        for await (const message of channel) {
          check(message)
          left -= 1
          if (left === 0) break
        }
      }
    }
    t.is(number, count)
    await sent
  },
)

test.serial('an exception of a visitor consumes its message, and the remaining ones stay', async (t) => {
  const { channel, partner } = await pair(t)
  await sendThere(partner, 5)
  await sendThere(partner, 2, 500_000, 5)
  const seen: number[] = []
  for (let number = 0; number < 7; number += 1) {
    const thrown = new Error('enough')
    const error = t.throws(() =>
      channel.receiveEach((bytes, offset, length) => {
        t.true(pattern(number, length).equals(bytes.subarray(offset, offset + length)))
        seen.push(number)
        throw thrown
      }),
    )
    t.is(error, thrown)
  }
  t.is(seen.length, 7)
  t.is(channel.tryReceive(), undefined)
})

test.serial('a visitor may read, and its own message stays valid in the meantime', async (t) => {
  const { channel, partner } = await pair(t)
  for (const [size, count] of [
    [100, 60],
    [5000, 60],
    [200_000, 18],
  ] as const) {
    await sendThere(partner, count, size)
    let number = 0
    const take = (bytes: Uint8Array, what: string) => {
      t.true(pattern(number, size).equals(bytes), `${what} gave something else as number ${number}`)
      number += 1
    }
    const within = (bytes: Uint8Array, offset: number, length: number) => {
      const mine = number
      const view = bytes.subarray(offset, offset + length)
      take(view, 'receiveEach')
      if (mine % 3 === 0) {
        const message = channel.tryReceive()
        if (message !== undefined) take(message, 'tryReceive')
      }
      if (mine % 7 === 0) channel.receiveEach(within, 2)
      if (mine % 10 === 0) void channel.waitReadable()
      t.true(pattern(mine, size).equals(view), `number ${mine} has changed while it was visited`)
    }
    channel.receiveEach(within, Infinity)
    t.is(number, count)
  }
})

test.serial('a visitor may call receiveEach recursively, once for each message', async (t) => {
  const { channel, partner } = await pair(t)
  // More than one fetch returns, so that the next fetch happens while all messages of the previous one are being
  // visited.
  const count = 300
  await sendThere(partner, count, 2000)
  let number = 0
  const within = (bytes: Uint8Array, offset: number, length: number) => {
    const mine = number
    number += 1
    channel.receiveEach(within)
    t.true(pattern(mine, 2000).equals(bytes.subarray(offset, offset + length)), `number ${mine} has changed`)
  }
  t.is(channel.receiveEach(within), 1)
  t.is(number, count)
})

test.serial('a visitor may call receive: it gets the next message', async (t) => {
  // Also if the visitor takes so long that it is time to yield to the event loop.
  for (const milliseconds of [0, 5]) {
    const { channel, partner } = await pair(t)
    await sayThere(partner, 'one', 'two', 'three', 'four')
    const visited: string[] = []
    const received: Promise<Buffer | undefined>[] = []
    channel.receiveEach((bytes, offset, length) => {
      visited.push(Buffer.from(bytes).toString('utf8', offset, offset + length))
      const until = performance.now() + milliseconds
      while (performance.now() < until);
      received.push(channel.receive())
    })
    t.deepEqual(visited, ['one', 'three'])
    t.deepEqual((await Promise.all(received)).map(String), ['two', 'four'])
  }
})

test.serial('a visitor may close the channel, and then gets no more messages', async (t) => {
  for (const size of [100, 300_000]) {
    const { channel, partner } = await pair(t)
    await sendThere(partner, 5, size)
    let visits = 0
    const count = channel.receiveEach((bytes, offset, length) => {
      visits += 1
      void channel.close()
      t.true(pattern(0, size).equals(bytes.subarray(offset, offset + length)))
    })
    t.deepEqual([count, visits], [1, 1])
    t.is((await channel.closed).reason, 'closed')
    t.throws(() => channel.receiveEach(() => {}), { code: 'ERR_RINGFENCE_CLOSED' })
  }
})

test.serial(
  'a Buffer belongs to the receiver: later reads do not change it, and writing to it affects no other',
  async (t) => {
    const { channel, partner } = await pair(t, { there: { capacity: 65536 } })
    const count = 3000
    const sent = sendThere(partner, count, 'mixed')
    const kept: Buffer[] = []
    while (kept.length < count) {
      const message = (await channel.receive())!
      if (!message.equals(pattern(kept.length, message.length))) return t.fail(`message ${kept.length} is another`)
      // Every second message is overwritten, up to its ends.
      if (kept.length % 2 === 0) message.fill(0xff)
      kept.push(message)
    }
    await sent
    await channel.close()
    for (const [number, message] of kept.entries()) {
      const wanted = number % 2 === 0 ? Buffer.alloc(message.length, 0xff) : pattern(number, message.length)
      if (!message.equals(wanted)) return t.fail(`message ${number} has changed`)
    }
    return t.pass()
  },
)

test.serial('waitReadable waits for a message, and is false once none will arrive', async (t) => {
  const { channel, partner } = await pair(t)
  const readable = channel.waitReadable()
  t.true(await isPending(readable))
  await sayThere(partner, 'one')
  t.true(await readable)
  t.true(await channel.waitReadable(), 'it reads nothing itself')
  t.is(String(channel.tryReceive()), 'one')
  const again = channel.waitReadable()
  t.true(await isPending(again))
  await partner.run((kit) => kit.channel.end())
  t.false(await again)
  t.false(await channel.waitReadable())
})

test.serial('an incomplete message is neither received nor reported', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 4096 } })
  const sent = partner.run((kit) => kit.channel.send(kit.bytes.pattern(0, 40_000)))
  let looks = 0
  let message: Buffer | undefined
  while (message === undefined) {
    looks += 1
    if (looks % 3 === 0)
      t.is(
        channel.receiveEach((_, offset, length) => t.is(length - offset, 40_000), 0),
        0,
      )
    t.false(channel.readableEnded)
    message = channel.tryReceive()
    if (message === undefined) await new Promise((resolve) => setImmediate(resolve))
  }
  t.deepEqual(message, pattern(0, 40_000))
  await sent
})

test.serial('a message that two ways of reading have received in parts belongs to the receiver', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 4096 } })
  const size = 40_000
  const kept: Buffer[] = []
  for (let number = 0; number < 4; number += 1) {
    const sent = sendThere(partner, 1, size, number)
    // The partner answers once it has filled the ring with a part of the message, which receiveEach fetches.
    await partner.run(() => {})
    t.is(
      channel.receiveEach(() => t.fail('it cannot be whole')),
      0,
    )
    kept.push((await channel.receive())!)
    await sent
  }
  for (const [number, message] of kept.entries()) t.true(message.equals(pattern(number, size)), `message ${number}`)
})

test.serial('readableEnded is true once no message will arrive and all were read', async (t) => {
  const { channel, partner } = await pair(t)
  t.false(channel.readableEnded)
  await sayThere(partner, 'one', 'two')
  await partner.run((kit) => kit.channel.end())
  t.false(channel.readableEnded)
  await channel.receive()
  t.false(channel.readableEnded)
  t.is(
    channel.receiveEach(() => {}),
    1,
  )
  t.true(channel.readableEnded)
})

test.serial('a signal cancels a receive or a waitReadable, and no message is lost', async (t) => {
  const { channel, partner } = await pair(t)
  for (const way of ['receive', 'waitReadable'] as const) {
    const over = new AbortController()
    const waiting = channel[way]({ signal: over.signal })
    t.true(await isPending(waiting))
    const reason = new Error('enough')
    over.abort(reason)
    const error = await t.throwsAsync<RingfenceError>(waiting, aborted)
    t.is(error?.cause, reason)
    t.is(getEventListeners(over.signal, 'abort').length, 0)
    await t.throwsAsync(channel[way]({ signal: over.signal }), aborted, 'aborted before')

    await sayThere(partner, `after ${way}`)
    await t.throwsAsync(channel[way]({ signal: over.signal }), aborted, 'aborted before, and a message is there')
    t.is(String(await channel.receive()), `after ${way}`)
  }
})

test.serial('an abort at the same time as a message loses neither', async (t) => {
  const { channel, partner } = await pair(t)
  let received = 0
  const count = 500
  const sent = sendThere(partner, count, 10)
  while (received < count) {
    const over = new AbortController()
    const waiting = channel.receive({ signal: over.signal })
    setImmediate(() => over.abort())
    try {
      const message = await waiting
      if (!message!.equals(pattern(received, 10))) return t.fail(`message ${received} is another`)
      received += 1
    } catch (error) {
      t.is((error as RingfenceError).code, 'ABORT_ERR')
    }
  }
  return sent.then(() => t.pass())
})

test.serial('a signal that is not used leaves no listener behind', async (t) => {
  const { channel, partner } = await pair(t)
  const { signal } = new AbortController()
  for (let round = 0; round < 5; round += 1) {
    const received = channel.receive({ signal })
    await sayThere(partner, 'x')
    await received
  }
  t.is(getEventListeners(signal, 'abort').length, 0)
})

test.serial('waiting receives are served in the order of their calls', async (t) => {
  const { channel, partner } = await pair(t)
  const over = new AbortController()
  const waiting = Array.from({ length: 10 }, (_, number) =>
    channel.receive(number === 4 ? { signal: over.signal } : undefined),
  )
  over.abort()
  await t.throwsAsync(waiting[4]!, aborted)
  const rest = waiting.filter((_, number) => number !== 4)
  await sendThere(partner, 9, 50)
  t.deepEqual(
    await Promise.all(rest),
    rest.map((_, number) => pattern(number, 50)),
  )
})

test.serial(
  'a receive does not overtake a waiting one, even if messages are available before the wakeup',
  async (t) => {
    const { channel, partner } = await pair(t)
    const first = channel.receive()
    await partner.run((kit) => {
      setTimeout(() => {
        void kit.channel.send('one')
        void kit.channel.send('two')
      }, 20)
    })
    // Blocks this thread until both have arrived, without a turn of the event loop.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
    const second = channel.receive()
    t.deepEqual([String(await first), String(await second)], ['one', 'two'])
  },
)

test.serial('waiting receives all get undefined when the peer ends', async (t) => {
  const { channel, partner } = await pair(t)
  const waiting = [channel.receive(), channel.receive(), channel.receive()]
  const readable = channel.waitReadable()
  await sayThere(partner, 'one')
  await partner.run((kit) => kit.channel.end())
  t.is(String(await waiting[0]), 'one')
  t.deepEqual(await Promise.all(waiting.slice(1)), [undefined, undefined])
  t.false(await readable)
})

test.serial('sent messages are flushed before a wait for the answer', async (t) => {
  const { channel, partner } = await pair(t)
  const echo = partner.run(async (kit) => {
    for await (const message of kit.channel) await kit.channel.send(message)
  })
  for (let number = 0; number < 200; number += 1) {
    void channel.send(`question ${number}`)
    const answer = number % 2 === 0 ? await channel.receive() : (await channel.waitReadable()) && channel.tryReceive()
    if (String(answer) !== `question ${number}`) return t.fail(`${String(answer)} answers question ${number}`)
  }
  await channel.end()
  return echo.then(() => t.pass())
})

test.serial('arguments of the wrong type are INVALID_ARGUMENT, and lose nothing', async (t) => {
  const { channel, partner } = await pair(t)
  await sayThere(partner, 'one')
  for (const visit of [undefined, null, 5, 'visit', {}]) t.throws(() => channel.receiveEach(visit as never), invalid)
  for (const max of [NaN, -1, '3', null, {}])
    t.throws(() => channel.receiveEach(() => t.fail(), max as number), invalid)
  for (const signal of [5, 'signal', {}, null]) {
    await t.throwsAsync(channel.receive({ signal: signal as AbortSignal }), invalid)
    await t.throwsAsync(channel.waitReadable({ signal: signal as AbortSignal }), invalid)
  }
  t.is(String(await channel.receive()), 'one')
})

for (const way of ['for await', 'receive', 'waitReadable and receiveEach'] as const) {
  test.serial(`a loop of ${way} that always finds a message lets the event loop turn`, async (t) => {
    const { channel, partner } = await pair(t, { there: { capacity: 16 << 20 } })
    const there = await partner.run((kit) => {
      let sent = 0
      while (kit.channel.trySend('a small message')) sent += 1
      return sent
    })
    let fired = false
    setImmediate(() => (fired = true))
    let count = 0
    // Without a turn, it would read everything.
    const enough = () => fired || (count += 1) === there
    if (way === 'for await') {
      for await (const _ of channel) if (enough()) break
    } else if (way === 'receive') {
      while (!enough()) await channel.receive()
    } else {
      while (!enough()) {
        await channel.waitReadable()
        channel.receiveEach(() => {}, 1)
      }
    }
    t.true(fired, `${count} of ${there} messages`)
  })
}

/** Reads to the end, in one of these ways. */
async function readAll(channel: Channel): Promise<number> {
  let bytes = 0
  for await (const message of channel) bytes += message.length
  return bytes
}

test.serial('large messages arrive whole', async (t) => {
  const { channel, partner } = await pair(t)
  const sent = partner.run(async (kit) => {
    for (let number = 0; number < 4; number += 1) await kit.channel.send(kit.bytes.pattern(number, 20_000_000))
    await kit.channel.end()
  })
  t.true((await channel.receive())!.equals(pattern(0, 20_000_000)))
  t.is(await readAll(channel), 60_000_000)
  await sent
})
