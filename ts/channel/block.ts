// Memory that several messages share which are handed out as Buffers.

import { allocateShared } from './memory.js'
import { HEADER } from '../native.js'

/** A longer message has memory of its own. Node's own Buffers have the same limit, half of `Buffer.poolSize`. */
export const OWN = 4 * 1024

/** Bytes of a record that stands in a block. */
export function recordSize(length: number): number {
  return HEADER + ((length + 7) & ~7)
}

/** Bytes of the first block. */
const FIRST = 8 * 1024

/**
 * A block, and the next one once it is used up. What is written to it is never written again.
 *
 * To make one costs as much as to copy 8 KiB, whatever its size, and a message that is kept keeps a whole one: so short messages have
 * blocks of their own. Each block is twice as large as the one before it, up to the limit: a channel with few messages keeps little.
 */
export class Block {
  memory: Buffer = Buffer.alloc(0)
  words: Uint32Array = new Uint32Array(0)
  /** What both show. */
  whole = new ArrayBuffer(0)
  used = 0

  #size = FIRST

  private constructor(
    /** Bytes of the largest block. */
    readonly limit: number,
    /** Bytes of the shortest message that is put here. */
    readonly least: number,
    /** And of the longest. */
    readonly most: number,
  ) {}

  static short(): Block {
    return new Block(FIRST, 0, 256)
  }

  /** Eight of the longest fit. */
  static long(): Block {
    return new Block(8 * recordSize(OWN), 257, OWN)
  }

  /** Has room for a message of this length. @throws {@link RingfenceError} NO_SPACE */
  makeRoom(length: number): void {
    // Nothing has room in one that was transferred elsewhere.
    if (recordSize(length) <= this.memory.length - this.used) return
    this.memory = allocateShared(this.#size, 'a message')
    this.#size = Math.min(2 * this.#size, this.limit)
    this.whole = this.memory.buffer as ArrayBuffer
    this.words = new Uint32Array(this.whole)
    this.used = 0
  }
}
