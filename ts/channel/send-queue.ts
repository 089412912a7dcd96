// Messages that wait to be sent, in the order of the calls, and their promises.
//
// Small messages are written as records into an arena, which one call into the binding copies into the ring: the call costs more than the
// message. If the ring is full, the remainder waits in line, behind earlier messages.
//
// A promise resolves once its message is in the ring, and rejects only if it never will be. Messages share a promise if the ring is certain
// to have room for all of them. Only this side writes there, and the peer only frees room, so they are written together. A message that may
// have to wait has a promise of its own, since it may be the last one to fit before the channel is closed.

import { Deferred, ignore, showCaller, within } from '../runtime/deferred.js'
import { SEND, signalOf } from '../endpoint/options.js'
import { onAbort } from '../runtime/aborts.js'
import { RingfenceError, aborted, fromFailure, invalid, show } from '../errors.js'
import { flushAtExit, noticeExit } from '../runtime/exit.js'
import { Arena, toBytes } from './arena.js'
import { bundleOf } from './attachments.js'
import { allocateEmpty, SpareMemory } from './memory.js'
import { HEAD, makeFrame } from './envelope.js'
import { CALL, FAILED, HEADER, WHOLE, recordSize, type NativeBundle, type NativeSender } from '../native.js'
import { fairness } from '../runtime/fairness.js'
import { Line, Place } from './line.js'
import { RoomWait } from './room-wait.js'
import { SendPromises, type Pending } from './send-promises.js'
import type { MessageInput, Reservation, SendOptions, WaitOptions } from '../types.js'

/**
 * For tests: 1 disables external memory without asking the engine whether it allows it. Electron does not, and a reservation is a copy
 * there.
 */
const OWN_MEMORY = process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'] === '1' ? 1 : 0

/** The errors of a message with attachments that say nothing about later messages. */
const REFUSED: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_INVALID_ARGUMENT',
  'ERR_RINGFENCE_MESSAGE_TOO_LARGE',
  'ERR_RINGFENCE_NO_SPACE',
])

/** At the end, this number of waiting calls get an error with a stack of their own. A stack for each of many would block the event loop. */
const MOST_STACKS = 16

/** The result of a send whose message is already in the ring. */
const SENT: Promise<void> = Promise.resolve()

/** Cached: Node 20 walks the prototype chain of typed arrays in each call (3 ns of a `send`'s 17, measured). */
const put = Uint8Array.prototype.set
/** An entry of the line: records, or one message that is too long to be staged. */
class Parcel extends Place {
  constructor(
    readonly bytes: Uint8Array,
    readonly packed: boolean,
    /** The number of its bytes that are in the ring. */
    public sent: number,
    readonly promises: Pending[],
    /** The tag of one message. */
    readonly tag = 0,
    /** The attachments of one message, until they are sent. */
    public bundle: NativeBundle | null = null,
  ) {
    super()
  }

  /** The attachments were sent, or never will be. */
  closeBundle(): void {
    this.bundle?.close()
    this.bundle = null
  }
}

/** A caller that waits for room. */
class Asking extends Place {
  readonly told = new Deferred()

  constructor(readonly size: number) {
    super()
  }
}

export class SendQueue {
  readonly #native: NativeSender
  /** Every message is written to the ring at once, because the sender spins for the answer. */
  readonly #eager: boolean
  readonly #maxAtOnce: number
  readonly #arena: Arena
  readonly #promises = new SendPromises()
  readonly #memory = new SpareMemory()
  readonly #roomWait: RoomWait
  /** The arena is flushed in the next microtask. */
  #scheduled = false
  /** Entries that are written before the arena. */
  readonly #line = new Line<Parcel>()
  /** Payload bytes in the arena and the line that are not in the ring yet. */
  #buffered = 0
  readonly #asking = new Line<Asking>()
  /** Call frames that wait until a reservation is committed or cancelled, or a message is filled. */
  readonly #held: { readonly frame: Uint8Array; readonly promise: Deferred }[] = []
  #whenEmpty: (() => void)[] = []
  /** Returns why nothing can be sent now: a reservation, or an end. */
  #shut: (() => RingfenceError) | null = null
  /** `#shut` was not caused by the caller, so rejections with it need no handler and do not end the process. */
  #isQuiet = false
  /** The channel has ended, as `closed` reports. `#shut` has the reason, and no longer changes. */
  #over = false
  readonly #failed: (error: RingfenceError) => void
  readonly #process = noticeExit()
  /** Cancels the flush at exit, which puts filled messages into the ring as `fill` promises its caller. */
  #forgetExit: (() => void) | null = null

