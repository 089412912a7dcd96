// Values one to many, over a publisher and a subscription of the test's own: each call comes through, and each value.

import test from 'ava'
import {
  RingfenceError,
  type Codec,
  type CodecOptions,
  type Publisher,
  type Subscription,
  type TypedPublisher,
  type TypedSubscription,
} from 'ringfence'

import { insideOf } from './support/inside.js'

type Class = new (...parts: unknown[]) => unknown

const typed = await insideOf<{
  typedPublisher<T>(publisher: Publisher, codec: Codec<T>): TypedPublisher<T>
  typedSubscription<T>(
    subscription: Subscription,
    codec: Codec<T>,
    options: CodecOptions,
    now: () => Buffer | null | undefined,
  ): TypedSubscription<T>
  TypedPublisher: Class
  TypedSubscription: Class
}>('channel/typed-broadcast.js')
const { json } = await insideOf<{ json<T = unknown>(): Codec<T> }>('adapters/codec.js')

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const

/** What notes each call, and answers it with something of its own. */
function noted(calls: string[], properties: string[]) {
  const asked: unknown[][] = []
  const answers: Record<string, unknown> = {}
  const target: Record<string, unknown> = {}
  for (const name of properties) target[name] = answers[name] = { property: name }
  for (const name of calls) {
    answers[name] = { call: name }
    target[name] = (...given: unknown[]) => {
      asked.push([name, ...given])
      return answers[name]
    }
  }
  return { target, answers, asked }
}

test('a publisher of values is the publisher in all else', (t) => {
  const properties = ['address', 'capacity', 'maxMessageSize', 'sequence', 'subscribers', 'bufferedAmount', 'closed']
  const calls = ['send', 'trySend', 'waitWritable', 'end', 'seal', 'close', 'ref', 'unref']
  const { target, answers, asked } = noted(calls, properties)
  const publisher = target as unknown as Publisher
  const values = typed.typedPublisher(publisher, json())
  t.is(values.publisher, publisher)
  for (const name of properties) t.is((values as unknown as typeof target)[name], answers[name], name)
  t.is(values.send({ a: 1 }), answers['send'] as never)
  t.is(values.trySend([2]), answers['trySend'] as never)
  t.is(values.waitWritable(3), answers['waitWritable'] as never)
  t.is(values.end(), answers['end'] as never)
  t.is(values.seal(), answers['seal'] as never)
  t.is(values.close({ linger: 4 }), answers['close'] as never)
  t.is(values[Symbol.asyncDispose](), answers['close'] as never)
  t.is(values.ref(), values)
  t.is(values.unref(), values)
  const text = (message: unknown) =>
    typeof message === 'string' ? message : Buffer.from(message as Uint8Array).toString()
  for (const call of asked.slice(0, 2)) call[1] = text(call[1])
  t.deepEqual(asked, [
    ['send', '{"a":1}', undefined],
    ['trySend', '[2]'],
    ['waitWritable', 3],
    ['end'],
    ['seal'],
    ['close', { linger: 4 }],
    ['close'],
    ['ref'],
    ['unref'],
  ])
  t.throws(() => typed.typedPublisher(publisher, {} as never), invalid)
  t.throws(() => new typed.TypedPublisher(Symbol('ringfence'), publisher, json()), { ...invalid, message: /by with/ })
})

test('a subscription of values is the subscription in all else', async (t) => {
  const properties = ['peer', 'evidence', 'delivery', 'lost', 'sequence', 'readableEnded', 'closed']
  const calls = ['waitReadable', 'verify', 'close', 'ref', 'unref']
  const { target, answers, asked } = noted(calls, properties)
  const there = ['1', '[2]', '{"three":3}', '"four"'].map((value) => Buffer.from(value))
  const signals: unknown[] = []
  Object.assign(target, {
    receive: async (options: unknown) => (signals.push(options), there.shift() ?? null),
    tryReceive: () => there.shift() ?? null,
    receiveEach: (visit: (bytes: Uint8Array, offset: number, length: number) => void, max: number) => {
      const all = there.splice(0, max)
      for (const one of all) visit(one, 0, one.length)
      return all.length
    },
    [Symbol.asyncIterator]: () => ({ next: async () => ({ done: true }), return: async () => ({ done: true }) }),
  })
  const subscription = target as unknown as Subscription
  const values = typed.typedSubscription<unknown>(subscription, json(), {}, () => there.shift())
  t.is(values.subscription, subscription)
  for (const name of properties) t.is((values as unknown as typeof target)[name], answers[name], name)
  const options = { signal: new AbortController().signal }
  t.is(await values.receive(options), 1)
  t.is(signals[0], options)
  t.deepEqual(values.tryReceive(), [2])
  const seen: unknown[] = []
  t.is(
    values.receiveEach((value) => void seen.push(value), 1),
    1,
  )
  t.deepEqual(seen, [{ three: 3 }])
  const loop = values[Symbol.asyncIterator]()
  t.deepEqual(await loop.next(), { done: false, value: 'four' })
  t.deepEqual(await loop.next(), { done: true, value: undefined })
  t.deepEqual([values.tryReceive(), await values.receive()], [undefined, undefined])
  t.is(values.waitReadable(options), answers['waitReadable'] as never)
  t.is(values.verify(), answers['verify'] as never)
  t.is(values.close(), answers['close'] as never)
  t.is(values[Symbol.asyncDispose](), answers['close'] as never)
  t.is(values.ref(), values)
  t.is(values.unref(), values)
  t.deepEqual(asked, [['waitReadable', options], ['verify'], ['close'], ['close'], ['ref'], ['unref']])
  const now = () => null
  t.throws(() => typed.typedSubscription(subscription, {} as never, {}, now), invalid)
  t.throws(() => typed.typedSubscription(subscription, json(), { borrows: 5 } as never, now), invalid)
  t.throws(() => new typed.TypedSubscription(Symbol('ringfence'), subscription, {}), { ...invalid, message: /by with/ })
})
