// Memory for messages: Buffers of any engine, lengths that cannot be allocated, and memory that several messages share.

import { internals } from './support/internals.js'
import test from 'ava'
import type { RingfenceError } from 'ringfence'

import { codeOf } from './support/ring.js'
import { withoutMemory } from './support/memory.js'

interface Memory {
  BufferView: new (memory: ArrayBuffer, from: number, length: number) => Buffer
  allocate(size: number, what: string): Buffer
  allocateEmpty(size: number, what: string): Uint8Array
  allocateShared(size: number, what: string): Buffer
  allocateSharedEmpty(size: number, what: string): Buffer
}

/** Not exported by the package. Loaded with Buffers that are created in that way. */
const memoryOf = (way: string) => internals<Memory>(`channel/memory.js?${way}`)
const memory = await memoryOf('')

/** A class of Buffers that replaces the arguments that it gets. */
function madeSo(make: (whole: ArrayBuffer, from: number, length: number) => object): unknown {
  const species = function (whole: ArrayBuffer, from: number, length: number): object {
    return make(whole, from, length)
  }
  species.prototype = Buffer.prototype
  return species
}

test.serial('a Buffer is made of existing memory, whatever class the engine names', async (t) => {
  const own = Object.getOwnPropertyDescriptor(Buffer, Symbol.species)!
  t.teardown(() => Object.defineProperty(Buffer, Symbol.species, own))
  const ways: Record<string, unknown> = {
    none: undefined,
    text: 'Buffer',
    itself: Buffer,
    another: Uint8Array,
    whole: madeSo((whole, _, length) => Buffer.from(whole, 0, length)),
    long: madeSo((whole, from) => Buffer.from(whole, from)),
    elsewhere: madeSo((whole) => Buffer.from(whole)),
    bytes: madeSo((whole, from, length) => new Uint8Array(whole, from, length)),
    throws: madeSo(() => {
      throw new Error('of the engine')
    }),
  }
  const warned: string[] = []
  process.on('warning', ({ name }) => void warned.push(name))
  for (const [way, species] of Object.entries(ways)) {
    Object.defineProperty(Buffer, Symbol.species, { configurable: true, value: species })
    const { BufferView } = await memoryOf(way)
    Object.defineProperty(Buffer, Symbol.species, own)
    const whole = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8, 9]).buffer
    const made = new BufferView(whole, 3, 4)
    t.true(Buffer.isBuffer(made), way)
    t.is(made.toString('hex'), '04050607', way)
    t.is(made.buffer, whole, way)
  }
  // If the engine has a class of its own, that class is used.
  t.is(memory.BufferView, (Buffer as unknown as Record<symbol, unknown>)[Symbol.species] as never)
  await new Promise((resolve) => setImmediate(resolve))
  t.deepEqual(warned, [], 'the old constructor is not called')
})

test('memory that cannot be allocated is NO_SPACE, with the engine’s reason', (t) => {
  const error = withoutMemory(() =>
    t.throws<RingfenceError>(() => memory.allocate(100, 'a message'), {
      ...codeOf('NO_SPACE'),
      message: 'there is no memory of 100 bytes for a message',
    }),
  )
  t.true(error!.cause instanceof RangeError)
  for (const call of [memory.allocateEmpty, memory.allocateSharedEmpty])
    t.throws(() => call(2 ** 53, 'a message'), codeOf('NO_SPACE'))
})

test('memory that several messages share cannot be transferred, and empty messages share none', (t) => {
  for (const [call, empty] of [
    [memory.allocateShared, false],
    [memory.allocateSharedEmpty, true],
  ] as const) {
    const shared = call(5000, 'a message')
    t.true(Buffer.isBuffer(shared))
    t.deepEqual([shared.length, shared.byteOffset, shared.buffer.byteLength], [5000, 0, 5000])
    if (empty) t.true(shared.every((byte) => byte === 0))
    const { buffer } = shared as { buffer: ArrayBuffer & { transfer?(): void; transferToFixedLength?(): void } }
    try {
      structuredClone(shared, { transfer: [buffer] })
    } catch (error) {
      t.is((error as Error).name, 'DataCloneError')
    }
    for (const way of ['transfer', 'transferToFixedLength'] as const)
      if (way in ArrayBuffer.prototype)
        t.throws(() => buffer[way]!(), { instanceOf: TypeError, message: /copy the message/ })
    t.is(shared.length, 5000)
  }
  t.true(memory.allocateEmpty(5000, 'a message').every((byte) => byte === 0))
})
