// Messages that were fetched from a ring, many with one call into the binding, and not handed out yet.
//
// One call copies as many records as fit into memory, and JavaScript walks them there. Visitors see a chunk, which is reused. A caller that
// wants a Buffer gets one whose memory is never overwritten: a long message has its own memory, and short messages share a block. So a
// message that is kept keeps little other memory alive.
//
// A program may transfer a block with one of its messages (Node before 21 lets a byte stream do so). The messages behind it are not lost:
// the ring holds them until the last of them is handed out.

import { fromFailure, invalid, type RingfenceError } from '../errors.js'
import {
  ATTACHED,
  CALL_NEXT,
  ENDED,
  FAILED,
  HEADER,
  MISMATCH,
  TOO_LARGE,
  WHOLE,
  recordSize,
  type NativeReader,
} from '../native.js'
import { fairness } from '../runtime/fairness.js'
import { Block, MAX_SHARED } from './block.js'
import { closeAttachments, SealedBuffer, toAttachments, type Attachment } from './attachments.js'
import { allocate, allocateShared, BufferView } from './memory.js'
import type { AttachmentOptions, Message } from '../types.js'

/** Bytes of the chunk: the most that one call carries. */
const CHUNK = 128 * 1024
/** The same limit if records are copied out of the chunk. */
const CACHED_CHUNK = 32 * 1024
/** If a chunk that visitors still use has less room than this, a new chunk is allocated. */
const MIN_ROOM = 8 * 1024
/** The largest memory for large messages, in bytes, that is kept for the next visit. */
const MAX_SCRATCH = 16 * 1024 * 1024
/**
 * Bytes of messages that arrived in groups since the peer was last asked for a wakeup. From this number on, more are likely on their way,
 * and some turns of the event loop pass before the peer is asked again. Asking costs both processes several microseconds, and so does the
 * wakeup. Messages that arrive one at a time do not count.
 */
const BURST_BYTES = 4 * 1024
/** Turns that pass without a message before the peer is asked. */
const MAX_TURNS = 8
/** Messages that a reader of call frames keeps for the program, and their bytes. At either limit, it stops reading. */
const MAX_BACKLOG = 4096
const MAX_BACKLOG_BYTES = 1024 * 1024

const EMPTY = Buffer.alloc(0)

/** Cached, as in the send queue. */
const setBytes = Uint8Array.prototype.set

/** Messages that a reader of call frames has met, in order. The program takes them before it reads the ring. */
export class Backlog {
  readonly #messages: Message[] = []
  #bytes = 0
  #attachments = 0
  #sealedBytes = 0
  readonly #maxCount: number
  readonly #maxBytes: number

  /** @param accepts - The attachments that this side accepts: it keeps no more than these before it stops reading. */
  constructor({ maxCount = 64, maxBytes = 2 ** 30 }: AttachmentOptions = {}) {
    this.#maxCount = maxCount
    this.#maxBytes = Math.max(maxBytes, 1)
  }

  get count(): number {
    return this.#messages.length
  }

  get isFull(): boolean {
    return (
      this.#messages.length >= MAX_BACKLOG ||
      this.#bytes >= MAX_BACKLOG_BYTES ||
      this.#attachments >= this.#maxCount ||
      this.#sealedBytes >= this.#maxBytes
    )
  }

  push(message: Message): void {
    this.#messages.push(message)
    this.#add(message, 1)
  }

  shift(): Message {
    const message = this.#messages.shift()!
    this.#add(message, -1)
    return message
  }

  #add({ length, attachments = [] }: Message, sign: 1 | -1): void {
    this.#bytes += sign * length
    this.#attachments += sign * attachments.length
    for (const each of attachments) if (each instanceof SealedBuffer) this.#sealedBytes += sign * each.byteLength
  }

  clear(): void {
    for (const message of this.#messages.splice(0)) {
      this.#add(message, -1)
      closeAttachments(message)
    }
  }
}

/** Reused memory that visitors see. Empty before the first fetch: a channel may have no visitors. */
class Chunk {
  bytes: Buffer = EMPTY
  words: Uint32Array = new Uint32Array(0)
  used = 0

  reallocate(): void {
    this.bytes = allocateShared(CHUNK, 'what is received')
    this.words = new Uint32Array(this.bytes.buffer)
    this.used = 0
  }
}