  /** @param failed - Called with failures of the binding that are not the caller's fault. */
  constructor(native: NativeSender, eager: boolean, failed: (error: RingfenceError) => void) {
    this.#native = native
    this.#eager = eager
    this.#maxAtOnce = native.maxAtOnce
    this.#arena = new Arena(native.capacity, native.maxAtOnce)
    this.#roomWait = new RoomWait(native, () => this.pump())
    this.#failed = failed
  }

  /** Whether everything that was sent is in the ring. */
  get isEmpty(): boolean {
    return this.#arena.isEmpty && this.#line.isEmpty
  }

  /** Bytes of messages that are not in the ring yet. */
  get bufferedAmount(): number {
    return this.#buffered
  }

  /** The figures of the queue. The caller flushes first, so that messages that have room do not count as queued. */
  stats(): { waits: number; waitedMicros: number; queuedBytes: number } {
    const waits = this.#promises.waits(this.#waiting())
    return { waits, waitedMicros: this.#promises.waitedMicros, queuedBytes: this.#buffered }
  }

  /** Puts what is staged into the ring, as far as there is room. */
  flush(): void {
    if (!this.isEmpty) this.pump()
  }

  #waiting(): Pending[][] {
    return this.#line.places.map(({ promises }) => promises)
  }

  send(message: MessageInput, options?: SendOptions): Promise<void> {
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

  /** Makes the promise of the first message in the arena. Later messages with certain room share it. */
  #begin(): Promise<void> {
    this.#schedule()
    return this.#promises.share()
  }

