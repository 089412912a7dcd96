// Staging memory of a send queue: short messages are gathered here as records, and one call into the binding copies them into the ring.

import { FLAGS, HEADER } from '../native.js'
import { allocateSharedEmpty } from './memory.js'

/** Bytes of the largest arena: what one call carries at most. */
export const ARENA = 128 * 1024
/** Bytes of the first one: a channel that sends little keeps little. It grows as the messages of one turn do not fit. */
const FIRST_ARENA = 4 * 1024
/** Any number of queues have an arena of this size; it holds the longest record. */
const SMALL_ARENA = 16 * 1024
/** So many queues have a larger one. The next one that needs it has the arena of the first of them freed, if nothing lies there. */
const LARGE_ARENAS = 32
/** Longer messages are copied once, straight into the ring. */
const STAGED_AT_MOST = 8 * 1024

/** The arena of a queue that has sent nothing yet. */
const NO_BYTES = Buffer.alloc(0)
const NO_WORDS = new Uint32Array(0)

/** Looked up once: Node 20 looks up what typed arrays inherit in each call (3 ns of a `send`'s 17, measured). */
const put = Uint8Array.prototype.set
export const lengthOf = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), 'length')!.get!

/** What `Buffer.write` calls for UTF-8, after it has checked its arguments; half as expensive as a Buffer of the text. */
const writeText = (Buffer.prototype as unknown as { utf8Write(this: Buffer, text: string, at: number): number })
  .utf8Write

/** Bytes of a record with so many bytes of payload. */
export const recordSize = (length: number): number => HEADER + ((length + 7) & ~7)

/** Records that wait to be copied into the ring. Only its send queue writes to it. */
export class Arena {
  /** Zeros at first: a caller that fills in place may leave bytes as they are, and they go to the peer. */
  bytes: Buffer = NO_BYTES
  words: Uint32Array = NO_WORDS
  /** Records lie from here… */
  from = 0
  /** …to here. */
  to = 0
  /** Bytes of records that have room in the ring for sure, those in the arena included. */
  room = 0
  /** Records that end here or before share a promise. 0 once there are others. */
  sure = 0
  /** A caller is filling memory in place: the arena stays where it is. */
  isFilling = false
  /** Payload bytes of a message that is staged at most: a record leaves a small ring room for more of them. */
  readonly most: number
  /** With less room than this, the ring is asked again: the peer may have read in the meantime. */
  readonly #enough: number
  /** The member of {@link large}, once this arena was large. */
  #weak: WeakRef<Arena> | null = null

  constructor(capacity: number, maxAtOnce: number) {
    this.most = Math.min(STAGED_AT_MOST, maxAtOnce, capacity / 8)
    this.#enough = Math.min(ARENA, capacity / 8)
  }

  get isEmpty(): boolean {
    return this.from === this.to
  }

  /** Stages bytes that surely find room, as nearly all do. Returns their number, or -1 if they are not staged. */
  take(message: unknown): number {
    try {
      if (!(message instanceof Uint8Array)) return -1
      const { length } = message
      // The property may be the caller's own. A proxy throws here: its traps could send while it is copied.
      if (length !== lengthOf.call(message)) return -1
      const at = this.to
      const next = at + HEADER + ((length + 7) & ~7)
      // An array without a byte may be one that was transferred.
      if (length === 0 || length > this.most || next > this.sure) return -1
      this.words[at >>> 2] = length
      this.words[(at >>> 2) + 1] = FLAGS
      put.call(this.bytes, message, at + HEADER)
      this.to = next
      return length
    } catch {
      // The slow path says what is wrong with it.
      return -1
    }
  }

  /** As {@link take}, of text. */
  takeText(text: string): number {
    // A character takes three bytes at most; those beyond the first 65,535 take two units of the string and four bytes.
    const most = 3 * text.length
    const at = this.to
    if (most > this.most || at + recordSize(most) > this.sure) return -1
    const length = writeText.call(this.bytes, text, at + HEADER)
    this.finish(length)
    return length
  }

