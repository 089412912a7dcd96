// Messages that wait to be sent, in the order of the calls, and the promises that are kept once they are in the ring.
//
// Small messages are written as records into an arena, which one call into the binding copies into the ring: the
// call costs more than the message. Where the ring is full, what is left waits in line, behind what came before it.
//
// A promise resolves once its message is in the ring, and rejects only where it never will be. Messages share a promise where the
// ring surely has room for all of them: only this side writes there, and the peer only makes room, so they go in together. A
// message that may have to wait has a promise of its own, since it may be the last that gets in before the channel is closed.

import { isAnyArrayBuffer, isTypedArray, isUint8Array } from 'node:util/types'

import { defer, within, type Deferred } from '../runtime/deferred.js'
import { RingfenceError, fromFailure, invalid, show } from '../errors.js'
import { flushAtExit, noticeExit } from '../runtime/exit.js'
import { FlushPromise } from './flush-promise.js'
import { allocate, allocateEmpty, allocateSharedEmpty } from './memory.js'
import { FAILED, FLAGS, HEADER, WHOLE, type NativeSender } from '../native.js'
import { fairness } from '../runtime/fairness.js'
import { Line, Place } from './line.js'
import { timers } from '../runtime/timers.js'
import type { BufferSource, Reservation } from '../types.js'

/** Bytes of the largest staging arena: what one call carries at most. */
const ARENA = 128 * 1024
/** Bytes of the first one: a channel that sends little keeps little. It grows as the messages of one turn do not fit. */
const FIRST_ARENA = 4 * 1024
/** Any number of queues have an arena of this size; it holds the longest record. */
const SMALL_ARENA = 16 * 1024
/** So many queues have a larger one. The next one that needs it has the arena of the first of them freed, if nothing lies there. */
const LARGE_ARENAS = 32
/** Longer messages are copied once, straight into the ring. */
const STAGED_AT_MOST = 8 * 1024

/**
 * For tests: 1 where the engine is not even asked whether JavaScript may be shown memory that is not its own. Electron
 * answers no, and there a reservation is a copy.
 */
const OWN_MEMORY = process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'] === '1' ? 1 : 0

/** For a promise whose rejection tells nothing new: a caller need not handle it. */
function ignore(): void {}

/** The answer to a send whose message is in the ring already. */
const SENT: Promise<void> = Promise.resolve()

/**
 * Where the ring is full, this many turns of the event loop are let pass before the peer is asked to ring: to ask it costs
 * both processes several microseconds (membarrier(2) interrupts the peer, a byte on the line wakes this side), in which a
 * peer that reads makes much room.
 */
const TURNS = 8

/** Below this the ring shows no memory of its own, as the binding has it: memory for one message is kept here. */
const SCRATCH = 4096

/** The arena of a queue that has sent nothing yet. */
const NO_BYTES = Buffer.alloc(0)
const NO_WORDS = new Uint32Array(0)

/** Looked up once: Node 20 looks for what typed arrays inherit in each call (3 ns of a `send`'s 17, measured). */
const put = Uint8Array.prototype.set
const lookAt = Uint8Array.prototype.at
const lengthOf = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), 'length')!.get!

/** What `Buffer.write` calls for UTF-8, after it has looked at its arguments; half as dear as a Buffer of the text. */
const writeText = (Buffer.prototype as unknown as { utf8Write(this: Buffer, text: string, at: number): number })
  .utf8Write

/** Bytes of memory that is kept for the next copy: fresh memory costs more than the copy. */
const SPARE_KEPT = 16 * 1024 * 1024

/** A promise, and where the last record ends that it is about. */
interface Told {
  end: number
  told: Deferred
  /** How often the ring had been full when it was made: another number by now, where it has waited since. -1: the ring was full. */
  full: number
}

/** Something in line: records, or one message too long to be staged. */
class Parcel extends Place {
  constructor(
    readonly bytes: Uint8Array,
    readonly packed: boolean,
    /** Bytes of it that are in the ring. */
    public sent: number,
    readonly told: Told[],
  ) {
    super()
  }
}

/** A caller that waits for room. */
class Asking extends Place {
  readonly told = defer()

  constructor(readonly size: number) {
    super()
  }
}