/** Blocks of short and of long messages. */
class Blocks {
  readonly short = Block.short()
  readonly long = Block.long()
  /** The block for the next messages, which are likely to be as long as the last ones. */
  current = this.short
  /** Payload bytes of the first message of the last fetch. */
  length = 0

  of(length: number): Block {
    return length > this.short.maxLength ? this.long : this.short
  }
}

/** Records of the chunk, copied to memory that visitors do not see. */
class Copies {
  /** The last message had its own memory, so the next one is likely to need it too. */
  lastWasLong = false
  /** The chunk's records are copied up to this offset. */
  copiedEnd = 0
  #memory: Buffer = EMPTY
  #buffer = new ArrayBuffer(0)
  /** Offset of a record in the chunk minus its offset in the copy. */
  #offset = 0

  /** Returns a message of the chunk in the caller's own memory. `end` is the end of the chunk's records. */
  copy(chunk: Buffer, words: Uint32Array, start: number, length: number, end: number, blocks: Blocks): Buffer {
    if (length > MAX_SHARED) {
      this.lastWasLong = true
      return copyOf(chunk.subarray(start, start + length))
    }
    // If the copy was transferred, the messages that were handed out went with it. The remainder is copied again.
    if (start > this.copiedEnd || this.#memory.length === 0)
      this.#copyRun(chunk, words, start - HEADER, length, end, blocks)
    return new BufferView(this.#buffer, start - this.#offset, length)
  }

  /** Copies the record at `at` to a block, with the records behind it that fit and belong in the same block. */
  #copyRun(chunk: Buffer, words: Uint32Array, at: number, length: number, end: number, blocks: Blocks): void {
    const block = blocks.of(length)
    block.makeRoom(length)
    const { memory, used, minLength, maxLength } = block
    const last = Math.min(end, at + memory.length - used)
    let to = at + recordSize(length)
    while (to < last) {
      const next = words[to >>> 2]!
      const after = to + recordSize(next)
      if (after > last || next < minLength || next > maxLength) break
      to = after
    }
    setBytes.call(memory, chunk.subarray(at, to), used)
    block.add(to - at)
    this.#memory = memory
    this.#buffer = block.buffer
    this.#offset = at - used
    this.copiedEnd = to
  }
}

/** A message that does not fit a chunk or a block. */
class LargeMessage {
  /** The complete message, which may have attachments. */
  message: Message | null = null
  /** Memory for a message that has not fully arrived. */
  partial: Buffer | null = null
  /** The memory can be handed to the caller. */
  isOwned = false
  /** The message is a call frame. */
  isCall = false
  #scratch: Buffer | null = null

  begin(size: number, isOwned: boolean, isCall = false): void {
    this.isOwned = isOwned
    this.isCall = isCall
    this.partial = isOwned ? allocate(size, 'a message') : this.#scratchFor(size)
  }

  #scratchFor(size: number): Buffer {
    if (this.#scratch !== null && this.#scratch.length >= size) return this.#scratch.subarray(0, size)
    this.#scratch = null
    const scratch = allocate(size, 'a message')
    if (size <= MAX_SCRATCH) this.#scratch = scratch
    return scratch
  }

  /** Marks the message complete, with this number of bytes. */
  finish(length?: number): void {
    this.message = (length === undefined ? this.partial : this.partial!.subarray(0, length)) as Message
    this.partial = null
  }

  /** Adds attachments to the complete message. Its memory may be reused, so the object is a new one. */
  attach(attachments: readonly Attachment[]): void {
    const { buffer, byteOffset, length } = this.message!
    this.message = Object.assign(new BufferView(buffer, byteOffset, length) as Message, { attachments })
  }

  /** Removes the message. */
  discard(): void {
    if (this.message !== null) closeAttachments(this.message)
    this.message = this.partial = null
  }

  /** Removes and returns the message, in the caller's own memory. */
  take(): Buffer {
    let message = this.message!
    const { attachments } = message
    if (!this.isOwned) message = copyOf(message) as Message
    this.message = null
    return attachments === undefined ? message : Object.assign(message, { attachments })
  }
}

/** Whether more messages are likely on their way. */
export class Pace {
  #bytes = 0
  #turns = 0

