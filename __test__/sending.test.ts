import { getEventListeners } from 'node:events'
import { runInNewContext } from 'node:vm'

import test from 'ava'
import { RingfenceError, SealedBuffer, structured, type Channel } from 'ringfence'

import { pattern, random } from './support/bytes.js'
import { pair, receivesPatterns, type Partner } from './support/partner.js'
import { isPending } from './support/until.js'

/** Makes the partner read messages until it has `count`. */
function readThere(partner: Partner, count: number): Promise<Buffer[]> {
  return partner.run(async (kit, wanted: number) => {
    const messages: Buffer[] = []
    while (messages.length < wanted) messages.push((await kit.channel.receive())!)
    return messages
  }, count)
}

/** Makes the partner read to the end, and return the length of each message. */
function lengthsThere(partner: Partner): Promise<number[]> {
  return partner.run(async (kit) => {
    const lengths: number[] = []
    for await (const message of kit.channel) lengths.push(message.length)
    return lengths
  })
}

const sum = (numbers: number[]) => numbers.reduce((all, one) => all + one, 0)

/** Fills the ring with messages of this size. */
function fill(channel: Channel, size: number): number {
  let count = 0
  while (channel.trySend(pattern(count, size))) count += 1
  return count
}

test.serial('send copies before it returns, whether there is room or not', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 65536 } })
  // Staged, directly into the ring, and in fragments; then queued behind those.
  const sizes = [5, 8000, 9000, 30_000, 100_000, 7, 8000, 9000, 30_000, 100_000]
  const sent = sizes.map((size, number) => {
    const message = pattern(number, size)
    const promise = channel.send(message)
    message.fill(0xff)
    return promise
  })
  const messages = await readThere(partner, sizes.length)
  await Promise.all(sent)

  for (const [number, message] of messages.entries()) t.deepEqual(message, pattern(number, sizes[number]!))
})

test.serial('trySend copies before it returns', async (t) => {
  const { channel, partner } = await pair(t)
  const message = pattern(1, 100)
  t.true(channel.trySend(message))
  message.fill(0xff)
  t.deepEqual(await readThere(partner, 1), [pattern(1, 100)])
})

test.serial('a message whose memory was detached is INVALID_ARGUMENT, and nothing is sent', async (t) => {
  const invalid = {
    instanceOf: RingfenceError,
    code: 'ERR_RINGFENCE_INVALID_ARGUMENT',
    message: /the memory of the message/,
  }
  const { channel, partner } = await pair(t)
  const transferred = new Uint8Array(10)
  structuredClone(transferred, { transfer: [transferred.buffer] })
  const Resizable = ArrayBuffer as unknown as new (
    size: number,
    options: object,
  ) => ArrayBuffer & { resize(to: number): void }
  const memory = new Resizable(16, { maxByteLength: 16 })
  const cut = new Uint8Array(memory, 8)
  memory.resize(4)
  const [numbers, view] = [new Int32Array(8), new DataView(new ArrayBuffer(8))]
  structuredClone(0, { transfer: [numbers.buffer, view.buffer] })
  for (const gone of [transferred, cut, numbers, view]) {
    const first = channel.send('first')
    await t.throwsAsync(channel.send(gone), invalid)
    await first
    t.throws(() => channel.trySend(gone), invalid)
  }
  // A message that is just empty is valid.
  const before = channel.send('before')
  await Promise.all([before, channel.send(new Uint8Array(0)), channel.send('')])
  t.true(channel.trySend(Buffer.alloc(0)))
  t.deepEqual((await readThere(partner, 8)).map(String), ['first', 'first', 'first', 'first', 'before', '', '', ''])
})

test.serial('the order is that of the calls of send, trySend and reserve', async (t) => {
  const count = 3000
  const { channel, partner } = await pair(t, { here: { capacity: 16384 } })
  const received = receivesPatterns(partner, count)
  const next = random(1)
  const used = { send: 0, trySend: 0, reserve: 0 }
  let last: Promise<void> = Promise.resolve()
  for (let number = 0; number < count; number += 1) {
    const size = Math.floor(next() ** 4 * 40_000)
    const message = pattern(number, size)
    const way = next()
    if (way < 0.3 && size <= 8192 && channel.trySend(message)) {
      used.trySend += 1
      continue
    }
    if (way < 0.6 && size <= 8192) {
      const reservation = channel.reserve(size)
      if (reservation !== undefined) {
        reservation.bytes.set(message)
        reservation.commit()
        used.reserve += 1
        continue
      }
    }
    last = channel.send(message)
    used.send += 1
    // Sometimes everything is flushed, so that the other two find room.
    if (next() < 0.3) await last
  }
  await last

  t.is(await received, 'all')
  t.true(used.send > 100 && used.trySend > 100 && used.reserve > 100, JSON.stringify(used))
})