export class SendQueue {
  readonly #native: NativeSender
  /** Every message goes into the ring at once: its sender spins for the answer. */
  readonly #eager: boolean
  readonly #maxMessageSize: number
  readonly #maxAtOnce: number
  /** A record of the arena goes into the ring in one piece, and leaves a small ring room for more of them. */
  readonly #stagedAtMost: number
  /** Of zeros at first: a caller that fills in place may leave bytes as they are, and they go to the peer. */
  #arena: Buffer = NO_BYTES
  #words: Uint32Array = NO_WORDS
  /** What {@link large} has of this queue, once that had a large arena. */
  #weak: WeakRef<SendQueue> | null = null
  /** The arena holds records from here… */
  #from = 0
  /** …to here. */
  #to = 0
  /** Bytes of records that have room in the ring for sure, those in the arena included. */
  #room = 0
  /** Less than this, and the ring is asked again: the peer may have read meanwhile. */
  readonly #enough: number
  /** Records in the arena that end here or before share a promise. 0 where there are others already. */
  #sure = 0
  /** The promise that they share… */
  #shared: FlushPromise | Deferred | null = null
  /** …and where the last of them ends, once there are others behind it. */
  #sharedEnd = 0
  /** The promises of the others, in order. */
  #single: Told[] = []
  /** The arena is flushed in the next microtask. */
  #scheduled = false
  /** The last promise that its flush settles: what comes behind is told after it. */
  #settling: FlushPromise | null = null
  /** The last that is told after another, until it was. */
  #behind: Deferred | null = null
  /** In line before the arena. */
  readonly #line = new Line<Parcel>()
  /** Payload in the arena and the line that is not in the ring yet. */
  #buffered = 0
  #spare: Uint8Array | null = null
  readonly #asking = new Line<Asking>()
  #whenEmpty: (() => void)[] = []
  /** Sends that had to wait for room, and were told since how that ended. */
  #waits = 0
  /** For how long the ring was full with something in line, in milliseconds. */
  #waited = 0
  /** Since when it is; null: it is not. */
  #fullSince: number | null = null
  /** How often it was. */
  #full = 0
  /** Why nothing can be sent now: a reservation, or an end. */
  #shut: (() => RingfenceError) | null = null
  /** `#shut` is nothing that the caller has done: a rejection with it ends no process, though no handler was added. */
  #isQuiet = false
  /** The channel has ended, which `closed` tells. `#shut` says why, and stays. */
  #over = false
  /** A caller is filling memory in place. */
  #filling = false
  /** What it fills where that is neither the arena nor the ring itself. */
  #scratch: Uint8Array | null = null
  /** The peer will ring once it has read something. */
  #armed = false
  /** Turns that were let pass since something last found room. */
  #turns = 0
  /** Room for what is next, in bytes. */
  #wanted = 0
  /** A turn is let pass just now. */
  #turning = false
  /** Room that is worth another go, in bytes. */
  readonly #worthwhile: number
  readonly #failed: (error: RingfenceError) => void
  readonly #process = noticeExit()
  /** Messages that were filled are put into the ring as the process exits, since their caller has been promised that. */
  #forgetExit: (() => void) | null = null

  /**
   * @param failed - Called with the failures of the binding that are not the caller's fault.
   */
  constructor(native: NativeSender, eager: boolean, failed: (error: RingfenceError) => void) {
    this.#native = native
    this.#eager = eager
    this.#maxMessageSize = native.maxMessageSize
    this.#maxAtOnce = native.maxAtOnce
    this.#stagedAtMost = Math.min(STAGED_AT_MOST, native.maxAtOnce, native.capacity / 8)
    this.#enough = Math.min(ARENA, native.capacity / 8)
    this.#worthwhile = Math.min(native.capacity / 16, native.maxAtOnce)
    this.#failed = failed
  }

  /** Everything that was sent is in the ring. */
  get isEmpty(): boolean {
    return this.#from === this.#to && this.#line.isEmpty
  }

  /** Bytes of messages that are not in the ring yet. */
  get bufferedAmount(): number {
    return this.#buffered
  }

  /** How many sends had to wait for room, those that wait now included. */
  get waits(): number {
    return this.#waits + (this.#fullSince === null ? 0 : this.#waiting())
  }