  /** Records have arrived, and the first has a payload of `first` bytes. */
  arrived(bytes: number, first: number): void {
    this.#turns = 0
    if (bytes > recordSize(first)) this.#bytes += bytes
  }

  /** Whether to let one more turn of the event loop pass before the peer is asked for a wakeup. */
  shouldWait(): boolean {
    if (this.#bytes < BURST_BYTES || this.#turns >= MAX_TURNS) {
      this.#bytes = this.#turns = 0
      return false
    }
    this.#turns += 1
    return true
  }
}

/** The channel or the subscription whose messages are fetched. */
export interface FetchOwner {
  /** A call into the binding has failed. */
  failed(error: RingfenceError): void
  /** No more will arrive, and everything was fetched. Returns the error of later reads; null after a clean end. */
  handleEnd(): (() => RingfenceError) | null
}

/** The receive buffer, as the fetched messages see it. */
interface FetchBuffer {
  /** Handles failure and end. */
  readonly owner: FetchOwner
  /**
   * A call frame of `length` bytes has arrived at `at`, in memory that is never overwritten. Must not call the program.
   *
   * @throws {@link RingfenceError} RING_CORRUPT if the peer violated the protocol
   */
  called(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): void
  /** The program has taken a message from the full backlog, which has room again. */
  backlogHasRoom(): void
}

/** The fetched messages. Only the receive buffer reads from it. */
export class Fetched {
  readonly pace = new Pace()
  readonly large = new LargeMessage()
  /** While there are some, no other messages are in memory. */
  readonly backlog: Backlog
  /** The memory of the unread records: the chunk, or a block. */
  memory: Buffer = EMPTY
  words: Uint32Array = new Uint32Array(0)
  /** Start of the unread records. */
  at = 0
  /** End of the unread records. */
  end = 0
  /** The number of running visitors. The memory that they see must not be written. */
  visitors = 0
  /** Why the ring will have no more messages: a clean end, or the error of later reads. */
  endState: 'ended' | (() => RingfenceError) | null = null
  readonly #native: NativeReader
  readonly busy: boolean
  readonly #buffer: FetchBuffer
  readonly #chunk = new Chunk()
  readonly #blocks = new Blocks()
  readonly #copies = new Copies()
  /** The memory of the block that the records are in: their messages are handed out without a copy. `null`: they are in a chunk. */
  #blockBuffer: ArrayBuffer | null = null
  /** Start of the records that were fetched together. */
  #start = 0
  /** The ring still holds these records. */
  #isRetained = false
  /** Messages were last read by visitors, so the next ones are likely to be as well. */
  lastReadByVisitor = false
  /** Releases the ring once nothing is unread. Set after the peer is gone and its messages are still in the ring. */
  release: (() => void) | null = null

  constructor(native: NativeReader, busy: boolean, buffer: FetchBuffer, accepts?: AttachmentOptions) {
    this.backlog = new Backlog(accepts)
    this.#native = native
    this.busy = busy
    this.#buffer = buffer
  }

  /** Whether fetched messages are unread. */
  get hasUnread(): boolean {
    return this.at < this.end || this.large.message !== null || this.backlog.count > 0
  }

  /** The number of fetched messages that are unread. */
  get count(): number {
    let count = this.backlog.count + (this.large.message === null ? 0 : 1)
    for (let at = this.at; at < this.end;) {
      const length = this.words[at >>> 2]
      // The memory was transferred.
      if (length === undefined) break
      count += 1
      at += recordSize(length)
    }
    return count
  }

