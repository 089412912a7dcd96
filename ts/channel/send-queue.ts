// Messages that wait to be sent, in the order of the calls, and the promises that are kept once they are in the ring.
//
// Small messages are written as records into an arena, which one call into the binding copies into the ring: the
// call costs more than the message. Where the ring is full, what is left waits in line, behind what came before it.
//
// A promise resolves once its message is in the ring, and rejects only where it never will be. Messages share a promise where the
// ring surely has room for all of them: only this side writes there, and the peer only makes room, so they go in together. A
// message that may have to wait has a promise of its own, since it may be the last that gets in before the channel is closed.

import { isAnyArrayBuffer, isTypedArray, isUint8Array } from 'node:util/types'

import { defer, within } from '../runtime/deferred.js'
import { readerSignal } from '../endpoint/options.js'
import { RingfenceError, aborted, fromFailure, invalid, show } from '../errors.js'
import { flushAtExit, noticeExit } from '../runtime/exit.js'
import { Arena, lengthOf, recordSize } from './arena.js'
import { allocateEmpty, SpareMemory } from './memory.js'
import { FAILED, HEADER, WHOLE, type NativeSender } from '../native.js'
import { fairness } from '../runtime/fairness.js'
import { Line, Place } from './line.js'
import { RoomWait } from './room-wait.js'
import { SendPromises, type Pending } from './send-promises.js'
import type { MessageInput, Reservation, WaitOptions } from '../types.js'

/**
 * For tests: 1 where the engine is not even asked whether JavaScript may be shown memory that is not its own. Electron
 * answers no, and there a reservation is a copy.
 */
const OWN_MEMORY = process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'] === '1' ? 1 : 0

/** For a promise whose rejection tells nothing new: a caller need not handle it. */
function ignore(): void {}

/** The answer to a send whose message is in the ring already. */
const SENT: Promise<void> = Promise.resolve()

/** Looked up once: Node 20 looks for what typed arrays inherit in each call (3 ns of a `send`'s 17, measured). */
const put = Uint8Array.prototype.set
const lookAt = Uint8Array.prototype.at
/** Something in line: records, or one message too long to be staged. */
class Parcel extends Place {
  constructor(
    readonly bytes: Uint8Array,
    readonly packed: boolean,
    /** Bytes of it that are in the ring. */
    public sent: number,
    readonly promises: Pending[],
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
  readonly #arena: Arena
  readonly #promises = new SendPromises()
  readonly #memory = new SpareMemory()
  readonly #roomWait: RoomWait
  /** The arena is flushed in the next microtask. */
  #scheduled = false
  /** In line before the arena. */
  readonly #line = new Line<Parcel>()
  /** Payload in the arena and the line that is not in the ring yet. */
  #buffered = 0
  readonly #asking = new Line<Asking>()
  #whenEmpty: (() => void)[] = []
  /** Why nothing can be sent now: a reservation, or an end. */
  #shut: (() => RingfenceError) | null = null
  /** `#shut` is nothing that the caller has done: a rejection with it ends no process, though no handler was added. */
  #isQuiet = false
  /** The channel has ended, which `closed` tells. `#shut` says why, and stays. */
  #over = false
  readonly #failed: (error: RingfenceError) => void
  readonly #process = noticeExit()
  /** Filled messages are put into the ring as the process exits: `fill` has promised that to their caller. */
  #forgetExit: (() => void) | null = null

  /**
   * @param failed - Called with the failures of the binding that are not the caller's fault.
   */
  constructor(native: NativeSender, eager: boolean, failed: (error: RingfenceError) => void) {
    this.#native = native
    this.#eager = eager
    this.#maxMessageSize = native.maxMessageSize
    this.#maxAtOnce = native.maxAtOnce
    this.#arena = new Arena(native.capacity, native.maxAtOnce)
    this.#roomWait = new RoomWait(native, () => this.pump())
    this.#failed = failed
  }

  /** Everything that was sent is in the ring. */
  get isEmpty(): boolean {
    return this.#arena.isEmpty && this.#line.isEmpty
  }

  /** Bytes of messages that are not in the ring yet. */
  get bufferedAmount(): number {
    return this.#buffered
  }

  /** How many sends had to wait for room, those that wait now included. */
  get waits(): number {
    return this.#promises.waits(this.#waiting())
  }

  /** For how long, in microseconds: concurrent waits count once. */
  get waitedMicros(): number {
    return this.#promises.waitedMicros
  }

  #waiting(): Pending[][] {
    return this.#line.places.map(({ promises }) => promises)
  }