test.serial('sends of one tick arrive in order, awaited or not', async (t) => {
  const count = 20_000
  const { channel, partner } = await pair(t, { here: { capacity: 65536 } })
  const received = partner.run(async (kit, wanted: number) => {
    for (let number = 0; number < wanted; number += 1) {
      const message = String(await kit.channel.receive())
      if (message !== `message ${number}`) return `${message} came as number ${number}`
    }
    return 'in order'
  }, count)
  let last: Promise<void> | undefined
  for (let number = 0; number < count; number += 1) {
    const message = `message ${number}`
    last = channel.send(number % 2 === 0 ? message : Buffer.from(message))
  }

  t.is(await received, 'in order')
  await last
})

test.serial('a send resolves once its message is in the ring: if that is full, after the peer has read', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 16384 } })
  fill(channel, 1000)
  const sizes = [1000, 9000, 50_000]
  const sent = sizes.map((size) => channel.send(pattern(0, size)))
  await partner.run(() => {})
  for (const promise of sent) t.true(await isPending(promise))

  const reading = partner.run(async (kit, wanted: number) => {
    let bytes = 0
    while (bytes < wanted) bytes += (await kit.channel.receive())!.length
    return bytes
  }, 16_000 + 60_000)
  t.is(await reading, 76_000)
  await t.notThrowsAsync(Promise.all(sent))
})

test.serial('sends resolve in the order of the calls: staged, queued, and directly into the ring', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 1 << 20 }, there: { maxMessageSize: 4 << 20 } })
  const next = random(7)
  const sizes = Array.from({ length: 4000 }, () =>
    next() < 0.9 ? Math.floor(next() * 300) : Math.floor(next() * 60_000),
  )
  sizes[1000] = 2_000_000
  const received = partner.run(async (kit, wanted: number) => {
    let bytes = 0
    while (bytes < wanted) bytes += (await kit.channel.receive())!.length
    return bytes
  }, sum(sizes))
  const resolved: number[] = []
  const sent: Promise<number>[] = []
  for (const [number, size] of sizes.entries()) {
    sent.push(channel.send(pattern(number, size)).then(() => resolved.push(number)))
    // Some sends have a turn of their own, and some are followed by a call that flushes.
    if (next() < 0.02) await sent.at(-1)
    else if (next() < 0.1) channel.stats()
  }
  await Promise.all(sent)
  t.deepEqual(resolved, [...sizes.keys()])
  t.is(await received, sum(sizes))
})

test.serial('a send resolves only once its message is in the ring, even if no other send is awaited', async (t) => {
  const { channel } = await pair(t)
  for (let number = 0; number < 100; number += 1) {
    await channel.send(pattern(number, number))
    t.is(channel.bufferedAmount, 0)
    t.is(channel.stats().messagesSent, number + 1)
  }
})

test.serial('a send into a ring with room has resolved by the next turn of the event loop', async (t) => {
  const { channel } = await pair(t)
  for (const size of [0, 10, 9000, 3_000_000]) t.false(await isPending(channel.send(pattern(0, size))), `${size} bytes`)
})

test.serial('trySend is false once the ring is full, and true again after the peer has read', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const count = fill(channel, 1000)
  t.is(count, 4)
  t.false(channel.trySend(pattern(0, 1000)))
  await readThere(partner, 1)
  t.true(channel.trySend(pattern(4, 1000)))

  const rest = await readThere(partner, 4)
  t.deepEqual(
    rest,
    [1, 2, 3, 4].map((number) => pattern(number, 1000)),
  )
})

test.serial('trySend does not overtake pending sends', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  fill(channel, 1000)
  const waiting = channel.send(pattern(4, 1000))
  t.false(channel.trySend('small enough for the rest of the ring'))
  t.is(channel.reserve(1), undefined)
  await readThere(partner, 5)
  await waiting
  t.true(channel.trySend('now'))
})