  /** Whether there is something to read. Checks the ring if nothing is fetched. */
  hasMessage(spin: boolean): boolean {
    // A message that was fetched ahead would be outdated when it is handed out.
    if (this.#native.delivery === 'latest') {
      if (this.hasUnread || this.endState !== null) return this.hasUnread
      const status = this.#native.hasMessage!()
      return status > 0 || this.handleNoMessage(status)
    }
    return this.hasUnread || (this.lastReadByVisitor ? this.fetchForVisitor(spin) : this.#fetch(spin, 1))
  }

  /** Returns the next message, in the caller's own memory. @throws {@link RingfenceError} NO_SPACE */
  take(spin: boolean): Buffer | null {
    this.lastReadByVisitor = false
    if (this.at === this.end) {
      if (this.large.message === null && !this.#fetch(spin, 0)) return null
      if (this.large.message !== null) return this.large.take()
    }
    const length = this.words[this.at >>> 2]
    if (length === undefined) return this.refetch() ? this.take(spin) : null
    const start = this.at + HEADER
    const buffer = this.#blockBuffer
    const message =
      buffer === null
        ? this.#copies.copy(this.memory, this.words, start, length, this.end, this.#blocks)
        : new BufferView(buffer, start, length)
    this.at = (start + length + 7) & ~7
    this.releaseIfRead()
    return message
  }

  /** Takes the messages of the current block, up to `max` with those that are in the array. Returns their bytes. */
  takeRun(into: Buffer[], max: number): number {
    const { words, end } = this
    const buffer = this.#blockBuffer
    if (buffer === null) return 0
    let bytes = 0
    while (this.at < end && into.length < max) {
      const length = words[this.at >>> 2]
      // The memory was transferred: `take` fetches the messages again.
      if (length === undefined) break
      const start = this.at + HEADER
      into.push(new BufferView(buffer, start, length))
      bytes += length
      this.at = (start + length + 7) & ~7
    }
    this.releaseIfRead()
    return bytes
  }

  /** Lets the ring reuse its room once everything that was fetched is read. */
  releaseIfRead(): void {
    if (!this.#isRetained || this.at !== this.end) return
    this.#isRetained = false
    this.#native.release!()
  }

  /**
   * Fetches records to be handed out. If `retainSingle` is 0, the first message is handed out at once.
   *
   * @throws {@link RingfenceError} NO_SPACE if there is no memory for a message, which stays where it is.
   */
  #fetch(spin: boolean, retainSingle: number): boolean {
    if (this.backlog.count > 0) return this.#fetchBacklog()
    return this.#native.pullRetained === undefined ? this.#fetchChunk(spin) : this.#fetchRetained(spin, retainSingle)
  }

  #fetchRetained(spin: boolean, retainSingle: number): boolean {
    if (this.endState !== null) return false
    if (this.large.partial !== null) return this.#gather()
    const answer = this.#pull(false, spin, retainSingle)
    if (answer === CALL_NEXT)
      return this.#handleCalls(this.#pull(true, false, 0)) && this.#fetchRetained(false, retainSingle)
    if (answer <= 0) return this.#handleOther(answer, true)
    this.#useBlock(this.#blocks.current, answer)
    this.#isRetained = retainSingle === 1 || answer > recordSize(this.#blocks.length)
    return true
  }

  /** Copies messages or call frames to the current block, behind what it holds. Returns the answer of the binding. */
  #pull(calls: boolean, spin: boolean, retainSingle: number): number {
    const blocks = this.#blocks
    // A block that was never used is allocated once there is a message.
    if (blocks.current.used > 0) blocks.current.makeRoom(blocks.length)
    const answer = this.#pullTo(blocks.current, calls, spin && this.busy, retainSingle)
    const length = TOO_LARGE - answer
    if (length < 0 || length > MAX_SHARED) return answer
    // The message belongs in the other block, or does not fit.
    blocks.current = blocks.of(length)
    blocks.current.makeRoom(length)
    return this.#pullTo(blocks.current, calls, false, retainSingle)
  }

  #pullTo({ memory, used, minLength, maxLength }: Block, calls: boolean, busy: boolean, retainSingle: number): number {
    const native = this.#native
    if (calls)
      return busy
        ? native.pullCallsBusy!(memory, used, minLength, maxLength)
        : native.pullCalls!(memory, used, minLength, maxLength)
    return busy
      ? native.pullRetainedBusy!(memory, used, minLength, maxLength, retainSingle)
      : native.pullRetained!(memory, used, minLength, maxLength, retainSingle)
  }

  /** Reads from a block that has received this number of bytes. */
  #useBlock(block: Block, bytes: number): void {
    this.memory = block.memory
    this.words = block.words
    this.#blockBuffer = block.buffer
    this.#start = this.at = block.used
    block.add(bytes)
    this.end = block.used
    this.#blocks.length = block.words[this.at >>> 2]!
    this.pace.arrived(bytes, this.#blocks.length)
  }