  /** Schedules the flush by a promise: `queueMicrotask` would make an async resource for each call. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    void SENT.then(this.#flush)
  }

  readonly #flush = (): void => {
    this.#scheduled = false
    if (!this.#arena.isEmpty || this.#held.length > 0) this.pump()
  }

  #sendOther(message: MessageInput, options?: SendOptions): Promise<void> {
    let bundle: NativeBundle | null = null
    try {
      const signal = signalOf(options, SEND)
      const bytes = this.#admit(message)
      if (options?.attachments !== undefined) bundle = bundleOf(options.attachments)
      return this.#sendBytes(bytes, 0, signal, bundle)
    } catch (error) {
      bundle?.close()
      return this.#rejects(error as Error, this.send)
    }
  }

  /**
   * Sends a call frame. Returns null if it is in the ring, or certain to be in this turn of the program. Otherwise returns a promise that
   * rejects only if the queue ends before the frame is in the ring, and needs no handler.
   *
   * @throws {@link RingfenceError} as `send` rejects, except that the frame waits while a reservation is open or a message is being filled
   */
  sendFrame(kind: number, id: number, remaining: number, body: Uint8Array): Promise<void> | null {
    const size = HEAD + body.length
    const mayFit = this.#shut === null && this.#held.length === 0 && !this.#roomWait.isWaiting
    if (!mayFit || size > this.#arena.most || !this.#findsSureRoom(size))
      return this.#sendAlone(makeFrame(kind, id, remaining, body))
    this.#arena.addFrame(kind, id, remaining, body)
    this.#buffered += size
    if (!this.#eager) this.#schedule()
    else {
      this.pump()
      // `pump` may have found the end.
      if (this.#shut !== null) throw (this.#shut as () => RingfenceError)()
    }
    return null
  }

  #sendAlone(frame: Uint8Array): Promise<void> {
    if (this.#shut === filling || this.#shut === whileReserved) {
      this.#checkSize(frame)
      const promise = new Deferred()
      this.#held.push({ frame, promise })
      promise.promise.catch(ignore)
      // A reservation pumps when it is finished.
      if (this.#shut === filling) this.#schedule()
      return promise.promise
    }
    if (this.#shut === null && this.#held.length > 0) this.#sendHeld()
    if (this.#shut !== null) throw this.#shut()
    const sent = this.#sendBytes(frame, CALL)
    sent.catch(ignore)
    return sent
  }

  #sendHeld(): void {
    for (const { frame, promise } of this.#held.splice(0)) {
      try {
        promise.resolve(this.#sendBytes(frame, CALL))
      } catch (error) {
        promise.reject(error as Error)
      }
    }
  }

  #checkSize(bytes: Uint8Array): void {
    if (bytes.length <= this.#native.maxMessageSize) return
    // The binding checks sizes first, and its error names the side that sets the limit.
    this.#native.send(bytes, 0)
    throw this.#failure()
  }

  #sendBytes(bytes: Uint8Array, tag: number, signal?: AbortSignal, bundle: NativeBundle | null = null): Promise<void> {
    this.#checkSize(bytes)
    // An abort can only remove a message that shares neither memory nor a promise with others.
    const alone = this.#eager || bytes.length > this.#arena.most || signal !== undefined || bundle !== null
    return alone ? this.#sendNow(bytes, tag, signal, bundle) : this.#stage(bytes, tag)
  }

  /** A rejection for an end of the channel or peer needs no handler. A wrong call is reported only by its promise, which needs one. */
  #rejects(error: Error, call: (...given: never[]) => unknown): Promise<never> {
    // The frames below the call would leave no room for the program's: a stack has ten.
    if (error instanceof RingfenceError) showCaller(error, call)
    const broken = Promise.reject(error)
    if (this.#isQuiet && (error as RingfenceError).code !== 'ERR_RINGFENCE_INVALID_ARGUMENT') broken.catch(ignore)
    return broken
  }

  /** Puts a message into the arena, whether or not the ring has room for it. */
  #stage(bytes: Uint8Array, tag: number): Promise<void> {
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
    arena.add(bytes, tag)
    this.#buffered += bytes.length
    if (shared) return this.#promises.shared ?? this.#begin()
    arena.sure = 0
    const promise = this.#promises.single(at, arena.to)
    if (!this.#roomWait.isWaiting) this.#schedule()
    return promise
  }

  /**
   * Makes room in the arena for another record. If the arena cannot grow, its records move to the line.
   *
   * @throws {@link RingfenceError} NO_SPACE
   */
  #makeRoom(size: number): void {
    const arena = this.#arena
    if (this.#shut !== null || arena.to + size <= arena.bytes.length || arena.grow(size)) return
    this.#clearArena()
    if (size > arena.bytes.length) arena.grow(size)
  }

  /** Asks the ring for its room. The line must be empty. */
  #hasSureRoom(size: number): boolean {
    const room = this.#native.packedRoom(this.#arena.most)
    if (room === FAILED) {
      this.#fail()
      return false
    }
    return this.#arena.setRoom(room, size)
  }

  /** Writes to the ring if all earlier messages are there; otherwise puts a copy in line. */
  #sendNow(
    bytes: Uint8Array,
    tag: number,
    signal: AbortSignal | undefined,
    bundle: NativeBundle | null,
  ): Promise<void> {
    if (!this.isEmpty) {
      this.pump()
      // `pump` may have found the end.
      if (this.#shut !== null) throw this.#shut()
    }
    let sent = 0
    let own: Uint8Array | null = null
    if (this.isEmpty) {
      this.#arena.forgetRoom()
      // The message may be sent in parts. Its copy is allocated first: without memory for the remainder, no part may be in the ring. The
      // view of fixed length does not change between two parts, though another thread may grow shared memory.
      if (bytes.length > this.#maxAtOnce) {
        bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
        own = this.#memory.copyOf(bytes.length)
      }
      sent = bundle === null ? this.#native.send(bytes, 0, tag) : this.#native.sendAttached(bytes, bundle)
      if (sent === WHOLE) {
        bundle?.close()
        if (own !== null) this.#memory.recycle(own)
        fairness.spend()
        return this.#promises.before ?? SENT
      }
      if (sent === FAILED) throw this.#fail()
    }
    this.#clearArena()
    const pending = this.#promises.pending(bytes.length)
    own ??= this.#memory.copyOf(bytes.length)
    // The part that is in the ring is not read again.
    put.call(own, new Uint8Array(bytes.buffer, bytes.byteOffset + sent, bytes.length - sent), sent)
    const parcel = new Parcel(own, false, sent, [pending], tag, bundle)
    if (sent > 0) parcel.closeBundle()
    this.#line.push(parcel)
    this.#buffered += bytes.length - sent
    if (signal !== undefined)
      this.#onAbort(signal, pending.promise, () => {
        if (parcel.sent > 0 || !this.#line.remove(parcel)) return false
        parcel.closeBundle()
        this.#buffered -= bytes.length
        return true
      })
    this.pump()
    return pending.promise.promise
  }

  /** Rejects a promise once the signal is aborted, if `remove` can still remove the promise's message or caller. */
  #onAbort(signal: AbortSignal, told: Pending['promise'], remove: () => boolean): void {
    const forget = onAbort(signal, () => {
      if (!remove()) return
      told.reject(aborted(signal))
      // The next message or caller may find room.
      this.pump()
    })
    told.promise.then(forget, forget)
  }

  /** Moves the arena's records to the line, so that another entry can follow them. */
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

  /** Checks a message, and that messages can be sent now. */
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
    if (typeof write !== 'function') throw invalid(`fill takes a function, not ${show(write)}`)
    mustBeSize(size, 'message')
    if (this.#shut !== null) throw this.#shut()
    // A record in the arena is certain to fit. If the arena has no such room, the ring itself is asked for room for this message.
    const arena = this.#arena
    if (this.#eager || size > arena.most || !this.#findsSureRoom(size)) return this.#fillReserved(size, write)
    const length = this.#filled(write, arena.bytes, arena.to + HEADER, size)
    arena.finish(length)
    this.#buffered += length
    if (this.#held.length > 0) this.#sendHeld()
    if (!this.#scheduled || this.#forgetExit === null || this.#process.isExiting) this.#flushSoon()
    return true
  }

  #findsSureRoom(size: number): boolean {
    const needed = recordSize(size)
    if (this.#arena.isSure(needed)) return true
    this.flush()
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

  /** Fills memory of the ring itself if it can be exposed, or else a scratch buffer that is copied there. */
  #fillReserved(size: number, write: Fill): boolean {
    const reserved = this.#reserve(size)
    if (reserved === 0) return false
    let committed = false
    try {
      const own = reserved instanceof ArrayBuffer ? null : this.#memory.scratchFor(size)
      const length = this.#filled(write, own ?? new Uint8Array(reserved as ArrayBuffer), 0, size)
      committed = true
      if (this.#native.commit(length, own ?? undefined) === FAILED) throw this.#fail()
    } finally {
      // If the channel has ended in the meantime, the reservation is already cancelled.
      if (!committed && !this.#over) this.#native.cancel()
    }
    this.pump()
    return true
  }

  /** Lets the caller fill the bytes, and returns how many it has written. Nothing else can be sent during the call. */
  #filled(write: Fill, bytes: Uint8Array, start: number, size: number): number {
    this.#arena.isFilling = true
    this.#shut = filling
    let length: unknown
    try {
      length = write(bytes, start, size)
    } finally {
      this.#arena.isFilling = false
      // In the meantime the channel may have ended, or this side its sending.
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
    mustBeSize(size, 'reservation')
    if (this.#shut !== null) throw this.#shut()
    const reserved = this.#reserve(size)
    if (reserved === 0) return undefined
    const finish: Finish = (length, scratch) => {
      // If the channel has ended in the meantime, the reservation is already cancelled.
      if (this.#shut !== whileReserved) return this.#shut!()
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
      // There is no memory for it. A reservation that the caller never gets would be neither committed nor cancelled.
      this.#native.cancel()
      throw error
    }
    this.#shut = whileReserved
    return made
  }

  /** Reserves room in the ring; 0: there is none now. */
  #reserve(size: number): number | ArrayBuffer {
    if (size <= this.#maxAtOnce && !this.#isThrough()) return 0
    this.#arena.forgetRoom()
    const reserved = this.#native.reserve(size, OWN_MEMORY)
    if (reserved === FAILED) throw this.#fail()
    return reserved
  }

  /** Whether a message that is sent now would be the next one in the ring. */
  #isThrough(): boolean {
    this.flush()
    if (this.#shut !== null) throw this.#shut()
    return this.isEmpty
  }

  waitWritable(size: number, options?: WaitOptions): Promise<void> {
    try {
      const signal = signalOf(options)
      mustBeSize(size, 'message')
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
      return this.#rejects(error as Error, this.waitWritable)
    }
  }

  /** Resolves once everything that was sent so far is in the ring, or never will be. */
  empty(): Promise<void> {
    this.pump()
    if (this.isEmpty) return SENT
    return new Promise((resolve) => this.#whenEmpty.push(resolve))
  }

  /**
   * Rejects new messages, and waits for earlier ones for at most this many milliseconds, or until {@link shut}. null: there is nothing to
   * wait for, so the caller can continue synchronously.
   */
  linger(milliseconds: number, refusal: () => RingfenceError): Promise<void> | null {
    this.refuse(refusal, true)
    const empty = this.empty()
    if (milliseconds <= 0 || this.isEmpty) return null
    return within(milliseconds, empty)
  }

  /** Handles a wakeup from the peer. */
  awake(): void {
    this.#roomWait.awake()
    this.pump()
  }

  /** Puts messages into the ring, in order, as far as there is room. Asks the peer for a wakeup if some are left. */
  pump(): void {
    if (this.#held.length > 0 && this.#shut === null) this.#sendHeld()
    if (!this.#pumpLine() || !this.#pumpArena()) return
    this.#promises.isFree()
    if (this.#whenEmpty.length > 0) for (const empty of this.#whenEmpty.splice(0)) empty()
    this.#pumpAsking()
  }

  /** Puts the line into the ring. `false`: the ring is full, or something failed. */
  #pumpLine(): boolean {
    for (let parcel = this.#line.first; parcel !== null; parcel = this.#line.first) {
      const { bytes, packed, bundle } = parcel
      this.#arena.forgetRoom()
      const result = packed
        ? this.#native.flush(bytes, parcel.sent, bytes.length)
        : bundle === null
          ? this.#native.send(bytes, parcel.sent, parcel.tag)
          : this.#native.sendAttached(bytes, bundle)
      if (result === FAILED) {
        if (bundle === null) return this.#giveUp()
        if (!this.#dropAttached(parcel)) return false
        continue
      }
      if (result !== 0) parcel.closeBundle()
      const before = parcel.sent
      if (packed) parcel.sent += result
      else parcel.sent = result === WHOLE ? bytes.length : result
      this.#buffered -= packed ? payloadOf(bytes, before, parcel.sent) : parcel.sent - before
      if (parcel.sent !== before) this.#roomWait.progress()
      if (packed) this.#promises.keepUpTo(parcel.promises, parcel.sent)
      if (packed ? parcel.sent < bytes.length : result !== WHOLE) {
        const size = packed ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(parcel.sent, true) : bytes.length
        if (this.#arm(size, parcel.bundle)) {
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

  /** Handles a message with attachments that cannot be sent. Returns whether later messages can be. */
  #dropAttached(parcel: Parcel): boolean {
    const error = this.#fail()
    if (this.#over || !REFUSED.has(error.code)) return false
    this.#line.remove(parcel)
    parcel.closeBundle()
    this.#buffered -= parcel.bytes.length
    for (const { promise } of parcel.promises) promise.reject(error)
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
      // The line is empty here. A flush mostly takes all records, which need not be walked then.
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
  #arm(size: number, bundle: NativeBundle | null = null): boolean {
    const started = this.#roomWait.start(size, bundle)
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
   * Rejects waiting callers and later calls: nothing more is sent.
   *
   * @param over - The channel has ended. A later end of this side's own sending does not change the reason.
   */
  shut(why: () => RingfenceError, over: boolean): void {
    if (this.#over && !over) return
    this.#shut = why
    this.#over ||= over
    this.#isQuiet ||= over
    if (over) this.#forgetExit?.()
    const waiting = this.#promises.end(this.#waiting())
    for (const parcel of this.#line.clear()) parcel.closeBundle()
    for (const { told } of this.#asking.clear()) waiting.push(told)
    for (const { promise } of this.#held.splice(0)) waiting.push(promise)
    this.#buffered = 0
    this.#roomWait.stop()
    this.#memory.free()
    this.#arena.end()
    this.#rejectAll(waiting, why)
    for (const empty of this.#whenEmpty.splice(0)) empty()
  }

  #rejectAll(waiting: Pending['promise'][], why: () => RingfenceError): void {
    const rest = waiting.splice(MOST_STACKS)
    for (const each of waiting) each.reject(why(), this.#isQuiet)
    if (rest.length === 0) return
    const failed = Promise.reject(why())
    failed.catch(ignore)
    for (const each of rest) {
      if (this.#isQuiet) each.promise.catch(ignore)
      each.resolve(failed)
    }
  }

  /**
   * Rejects new messages. Earlier messages are still sent.
   *
   * @param isQuiet - The caller did not end its own sending, so the rejections of later sends need no handler.
   */
  refuse(why: () => RingfenceError, isQuiet: boolean): void {
    if (this.#over) return
    this.#shut = why
    this.#isQuiet ||= isQuiet
  }
}

/** The payload bytes of whole records between `from` and `to`. */
function payloadOf(bytes: Uint8Array, from: number, to: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let sum = 0
  for (let at = from; at < to;) {
    const length = view.getUint32(at, true)
    sum += length
    at += recordSize(length)
  }
  return sum
}

/** Fills at most `length` bytes of `bytes` from `offset` on, and returns how many it has written. */
export type Fill = (bytes: Uint8Array, offset: number, length: number) => number

function mustBeSize(size: number, what: string): void {
  if (!Number.isInteger(size) || size < 0) throw invalid(`a ${what}'s size must be a whole number, not ${show(size)}`)
}

const whileReserved = () => invalid('a reservation is open: commit or cancel it first')
const filling = () => invalid('a message is being filled: send once that has returned')

/** Commits this number of bytes, or cancels. Returns the error if that fails. */
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
    // The channel's end detaches the bytes as well, and its error takes precedence.
    const taken = this.bytes.length !== this.#size
    const error = taken ? this.#finish(null) : this.#finish(length, this.#scratch ? this.bytes : undefined)
    if (error !== null) throw error
    if (taken) throw invalid("the reservation's bytes were transferred elsewhere: it is cancelled")
  }

  cancel(): void {
    if (!this.#open) return
    this.#open = false
    // If the channel has ended, the reservation is already cancelled. An exception here would hide the original one.
    this.#finish(null)
  }

  [Symbol.dispose](): void {
    this.cancel()
  }
}