test.serial('waitWritable resolves when trySend and reserve of that size can succeed', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  await channel.waitWritable()
  await channel.waitWritable(2048)
  fill(channel, 1000)
  const some = channel.waitWritable(1000)
  const half = channel.waitWritable(2048)
  t.true(await isPending(some))
  await readThere(partner, 4)
  await some
  t.true(channel.trySend(pattern(0, 1000)))
  await half

  await partner.run((kit) => void kit.channel.receiveEach(() => {}))
  await channel.waitWritable(2048)
  const reservation = channel.reserve(2048)
  t.not(reservation, undefined)
  reservation!.cancel()
})

/** A signal, and the error of a call that it aborts. */
function abortable() {
  const over = new AbortController()
  const reason = new Error('enough')
  return { options: { signal: over.signal }, abort: () => over.abort(reason), error: { name: 'AbortError' }, reason }
}

test.serial('an abort removes a message that has not started to enter the ring, and no other', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  fill(channel, 1000)
  const before = channel.send(pattern(4, 1000))
  const called = abortable()
  const small = channel.send('small', called.options)
  const large = channel.send(pattern(5, 3000), called.options)
  const behind = channel.send(pattern(6, 100))
  const kept = channel.send(pattern(7, 100), { signal: new AbortController().signal })
  t.is(channel.bufferedAmount, 1000 + 5 + 3000 + 200)
  called.abort()
  for (const removed of [small, large]) t.is((await t.throwsAsync(removed, called.error)).cause, called.reason)
  t.is(getEventListeners(called.options.signal, 'abort').length, 0)
  t.is(channel.bufferedAmount, 1000 + 200)
  t.deepEqual((await readThere(partner, 7)).slice(4), [pattern(4, 1000), pattern(6, 100), pattern(7, 100)])
  await Promise.all([before, behind, kept])
  await t.throwsAsync(channel.send('aborted before', called.options), called.error)
})

test.serial('an abort does not affect a message that is partly in the ring, or one that was sent', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const called = abortable()
  await channel.send('sent', called.options)
  const inParts = channel.send(pattern(1, 9000), called.options)
  t.true(await isPending(inParts))
  called.abort()
  t.true(await isPending(inParts))
  t.deepEqual(await readThere(partner, 2), [Buffer.from('sent'), pattern(1, 9000)])
  await inParts
})

test.serial('an abort cancels the waits of waitWritable, end and verify', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  fill(channel, 1000)
  const calls: ((options: { signal: AbortSignal }) => Promise<unknown>)[] = [
    (options) => channel.waitWritable(2048, options),
    (options) => channel.verify(options),
    (options) => channel.end(options),
  ]
  for (const call of calls) {
    await t.throwsAsync(call({ signal: AbortSignal.abort() }), { name: 'AbortError' }, 'aborted before')
    await t.throwsAsync(call({ signal: 5 as never }), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  }
  const sent = channel.send(pattern(4, 1000))
  for (const call of calls) {
    const called = abortable()
    const waiting = call(called.options)
    called.abort()
    t.is((await t.throwsAsync(waiting, called.error)).cause, called.reason)
    t.is(getEventListeners(called.options.signal, 'abort').length, 0)
  }
  // The end itself is not undone.
  await t.throwsAsync(channel.send('x'), { code: 'ERR_RINGFENCE_CLOSED' })
  t.is((await lengthsThere(partner)).length, 5)
  await sent
})

test.serial('the stack of an error shows the function that awaits the send, however late it is', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
  const stackOf = async (make: () => Promise<unknown>): Promise<string> => {
    const theCaller = async () => void (await make())
    return (await t.throwsAsync(theCaller()))!.stack!
  }
  const values = channel.with(structured())
  const sealed = SealedBuffer.from(Buffer.from('a'))
  const atOnce: [string, () => Promise<unknown>][] = [
    ['a wrong call', () => channel.send(1 as never)],
    ['attachments', () => values.send({ sealed })],
  ]
  for (const [name, make] of atOnce) t.regex(await stackOf(make), /theCaller/, name)
  while (channel.trySend('to fill the ring')) {}
  const long = Buffer.alloc(1000)
  const late = [1, 2].map(() => stackOf(() => channel.send(long)))
  late.push(stackOf(() => channel.waitWritable(1000)))
  await partner.kill()
  for (const stack of await Promise.all(late)) t.regex(stack, /at async theCaller/)
  for (const make of [() => channel.send('over'), () => values.send('over'), () => channel.waitWritable(1)])
    t.regex(await stackOf(make), /theCaller/)
})

