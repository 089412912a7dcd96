// Unit tests of codecs. codec.test.ts uses them on channels.

import { createSecretKey, webcrypto } from 'node:crypto'
import { open } from 'node:fs/promises'
import { createRequire } from 'node:module'
import v8 from 'node:v8'

import test from 'ava'
import { json, RingfenceError, SealedBuffer, structured, type Codec } from 'ringfence'

import { internals } from './support/internals.js'

interface Insides {
  borrows(codec: object): boolean
  encodeWith(codec: object, value: unknown): Uint8Array | string
  decodeWith(codec: object, bytes: Buffer): unknown
  checkCodec(codec: unknown): void
}

/** Not exported by the package. */
const { borrows, encodeWith, decodeWith, checkCodec } = await internals<Insides>('adapters/codec.js')

const require = createRequire(import.meta.url)

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const malformed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_MALFORMED' } as const

test('JSON is read as UTF-8 to the byte', (t) => {
  const codec = json()
  for (const value of [null, false, 0, '', 'ascii', 'grüße 日本語 🦀', { a: [1] }]) {
    const text = codec.encode(value)
    t.is(text, JSON.stringify(value))
    t.deepEqual(codec.decode(Buffer.from(text)), value)
  }
  for (const bytes of [
    Buffer.from([0x22, 0xff, 0x22]),
    Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22]),
    Buffer.from('{} {}'),
  ])
    t.throws(() => codec.decode(bytes), { instanceOf: SyntaxError })
  t.throws(() => codec.decode(Buffer.from([0x22, 0xff, 0x22])), { message: 'the bytes are no UTF-8' })
})

/** The number 1 in a given version of the engine's format. */
const inVersion = (...version: number[]) => Buffer.from([0xff, ...version, 0x49, 2])

test('JSON refuses sealed buffers, of other copies of the package as well, and logs show them', (t) => {
  const foreign = (require('ringfence') as typeof import('ringfence')).SealedBuffer
  for (const { from } of [SealedBuffer, foreign]) {
    const buffer = from(Buffer.from('four'))
    const refused = { ...invalid, message: /^the value cannot be encoded: JSON has no SealedBuffer: send it in/ }
    for (const value of [buffer, [{ buffer }]]) t.throws(() => encodeWith(json(), value), refused)
    t.is(JSON.stringify({ buffer }), '{"buffer":{"byteLength":4}}')
    const size = { toJSON: () => buffer.byteLength }
    t.is(encodeWith(json(), { size }), '{"size":4}')
    const nested = { toJSON: () => encodeWith(json(), 1) }
    t.throws(() => encodeWith(json(), [nested, buffer]), refused)
  }
})

test('of the engine’s own format, only the versions that it writes are decoded', (t) => {
  const codec = structured()
  for (const version of [13, 14, 15]) t.is(codec.decode(inVersion(version)), 1)
  const wrong = { instanceOf: SyntaxError, message: 'the bytes do not begin as those of v8.serialize do' }
  for (const bytes of [
    Buffer.alloc(0),
    Buffer.from([0xff]),
    Buffer.from([0xfe, 15, 0x49, 2]),
    Buffer.from([0x49, 2]),
    inVersion(0),
    inVersion(12),
    // A version of two bytes, which the engine would read as one byte.
    inVersion(0x80, 0),
    inVersion(0x8f, 0),
    inVersion(0xff, 0),
  ])
    t.throws(() => codec.decode(bytes), wrong, bytes.toString('hex'))
  t.throws(() => codec.decode(inVersion(0x7f)), { message: /version/ })
})

test('bytes after the value are an error, wherever the message lies in memory', (t) => {
  const whole = v8.serialize({ a: 1 })
  for (const before of [0, 5]) {
    const memory = Buffer.concat([Buffer.alloc(before), whole, Buffer.alloc(3)])
    const at = (length: number) => memory.subarray(before, before + length)
    t.deepEqual(structured().decode(at(whole.length)), { a: 1 })
    const error = { instanceOf: SyntaxError, message: '3 bytes follow the value' }
    t.throws(() => structured().decode(at(whole.length + 3)), error)
  }
})

test('typed arrays belong to the receiver, and expose only the bytes that were sent', (t) => {
  const value = [
    Buffer.from('bytes'),
    Uint8Array.from([1, 2, 3]),
    Uint16Array.from([1, 2, 3]),
    Float64Array.from([0.5]),
    new DataView(Uint8Array.from([1, 2, 3]).buffer, 1, 2),
    new Uint8Array(0),
  ]
  const bytes = v8.serialize(value)
  t.deepEqual(structured().encode(value), bytes)
  const found = structured<Uint8Array[]>().decode(Buffer.from(bytes))
  t.deepEqual(found as unknown[], value)
  for (const [index, { buffer, byteOffset, byteLength }] of found.entries()) {
    t.is(byteOffset, 0, String(index))
    t.is(buffer.byteLength, byteLength, String(index))
  }
  t.true(Buffer.isBuffer(found[0]))
  t.false(Buffer.isBuffer(found[1]))
})