  /** Stages bytes for which there is room in the arena. */
  add(bytes: Uint8Array): void {
    this.bytes.set(bytes, this.to + HEADER)
    this.finish(bytes.length)
  }

  /** The payload of the next record is there. */
  finish(length: number): void {
    const at = this.to
    this.words[at >>> 2] = length
    this.words[(at >>> 2) + 1] = FLAGS
    this.to = at + recordSize(length)
  }

  /** Whether a record has room here and in the ring, maybe in a larger arena. `false`: the ring may be full. */
  isSure(size: number): boolean {
    if (this.to + size <= this.sure) return true
    if (this.sure === 0 || this.to + size > this.room || !this.grow(size)) return false
    this.sure = Math.min(this.room, this.bytes.length)
    return true
  }

  /** The ring has room for so many bytes. Whether that is enough for a record. */
  setRoom(room: number, size: number): boolean {
    this.room = room
    this.sure = Math.min(room, this.bytes.length)
    return size <= this.sure
  }

  /** Something else was written to the ring than the arena: what is known of the room no longer holds. */
  forgetRoom(): void {
    this.room = this.sure = 0
  }

  /** A flush has copied so many bytes of records into the ring. */
  taken(bytes: number): void {
    this.from += bytes
    this.room -= bytes
  }

  /** Everything is in the ring: the next record stands at the start. */
  restart(): void {
    // A record that is being filled lies behind, and stays there.
    if (this.isFilling) return
    this.from = this.to = 0
    this.sure = this.room < this.#enough ? 0 : Math.min(this.room, this.bytes.length)
  }

  /** Drops all records. */
  clear(): void {
    this.from = this.to = this.sure = 0
  }

  /**
   * A larger arena, with the same records at the same places. `false`: it must not become so large.
   *
   * @throws {@link RingfenceError} NO_SPACE
   */
  grow(size: number): boolean {
    let length = Math.max(2 * this.bytes.length, FIRST_ARENA)
    while (length < this.to + size) length *= 2
    if (length > ARENA || (length > SMALL_ARENA && !this.#mayBeLarge())) return false
    let bytes: Buffer
    try {
      bytes = allocateSharedEmpty(length, 'what is sent')
    } catch (error) {
      // Each record fits a small arena, once the records before it are in the ring or in line.
      if (this.bytes.length < SMALL_ARENA) throw error
      return false
    }
    put.call(bytes, this.bytes.subarray(this.from, this.to), this.from)
    this.bytes = bytes
    this.words = new Uint32Array(bytes.buffer)
    return true
  }

  /** Whether it may be larger than the arenas of any number of queues. */
  #mayBeLarge(): boolean {
    const self = (this.#weak ??= new WeakRef(this))
    if (large.has(self)) return true
    if (!isRoomForLarge()) return false
    large.add(self)
    return true
  }

  /** Frees the memory. `false`: it is in use. */
  free(): boolean {
    if (!this.isEmpty || this.isFilling) return false
    this.bytes = NO_BYTES
    this.words = NO_WORDS
    this.forgetRoom()
    return true
  }

  /** The queue has ended. */
  end(): void {
    this.from = this.to = 0
    this.forgetRoom()
    if (this.#weak !== null) large.delete(this.#weak)
    this.free()
  }
}

/** Arenas above {@link SMALL_ARENA}, the oldest first. Weak: a channel goes with the garbage. */
const large = new Set<WeakRef<Arena>>()

/** Whether one more arena may be large. The oldest large one is freed if nothing lies there. */
function isRoomForLarge(): boolean {
  if (large.size < LARGE_ARENAS) return true
  const first = large.values().next().value!
  large.delete(first)
  if (first.deref()?.free() !== false) return true
  // The next arena is tried the next time.
  large.add(first)
  return false
}
