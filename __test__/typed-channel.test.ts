// A channel of values, over a channel of the test's own: each call comes through, and each value.

import test from 'ava'
import { RingfenceError, type Channel, type Codec, type CodecOptions, type TypedChannel as Typed } from 'ringfence'

import { insideOf } from './support/inside.js'

type Visit = (bytes: Uint8Array, offset: number, length: number) => void

const { typedChannel, TypedChannel } = await insideOf<{
  typedChannel<T>(
    channel: Channel,
    codec: Codec<T>,
    options: CodecOptions,
    now: () => Buffer | null | undefined,
  ): Typed<T>
  TypedChannel: new (...parts: unknown[]) => unknown
}>('channel/typed.js')
const { json } = await insideOf<{ json<T = unknown>(): Codec<T> }>('adapters/codec.js')

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const malformed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_MALFORMED' } as const
const over = { done: true, value: undefined }

/** A channel that has these messages, and keeps books of what is sent. */
function plain(...texts: string[]) {
  const there = texts.map((text) => Buffer.from(text))
  const sent: unknown[] = []
  let isLeft = false
  let drains = 0
  /** All of them lie in one piece of memory, as in a ring. */
  const memory = Buffer.from(`..${texts.join('')}`)
  let at = 2
  const next = (): Buffer | null => {
    const message = there.shift() ?? null
    at += message?.length ?? 0
    return message
  }
  const channel = {
    there,
    sent,
    get drains() {
      return drains
    },
    get isLeft() {
      return isLeft
    },
    send: async (message: unknown) => void sent.push(message),
    trySend: (message: unknown) => sent.push(message) > 1,
    receive: async () => next(),
    tryReceive: () => next(),
    receiveEach(visit: Visit, max = Infinity) {
      drains += 1
      let visits = 0
      while (visits < max && there.length > 0) {
        const { length } = there[0]!
        next()
        visits += 1
        visit(memory.subarray(1), at - length - 1, length)
      }
      return visits
    },
    [Symbol.asyncIterator]: () => ({
      next: async () => {
        const message = next()
        return message === null ? over : { done: false, value: message }
      },
      return: async () => ((isLeft = true), over),
    }),
  }
  return channel
}

/** Keeps what it is shown. */
const bytes: Codec<Uint8Array> = { encode: (value) => value, decode: (value) => value }

function typedOver<T>(
  channel: object,
  codec: Codec<T>,
  options: CodecOptions = {},
  now: () => Buffer | null | undefined = () => undefined,
) {
  return typedChannel(channel as Channel, codec, options, now)
}

test('all that is not about values is the channel’s', async (t) => {
  const calls: unknown[][] = []
  const names = ['role', 'peer', 'evidence', 'capacity', 'maxMessageSize', 'bufferedAmount', 'readableEnded', 'closed']
  const methods = ['waitWritable', 'waitReadable', 'verify', 'tokens', 'end', 'close']
  const channel: Record<string, unknown> = Object.fromEntries(names.map((name) => [name, { name }]))
  for (const name of [...methods, 'sendToken', 'ref', 'unref'])
    channel[name] = (...given: unknown[]) => {
      calls.push([name, ...given])
      return channel[`of ${name}`]
    }
  for (const name of methods) channel[`of ${name}`] = { name }
  const typed = typedOver(channel, json()) as unknown as Record<string, unknown> &
    Record<string, (given?: unknown) => unknown>
  t.is(typed['channel'], channel as never)
  for (const name of names) t.is(typed[name], channel[name] as never, name)
  for (const name of methods) t.is(typed[name]!('given'), channel[`of ${name}`], name)
  t.is(typed['sendToken']!(5), undefined)
  t.is(typed['ref']!(), typed)
  t.is(typed['unref']!(), typed)
  t.is((typed as unknown as Typed<unknown>)[Symbol.asyncDispose](), channel['of close'] as never)
  const taking = new Set(['waitWritable', 'waitReadable', 'verify', 'end', 'close'])
  t.deepEqual(
    calls.map((call) => call.filter((each) => each !== undefined)),
    [
      ...methods.map((name) => (taking.has(name) ? [name, 'given'] : [name])),
      ['sendToken', 5],
      ['ref'],
      ['unref'],
      ['close'],
    ],
  )
})

test('a value is encoded, and undefined is none, whatever a codec makes of it', async (t) => {
  const channel = plain()
  const typed = typedOver(channel, json<unknown>())
  t.is(await typed.send({ a: 1 }), undefined)
  t.true(typed.trySend(null))
  t.deepEqual(channel.sent.map(String), ['{"a":1}', 'null'])
  const anything = typedOver<unknown>(channel, { encode: () => 'nothing', decode: String })
  for (const none of [typed, anything]) {
    await t.throwsAsync(none.send(undefined), invalid)
    t.throws(() => none.trySend(undefined), invalid)
  }
  await t.throwsAsync(typed.send(5n), invalid)
  t.is(channel.sent.length, 2)
})