test.serial('a sender that uses only waitWritable and trySend sends everything', async (t) => {
  const count = 5000
  const { channel, partner } = await pair(t, { here: { capacity: 8192 } })
  const received = receivesPatterns(partner, count)
  for (let number = 0; number < count; number += 1) {
    const message = pattern(number, (number * 37) % 4097)
    while (!channel.trySend(message)) await channel.waitWritable(message.length)
  }
  t.is(await received, 'all')
})

test.serial('a message longer than the peer accepts is MESSAGE_TOO_LARGE, before anything is sent', async (t) => {
  const { channel, partner } = await pair(t, { there: { maxMessageSize: 20_000 } })
  const tooLarge = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' } as const
  const message = pattern(0, 20_001)
  await t.throwsAsync(channel.send(message), tooLarge)
  await t.throwsAsync(channel.send('x'.repeat(20_001)), tooLarge)
  t.throws(() => channel.trySend(message), tooLarge)
  t.throws(() => channel.reserve(20_001), tooLarge)
  await t.throwsAsync(channel.waitWritable(20_001), tooLarge)

  await channel.send(pattern(1, 20_000))
  t.true(channel.trySend(pattern(2, 20_000)))
  t.deepEqual(await readThere(partner, 2), [pattern(1, 20_000), pattern(2, 20_000)])
})

