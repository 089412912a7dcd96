// Memory for messages, sent and received.

import { builtin } from '../native.js'
import { RingfenceError } from '../errors.js'

/** @throws {@link RingfenceError} NO_SPACE where the engine has none, with the engine's own error as the cause. */
export function allocate(size: number, what: string): Buffer {
  return tried(size, what, (bytes) => Buffer.allocUnsafeSlow(bytes))
}

/** As {@link allocate}, of zeros: for what a peer may be sent though nothing was written there. */
export function allocateEmpty(size: number, what: string): Uint8Array {
  return tried(size, what, (bytes) => new Uint8Array(bytes))
}

function tried<Memory>(size: number, what: string, make: (size: number) => Memory): Memory {
  try {
    return make(size)
  } catch (error) {
    throw new RingfenceError('NO_SPACE', `there is no memory of ${size} bytes for ${what}`, { cause: error })
  }
}

/** A Buffer of memory that is there. */
type View = new (memory: ArrayBuffer, from: number, length: number) => Buffer

/** As {@link View}, by a call that every engine has. */
const viewed = function (memory: ArrayBuffer, from: number, length: number): Buffer {
  return Buffer.from(memory, from, length)
} as unknown as View

/**
 * Node makes its Buffers by a class that has no name of its own, and that says what a slice of one is to be made by. Asked directly it
 * takes a third of what `subarray` takes (19 ns and 55, Node 20). Where it is not that class, nothing is made by it.
 */
export const BufferView: View = bufferClass((Buffer as { [Symbol.species]?: unknown })[Symbol.species]) ?? viewed

function bufferClass(species: unknown): View | undefined {
  // Its constructor is not to be called any more.
  if (species === Buffer) return undefined
  try {
    const made = new (species as View)(new ArrayBuffer(16), 8, 4)
    return made.byteOffset === 8 && made.length === 4 && Buffer.isBuffer(made) ? (species as View) : undefined
  } catch {
    return undefined
  }
}

function refuse(): never {
  throw new TypeError('this memory holds other messages as well: copy the message, and transfer the copy')
}

/** What shared memory inherits from, where the engine can transfer: properties of each one's own take as long as all the rest. */
const SHARED: object | null =
  'transfer' in ArrayBuffer.prototype
    ? Object.create(ArrayBuffer.prototype, { transfer: { value: refuse }, transferToFixedLength: { value: refuse } })
    : null

/**
 * Memory that several messages lie in: a program that transfers one of them elsewhere would take the others along. The engine sees to
 * that for `postMessage` and `structuredClone`, where it knows the mark (Node does); `ArrayBuffer.prototype.transfer` is
 * covered by hand. Neither keeps a program from it that is bent on it.
 */
export function allocateShared(size: number, what: string): Buffer {
  return markShared(allocate(size, what))
}

/** As {@link allocateShared}, of zeros. */
export function allocateSharedEmpty(size: number, what: string): Buffer {
  return markShared(tried(size, what, (bytes) => Buffer.alloc(bytes)))
}

let markAsUntransferable: ((memory: ArrayBufferLike) => void) | undefined

function markShared(memory: Buffer): Buffer {
  const { buffer } = memory
  // Where the engine has no such function, nothing is marked.
  markAsUntransferable ??= builtin.threads.markAsUntransferable ?? (() => {})
  markAsUntransferable(buffer)
  if (SHARED !== null) Object.setPrototypeOf(buffer, SHARED)
  return memory
}

/** Bytes of memory that is kept for the next copy: fresh memory costs more than the copy. */
const SPARE_KEPT = 16 * 1024 * 1024

/** Below this the ring shows no memory of its own, as the binding has it: memory for one message is kept here. */
const SCRATCH = 4096

/** Memory for copies of messages that wait, reused because no caller has ever seen it. */
export class SpareMemory {
  #spare: Uint8Array | null = null
  #scratch: Uint8Array | null = null

  /** Memory for a copy. Nothing is in it yet. @throws {@link RingfenceError} NO_SPACE */
  copyOf(length: number): Uint8Array {
    const spare = this.#spare
    // Not much more than is needed: other messages cannot use it as long as this one waits.
    if (spare === null || spare.length < length || spare.length > 2 * length) {
      return allocate(length, 'a message that waits for room')
    }
    this.#spare = null
    return spare.subarray(0, length)
  }

  /** The copy was sent. */
  recycle(bytes: Uint8Array): void {
    if (bytes.buffer.byteLength <= SPARE_KEPT) this.#spare = new Uint8Array(bytes.buffer)
  }

  /** Memory that a caller fills with one message. @throws {@link RingfenceError} NO_SPACE */
  scratchFor(size: number): Uint8Array {
    if (this.#scratch !== null && this.#scratch.length >= size) return this.#scratch
    const scratch = allocateEmpty(Math.max(size, SCRATCH), 'a message')
    if (size <= SCRATCH) this.#scratch = scratch
    return scratch
  }

  free(): void {
    this.#spare = null
  }
}
