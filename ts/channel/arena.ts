// The staging memory of a send queue. It gathers short messages as records, and one call into the binding copies them into the ring.

import { isAnyArrayBuffer, isTypedArray, isUint8Array } from 'node:util/types'

import { RingfenceError, invalid, show } from '../errors.js'
import { CALL, FLAGS, HEADER, recordSize } from '../native.js'
import { HEAD, writeHead } from './envelope.js'
import { allocateSharedEmpty } from './memory.js'

/** Bytes of the largest arena: the most that one call carries. */
export const MAX_ARENA = 128 * 1024
/** Bytes of the first arena, small for channels that send little. The arena grows when the messages of one turn do not fit. */
const INITIAL_ARENA = 4 * 1024
/** Any number of queues may have an arena of this size. It holds the longest record. */
const SMALL_ARENA = 16 * 1024
/** The number of queues that may have a larger arena. Above it, the oldest large arena is freed if it is empty. */
const MAX_LARGE_ARENAS = 32
/** Longer messages are copied once, straight into the ring. */
const MAX_STAGED = 8 * 1024

/** The arena of a queue that has sent nothing. */
const NO_BYTES = Buffer.alloc(0)
const NO_WORDS = new Uint32Array(0)

/** Cached: Node 20 walks the prototype chain of typed arrays in each call (3 ns of a `send`'s 17, measured). */
const setBytes = Uint8Array.prototype.set
const elementAt = Uint8Array.prototype.at
const lengthGetter = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), 'length')!.get!

/** The UTF-8 writer behind `Buffer.write`, without its argument checks. It costs half as much as a Buffer made from the text. */
const writeUtf8 = (Buffer.prototype as unknown as { utf8Write(this: Buffer, text: string, at: number): number })
  .utf8Write

/** Records that wait to be copied into the ring. Only the send queue writes to it. */
export class Arena {
  /** Zero-filled: a caller that fills in place may leave bytes unwritten, and they are sent to the peer. */
  bytes: Buffer = NO_BYTES
  words: Uint32Array = NO_WORDS
  /** Start of the records. */
  from = 0
  /** End of the records. */
  to = 0
  /** Bytes of records that are certain to fit into the ring, those in the arena included. */
  room = 0
  /** Records that end at or before this offset are certain to fit and share a promise. 0 once a record has its own promise. */
  guaranteedEnd = 0
  /** A caller is filling memory in place, so the arena must not move. */
  isFilling = false
  /** The longest payload that is staged, in bytes. The limit lets a small ring hold several records. */
  readonly maxPayload: number
  /** With less room than this, the ring is asked again: the peer may have read in the meantime. */
  readonly #minRoom: number
  /** This arena's reference in {@link largeArenas}; null until the arena is large. */
  #weakRef: WeakRef<Arena> | null = null

  constructor(capacity: number, maxAtOnce: number) {
    this.maxPayload = Math.min(MAX_STAGED, maxAtOnce, capacity / 8)
    this.#minRoom = Math.min(MAX_ARENA, capacity / 8)
  }

  get isEmpty(): boolean {
    return this.from === this.to
  }

  /** Stages bytes that are certain to fit, as nearly all do. Returns their number, or -1 if they are not staged. */
  stage(message: unknown): number {
    try {
      if (!(message instanceof Uint8Array)) return -1
      const { length } = message
      // The program may have shadowed `length`. A proxy throws here: its traps could send during the copy.
      if (length !== lengthGetter.call(message)) return -1
      const at = this.to
      const next = at + HEADER + ((length + 7) & ~7)
      // An empty array may be a detached one.
      if (length === 0 || length > this.maxPayload || next > this.guaranteedEnd) return -1
      this.words[at >>> 2] = length
      this.words[(at >>> 2) + 1] = FLAGS
      setBytes.call(this.bytes, message, at + HEADER)
      this.to = next
      return length
    } catch {
      // The slow path throws a precise error.
      return -1
    }
  }

  /** Does the same as {@link stage} for text. */
  stageText(text: string): number {
    // A UTF-16 unit takes at most three bytes. A character outside the BMP takes two units and four bytes.
    const maxLength = 3 * text.length
    const at = this.to
    if (maxLength > this.maxPayload || at + recordSize(maxLength) > this.guaranteedEnd) return -1
    const length = writeUtf8.call(this.bytes, text, at + HEADER)
    this.finishRecord(length)
    return length
  }

  /** Stages bytes that fit into the arena. */
  append(bytes: Uint8Array, tag: number): void {
    this.bytes.set(bytes, this.to + HEADER)
    this.finishRecord(bytes.length, FLAGS | tag)
  }

  /** Stages a call frame that fits into the arena. */
  appendFrame(kind: number, id: number, remaining: number, body: Uint8Array): void {
    const start = this.to + HEADER
    writeHead(this.words, start >>> 2, kind, id, remaining)
    setBytes.call(this.bytes, body, start + HEAD)
    this.finishRecord(HEAD + body.length, FLAGS | CALL)
  }