  send(message: MessageInput, options?: WaitOptions): Promise<void> {
    if (options !== undefined) return this.#sendOther(message, options)
    if (this.#shut === null && !this.#eager) {
      const length = typeof message === 'string' ? this.#arena.takeText(message) : this.#arena.take(message)
      if (length >= 0) {
        this.#buffered += length
        return this.#promises.shared ?? this.#begin()
      }
    }
    return this.#sendOther(message)
  }

  /** The first message in the arena: those that follow, and surely find room, share its promise. */
  #begin(): Promise<void> {
    if (this.#promises.before !== fairness.due) {
      this.#schedule()
      return this.#promises.share()
    }
    this.#scheduled = true
    return this.#promises.shareFlush(this.#flush)
  }

  /** Not by `queueMicrotask`, which makes a resource of its own for each. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    void SENT.then(this.#flush)
  }

  readonly #flush = (): void => {
    this.#scheduled = false
    if (!this.#arena.isEmpty) this.pump()
  }

  #sendOther(message: MessageInput, options?: WaitOptions): Promise<void> {
    try {
      const signal = readerSignal(options)
      const bytes = this.#admit(message)
      const { length } = bytes
      if (length > this.#maxMessageSize) {
        // The binding checks sizes first, and says whose limit it is.
        this.#native.send(bytes, 0)
        throw this.#failure()
      }
      // An abort can only remove a message that shares neither memory nor a promise with others.
      const alone = this.#eager || length > this.#arena.most || signal !== undefined
      return alone ? this.#sendNow(bytes, signal) : this.#stage(bytes)
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
    const arena = this.#arena
    const size = recordSize(bytes.length)
    let shared = arena.isSure(size)
    if (!shared) {
      if (!this.#roomWait.isWaiting) this.pump()
      this.#makeRoom(size)
      shared = this.isEmpty && this.#hasSureRoom(size)
      if (this.#shut !== null) throw this.#shut()
    }
    const at = arena.to
    arena.add(bytes)
    this.#buffered += bytes.length
    if (shared) return this.#promises.shared ?? this.#begin()
    arena.sure = 0
    const promise = this.#promises.single(at, arena.to)
    if (!this.#roomWait.isWaiting) this.#schedule()
    return promise
  }

  /**
   * Makes room for a record behind the records in the arena, which move to the line if the arena cannot grow.
   *
   * @throws {@link RingfenceError} NO_SPACE
   */
  #makeRoom(size: number): void {
    const arena = this.#arena
    if (this.#shut !== null || arena.to + size <= arena.bytes.length || arena.grow(size)) return
    this.#clearArena()
    if (size > arena.bytes.length) arena.grow(size)
  }

  /** Asks how much room there is, with nothing in line. */
  #hasSureRoom(size: number): boolean {
    const room = this.#native.packedRoom(this.#arena.most)
    if (room === FAILED) {
      this.#fail()
      return false
    }
    return this.#arena.setRoom(room, size)
  }

  /** Straight into the ring, if everything before it is there; else a copy in line. */
  #sendNow(bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    if (!this.isEmpty) {
      this.pump()
      // It may have found the end.
      if (this.#shut !== null) throw this.#shut()
    }
    let sent = 0
    let own: Uint8Array | null = null
    if (this.isEmpty) {
      this.#arena.forgetRoom()
      // It may go in parts: where there is no memory for a copy of the rest, none of them must be in the ring. And the view must not
      // become longer between two of them, as one of shared memory may that another thread grows.
      if (bytes.length > this.#maxAtOnce) {
        bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
        own = this.#memory.copyOf(bytes.length)
      }
      sent = this.#native.send(bytes, 0)
      if (sent === WHOLE) {
        if (own !== null) this.#memory.recycle(own)
        fairness.spend()
        return this.#promises.before ?? SENT
      }
      if (sent === FAILED) throw this.#fail()
    }
    this.#clearArena()
    const pending = this.#promises.pending(bytes.length)
    own ??= this.#memory.copyOf(bytes.length)
    // What is in the ring is not looked at again.
    put.call(own, new Uint8Array(bytes.buffer, bytes.byteOffset + sent, bytes.length - sent), sent)
    const parcel = new Parcel(own, false, sent, [pending])
    this.#line.push(parcel)
    this.#buffered += bytes.length - sent
    if (signal !== undefined)
      this.#onAbort(signal, pending.promise, () => {
        if (parcel.sent > 0 || !this.#line.remove(parcel)) return false
        this.#buffered -= bytes.length
        return true
      })
    this.pump()
    return pending.promise.promise
  }

  /** Rejects a promise once the signal is aborted, if `remove` can still remove what the promise is about. */
  #onAbort(signal: AbortSignal, told: Pending['promise'], remove: () => boolean): void {
    const abort = () => {
      if (!remove()) return
      told.reject(aborted(signal))
      // What is next may find room.
      this.pump()
    }
    const forget = () => signal.removeEventListener('abort', abort)
    signal.addEventListener('abort', abort, { once: true })
    told.promise.then(forget, forget)
  }

  /** Moves what is in the arena to the line, so that something else can come behind it. */
  #clearArena(): void {
    const { bytes, from, to } = this.#arena
    const promises = this.#promises.moveFrom(from, to)
    if (from < to) {
      const copy = this.#memory.copyOf(to - from)
      put.call(copy, bytes.subarray(from, to))
      this.#line.push(new Parcel(copy, true, 0, promises))
    }
    this.#arena.clear()
  }

  /** Checks what a caller wants to send, and that anything can be sent now. */
  #admit(message: MessageInput): Uint8Array {
    const bytes = typeof message === 'string' ? Buffer.from(message, 'utf8') : toBytes(message)
    if (this.#shut !== null) throw this.#shut()
    return bytes
  }

  trySend(message: MessageInput): boolean {
    const bytes = this.#admit(message)
    if (bytes.length <= this.#maxAtOnce && !this.#isThrough()) return false
    this.#arena.forgetRoom()
    const sent = this.#native.trySend(bytes)
    if (sent === FAILED) throw this.#fail()
    return sent === 1
  }

  fill(size: number, write: Fill): boolean {
    if (!Number.isInteger(size) || size < 0) throw invalid(`a message's size must be a whole number, not ${show(size)}`)
    if (this.#shut !== null) throw this.#shut()
    // Records in the arena surely find room; where that is not so, the ring is asked for this one.
    const arena = this.#arena
    if (this.#eager || size > arena.most || !this.#findsSureRoom(size)) return this.#fillReserved(size, write)
    const length = this.#filled(write, arena.bytes, arena.to + HEADER, size)
    arena.finish(length)
    this.#buffered += length
    if (!this.#scheduled || this.#forgetExit === null || this.#process.isExiting) this.#flushSoon()
    return true
  }

  #findsSureRoom(size: number): boolean {
    const needed = recordSize(size)
    if (this.#arena.isSure(needed)) return true
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
    this.#arena.forgetRoom()
    const reserved = this.#native.reserve(size, OWN_MEMORY)
    if (reserved === FAILED) throw this.#fail()
    if (reserved === 0) return false
    let committed = false
    try {
      const own = reserved instanceof ArrayBuffer ? null : this.#memory.scratchFor(size)
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

  /** Has the caller fill the bytes, and returns how many it has written. Meanwhile nothing else is sent. */
  #filled(write: Fill, bytes: Uint8Array, start: number, size: number): number {
    this.#arena.isFilling = true
    this.#shut = filling
    let length: unknown
    try {
      length = write(bytes, start, size)
    } finally {
      this.#arena.isFilling = false
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

  reserve(size: number): Reservation | undefined {
    if (!Number.isInteger(size) || size < 0)
      throw invalid(`a reservation's size must be a whole number, not ${show(size)}`)
    if (this.#shut !== null) throw this.#shut()
    if (size <= this.#maxAtOnce && !this.#isThrough()) return undefined
    this.#arena.forgetRoom()
    const reserved = this.#native.reserve(size, OWN_MEMORY)
    if (reserved === FAILED) throw this.#fail()
    if (reserved === 0) return undefined
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

  waitWritable(size: number, options?: WaitOptions): Promise<void> {
    try {
      const signal = readerSignal(options)
      if (!Number.isInteger(size) || size < 0)
        throw invalid(`a message's size must be a whole number, not ${show(size)}`)
      if (this.#shut !== null) throw this.#shut()
      if (size > this.#maxAtOnce) {
        this.#native.reserve(size, OWN_MEMORY)
        throw this.#failure()
      }
      const asking = new Asking(size)
      this.#asking.push(asking)
      if (signal !== undefined) this.#onAbort(signal, asking.told, () => this.#asking.remove(asking))
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
    this.#roomWait.awake()
    this.pump()
  }

  /** Puts as much into the ring as there is room for, in order; has the peer ring for the rest. */
  pump(): void {
    if (!this.#pumpLine() || !this.#pumpArena()) return
    this.#promises.isFree()
    if (this.#whenEmpty.length > 0) for (const empty of this.#whenEmpty.splice(0)) empty()
    this.#pumpAsking()
  }

  /** `false`: the ring is full, or something failed. */
  #pumpLine(): boolean {
    for (let parcel = this.#line.first; parcel !== null; parcel = this.#line.first) {
      const { bytes, packed } = parcel
      this.#arena.forgetRoom()
      const result = packed
        ? this.#native.flush(bytes, parcel.sent, bytes.length)
        : this.#native.send(bytes, parcel.sent)
      if (result === FAILED) return this.#giveUp()
      const before = parcel.sent
      if (packed) parcel.sent += result
      else parcel.sent = result === WHOLE ? bytes.length : result
      this.#buffered -= packed ? payloadOf(bytes, before, parcel.sent) : parcel.sent - before
      if (parcel.sent !== before) this.#roomWait.progress()
      if (packed) this.#promises.keepUpTo(parcel.promises, parcel.sent)
      if (packed ? parcel.sent < bytes.length : result !== WHOLE) {
        const size = packed ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(parcel.sent, true) : bytes.length
        if (this.#arm(size)) {
          if (!this.#over) this.#promises.isFull()
          return false
        }
        continue
      }
      this.#line.shift()
      this.#memory.recycle(bytes)
      this.#promises.keepUpTo(parcel.promises, bytes.length)
    }
    return true
  }

  #pumpArena(): boolean {
    const arena = this.#arena
    while (!arena.isEmpty) {
      const before = arena.from
      const taken = this.#native.flush(arena.bytes, before, arena.to)
      if (taken === FAILED) return this.#giveUp()
      if (taken !== 0) this.#roomWait.progress()
      arena.taken(taken)
      // The line is empty. What a flush takes is mostly all that waits, and need not be walked then.
      if (arena.isEmpty) this.#buffered = 0
      else this.#buffered -= payloadOf(arena.bytes, before, arena.from)
      this.#promises.keepArena(arena.from, arena.to)
      if (!arena.isEmpty) {
        arena.sure = 0
        if (this.#arm(arena.words[arena.from >>> 2]!)) {
          if (!this.#over) this.#promises.isFull()
          return false
        }
      }
    }
    arena.restart()
    return true
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
      this.#roomWait.progress()
      this.#promises.keep(asking.told)
    }
  }

  /** `true`: there is no room, and `pump` is called again once there may be. */
  #arm(size: number): boolean {
    const started = this.#roomWait.start(size)
    if (started !== null) return started
    this.#giveUp()
    return true
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
    if (over) this.#forgetExit?.()
    const waiting = this.#promises.end(this.#waiting())
    this.#line.clear()
    for (const { told } of this.#asking.clear()) waiting.push(told)
    this.#buffered = 0
    this.#roomWait.stop()
    this.#memory.free()
    this.#arena.end()
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
