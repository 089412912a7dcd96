// Messages as values of a codec, with the errors of both directions.

import test from 'ava'
import { RingfenceError, type Codec } from 'ringfence'

import { internals } from './support/internals.js'

type Visit = (bytes: Uint8Array, offset: number, length: number) => void

interface Values<T> {
  encode(value: T): Uint8Array | string
  send(queue: { send(message: unknown): Promise<void> }, value: T): Promise<void>
  decode(bytes: Buffer): T
  visitor(visit: (value: T) => void): Visit
}

const [{ Values }, { json }] = await Promise.all([
  internals<{ Values: new <T>(codec: Codec<T>) => Values<T> }>('channel/values.js'),
  internals<{ json<T = unknown>(): Codec<T> }>('adapters/codec.js'),
])

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const malformed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_MALFORMED' } as const

test('a value is encoded and sent; undefined is no value, whatever a codec makes of it', async (t) => {
  const sent: unknown[] = []
  const queue = { send: async (message: unknown) => void sent.push(message) }
  const values = new Values<unknown>(json())
  t.is(await values.send(queue, { a: 1 }), undefined)
  t.is(values.encode(null), 'null')
  const anything = new Values<unknown>({ encode: () => 'nothing', decode: String })
  for (const none of [values, anything]) {
    await t.throwsAsync(none.send(queue, undefined), invalid)
    t.throws(() => none.encode(undefined), invalid)
  }
  await t.throwsAsync(values.send(queue, 5n), invalid)
  t.deepEqual(sent, ['{"a":1}'])
})

test('a codec that returns undefined for a message has not decoded it', (t) => {
  const values = new Values<unknown>({ encode: String, decode: () => undefined })
  const error = t.throws<RingfenceError>(() => values.decode(Buffer.from('a')), malformed)
  t.is(String(error!.bytes), 'a')
})

test('a visitor gets values, and a codec of the program gets bytes that it may keep', (t) => {
  const memory = Buffer.from('..first')
  const found: unknown[] = []
  new Values<unknown>(json()).visitor((value) => found.push(value))(Buffer.from('.[1]'), 1, 3)
  t.deepEqual(found, [[1]])
  const kept: Uint8Array[] = []
  const keeping = new Values<Uint8Array>({ encode: (value) => value, decode: (value) => value })
  keeping.visitor((value) => kept.push(value))(memory, 2, 5)
  memory.fill(0)
  t.is(String(kept[0]), 'first')
})

test('an object that is no codec is INVALID_ARGUMENT', (t) => {
  for (const codec of [undefined, {}, { encode() {} }, 'json']) t.throws(() => new Values(codec as never), invalid)
})