const throws = (thrown: unknown) => () => {
  throw thrown
}

test('a codec must encode to bytes or a string, or the value cannot be sent', (t) => {
  const made = (message: unknown): object => ({ encode: () => message, decode: () => 0 })
  for (const message of ['', 'text', new Uint8Array(0), new Float64Array(1), new DataView(new ArrayBuffer(1))])
    t.is(encodeWith(made(message), 1), message as string)
  for (const message of [undefined, null, 5, {}, [], new ArrayBuffer(1)]) {
    const error = t.throws(() => encodeWith(made(message), 'value'), {
      ...invalid,
      message: /nothing that can be sent: "value"/,
    })
    t.true(error!.cause instanceof TypeError)
    t.regex((error!.cause as Error).message, /^a message is bytes or a string, and not /)
  }
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  for (const [thrown, told] of [
    [new RangeError('no'), 'no'],
    ['no', '"no"'],
    [undefined, 'undefined'],
    [proxy, 'a value that cannot be shown'],
  ] as const) {
    const error = t.throws(() => encodeWith({ encode: throws(thrown), decode: () => 0 }, 1), invalid)
    t.is(error?.message, `the value cannot be encoded: ${told}`)
    t.true(error?.cause === thrown)
  }
  const full = new RingfenceError('NO_SPACE', 'no memory for the bytes')
  t.is(
    t.throws(() => encodeWith({ encode: throws(full), decode: () => 0 }, 1)),
    full,
  )
})

test('the error for bytes that a codec cannot decode has a copy of them', (t) => {
  t.is(decodeWith({ decode: (bytes: Buffer) => bytes.length }, Buffer.from('four')), 4)
  for (const [thrown, told] of [
    [new RangeError('no'), 'no'],
    ['no', '"no"'],
  ] as const) {
    const bytes = Buffer.from('four')
    const error = t.throws(() => decodeWith({ decode: throws(thrown) }, bytes), malformed) as RingfenceError
    t.is(error.message, `the peer has sent 4 bytes that cannot be decoded: ${told}; do both sides use the same codec?`)
    t.is(error.cause, thrown)
    bytes.fill(0)
    t.is(String(error.bytes), 'four', 'the memory may be used again')
  }
})

test('a codec has two functions, and may borrow bytes only if it belongs to this package', (t) => {
  const own: Codec<number> = { encode: () => '', decode: () => 0 }
  for (const codec of [own, json(), structured()]) t.notThrows(() => checkCodec(codec))
  for (const wrong of [undefined, null, 5, 'json', {}, { encode() {} }, { decode() {} }, { encode: 1, decode() {} }])
    t.throws(() => checkCodec(wrong), { ...invalid, message: /^a codec has the functions encode and decode/ })
  t.false(borrows(own))
})

/** Missing in the types of Node. */
const { Module, Memory } = (
  globalThis as unknown as Record<'WebAssembly', Record<'Module' | 'Memory', new (of: object) => object>>
).WebAssembly

test('values that cannot leave their process are refused at any depth', async (t) => {
  const file = await open('/dev/null')
  t.teardown(() => file.close())
  const { port1 } = new MessageChannel()
  t.teardown(() => port1.close())
  const key = await webcrypto.subtle.generateKey({ name: 'AES-GCM', length: 128 }, true, ['encrypt'])
  const none: Record<string, unknown> = {
    'a WebAssembly.Module': new Module(Buffer.from('0061736d01000000', 'hex')),
    'a WebAssembly.Memory': new Memory({ initial: 1 }),
    'a CryptoKey': key,
    'a KeyObject': createSecretKey(Buffer.alloc(16)),
    'a FileHandle': file,
    'a MessagePort': port1,
    'a Blob': new Blob(['x']),
    'a function': () => {},
    'a symbol': Symbol('x'),
    'a promise': Promise.resolve(),
    'a WeakMap': new WeakMap(),
    'shared memory': new SharedArrayBuffer(8),
  }
  const codec = structured()
  for (const [title, value] of Object.entries(none)) {
    const within = [
      value,
      { deep: [{ value }] },
      new Map([['key', value]]),
      [1, value, 2],
      new Error('x', { cause: value }),
    ]
    for (const each of within) t.throws(() => encodeWith(codec, each), invalid, title)
  }
  // Deep inside a large value they are not searched for; decoding the bytes fails instead.
  const { [`a WebAssembly.Module`]: module } = none
  const many = Array.from({ length: 1000 }, (_, number) => number)
  for (const value of [
    [...many, module],
    [...many, { module }],
    { many, module, after: 1, more: module },
    { many, map: new Map<unknown, unknown>([['key', module], [1, 2], [module, module]]) }, // prettier-ignore
    { many, set: new Set([module, 1]) },
    { many, after: [module, { deep: module }, 2] },
  ])
    t.throws(() => decodeWith(codec, Buffer.from(encodeWith(codec, value) as Uint8Array)), malformed)
  // The codec still works after that.
  t.deepEqual(codec.decode(Buffer.from(encodeWith(codec, { a: [1] }) as Uint8Array)), { a: [1] })
})