  /** Does the same as `#fetch`, for visitors. `round`: the caller fetches until nothing is left, or wakes the peer. */
  fetchForVisitor(spin: boolean, round = 0): boolean {
    if (this.backlog.count > 0) return this.#fetchBacklog()
    if (this.endState !== null) return false
    if (this.large.partial !== null) return this.#gather()
    const chunk = this.#chunk
    if (this.visitors === 0) {
      // A visitor has transferred the chunk. Nothing is lost, since everything was read.
      if (chunk.bytes.length === 0) chunk.reallocate()
      chunk.used = 0
    } else if (chunk.bytes.length - chunk.used < MIN_ROOM) {
      chunk.reallocate()
    }
    let answer =
      spin && this.busy
        ? this.#native.pullBusy(chunk.bytes, chunk.used, round)
        : this.#native.pull(chunk.bytes, chunk.used, round)
    if (answer <= TOO_LARGE && chunk.used > 0 && TOO_LARGE - answer + HEADER <= CHUNK) {
      // It may fit into an empty chunk.
      chunk.reallocate()
      answer = this.#native.pull(chunk.bytes, 0, round)
    }
    if (answer === CALL_NEXT) return this.#handleCalls(this.#pull(true, false, 0)) && this.fetchForVisitor(false, round)
    if (answer <= 0) return this.#handleOther(answer, this.visitors > 0)
    this.#useChunk(answer)
    return true
  }