  /** For how long, in microseconds: where several waited at once, once. */
  get waitedMicros(): number {
    const now = this.#fullSince === null ? 0 : timers.now() - this.#fullSince
    return Math.round((this.#waited + now) * 1000)
  }

  #waiting(): number {
    return this.#line.places.reduce((sum, { told }) => sum + told.length, this.#single.length)
  }

  /** What is in line waits for room. */
  #isFull(): void {
    if (this.#over || this.#fullSince !== null) return
    this.#fullSince = timers.now()
    this.#full += 1
  }

  /** Nothing is in line any more. */
  #isFullNoMore(): void {
    if (this.#fullSince === null) return
    this.#waited += timers.now() - this.#fullSince
    this.#fullSince = null
  }

  #toBeTold(end: number, told: Deferred): Told {
    return { end, told, full: this.#fullSince === null ? this.#full : -1 }
  }

  send(message: BufferSource | string): Promise<void> {
    if (this.#shut === null && !this.#eager && this.#takes(message)) {
      return this.#shared === null ? this.#begin() : this.#shared.promise
    }
    if (typeof message === 'string' && this.#shut === null && !this.#eager) {
      // A character takes three bytes at most; those beyond the first 65,535 take two units of the string and four bytes.
      const most = 3 * message.length
      const at = this.#to
      if (most <= this.#stagedAtMost && at + HEADER + ((most + 7) & ~7) <= this.#sure) {
        const length = writeText.call(this.#arena, message, at + HEADER)
        this.#words[at >>> 2] = length
        this.#words[(at >>> 2) + 1] = FLAGS
        this.#to = at + HEADER + ((length + 7) & ~7)
        this.#buffered += length
        return this.#shared === null ? this.#begin() : this.#shared.promise
      }
    }
    return this.#sendOther(message)
  }

  /** Takes bytes into the arena that surely find room, as nearly all do. */
  #takes(message: unknown): boolean {
    try {
      if (!(message instanceof Uint8Array)) return false
      const { length } = message
      // The property may be the caller's own. A proxy throws here: its traps could send while it is copied.
      if (length !== lengthOf.call(message)) return false
      const at = this.#to
      const next = at + HEADER + ((length + 7) & ~7)
      // One without a byte may be one that was taken away.
      if (length === 0 || length > this.#stagedAtMost || next > this.#sure) return false
      this.#words[at >>> 2] = length
      this.#words[(at >>> 2) + 1] = FLAGS
      put.call(this.#arena, message, at + HEADER)
      this.#to = next
      this.#buffered += length
      return true
    } catch {
      // `#sendOther` says what is wrong with it.
      return false
    }
  }

  /** The first message in the arena: those that follow, and surely find room, share its promise. */
  #begin(): Promise<void> {
    if (this.#before !== fairness.due) {
      this.#schedule()
      return (this.#shared = defer()).promise
    }
    this.#scheduled = true
    return (this.#shared = this.#settling = new FlushPromise(this.#flush)).promise
  }

  /** Not by `queueMicrotask`, which makes a resource of its own for each. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    void SENT.then(this.#flush)
  }

  readonly #flush = (): void => {
    this.#scheduled = false
    if (this.#from < this.#to) this.pump()
  }

  #sendOther(message: BufferSource | string): Promise<void> {
    try {
      const bytes = this.#admit(message)
      const { length } = bytes
      if (length > this.#maxMessageSize) {
        // The binding checks sizes first, and says whose limit it is.
        this.#native.send(bytes, 0)
        throw this.#failure()
      }
      return this.#eager || length > this.#stagedAtMost ? this.#sendNow(bytes) : this.#stage(bytes)
    } catch (error) {
      return this.#rejects(error as Error)
    }
  }

  /** An end of the channel, or of the peer, needs no handler. That a call was wrong is told by its promise alone. */
  #rejects(error: Error): Promise<never> {
    const broken = Promise.reject(error)
    if (this.#isQuiet && (error as RingfenceError).code !== 'ERR_RINGFENCE_INVALID_ARGUMENT') broken.catch(ignore)
    return broken
  }

  /** Into the arena, whether the ring has room for it or not. */
  #stage(bytes: Uint8Array): Promise<void> {
    const { length } = bytes
    const size = HEADER + ((length + 7) & ~7)
    let shared = this.#to + size <= this.#sure || this.#isSureInLarger(size)
    if (!shared) {
      if (!this.#armed && !this.#turning) this.pump()
      this.#makeRoom(size)
      shared = this.isEmpty && this.#hasSureRoom(size)
      if (this.#shut !== null) throw this.#shut()
    }
    const at = this.#to
    this.#words[at >>> 2] = length
    this.#words[(at >>> 2) + 1] = FLAGS
    this.#arena.set(bytes, at + HEADER)
    this.#to = at + size
    this.#buffered += length
    if (shared) return this.#shared === null ? this.#begin() : this.#shared.promise
    if (this.#single.length === 0) this.#sharedEnd = at
    this.#sure = 0
    const told = defer()
    this.#single.push(this.#toBeTold(this.#to, told))
    if (!this.#armed && !this.#turning) this.#schedule()
    return told.promise
  }

  /** The arena is too short for a record, and the ring is not: the arena grows, and holds all of the turn. `false`: the ring may be full. */
  #isSureInLarger(size: number): boolean {
    if (this.#sure === 0 || this.#to + size > this.#room || !this.#growArena(size)) return false
    this.#sure = Math.min(this.#room, this.#arena.length)
    return true
  }

  /**
   * Makes room for a record behind what lies in the arena, which is moved to the line if the arena cannot grow.
   *
   * @throws {@link RingfenceError} NO_SPACE
   */
  #makeRoom(size: number): void {
    if (this.#shut !== null || this.#to + size <= this.#arena.length || this.#growArena(size)) return
    this.#clearArena()
    if (size > this.#arena.length) this.#growArena(size)
  }

  /** A larger arena, with the same records at the same places. `false`: it must not become so large. */
  #growArena(size: number): boolean {
    let length = Math.max(2 * this.#arena.length, FIRST_ARENA)
    while (length < this.#to + size) length *= 2
    if (length > ARENA || (length > SMALL_ARENA && !this.#mayBeLarge())) return false
    let bytes: Buffer
    try {
      bytes = allocateSharedEmpty(length, 'what is sent')
    } catch (error) {
      // Each record fits a small arena, once what lies there is in the ring or in the line.
      if (this.#arena.length < SMALL_ARENA) throw error
      return false
    }
    put.call(bytes, this.#arena.subarray(this.#from, this.#to), this.#from)
    this.#arena = bytes
    this.#words = new Uint32Array(bytes.buffer)
    return true
  }

  /** Whether the arena may be larger than those of any number of queues. */
  #mayBeLarge(): boolean {
    const self = (this.#weak ??= new WeakRef(this))
    if (large.has(self)) return true
    if (!isRoomForLarge()) return false
    large.add(self)
    return true
  }

  /** Frees the arena. `false`: something lies there. */
  freeArena(): boolean {
    if (this.#from < this.#to || this.#filling) return false
    this.#arena = NO_BYTES
    this.#words = NO_WORDS
    this.#forgetRoom()
    return true
  }

  /** Asks how much room there is, with nothing in line. */
  #hasSureRoom(size: number): boolean {
    const room = this.#native.packedRoom(this.#stagedAtMost)
    if (room === FAILED) {
      this.#fail()
      return false
    }
    this.#room = room
    this.#sure = Math.min(room, this.#arena.length)
    return size <= this.#sure
  }

  /** Something else was written than the arena: what is known of the room does not hold any more. */
  #forgetRoom(): void {
    this.#room = this.#sure = 0
  }

  /** Straight into the ring, if everything before it is there; else a copy in line. */
  #sendNow(bytes: Uint8Array): Promise<void> {
    if (!this.isEmpty) {
      this.pump()
      // It may have found the end.
      if (this.#shut !== null) throw this.#shut()
    }
    let sent = 0
    let own: Uint8Array | null = null
    if (this.isEmpty) {
      this.#forgetRoom()
      // It may go in parts: where there is no memory for a copy of the rest, none of them must be in the ring. And the view must not
      // become longer between two of them, as one of shared memory may that another thread grows.
      if (bytes.length > this.#maxAtOnce) {
        bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
        own = this.#memoryFor(bytes.length)
      }
      sent = this.#native.send(bytes, 0)
      if (sent === WHOLE) {
        if (own !== null) this.#recycle(own)
        fairness.spend()
        return this.#before ?? SENT
      }
      if (sent === FAILED) throw this.#fail()
    }
    this.#clearArena()
    const told = defer()
    own ??= this.#memoryFor(bytes.length)
    // What is in the ring is not looked at again.
    put.call(own, new Uint8Array(bytes.buffer, bytes.byteOffset + sent, bytes.length - sent), sent)
    this.#line.push(new Parcel(own, false, sent, [this.#toBeTold(bytes.length, told)]))
    this.#buffered += bytes.length - sent
    this.pump()
    return told.promise
  }

  /** Memory for a copy of what waits, so that the caller may use its bytes again. Nothing is in it yet. */
  #memoryFor(length: number): Uint8Array {
    const spare = this.#spare
    // Not much more than is needed: other messages cannot use it as long as this one waits.
    if (spare === null || spare.length < length || spare.length > 2 * length) {
      return allocate(length, 'a message that waits for room')
    }
    this.#spare = null
    return spare.subarray(0, length)
  }

  /** The memory of a copy can be used again: no caller has ever seen it. */
  #recycle(bytes: Uint8Array): void {
    if (bytes.buffer.byteLength <= SPARE_KEPT) this.#spare = new Uint8Array(bytes.buffer)
  }

  /** Moves what is in the arena to the line, so that something else can come behind it. */
  #clearArena(): void {
    const from = this.#from
    if (from < this.#to) {
      const told = this.#single.map((single) => ({ ...single, end: single.end - from }))
      if (this.#shared !== null) {
        const end = this.#single.length === 0 ? this.#to : this.#sharedEnd
        // These have room, and wait for none.
        told.unshift({ end: end - from, told: this.#shared, full: this.#full })
      }
      const copy = this.#memoryFor(this.#to - from)
      put.call(copy, this.#arena.subarray(from, this.#to))
      this.#line.push(new Parcel(copy, true, 0, told))
    }
    this.#from = this.#to = this.#sure = 0
    this.#shared = null
    this.#single = []
  }

  /** Checks what a caller wants to send, and that anything can be sent now. */
  #admit(message: BufferSource | string): Uint8Array {
    const bytes = typeof message === 'string' ? Buffer.from(message, 'utf8') : toBytes(message)
    if (this.#shut !== null) throw this.#shut()
    return bytes
  }

  trySend(message: BufferSource | string): boolean {
    const bytes = this.#admit(message)
    if (bytes.length <= this.#maxAtOnce && !this.#isThrough()) return false
    this.#forgetRoom()
    const sent = this.#native.trySend(bytes)
    if (sent === FAILED) throw this.#fail()
    return sent === 1
  }

  fill(size: number, write: Fill): boolean {
    if (!Number.isInteger(size) || size < 0) throw invalid(`a message's size must be a whole number, not ${show(size)}`)
    if (this.#shut !== null) throw this.#shut()
    // Records in the arena surely find room; where that is not so, the ring is asked for this one.
    if (this.#eager || size > this.#stagedAtMost || !this.#findsSureRoom(size)) return this.#fillReserved(size, write)
    const start = this.#to + HEADER
    const length = this.#filled(write, this.#arena, start, size)
    this.#words[this.#to >>> 2] = length
    this.#words[(this.#to >>> 2) + 1] = FLAGS
    this.#to = start + ((length + 7) & ~7)
    this.#buffered += length
    if (!this.#scheduled || this.#forgetExit === null || this.#process.isExiting) this.#flushSoon()
    return true
  }

  #findsSureRoom(size: number): boolean {
    const needed = HEADER + ((size + 7) & ~7)
    if (this.#to + needed <= this.#sure || this.#isSureInLarger(needed)) return true
    if (!this.isEmpty) this.pump()
    if (!this.isEmpty) return false
    this.#makeRoom(needed)
    return this.#hasSureRoom(needed)
  }

  #flushSoon(): void {
    if (this.#process.isExiting) {
      this.pump()
      return
    }
    this.#forgetExit ??= flushAtExit(() => this.pump())
    this.#schedule()
  }

  /** Into the ring itself, where memory of it can be shown; else into memory that is copied there. */
  #fillReserved(size: number, write: Fill): boolean {
    if (size <= this.#maxAtOnce && !this.#isThrough()) return false
    this.#forgetRoom()
    const reserved = this.#native.reserve(size, OWN_MEMORY)
    if (reserved === FAILED) throw this.#fail()
    if (reserved === 0) return false
    let committed = false
    try {
      const own = reserved instanceof ArrayBuffer ? null : this.#scratchOf(size)
      const length = this.#filled(write, own ?? new Uint8Array(reserved as ArrayBuffer), 0, size)
      committed = true
      if (this.#native.commit(length, own ?? undefined) === FAILED) throw this.#fail()
    } finally {
      // On a channel that has ended meanwhile it is cancelled already.
      if (!committed && !this.#over) this.#native.cancel()
    }
    this.pump()
    return true
  }

  #scratchOf(size: number): Uint8Array {
    if (this.#scratch !== null && this.#scratch.length >= size) return this.#scratch
    const scratch = allocateEmpty(Math.max(size, SCRATCH), 'a message')
    if (size <= SCRATCH) this.#scratch = scratch
    return scratch
  }

  /** Has the caller fill the bytes, and returns how many it has written. Meanwhile nothing else is sent. */
  #filled(write: Fill, bytes: Uint8Array, start: number, size: number): number {
    this.#filling = true
    this.#shut = filling
    let length: unknown
    try {
      length = write(bytes, start, size)
    } finally {
      this.#filling = false
      // The channel may have ended meanwhile, or this side its sending.
      if (this.#shut === filling) this.#shut = null
      else if (!this.#over) this.#schedule()
    }
    if (typeof length !== 'number' || !Number.isInteger(length) || length < 0 || length > size) {
      throw invalid(
        `what fills a message returns how many bytes it has written, from 0 to ${size}, and not ${show(length)}`,
      )
    }
    if (this.#shut !== null) throw (this.#shut as () => RingfenceError)()
    if (bytes.length === 0) throw invalid('the memory that was to be filled was transferred elsewhere')
    return length
  }

  reserve(size: number): Reservation | null {
    if (!Number.isInteger(size) || size < 0)
      throw invalid(`a reservation's size must be a whole number, not ${show(size)}`)
    if (this.#shut !== null) throw this.#shut()
    if (size <= this.#maxAtOnce && !this.#isThrough()) return null
    this.#forgetRoom()
    const reserved = this.#native.reserve(size, OWN_MEMORY)
    if (reserved === FAILED) throw this.#fail()
    if (reserved === 0) return null
    const open = () => invalid('a reservation is open: commit or cancel it first')
    const finish: Finish = (length, scratch) => {
      // An end of the channel that came meanwhile has cancelled it.
      if (this.#shut !== open) return this.#shut!()
      this.#shut = null
      if (length === null) this.#native.cancel()
      else if (this.#native.commit(length, scratch) === FAILED) return this.#fail()
      this.pump()
      return null
    }
    let made: Reservation
    try {
      made = new Reserved(reserved instanceof ArrayBuffer ? reserved : null, size, finish)
    } catch (error) {
      // There is no memory for it. A reservation that the caller does not have would never be committed, nor cancelled.
      this.#native.cancel()
      throw error
    }
    this.#shut = open
    return made
  }

  /** Whether a message sent now would be the next one in the ring. */
  #isThrough(): boolean {
    if (!this.isEmpty) this.pump()
    if (this.#shut !== null) throw this.#shut()
    return this.isEmpty
  }

  waitWritable(size: number): Promise<void> {
    try {
      if (!Number.isInteger(size) || size < 0)
        throw invalid(`a message's size must be a whole number, not ${show(size)}`)
      if (this.#shut !== null) throw this.#shut()
      if (size > this.#maxAtOnce) {
        this.#native.reserve(size, OWN_MEMORY)
        throw this.#failure()
      }
      const asking = new Asking(size)
      this.#asking.push(asking)
      this.pump()
      return asking.told.promise
    } catch (error) {
      return this.#rejects(error as Error)
    }
  }

  /** Resolves once everything that was sent so far is in the ring, or never will be. */
  empty(): Promise<void> {
    this.pump()
    if (this.isEmpty) return SENT
    return new Promise((resolve) => this.#whenEmpty.push(resolve))
  }

  /**
   * Refuses what is sent from here on, and waits for what was sent before, at most so many milliseconds, or until it is `over`. null:
   * there is nothing to wait for, and a caller goes on within its call.
   */
  linger(milliseconds: number, refusal: () => RingfenceError, over: Promise<unknown>): Promise<void> | null {
    this.refuse(refusal, true)
    const empty = this.empty()
    if (milliseconds <= 0 || this.isEmpty) return null
    return within(milliseconds, empty, over)
  }

  /** The peer has rung. */
  awake(): void {
    this.#armed = false
    this.pump()
  }

  /** Puts as much into the ring as there is room for, in order; has the peer ring for the rest. */
  pump(): void {
    if (!this.#pumpLine() || !this.#pumpArena()) return
    this.#isFullNoMore()
    if (this.#whenEmpty.length > 0) for (const empty of this.#whenEmpty.splice(0)) empty()
    this.#pumpAsking()
  }

  /** `false`: the ring is full, or something failed. */
  #pumpLine(): boolean {
    for (let parcel = this.#line.first; parcel !== null; parcel = this.#line.first) {
      const { bytes, packed } = parcel
      this.#forgetRoom()
      const result = packed
        ? this.#native.flush(bytes, parcel.sent, bytes.length)
        : this.#native.send(bytes, parcel.sent)
      if (result === FAILED) return this.#giveUp()
      const before = parcel.sent
      if (packed) parcel.sent += result
      else parcel.sent = result === WHOLE ? bytes.length : result
      this.#buffered -= packed ? payloadOf(bytes, before, parcel.sent) : parcel.sent - before
      if (parcel.sent !== before) this.#turns = 0
      if (packed) this.#tellUpTo(parcel.told, parcel.sent)
      if (packed ? parcel.sent < bytes.length : result !== WHOLE) {
        const size = packed ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(parcel.sent, true) : bytes.length
        if (this.#arm(size)) {
          this.#isFull()
          return false
        }
        continue
      }
      this.#line.shift()
      this.#recycle(bytes)
      this.#tellUpTo(parcel.told, bytes.length)
    }
    return true
  }

  #pumpArena(): boolean {
    while (this.#from < this.#to) {
      const taken = this.#native.flush(this.#arena, this.#from, this.#to)
      if (taken === FAILED) return this.#giveUp()
      if (taken !== 0) this.#turns = 0
      const before = this.#from
      this.#from += taken
      this.#room -= taken
      // The line is empty. What a flush takes is mostly all that waits, and need not be walked then.
      if (this.#from === this.#to) this.#buffered = 0
      else this.#buffered -= payloadOf(this.#arena, before, this.#from)
      this.#tellArena()
      if (this.#from < this.#to) {
        this.#sure = 0
        if (this.#arm(this.#words[this.#from >>> 2]!)) {
          this.#isFull()
          return false
        }
      }
    }
    // What is being filled lies behind, and stays there.
    if (this.#filling) return true
    this.#from = this.#to = 0
    this.#sure = this.#room < this.#enough ? 0 : Math.min(this.#room, this.#arena.length)
    return true
  }

  /** Tells those whose records were taken from the arena. */
  #tellArena(): void {
    const shared = this.#shared
    if (shared !== null && this.#from >= (this.#single.length === 0 ? this.#to : this.#sharedEnd)) {
      this.#shared = null
      this.#tell(shared)
    }
    this.#tellUpTo(this.#single, this.#from)
  }

  /** Tells those whose records end there or before, who are the first, and forgets them. */
  #tellUpTo(those: Told[], sent: number): void {
    let count = 0
    while (count < those.length && those[count]!.end <= sent) count += 1
    if (count === 0) return
    for (const { told, full } of those.splice(0, count)) {
      if (full !== this.#full) this.#waits += 1
      this.#tell(told)
    }
  }

  #pumpAsking(): void {
    for (let asking = this.#asking.first; asking !== null; asking = this.#asking.first) {
      const room = this.#native.hasRoom(asking.size)
      if (room === FAILED) {
        this.#fail()
        return
      }
      if (room === 0) {
        if (this.#arm(asking.size)) return
        continue
      }
      this.#asking.shift()
      this.#turns = 0
      this.#tell(asking.told)
    }
  }

  /** Its message is in the ring: keeps the promise, after those that were made before it. */
  #tell(told: FlushPromise | Deferred): void {
    fairness.spend()
    const isSettling = told === this.#settling
    const before = isSettling ? fairness.due : this.#before
    if (before === null) {
      told.resolve()
      return
    }
    if (!isSettling) this.#behind = told
    const resolve = () => {
      told.resolve()
      if (this.#behind === told) this.#behind = null
    }
    before.then(resolve, resolve)
  }

  /** What a promise is kept after; null: it can be kept now. */
  get #before(): Promise<void> | null {
    if (this.#behind !== null) return this.#behind.promise
    if (this.#settling === null) return fairness.due
    if (!this.#settling.isSettled) return this.#settling.promise
    this.#settling = null
    return fairness.due
  }

  /** `true`: there is no room, and this side will look again, or the peer will ring once it has read something. */
  #arm(size: number): boolean {
    if (this.#armed || this.#turning) return true
    if (this.#turns < TURNS) {
      this.#wanted = size
      this.#turning = true
      timers.setImmediate(this.#turn)
      return true
    }
    this.#turns = 0
    const armed = this.#native.armWriter(size)
    if (armed === FAILED) {
      this.#giveUp()
      return true
    }
    this.#armed = armed === 1
    return this.#armed
  }

  readonly #turn = (): void => {
    if (!this.#turning) return
    this.#turns += 1
    if (this.#turns < TURNS && this.#native.hasRoom(Math.max(this.#wanted, this.#worthwhile)) === 0) {
      timers.setImmediate(this.#turn)
      return
    }
    this.#turning = false
    this.pump()
  }

  #giveUp(): false {
    this.#fail()
    return false
  }

  #failure(): RingfenceError {
    return fromFailure(this.#native.failure())
  }

  #fail(): RingfenceError {
    const error = this.#failure()
    this.#failed(error)
    return error
  }

  /**
   * Nothing is sent any more: callers that wait are told why, and so are later calls.
   *
   * @param over - The channel has ended. No end of this side's own sending that comes after it changes the reason.
   */
  shut(why: () => RingfenceError, over: boolean): void {
    if (this.#over && !over) return
    this.#shut = why
    this.#over ||= over
    this.#isQuiet ||= over
    this.#waits = this.waits
    this.#isFullNoMore()
    if (over) this.#forgetExit?.()
    const waiting: (FlushPromise | Deferred)[] = []
    for (const { told } of this.#line.clear()) for (const each of told) waiting.push(each.told)
    for (const { told } of this.#single) waiting.push(told)
    if (this.#shared !== null) waiting.push(this.#shared)
    for (const { told } of this.#asking.clear()) waiting.push(told)
    this.#buffered = 0
    this.#turning = false
    this.#spare = null
    this.#shared = null
    this.#single = []
    this.#from = this.#to = 0
    this.#forgetRoom()
    if (this.#weak !== null) large.delete(this.#weak)
    this.freeArena()
    if (waiting.length > 0) {
      const error = why()
      for (const each of waiting) {
        if (this.#isQuiet) each.promise.catch(ignore)
        each.reject(error)
      }
    }
    for (const empty of this.#whenEmpty.splice(0)) empty()
  }

  /**
   * Nothing new is sent any more; what was sent before goes on.
   *
   * @param isQuiet - This is nothing that the caller has done to its own sending: a later send needs no handler for its rejection.
   */
  refuse(why: () => RingfenceError, isQuiet: boolean): void {
    if (this.#over) return
    this.#shut = why
    this.#isQuiet ||= isQuiet
  }
}

/** Queues with an arena above {@link SMALL_ARENA}, the one that has it for longest first. Weak: a channel goes with the garbage. */
const large = new Set<WeakRef<SendQueue>>()

/** Whether one more queue may have a large arena. The first queue that has one loses it if nothing lies there. */
function isRoomForLarge(): boolean {
  if (large.size < LARGE_ARENAS) return true
  const first = large.values().next().value!
  large.delete(first)
  if (first.deref()?.freeArena() !== false) return true
  // The next queue is tried the next time.
  large.add(first)
  return false
}

/** By what it is and not by its class: one of another realm (node:vm) has another class. */
function toBytes(message: unknown): Uint8Array {
  const isView = ArrayBuffer.isView(message)
  if (!isView && !isAnyArrayBuffer(message)) {
    throw invalid(`a message must be bytes (an ArrayBuffer or a view of one) or a string, not ${show(message)}`)
  }
  try {
    if (!isView) return new Uint8Array(message)
    // A program may have put another length before the array's own.
    if (isUint8Array(message) && message.length > 0 && message.length === lengthOf.call(message)) return message
    // One without a byte may be one whose memory is gone, which cannot be looked at. Any other view says so by itself.
    if (isTypedArray(message)) lookAt.call(message as Uint8Array, 0)
    return new Uint8Array(message.buffer, message.byteOffset, message.byteLength)
  } catch (cause) {
    const what = 'the memory of the message was transferred elsewhere, has become too short, or cannot be read'
    throw new RingfenceError('INVALID_ARGUMENT', what, { cause })
  }
}

/** Payload of whole records, which lie there from `from` to `to`. */
function payloadOf(bytes: Uint8Array, from: number, to: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let sum = 0
  for (let at = from; at < to;) {
    const length = view.getUint32(at, true)
    sum += length
    at += HEADER + ((length + 7) & ~7)
  }
  return sum
}

/** Fills `bytes` from `offset` on with at most `length` bytes, and returns how many it has written. */
export type Fill = (bytes: Uint8Array, offset: number, length: number) => number

const filling = () => invalid('a message is being filled: send once that has returned')

/** Commits so many bytes, or cancels. Returns why that could not be. */
type Finish = (length: number | null, scratch?: Uint8Array) => RingfenceError | null

class Reserved implements Reservation {
  readonly bytes: Uint8Array
  readonly #size: number
  readonly #scratch: boolean
  readonly #finish: Finish
  #open = true

  constructor(memory: ArrayBuffer | null, size: number, finish: Finish) {
    this.#size = size
    this.#scratch = memory === null
    this.bytes = memory === null ? allocateEmpty(size, 'a reservation') : new Uint8Array(memory)
    this.#finish = finish
  }

  commit(length = this.#size): void {
    if (!this.#open) throw invalid('the reservation is not open any more')
    if (!Number.isInteger(length) || length < 0 || length > this.#size) {
      throw invalid(`commit takes a length from 0 to ${this.#size}, not ${show(length)}`)
    }
    this.#open = false
    // The channel's end takes the bytes away as well, and is what is told then.
    const taken = this.bytes.length !== this.#size
    const error = taken ? this.#finish(null) : this.#finish(length, this.#scratch ? this.bytes : undefined)
    if (error !== null) throw error
    if (taken) throw invalid("the reservation's bytes were transferred elsewhere: it is cancelled")
  }

  cancel(): void {
    if (!this.#open) return
    this.#open = false
    // A channel that has ended has cancelled it already. An exception here would hide the one that led here.
    this.#finish(null)
  }

  [Symbol.dispose](): void {
    this.cancel()
  }
}
