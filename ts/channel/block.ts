// Memory that is shared by several messages that callers get as Buffers.

import { allocateShared } from './memory.js'
import { recordSize } from '../native.js'

/** Longer messages have memory of their own. Node's own Buffers have the same limit, half of `Buffer.poolSize`. */
export const MAX_SHARED = 4 * 1024

/** Bytes of the first block. */
const INITIAL_SIZE = 8 * 1024
/** Bytes of the largest block, which holds at least eight messages of the maximum length. */
const MAX_SIZE = 8 * recordSize(MAX_SHARED)

/**
 * A block, which is replaced by a new one once it is used up. Written memory is never overwritten.
 *
 * Allocating a block of any size costs as much as copying 8 KiB. A message that a caller keeps also keeps its whole block alive, so short
 * messages have separate blocks. A channel with few messages uses little memory: each block is at most twice as large as the one before
 * it, and short messages get blocks of more than 8 KiB only while they arrive many at a time.
 */
export class Block {
  memory: Buffer = Buffer.alloc(0)
  words: Uint32Array = new Uint32Array(0)
  /** The memory behind both views. */
  buffer = new ArrayBuffer(0)
  used = 0
  /** Bytes of the next block. */
  #nextSize = INITIAL_SIZE

  private constructor(
    /** Bytes of the largest block of messages that arrive a few at a time. */
    readonly maxSize: number,
    /** Bytes of the shortest message that is stored here. */
    readonly minLength: number,
    /** Bytes of the longest message that is stored here. */
    readonly maxLength: number,
  ) {}

  static short(): Block {
    return new Block(INITIAL_SIZE, 0, 256)
  }

  static long(): Block {
    return new Block(MAX_SIZE, 257, MAX_SHARED)
  }

  /** Makes room for a message of this length. @throws {@link RingfenceError} NO_SPACE */
  makeRoom(length: number): void {
    // A detached block has length 0, so it never has room.
    if (recordSize(length) <= this.memory.length - this.used) return
    this.memory = allocateShared(this.#nextSize, 'a message')
    this.#nextSize = Math.min(2 * this.#nextSize, this.maxSize)
    this.buffer = this.memory.buffer as ArrayBuffer
    this.words = new Uint32Array(this.buffer)
    this.used = 0
  }

  /** Counts bytes that were written behind those that the block has. */
  add(bytes: number): void {
    this.used += bytes
    if (bytes >= this.memory.length / 2) this.#nextSize = Math.min(2 * this.memory.length, MAX_SIZE)
  }
}