  /** Writes the header of the next record, whose payload is in place. */
  finishRecord(length: number, flags = FLAGS): void {
    const at = this.to
    this.words[at >>> 2] = length
    this.words[(at >>> 2) + 1] = flags
    this.to = at + recordSize(length)
  }

  /** Whether a record fits into the arena, which may grow, and into the ring. `false`: the ring may be full. */
  ensureRoom(size: number): boolean {
    if (this.to + size <= this.guaranteedEnd) return true
    if (this.guaranteedEnd === 0 || this.to + size > this.room || !this.grow(size)) return false
    this.guaranteedEnd = Math.min(this.room, this.bytes.length)
    return true
  }

  /** Records the ring's free bytes. Returns whether a record of this size fits. */
  setRoom(room: number, size: number): boolean {
    this.room = room
    this.guaranteedEnd = Math.min(room, this.bytes.length)
    return size <= this.guaranteedEnd
  }

  /** Forgets the known room: a write that bypassed the arena has used some of it. */
  invalidateRoom(): void {
    this.room = this.guaranteedEnd = 0
  }

  /** Accounts for records of this many bytes that a flush has copied into the ring. */
  flushed(bytes: number): void {
    this.from += bytes
    this.room -= bytes
  }

  /** Moves to the start of the memory. Everything is in the ring. */
  rewind(): void {
    // A record that is being filled follows, and must stay there.
    if (this.isFilling) return
    this.from = this.to = 0
    this.guaranteedEnd = this.room < this.#minRoom ? 0 : Math.min(this.room, this.bytes.length)
  }

  /** Drops all records. */
  clear(): void {
    this.from = this.to = this.guaranteedEnd = 0
  }

  /**
   * Grows the arena and keeps the records at their offsets. `false`: the arena must not become that large.
   *
   * @throws {@link RingfenceError} NO_SPACE
   */
  grow(size: number): boolean {
    let length = Math.max(2 * this.bytes.length, INITIAL_ARENA)
    while (length < this.to + size) length *= 2
    if (length > MAX_ARENA || (length > SMALL_ARENA && !this.#canBeLarge())) return false
    let bytes: Buffer
    try {
      bytes = allocateSharedEmpty(length, 'what is sent')
    } catch (error) {
      // Each record fits into a small arena, once earlier records are in the ring or queued.
      if (this.bytes.length < SMALL_ARENA) throw error
      return false
    }
    setBytes.call(bytes, this.bytes.subarray(this.from, this.to), this.from)
    this.bytes = bytes
    this.words = new Uint32Array(bytes.buffer)
    return true
  }

  /** Whether the arena may exceed {@link SMALL_ARENA}. */
  #canBeLarge(): boolean {
    const self = (this.#weakRef ??= new WeakRef(this))
    if (largeArenas.has(self)) return true
    if (!makeRoomForLarge()) return false
    largeArenas.add(self)
    return true
  }

  /** Frees the memory. `false`: it is in use. */
  free(): boolean {
    if (!this.isEmpty || this.isFilling) return false
    this.bytes = NO_BYTES
    this.words = NO_WORDS
    this.invalidateRoom()
    return true
  }

  /** Drops the records and frees the memory: the queue has ended. */
  end(): void {
    this.from = this.to = 0
    this.invalidateRoom()
    if (this.#weakRef !== null) largeArenas.delete(this.#weakRef)
    this.free()
  }
}

/** Arenas above {@link SMALL_ARENA}, the oldest first. Weak, so that channels can be garbage-collected. */
const largeArenas = new Set<WeakRef<Arena>>()

/** Whether one more arena may be large. Frees the oldest large arena if it is empty. */
function makeRoomForLarge(): boolean {
  if (largeArenas.size < MAX_LARGE_ARENAS) return true
  const oldest = largeArenas.values().next().value!
  largeArenas.delete(oldest)
  if (oldest.deref()?.free() !== false) return true
  // The next call tries the next arena.
  largeArenas.add(oldest)
  return false
}

/** Checks the internal type instead of the class: values of another realm (node:vm) have other classes. */
export function toBytes(message: unknown, wanted = 'a message must be bytes or a string'): Uint8Array {
  const isView = ArrayBuffer.isView(message)
  if (!isView && !isAnyArrayBuffer(message)) {
    throw invalid(`${wanted}, not ${show(message)}; bytes are an ArrayBuffer or a view of one`)
  }
  try {
    if (!isView) return new Uint8Array(message)
    // The program may have shadowed `length`.
    if (isUint8Array(message) && message.length > 0 && message.length === lengthGetter.call(message)) return message
    // An empty typed array may be detached, in which case `at` throws. Other views throw on their own.
    if (isTypedArray(message)) elementAt.call(message as Uint8Array, 0)
    return new Uint8Array(message.buffer, message.byteOffset, message.byteLength)
  } catch (cause) {
    const what = 'the memory of the message was transferred elsewhere, has become too short, or cannot be read'
    throw new RingfenceError('INVALID_ARGUMENT', what, { cause })
  }
}