  #fetchBacklog(): boolean {
    const { backlog, large } = this
    const wasFull = backlog.isFull
    large.message = backlog.shift()
    large.isOwned = true
    if (wasFull && !backlog.isFull) this.#buffer.backlogHasRoom()
    return true
  }

  /**
   * Reads on for call frames, and keeps the messages before them for the program. Returns whether there may be more to read.
   *
   * @throws {@link RingfenceError} as {@link take}
   */
  readCalls(spin: boolean): boolean {
    this.#moveToBacklog()
    if (this.backlog.isFull || this.endState !== null) return false
    if (this.large.partial === null) {
      const answer = this.#pull(true, spin, 0)
      if (answer !== MISMATCH) return this.#handleCalls(answer)
    }
    const arrived = this.#fetchRetained(false, 0)
    this.#moveToBacklog()
    return arrived
  }

  /** Keeps the messages in memory. */
  #moveToBacklog(): void {
    while (this.at < this.end || this.large.message !== null) {
      const message = this.take(false)
      if (message === null) return
      this.backlog.push(message as Message)
    }
  }

  /** Hands out the call frames that were copied to the current block, with this answer. Returns whether to read on now. */
  #handleCalls(answer: number): boolean {
    if (answer <= TOO_LARGE) {
      this.large.begin(TOO_LARGE - answer, true, true)
      return this.#gather()
    }
    if (answer <= 0) return this.handleNoMessage(answer)
    const block = this.#blocks.current
    const { buffer, words } = block
    let at = block.used
    block.add(answer)
    const end = block.used
    this.#blocks.length = words[at >>> 2]!
    while (at < end) {
      const length = words[at >>> 2]!
      if (!this.#handleCall(buffer, words, at + HEADER, length)) return false
      at += recordSize(length)
    }
    return fairness.weakDue === null
  }

  #handleCall(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): boolean {
    try {
      this.#buffer.called(memory, words, at, length)
      return true
    } catch (error) {
      return this.#fail(error as RingfenceError)
    }
  }

  /**
   * Does the same as `#fetch` for a ring that holds nothing for this reader. A message is copied out of the chunk before it is handed out,
   * with the messages behind it.
   */
  #fetchChunk(spin: boolean): boolean {
    if (this.visitors > 0) return this.fetchForVisitor(spin)
    if (this.endState !== null) return false
    if (this.large.partial !== null) return this.#gather()
    const chunk = this.#chunk
    if (chunk.bytes.length === 0) chunk.reallocate()
    // Data that is copied twice must stay in the CPU cache. Longer messages are not copied twice.
    const into = chunk.bytes.subarray(0, this.#copies.lastWasLong ? HEADER + MAX_SHARED : CACHED_CHUNK)
    const answer = spin && this.busy ? this.#native.pullBusy(into, 0, 0) : this.#native.pull(into, 0, 0)
    this.#copies.lastWasLong = answer <= TOO_LARGE
    if (answer <= 0) return this.#handleOther(answer, true)
    chunk.used = 0
    this.#useChunk(answer)
    return true
  }

  /** Reads from the chunk, which has received this number of bytes. */
  #useChunk(bytes: number): void {
    const chunk = this.#chunk
    this.memory = chunk.bytes
    this.words = chunk.words
    this.#blockBuffer = null
    this.#isRetained = false
    this.at = this.#copies.copiedEnd = chunk.used
    this.end = chunk.used += bytes
    this.pace.arrived(bytes, this.words[this.at >>> 2]!)
  }

  /** Handles an answer other than records: a large message starts, or there is nothing. `isOwned`: use memory that can be handed out. */
  #handleOther(answer: number, isOwned: boolean): boolean {
    if (answer > TOO_LARGE) return this.handleNoMessage(answer)
    this.large.begin(TOO_LARGE - answer, isOwned)
    return this.#gather()
  }

  /**
   * Recovers after the memory of the unread messages was transferred. Messages of a block are fetched once more.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if a visitor has transferred the chunk, which loses its messages.
   */
  refetch(): boolean {
    const bytes = this.end - this.at
    if (this.#isRetained) {
      const skipped = this.at - this.#start
      const block = this.#blocks.current
      block.memory = EMPTY
      block.makeRoom(this.#blocks.length)
      const answer = this.#native.pullAgain!(block.memory.subarray(0, bytes), skipped)
      if (answer > 0) {
        this.#useBlock(block, answer)
        this.#start -= skipped
        return true
      }
      this.at = this.end
      return this.#handleOther(answer, true)
    }
    this.at = this.end
    this.#chunk.reallocate()
    throw invalid(
      'a visitor has transferred the memory that it was shown, and with it ' +
        `${bytes} bytes of messages that came behind its own: copy what is to be transferred`,
    )
  }

  #gather(): boolean {
    const { large } = this
    const answer = this.#native.gather(large.partial!)
    if (answer === WHOLE || answer === ATTACHED) {
      large.finish()
      if (answer === ATTACHED) large.attach(toAttachments(this.#native.attachments()))
      // Messages behind a call frame are found by the next call.
      if (!large.isCall) return true
      const frame = large.take()
      closeAttachments(frame as Message)
      const buffer = frame.buffer as ArrayBuffer
      this.#handleCall(buffer, new Uint32Array(buffer, 0, buffer.byteLength >>> 2), 0, frame.length)
      return false
    }
    if (answer <= TOO_LARGE) {
      // A different, shorter message: the publisher has overtaken a subscriber that it does not wait for.
      large.finish(TOO_LARGE - answer)
      const attachments = toAttachments(this.#native.attachments())
      if (attachments.length > 0) large.attach(attachments)
      return true
    }
    if (answer === MISMATCH) {
      large.partial = null
      return large.isOwned ? this.#fetch(false, 0) : this.fetchForVisitor(false)
    }
    if (answer !== FAILED) return this.handleNoMessage(answer)
    const error = fromFailure(this.#native.failure())
    // The message stays, and the next call tries again.
    if (error.code === 'ERR_RINGFENCE_NO_SPACE') throw error
    return this.#fail(error)
  }

  /** Handles an answer without a message. There may never be another one. */
  handleNoMessage(answer: number): false {
    if (answer === ENDED) {
      // The remainder of a partial message will not arrive. No call was promised it.
      this.large.partial = null
      this.endState = this.#buffer.owner.handleEnd() ?? 'ended'
    } else if (answer === FAILED) return this.#fail(fromFailure(this.#native.failure()))
    if (this.endState !== null) this.releaseRing()
    return false
  }

  #fail(error: RingfenceError): false {
    this.endState = () => error
    this.#buffer.owner.failed(error)
    this.releaseRing()
    return false
  }

  releaseRing(): void {
    const { release } = this
    this.release = null
    release?.()
  }

  /** Drops all messages. */
  clear(): void {
    this.at = this.end = 0
    this.#isRetained = false
    this.large.discard()
    this.backlog.clear()
  }
}

function copyOf(message: Buffer): Buffer {
  const copy = allocate(message.length, 'a message')
  setBytes.call(copy, message)
  return copy
}
