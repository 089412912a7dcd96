// Memory for messages, sent and received.

import { builtin } from '../native.js'
import { orThrowNoSpace } from '../errors.js'

/** @throws {@link RingfenceError} NO_SPACE if the engine cannot allocate, with the engine's error as the cause. */
export function allocate(size: number, what: string): Buffer {
  return allocateWith(size, what, (bytes) => Buffer.allocUnsafeSlow(bytes))
}

/** Does the same as {@link allocate}, zero-filled: for memory that may be sent to a peer without having been written. */
export function allocateEmpty(size: number, what: string): Uint8Array {
  return allocateWith(size, what, (bytes) => new Uint8Array(bytes))
}

function allocateWith<Memory>(size: number, what: string, make: (size: number) => Memory): Memory {
  return orThrowNoSpace(
    () => `there is no memory of ${size} bytes for ${what}`,
    () => make(size),
  )
}

/** A constructor of Buffers over existing memory. */
type View = new (memory: ArrayBuffer, from: number, length: number) => Buffer

/** A {@link View} that every engine supports. */
const bufferOver = function (memory: ArrayBuffer, from: number, length: number): Buffer {
  return Buffer.from(memory, from, length)
} as unknown as View

/**
 * Node's internal class for Buffers, which is not exported but available as `Symbol.species`. Its constructor takes a third of the time of
 * `subarray` (19 ns and 55, Node 20). If the species is anything else, `Buffer.from` is used.
 */
export const BufferView: View = bufferClass((Buffer as { [Symbol.species]?: unknown })[Symbol.species]) ?? bufferOver

function bufferClass(species: unknown): View | undefined {
  // Calling the constructor of Buffer is deprecated.
  if (species === Buffer) return undefined
  try {
    const probe = new (species as View)(new ArrayBuffer(16), 8, 4)
    return probe.byteOffset === 8 && probe.length === 4 && Buffer.isBuffer(probe) ? (species as View) : undefined
  } catch {
    return undefined
  }
}

function refuseTransfer(): never {
  throw new TypeError('this memory holds other messages as well: copy the message, and transfer the copy')
}

/** The prototype of shared memory, or null if the engine cannot transfer. Own properties on each buffer would double its cost. */
const SHARED_PROTOTYPE: object | null =
  'transfer' in ArrayBuffer.prototype
    ? Object.create(ArrayBuffer.prototype, {
        transfer: { value: refuseTransfer },
        transferToFixedLength: { value: refuseTransfer },
      })
    : null

/**
 * Allocates memory that several messages share: a program that transfers one of them would detach the others as well. Engines with
 * `markAsUntransferable` (Node has it) prevent that for `postMessage` and `structuredClone`; `ArrayBuffer.prototype.transfer` is
 * overridden. A determined program can bypass both.
 */
export function allocateShared(size: number, what: string): Buffer {
  return markShared(allocate(size, what))
}

/** Does the same as {@link allocateShared}, zero-filled. */
export function allocateSharedEmpty(size: number, what: string): Buffer {
  return markShared(allocateWith(size, what, (bytes) => Buffer.alloc(bytes)))
}

let markAsUntransferable: ((memory: ArrayBufferLike) => void) | undefined

function markShared(memory: Buffer): Buffer {
  const { buffer } = memory
  // Engines without this function leave the memory unmarked.
  markAsUntransferable ??= builtin.threads.markAsUntransferable ?? (() => {})
  markAsUntransferable(buffer)
  if (SHARED_PROTOTYPE !== null) Object.setPrototypeOf(buffer, SHARED_PROTOTYPE)
  return memory
}

/** The largest memory, in bytes, that is kept for the next copy: fresh memory costs more than the copy. */
const MAX_SPARE = 16 * 1024 * 1024

/** Below this size the binding does not expose ring memory, so memory for one message is kept here. */
const SCRATCH_SIZE = 4096

/** Memory for copies of messages that wait. It can be reused because no caller ever sees it. */
export class SpareMemory {
  #spare: Uint8Array | null = null
  #scratch: Uint8Array | null = null

  /** Returns uninitialized memory for a copy. @throws {@link RingfenceError} NO_SPACE */
  copyOf(length: number): Uint8Array {
    const spare = this.#spare
    // At most twice the size that is needed: other messages cannot use the memory while this one waits.
    if (spare === null || spare.length < length || spare.length > 2 * length) {
      return allocate(length, 'a message that waits for room')
    }
    this.#spare = null
    return spare.subarray(0, length)
  }

  /** Keeps the memory of a copy that was sent. */
  recycle(bytes: Uint8Array): void {
    if (bytes.buffer.byteLength <= MAX_SPARE) this.#spare = new Uint8Array(bytes.buffer)
  }

  /** Returns memory that a caller fills with one message. @throws {@link RingfenceError} NO_SPACE */
  scratchFor(size: number): Uint8Array {
    if (this.#scratch !== null && this.#scratch.length >= size) return this.#scratch
    const scratch = allocateEmpty(Math.max(size, SCRATCH_SIZE), 'a message')
    if (size <= SCRATCH_SIZE) this.#scratch = scratch
    return scratch
  }

  free(): void {
    this.#spare = null
  }
}