test.serial('a small limit of the peer applies to small messages', async (t) => {
  const { channel, partner } = await pair(t, { there: { maxMessageSize: 10 } })
  await t.throwsAsync(channel.send(Buffer.alloc(11)), { code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' })
  await t.throwsAsync(channel.send('eleven char'), { code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' })
  await channel.send('ten chars!')
  t.deepEqual((await readThere(partner, 1)).map(String), ['ten chars!'])
})

test.serial('above half the ring, trySend and reserve are MESSAGE_TOO_LARGE, and send splits messages', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const tooLarge = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' } as const
  const message = pattern(0, 2049)
  t.throws(() => channel.trySend(message), tooLarge)
  t.throws(() => channel.reserve(2049), tooLarge)
  await t.throwsAsync(channel.waitWritable(2049), tooLarge)
  const sent = channel.send(message)
  t.deepEqual(await readThere(partner, 1), [message])
  await sent
})

test.serial('a message of exactly half the ring fits into an empty one, wherever that begins', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const echo = partner.run(async (kit) => {
    for await (const message of kit.channel) await kit.channel.send(String(message.length))
  })
  const half = pattern(0, 2048)
  // Each round moves the start by eight bytes.
  for (let round = 0; round < 4096 / 8; round += 1) {
    if (!channel.trySend(half)) return t.fail(`not in round ${round}`)
    await channel.receive()
    if (!channel.trySend(pattern(0, 2024))) return t.fail(`no room for the rest in round ${round}`)
    await channel.receive()
  }
  await channel.end()
  await echo
  return t.pass()
})

for (const capacity of [4096, 8192, 16384, 65536]) {
  test.serial(`every size can be sent through a ring of ${capacity} bytes, up to ten times as much`, async (t) => {
    const edges = [0, 8, capacity / 8, capacity / 4, capacity / 2, capacity, 2 * capacity, 8192, 10 * capacity]
    const sizes = edges.flatMap((edge) => [edge - 9, edge - 8, edge - 1, edge, edge + 1]).filter((size) => size >= 0)
    const { channel, partner } = await pair(t, { here: { capacity } })
    const received = readThere(partner, sizes.length)
    for (const [number, size] of sizes.entries()) void channel.send(pattern(number, size))

    for (const [number, message] of (await received).entries()) {
      t.true(message.equals(pattern(number, sizes[number]!)), `${sizes[number]} bytes`)
    }
  })
}

test.serial('strings are sent as UTF-8', async (t) => {
  const { channel, partner } = await pair(t)
  const strings = ['', 'plain', 'naïve Wörter, 日本語, עברית', '😀 👩‍👩‍👧', 'a\0b', '\ufeffmark', 'ä'.repeat(100_000)]
  for (const string of strings) void channel.send(string)
  for (const string of strings) t.true(channel.trySend(string))
  const messages = await readThere(partner, 2 * strings.length)
  t.deepEqual(messages.map(String), [...strings, ...strings])
})

test.serial('a lone surrogate is sent as the replacement character, as in UTF-8', async (t) => {
  const { channel, partner } = await pair(t)
  void channel.send('\ud83d')
  void channel.send('a\udc00b')
  const messages = await readThere(partner, 2)
  t.deepEqual(messages, [Buffer.from('efbfbd', 'hex'), Buffer.from('61efbfbd62', 'hex')])
})

test.serial('an empty message is a message', async (t) => {
  const { channel, partner } = await pair(t)
  await channel.send(new Uint8Array(0))
  await channel.send('')
  t.true(channel.trySend(Buffer.alloc(0)))
  channel.reserve(0)!.commit()
  channel.reserve(10)!.commit(0)
  await channel.end()
  t.deepEqual(await lengthsThere(partner), [0, 0, 0, 0, 0])
})

test.serial('only the bytes of a view are sent, whatever is around them', async (t) => {
  class Message extends Uint8Array {}
  const { channel, partner } = await pair(t)
  const whole = pattern(0, 100)
  const shared = new Uint8Array(new SharedArrayBuffer(10), 2, 5).fill(7)
  const foreign = runInNewContext('new Uint8Array([1, 2, 3])') as Uint8Array
  const views: [string, Uint8Array][] = [
    ['a Buffer', whole],
    ['a part of a Buffer', whole.subarray(3, 50)],
    ['a view at an odd offset', new Uint8Array(whole.buffer, whole.byteOffset + 1, 33)],
    ['a subclass of Uint8Array', new Message([1, 2, 3])],
    ['a view of shared memory', shared],
    ['a Uint8Array of another realm', foreign],
  ]
  for (const [, view] of views) {
    void channel.send(view)
    channel.trySend(view)
  }
  const messages = await readThere(partner, 2 * views.length)
  for (const [index, [title, view]] of views.entries()) {
    t.deepEqual(messages[2 * index], Buffer.from(view), `${title}, sent`)
    t.deepEqual(messages[2 * index + 1], Buffer.from(view), `${title}, tried`)
  }
})

const noMessages: [string, unknown][] = [
  ['nothing', undefined],
  ['null', null],
  ['a number', 5],
  ['a bigint', 5n],
  ['a symbol', Symbol('message')],
  ['true', true],
  ['an object', { length: 3 }],
  ['an object without a prototype', Object.create(null)],
  ['an array', [1, 2, 3]],
  ['a function', () => {}],
]

test.serial(
  'a value that is no message is INVALID_ARGUMENT: send rejects, trySend throws, the channel continues',
  async (t) => {
    const { channel, partner } = await pair(t)
    const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
    for (const [title, value] of noMessages) {
      await t.throwsAsync(channel.send(value as string), invalid, title)
      t.throws(() => channel.trySend(value as string), invalid, title)
    }
    for (const size of [-1, 1.5, NaN, Infinity, '5', null, 5n, Symbol('size'), {}]) {
      await t.throwsAsync(channel.waitWritable(size as number), invalid, String(typeof size))
    }

    await channel.send('a message')
    t.deepEqual((await readThere(partner, 1)).map(String), ['a message'])
  },
)

test.serial('millions of small messages arrive intact and in order', async (t) => {
  const count = 2_000_000
  const { channel, partner } = await pair(t)
  const received = partner.run(async (kit, wanted: number) => {
    let next = 0
    let wrong = 0
    const visit = (bytes: Uint8Array, offset: number, length: number) => {
      const size = 4 + (next % 61)
      const number =
        (bytes[offset]! | (bytes[offset + 1]! << 8) | (bytes[offset + 2]! << 16) | (bytes[offset + 3]! << 24)) >>> 0
      const rest = size === 4 ? 0 : bytes[offset + size - 1]!
      if (length !== size || number !== next || (size > 4 && rest !== (next & 0xff))) wrong += 1
      next += 1
    }
    while (next < wanted) {
      if (kit.channel.receiveEach(visit) === 0) await kit.channel.waitReadable()
    }
    return { next, wrong }
  }, count)
  const message = Buffer.alloc(64)
  const views = Array.from({ length: 61 }, (_, index) => message.subarray(0, 4 + index))
  for (let number = 0; number < count; number += 1) {
    const view = views[number % 61]!
    view[view.length - 1] = number & 0xff
    message.writeUInt32LE(number)
    const sent = channel.send(view)
    if (number % 5000 === 0) await sent
  }

  t.deepEqual(await received, { next: count, wrong: 0 })
})

test.serial('with busyPollMicros messages go both ways as usual', async (t) => {
  const { channel, partner } = await pair(t, { options: { busyPollMicros: 50 } })
  const echo = partner.run(async (kit) => {
    for await (const message of kit.channel) await kit.channel.send(message)
  })
  for (let number = 0; number < 2000; number += 1) {
    const message = pattern(number, (number * 13) % 10_000)
    const sent = channel.send(message)
    const answer = await channel.receive()
    await sent
    if (!answer?.equals(message)) return t.fail(`message ${number} came back as another`)
  }
  await channel.end()
  return echo.then(() => t.pass())
})

test.serial('a full ring does not block the event loop', async (t) => {
  const { channel } = await pair(t, { here: { capacity: 4096 } })
  const sent = channel.send(pattern(0, 100_000))
  sent.catch(() => {})
  for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setTimeout(resolve, 1))
  t.true(await isPending(sent))
})

for (const [size, most] of [
  [10, 500_000],
  [20_000, 3000],
] as const) {
  test.serial(`a loop of sends of ${size} bytes that always find room lets the event loop turn`, async (t) => {
    const { channel } = await pair(t, { here: { capacity: 64 << 20 } })
    let fired = false
    setImmediate(() => (fired = true))
    const message = pattern(0, size)
    let count = 0
    for (; !fired && count < most; count += 1) await channel.send(message)
    t.true(fired, `${count} messages`)
  })
}

test.serial('objects that only look like bytes reject with INVALID_ARGUMENT, and nothing is sent', async (t) => {
  const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }
  const { channel, partner } = await pair(t)
  const fail = () => {
    throw new Error('of the caller')
  }
  const revoked = Proxy.revocable(new Uint8Array(8), {})
  revoked.revoke()
  const hostile: [title: string, message: object][] = [
    ['a proxy of bytes', new Proxy(new Uint8Array(8), {})],
    [
      'a proxy that forwards',
      new Proxy(new Uint8Array(8), { get: (bytes, key) => Reflect.get(bytes, key, bytes) as unknown }),
    ],
    ['a proxy of a Buffer', new Proxy(Buffer.alloc(8), {})],
    ['a proxy that throws', new Proxy({}, { getPrototypeOf: fail, get: fail })],
    ['a proxy that was revoked', revoked.proxy],
    ['an accessor that throws', Object.defineProperty(new Uint8Array(8), 'length', { get: fail })],
    ['a class that throws', new (class extends Uint8Array { override get length(): number { return fail() as never } })(8)], // prettier-ignore
    ['no bytes, of their prototype', Object.create(Uint8Array.prototype) as object],
  ]
  for (const [title, value] of hostile) {
    const message = value as Uint8Array
    await t.notThrowsAsync(channel.send('before'), title)
    let sent!: Promise<void>
    t.notThrows(() => (sent = channel.send(message)), title)
    await t.throwsAsync(sent, invalid, title)
    t.throws(() => channel.trySend(message), invalid, title)
    await t.throwsAsync(channel.with({ encode: () => message, decode: () => 0 }).send(0), invalid, title)
  }
  // A view with a forged length is sent with its real one.
  for (const length of ['8', 3n, -1, {}, NaN, 1e9]) {
    const message = Object.defineProperty(Buffer.from('honest'), 'length', { value: length })
    await channel.send(message)
  }
  await channel.send('last')
  const there = await readThere(partner, hostile.length + 7)
  t.deepEqual(there.map(String), [...hostile.map(() => 'before'), ...Array.from({ length: 6 }, () => 'honest'), 'last'])
})