test('each way to read has the values; nothing there, and no more to come, are undefined', async (t) => {
  for (const options of [{}, { borrow: true }]) {
    const channel = plain('1', 'null', '"three"', '[4]')
    const typed = typedOver<unknown>(channel, json(), options)
    t.is(await typed.receive(), 1)
    t.is(typed.tryReceive(), null)
    t.is(typed.tryReceive(), 'three')
    t.deepEqual(await typed.receive(), [4])
    t.is(await typed.receive(), undefined)
    t.is(typed.tryReceive(), undefined)
    const others = typedOver<unknown>(plain('1', '22', '333'), json(), options)
    const found: unknown[] = []
    t.is(
      others.receiveEach((value) => found.push(value), 2),
      2,
    )
    t.deepEqual(found, [1, 22])
    t.is(
      others.receiveEach((value) => found.push(value)),
      1,
    )
    t.deepEqual(found, [1, 22, 333])
    t.throws(() => others.receiveEach(undefined as never), invalid)
    t.throws(() => others.receiveEach(() => {}, -1), invalid)
  }
})

test('a value that is drained is the visitor’s own, unless the codec borrows', (t) => {
  for (const borrow of [false, true]) {
    const typed = typedOver(plain('first', 'second'), bytes, { borrow })
    const found: Uint8Array[] = []
    typed.receiveEach((value) => found.push(value))
    t.deepEqual(found.map(String), ['first', 'second'])
    // Both lie in the same memory, two bytes of which are before them.
    t.is(found[0]!.buffer === found[1]!.buffer && found[1]!.byteOffset === found[0]!.byteOffset + 5, borrow)
    const channel = plain('only')
    const one = typedOver(channel, bytes, { borrow })
    t.is(String(one.tryReceive()), 'only')
    t.is(one.tryReceive(), undefined)
    // What is shown alone is fetched as receiveEach does.
    t.is(channel.drains, borrow ? 2 : 0)
  }
})

test('a loop has what is there, and else asks the loop beneath; once left it takes nothing', async (t) => {
  const channel = plain('3', '{', '5')
  const there: (Buffer | null | undefined | Error)[] = [
    Buffer.from('1'),
    Buffer.from('{'),
    new Error('of the channel'),
    undefined,
    null,
    Buffer.from('4'),
  ]
  const typed = typedOver<unknown>(channel, json(), {}, () => {
    const next = there.shift()
    if (next instanceof Error) throw next
    return next
  })
  const loop = typed[Symbol.asyncIterator]()
  t.deepEqual(await loop.next(), { done: false, value: 1 })
  await t.throwsAsync(loop.next(), malformed)
  await t.throwsAsync(loop.next(), { message: 'of the channel' })
  t.deepEqual(await loop.next(), { done: false, value: 3 })
  await t.throwsAsync(loop.next(), malformed)
  t.deepEqual(await loop.next(), { done: false, value: 4 })
  t.deepEqual(await loop.next(), { done: false, value: 5 })
  t.deepEqual(await loop.next(), over)
  t.false(channel.isLeft)
  t.deepEqual(await loop.return!(), over)
  t.true(channel.isLeft)
  there.push(Buffer.from('6'))
  t.deepEqual(await loop.next(), over)
  t.is(there.length, 1)
})

test('a codec that makes undefined of a message has not decoded it', async (t) => {
  const typed = typedOver<unknown>(plain('a', 'b', 'c', 'd'), { encode: String, decode: () => undefined })
  const error = await t.throwsAsync<RingfenceError>(typed.receive(), malformed)
  t.is(String(error!.bytes), 'a')
  t.throws(() => typed.tryReceive(), malformed)
  t.throws(() => typed.receiveEach(() => {}), malformed)
})

test('what is no codec, and what is no option of one, is told before anything is made', (t) => {
  const channel = plain()
  const given: [codec: unknown, options: unknown][] = [
    [{}, {}],
    [undefined, {}],
    [json(), null],
    [json(), { borow: true }],
    [json(), { borrow: 1 }],
    [json(), { borrow: null }],
  ]
  for (const [codec, options] of given)
    t.throws(() => typedOver(channel, codec as Codec<unknown>, options as {}), invalid)
  for (const options of [{}, { borrow: undefined }, { borrow: true }, { borrow: false }])
    t.true(typedOver(channel, json(), options) instanceof TypedChannel)
  t.throws(() => new TypedChannel(Symbol('ringfence'), channel, [undefined, undefined]), invalid)
})
