// Messages that wait to be sent, in the order of the calls, and their promises.
//
// Small messages are written as records into an arena, which one call into the binding copies into the ring: the call costs more than the
// message. If the ring is full, the remainder is queued behind earlier messages.
//
// A promise resolves once its message is in the ring, and rejects only if it never will be. Messages share a promise if the ring is certain
// to have room for all of them. Only this side writes there, and the peer only frees room, so they are written together. A message that may
// have to wait has a promise of its own, since it may be the last one to fit before the channel is closed.

import { Deferred, RESOLVED, captureCallStack, ignore, runInMicrotask, settledWithin } from '../runtime/deferred.js'
import { SEND_OPTIONS, signalOf } from '../endpoint/options.js'
import { onAbort } from '../runtime/aborts.js'
import { RingfenceError, aborted, fromFailure, invalid, show } from '../errors.js'
import { flushAtExit, watchExit } from '../runtime/exit.js'
import { Arena, toBytes } from './arena.js'
import { makeBundle } from './attachments.js'
import { allocateEmpty, SpareMemory } from './memory.js'
import { HEAD, makeFrame } from './envelope.js'
import { CALL, FAILED, HEADER, WHOLE, recordSize, type NativeBundle, type NativeSender } from '../native.js'
import { fairness } from '../runtime/fairness.js'
import { LinkedList, ListNode } from './linked-list.js'
import { RoomPoller } from './room-poller.js'
import { SendPromises, type Pending } from './send-promises.js'
import type { MessageInput, Reservation, SendOptions, WaitOptions } from '../types.js'

/**
 * For tests: 1 disables external memory without asking the engine whether it allows it. Electron does not, and a reservation is a copy
 * there.
 */
const NO_EXTERNAL_MEMORY = process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'] === '1' ? 1 : 0

/** The errors of a message with attachments that say nothing about later messages. */
const MESSAGE_ERRORS: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_INVALID_ARGUMENT',
  'ERR_RINGFENCE_MESSAGE_TOO_LARGE',
  'ERR_RINGFENCE_NO_SPACE',
])

/** At the end, this number of waiting calls get an error with a stack of their own. A stack for each of many would block the event loop. */
const MAX_STACKS = 16

/** Cached: Node 20 walks the prototype chain of typed arrays in each call (3 ns of a `send`'s 17, measured). */
const setBytes = Uint8Array.prototype.set
/** An entry of the queue: records, or one message that is too long to be staged. */
class QueueEntry extends ListNode {
  constructor(
    readonly bytes: Uint8Array,
    readonly isPacked: boolean,
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
class RoomWaiter extends ListNode {
  readonly deferred = new Deferred()

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
  readonly #roomPoller: RoomPoller
  /** The arena is flushed in the next microtask. */
  #scheduled = false
  /** Entries that are written before the arena. */
  readonly #entries = new LinkedList<QueueEntry>()
  /** Payload bytes of messages that are not in the ring yet. */
  bufferedAmount = 0
  readonly #roomWaiters = new LinkedList<RoomWaiter>()
  /** Call frames that wait until a reservation is committed or cancelled, or a message is filled. */
  readonly #delayedFrames: { readonly frame: Uint8Array; readonly promise: Deferred }[] = []
  #drainCallbacks: (() => void)[] = []
  /** Returns why nothing can be sent now: a reservation, or an end. */
  #makeBlockError: (() => RingfenceError) | null = null
  /** `#makeBlockError` was not caused by the caller, so rejections with it need no handler and do not end the process. */
  #isQuiet = false
  /** The channel has ended, as `closed` reports. `#makeBlockError` has the reason, and no longer changes. */
  #hasEnded = false
  readonly #failed: (error: RingfenceError) => void
  readonly #process = watchExit()
  /** Cancels the work at exit, without which messages that were sent or filled right before it, or their end, would be lost. */
  #cancelExitFlush: (() => void) | null = null

  /** @param failed - Called with failures of the binding that are not the caller's fault. */
  constructor(native: NativeSender, eager: boolean, failed: (error: RingfenceError) => void) {
    this.#native = native
    this.#eager = eager
    this.#maxAtOnce = native.maxAtOnce
    this.#arena = new Arena(native.capacity, native.maxAtOnce)
    this.#roomPoller = new RoomPoller(native, () => this.pump())
    this.#failed = failed
  }

  /** Whether everything that was sent is in the ring. */
  get isEmpty(): boolean {
    return this.#arena.isEmpty && this.#entries.isEmpty
  }

  /** The figures of the queue. The caller flushes first, so that messages that have room do not count as queued. */
  stats(): { waits: number; waitedMicros: number; queuedBytes: number } {
    const waits = this.#promises.waits(this.#waiting())
    return { waits, waitedMicros: this.#promises.waitedMicros, queuedBytes: this.bufferedAmount }
  }

  /** Puts what is staged into the ring, as far as there is room. */
  flush(): void {
    if (!this.isEmpty) this.pump()
  }

  #waiting(): Pending[][] {
    return this.#entries.nodes.map(({ promises }) => promises)
  }

  send(message: MessageInput, options?: SendOptions): Promise<void> {
    if (options !== undefined) return this.#sendSlowly(message, options)
    if (this.#makeBlockError === null && !this.#eager) {
      const length = typeof message === 'string' ? this.#arena.stageText(message) : this.#arena.stage(message)
      if (length >= 0) {
        this.bufferedAmount += length
        return this.#promises.shared ?? this.#startBatch()
      }
    }
    return this.#sendSlowly(message)
  }

  /** Makes the promise of the first message in the arena. Later messages with certain room share it. */
  #startBatch(): Promise<void> {
    const promise = this.#promises.share()
    this.#schedule()
    return promise
  }

  /** Calls {@link pump} once this turn of the program is over, or at the exit if that comes first. */
  #schedule(): void {
    if (this.#process.isExiting) {
      this.pump()
      return
    }
    if (this.#scheduled) return
    this.#scheduled = true
    this.#cancelExitFlush ??= flushAtExit(() => this.pump())
    runInMicrotask(this.#flush)
  }

  readonly #flush = (): void => {
    this.#scheduled = false
    if (!this.#arena.isEmpty || this.#delayedFrames.length > 0) this.pump()
  }

  #sendSlowly(message: MessageInput, options?: SendOptions): Promise<void> {
    let bundle: NativeBundle | null = null
    try {
      const signal = signalOf(options, SEND_OPTIONS)
      const bytes = this.#checkMessage(message)
      if (options?.attachments !== undefined) bundle = makeBundle(options.attachments)
      return this.#sendBytes(bytes, 0, signal, bundle)
    } catch (error) {
      bundle?.close()
      return this.#rejected(error as Error, this.send)
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
    const mayFit = this.#makeBlockError === null && this.#delayedFrames.length === 0 && !this.#roomPoller.isWaiting
    if (!mayFit || size > this.#arena.maxPayload || !this.#ensureRoom(size))
      return this.#sendFrameSeparately(makeFrame(kind, id, remaining, body))
    this.#arena.appendFrame(kind, id, remaining, body)
    this.bufferedAmount += size
    if (!this.#eager) this.#schedule()
    else {
      this.pump()
      // `pump` may have found the end.
      if (this.#makeBlockError !== null) throw (this.#makeBlockError as () => RingfenceError)()
    }
    return null
  }

  #sendFrameSeparately(frame: Uint8Array): Promise<void> {
    if (this.#makeBlockError === fillingError || this.#makeBlockError === reservedError) {
      this.#checkSize(frame)
      const promise = new Deferred()
      this.#delayedFrames.push({ frame, promise })
      promise.promise.catch(ignore)
      // A reservation pumps when it is finished.
      if (this.#makeBlockError === fillingError) this.#schedule()
      return promise.promise
    }
    if (this.#makeBlockError === null && this.#delayedFrames.length > 0) this.#sendDelayedFrames()
    if (this.#makeBlockError !== null) throw this.#makeBlockError()
    const sent = this.#sendBytes(frame, CALL)
    sent.catch(ignore)
    return sent
  }

  #sendDelayedFrames(): void {
    for (const { frame, promise } of this.#delayedFrames.splice(0)) {
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
    const isSeparate = this.#eager || bytes.length > this.#arena.maxPayload || signal !== undefined || bundle !== null
    return isSeparate ? this.#sendSeparately(bytes, tag, signal, bundle) : this.#stage(bytes, tag)
  }

  /** A rejection for an end of the channel or peer needs no handler. A wrong call is reported only by its promise, which needs one. */
  #rejected(error: Error, call: (...given: never[]) => unknown): Promise<never> {
    // The frames below the call would leave no room for the program's: a stack has ten.
    if (error instanceof RingfenceError) captureCallStack(error, call)
    const rejection = Promise.reject(error)
    if (this.#isQuiet && (error as RingfenceError).code !== 'ERR_RINGFENCE_INVALID_ARGUMENT') rejection.catch(ignore)
    return rejection
  }

  /** Puts a message into the arena, whether or not the ring has room for it. */
  #stage(bytes: Uint8Array, tag: number): Promise<void> {
    const arena = this.#arena
    const size = recordSize(bytes.length)
    let shared = arena.ensureRoom(size)
    if (!shared) {
      if (!this.#roomPoller.isWaiting) this.pump()
      this.#makeRoom(size)
      shared = this.isEmpty && this.#queryRoom(size)
      if (this.#makeBlockError !== null) throw this.#makeBlockError()
    }
    const at = arena.to
    arena.append(bytes, tag)
    this.bufferedAmount += bytes.length
    if (shared) return this.#promises.shared ?? this.#startBatch()
    arena.guaranteedEnd = 0
    const promise = this.#promises.addSeparate(at, arena.to)
    if (!this.#roomPoller.isWaiting) this.#schedule()
    return promise
  }

  /**
   * Makes room in the arena for another record. If the arena cannot grow, its records move to the queue.
   *
   * @throws {@link RingfenceError} NO_SPACE
   */
  #makeRoom(size: number): void {
    const arena = this.#arena
    if (this.#makeBlockError !== null || arena.to + size <= arena.bytes.length || arena.grow(size)) return
    this.#moveArenaToQueue()
    if (size > arena.bytes.length) arena.grow(size)
  }

  /** Asks the ring for its room. The queue must be empty. */
  #queryRoom(size: number): boolean {
    const room = this.#native.packedRoom(this.#arena.maxPayload)
    if (room === FAILED) {
      this.#fail()
      return false
    }
    return this.#arena.setRoom(room, size)
  }

  /** Writes to the ring if all earlier messages are there; otherwise queues a copy. */
  #sendSeparately(
    bytes: Uint8Array,
    tag: number,
    signal: AbortSignal | undefined,
    bundle: NativeBundle | null,
  ): Promise<void> {
    if (!this.isEmpty) {
      this.pump()
      // `pump` may have found the end.
      if (this.#makeBlockError !== null) throw this.#makeBlockError()
    }
    let sent = 0
    let own: Uint8Array | null = null
    if (this.isEmpty) {
      this.#arena.invalidateRoom()
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
        return this.#promises.previous ?? RESOLVED
      }
      if (sent === FAILED) throw this.#fail()
    }
    this.#moveArenaToQueue()
    const pending = this.#promises.pending(bytes.length)
    own ??= this.#memory.copyOf(bytes.length)
    // The part that is in the ring is not read again.
    setBytes.call(own, new Uint8Array(bytes.buffer, bytes.byteOffset + sent, bytes.length - sent), sent)
    const entry = new QueueEntry(own, false, sent, [pending], tag, bundle)
    if (sent > 0) entry.closeBundle()
    this.#entries.push(entry)
    this.bufferedAmount += bytes.length - sent
    if (signal !== undefined)
      this.#onAbort(signal, pending.promise, () => {
        if (entry.sent > 0 || !this.#entries.remove(entry)) return false
        entry.closeBundle()
        this.bufferedAmount -= bytes.length
        return true
      })
    this.pump()
    return pending.promise.promise
  }

  /** Rejects a promise once the signal is aborted, if `remove` can still remove the promise's message or caller. */
  #onAbort(signal: AbortSignal, deferred: Pending['promise'], remove: () => boolean): void {
    const removeAbortListener = onAbort(signal, () => {
      if (!remove()) return
      deferred.reject(aborted(signal))
      // The next message or caller may find room.
      this.pump()
    })
    deferred.promise.then(removeAbortListener, removeAbortListener)
  }

  /** Moves the arena's records to the queue, so that another entry can follow them. */
  #moveArenaToQueue(): void {
    const { bytes, from, to } = this.#arena
    const promises = this.#promises.detachArena(from, to)
    if (from < to) {
      const copy = this.#memory.copyOf(to - from)
      setBytes.call(copy, bytes.subarray(from, to))
      this.#entries.push(new QueueEntry(copy, true, 0, promises))
    }
    this.#arena.clear()
  }

  /** Checks a message, and that messages can be sent now. */
  #checkMessage(message: MessageInput): Uint8Array {
    const bytes = typeof message === 'string' ? Buffer.from(message, 'utf8') : toBytes(message)
    if (this.#makeBlockError !== null) throw this.#makeBlockError()
    return bytes
  }

  trySend(message: MessageInput): boolean {
    const bytes = this.#checkMessage(message)
    if (bytes.length <= this.#maxAtOnce && !this.#isFlushed()) return false
    this.#arena.invalidateRoom()
    const sent = this.#native.trySend(bytes)
    if (sent === FAILED) throw this.#fail()
    return sent === 1
  }

  fill(size: number, write: Fill): boolean {
    if (typeof write !== 'function') throw invalid(`fill takes a function, not ${show(write)}`)
    checkSizeArgument(size, 'message')
    if (this.#makeBlockError !== null) throw this.#makeBlockError()
    // A record in the arena is certain to fit. If the arena has no such room, the ring itself is asked for room for this message.
    const arena = this.#arena
    if (this.#eager || size > arena.maxPayload || !this.#ensureRoom(size)) return this.#fillReservation(size, write)
    const length = this.#callFill(write, arena.bytes, arena.to + HEADER, size)
    arena.finishRecord(length)
    this.bufferedAmount += length
    if (this.#delayedFrames.length > 0) this.#sendDelayedFrames()
    this.#schedule()
    return true
  }

  #ensureRoom(size: number): boolean {
    const needed = recordSize(size)
    if (this.#arena.ensureRoom(needed)) return true
    this.flush()
    if (!this.isEmpty) return false
    this.#makeRoom(needed)
    return this.#queryRoom(needed)
  }

  /** Fills memory of the ring itself if it can be exposed, or else a scratch buffer that is copied there. */
  #fillReservation(size: number, write: Fill): boolean {
    const reserved = this.#reserve(size)
    if (reserved === 0) return false
    let committed = false
    try {
      const own = typeof reserved === 'object' ? null : this.#memory.scratchFor(size)
      const length = this.#callFill(write, own ?? new Uint8Array(reserved as ArrayBuffer), 0, size)
      committed = true
      if (this.#native.commit(length, own ?? undefined) === FAILED) throw this.#fail()
    } finally {
      // If the channel has ended in the meantime, the reservation is already cancelled.
      if (!committed && !this.#hasEnded) this.#native.cancel()
    }
    this.pump()
    return true
  }

  /** Lets the caller fill the bytes, and returns how many it has written. Nothing else can be sent during the call. */
  #callFill(write: Fill, bytes: Uint8Array, start: number, size: number): number {
    this.#arena.isFilling = true
    this.#makeBlockError = fillingError
    let length: unknown
    try {
      length = write(bytes, start, size)
    } finally {
      this.#arena.isFilling = false
      // In the meantime the channel may have ended, or this side its sending.
      if (this.#makeBlockError === fillingError) this.#makeBlockError = null
      else if (!this.#hasEnded) this.#schedule()
    }
    if (typeof length !== 'number' || !Number.isInteger(length) || length < 0 || length > size) {
      throw invalid(
        `the function that fills a message must return the number of written bytes, from 0 to ${size}, not ${show(length)}`,
      )
    }
    if (this.#makeBlockError !== null) throw (this.#makeBlockError as () => RingfenceError)()
    if (bytes.length === 0) throw invalid('the memory to be filled was transferred elsewhere: transfer a copy')
    return length
  }

  reserve(size: number): Reservation | undefined {
    checkSizeArgument(size, 'reservation')
    if (this.#makeBlockError !== null) throw this.#makeBlockError()
    const reserved = this.#reserve(size)
    if (reserved === 0) return undefined
    const finish: Finish = (length, scratch) => {
      // If the channel has ended in the meantime, the reservation is already cancelled.
      if (this.#makeBlockError !== reservedError) return this.#makeBlockError!()
      this.#makeBlockError = null
      if (length === null) this.#native.cancel()
      else if (this.#native.commit(length, scratch) === FAILED) return this.#fail()
      this.pump()
      return null
    }
    let reservation: Reservation
    try {
      reservation = new Reserved(typeof reserved === 'object' ? reserved : null, size, finish)
    } catch (error) {
      // There is no memory for it. A reservation that the caller never gets would be neither committed nor cancelled.
      this.#native.cancel()
      throw error
    }
    this.#makeBlockError = reservedError
    return reservation
  }

  /** Reserves room in the ring; 0: there is none now. */
  #reserve(size: number): number | ArrayBuffer {
    if (size <= this.#maxAtOnce && !this.#isFlushed()) return 0
    this.#arena.invalidateRoom()
    const reserved = this.#native.reserve(size, NO_EXTERNAL_MEMORY)
    if (reserved === FAILED) throw this.#fail()
    return reserved
  }

  /** Whether a message that is sent now would be the next one in the ring. */
  #isFlushed(): boolean {
    this.flush()
    if (this.#makeBlockError !== null) throw this.#makeBlockError()
    return this.isEmpty
  }

  waitWritable(size: number, options?: WaitOptions): Promise<void> {
    try {
      const signal = signalOf(options)
      checkSizeArgument(size, 'message')
      if (this.#makeBlockError !== null) throw this.#makeBlockError()
      if (size > this.#maxAtOnce) {
        this.#native.reserve(size, NO_EXTERNAL_MEMORY)
        throw this.#failure()
      }
      const waiter = new RoomWaiter(size)
      this.#roomWaiters.push(waiter)
      if (signal !== undefined) this.#onAbort(signal, waiter.deferred, () => this.#roomWaiters.remove(waiter))
      this.pump()
      return waiter.deferred.promise
    } catch (error) {
      return this.#rejected(error as Error, this.waitWritable)
    }
  }

  /** Resolves once everything that was sent so far is in the ring, or never will be. */
  drained(): Promise<void> {
    this.pump()
    if (this.isEmpty) return RESOLVED
    return new Promise((resolve) => this.#drainCallbacks.push(resolve))
  }

  /**
   * Rejects new messages, and waits for earlier ones for at most this many milliseconds, or until {@link stop}. null: there is nothing to
   * wait for, so the caller can continue synchronously.
   */
  linger(milliseconds: number, reason: () => RingfenceError): Promise<void> | null {
    this.rejectNew(reason, true)
    const drained = this.drained()
    if (milliseconds <= 0 || this.isEmpty) return null
    return settledWithin(milliseconds, drained)
  }

  /**
   * Rejects new messages, and calls `finish` once earlier ones are in the ring, or never will be. If they are there, it does so before it
   * returns, so that an exit right after it loses nothing.
   *
   * @param isQuiet - The peer has ended. `finish` is not called before this returns, since a reader is looking at that end.
   */
  end(reason: () => RingfenceError, isQuiet: boolean, finish: () => void): Promise<void> {
    // `fill` cancels a message when the program's function returns, and needs the ring for that.
    const waits = isQuiet || this.#makeBlockError !== null
    this.rejectNew(reason, isQuiet)
    const drained = this.drained()
    const stop = () => {
      this.stop(reason, false)
      finish()
    }
    if (waits || drained !== RESOLVED) return drained.then(stop)
    stop()
    return RESOLVED
  }

  /** Handles a wakeup from the peer. */
  handleWakeup(): void {
    this.#roomPoller.handleWakeup()
    this.pump()
  }

  /** Puts messages into the ring, in order, as far as there is room. Asks the peer for a wakeup if some are left. */
  pump(): void {
    if (this.#delayedFrames.length > 0 && this.#makeBlockError === null) this.#sendDelayedFrames()
    if (!this.#pumpEntries() || !this.#pumpArena()) return
    this.#promises.markFree()
    if (this.#drainCallbacks.length > 0) for (const drained of this.#drainCallbacks.splice(0)) drained()
    this.#pumpRoomWaiters()
  }

  /** Puts the queued entries into the ring. `false`: the ring is full, or something failed. */
  #pumpEntries(): boolean {
    for (let entry = this.#entries.first; entry !== null; entry = this.#entries.first) {
      const { bytes, isPacked, bundle } = entry
      this.#arena.invalidateRoom()
      const result = isPacked
        ? this.#native.flush(bytes, entry.sent, bytes.length)
        : bundle === null
          ? this.#native.send(bytes, entry.sent, entry.tag)
          : this.#native.sendAttached(bytes, bundle)
      if (result === FAILED) {
        if (bundle === null) return this.#stopPumping()
        if (!this.#dropAttached(entry)) return false
        continue
      }
      if (result !== 0) entry.closeBundle()
      const before = entry.sent
      if (isPacked) entry.sent += result
      else entry.sent = result === WHOLE ? bytes.length : result
      this.bufferedAmount -= isPacked ? payloadOf(bytes, before, entry.sent) : entry.sent - before
      if (entry.sent !== before) this.#roomPoller.progress()
      if (isPacked) this.#promises.resolveUpTo(entry.promises, entry.sent)
      if (isPacked ? entry.sent < bytes.length : result !== WHOLE) {
        const size = isPacked ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(entry.sent, true) : bytes.length
        if (this.#arm(size, entry.bundle)) {
          if (!this.#hasEnded) this.#promises.markFull()
          return false
        }
        continue
      }
      this.#entries.shift()
      this.#memory.recycle(bytes)
      this.#promises.resolveUpTo(entry.promises, bytes.length)
    }
    return true
  }

  /** Handles a message with attachments that cannot be sent. Returns whether later messages can be. */
  #dropAttached(entry: QueueEntry): boolean {
    const error = this.#fail()
    if (this.#hasEnded || !MESSAGE_ERRORS.has(error.code)) return false
    this.#entries.remove(entry)
    entry.closeBundle()
    this.bufferedAmount -= entry.bytes.length
    for (const { promise } of entry.promises) promise.reject(error)
    return true
  }

  #pumpArena(): boolean {
    const arena = this.#arena
    while (!arena.isEmpty) {
      const before = arena.from
      const flushed = this.#native.flush(arena.bytes, before, arena.to)
      if (flushed === FAILED) return this.#stopPumping()
      if (flushed !== 0) this.#roomPoller.progress()
      arena.flushed(flushed)
      // The queue is empty here. A flush mostly takes all records, which need not be walked then.
      if (arena.isEmpty) this.bufferedAmount = 0
      else this.bufferedAmount -= payloadOf(arena.bytes, before, arena.from)
      this.#promises.resolveArena(arena.from, arena.to)
      if (!arena.isEmpty) {
        arena.guaranteedEnd = 0
        if (this.#arm(arena.words[arena.from >>> 2]!)) {
          if (!this.#hasEnded) this.#promises.markFull()
          return false
        }
      }
    }
    arena.rewind()
    return true
  }

  #pumpRoomWaiters(): void {
    for (let waiter = this.#roomWaiters.first; waiter !== null; waiter = this.#roomWaiters.first) {
      const room = this.#native.hasRoom(waiter.size)
      if (room === FAILED) {
        this.#fail()
        return
      }
      if (room === 0) {
        if (this.#arm(waiter.size)) return
        continue
      }
      this.#roomWaiters.shift()
      this.#roomPoller.progress()
      this.#promises.resolveInOrder(waiter.deferred)
    }
  }

  /** `true`: there is no room, and `pump` is called again once there may be. */
  #arm(size: number, bundle: NativeBundle | null = null): boolean {
    const isWaiting = this.#roomPoller.start(size, bundle)
    if (isWaiting !== null) return isWaiting
    this.#stopPumping()
    return true
  }

  #stopPumping(): false {
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
   * @param hasEnded - The channel has ended. A later end of this side's own sending does not change the reason.
   */
  stop(reason: () => RingfenceError, hasEnded: boolean): void {
    if (this.#hasEnded && !hasEnded) return
    this.#makeBlockError = reason
    this.#hasEnded ||= hasEnded
    this.#isQuiet ||= hasEnded
    if (hasEnded) this.#cancelExitFlush?.()
    const waiting = this.#promises.end(this.#waiting())
    for (const entry of this.#entries.clear()) entry.closeBundle()
    for (const { deferred } of this.#roomWaiters.clear()) waiting.push(deferred)
    for (const { promise } of this.#delayedFrames.splice(0)) waiting.push(promise)
    this.bufferedAmount = 0
    this.#roomPoller.stop()
    this.#memory.free()
    this.#arena.end()
    this.#rejectAll(waiting, reason)
    for (const drained of this.#drainCallbacks.splice(0)) drained()
  }

  #rejectAll(waiting: Pending['promise'][], reason: () => RingfenceError): void {
    const rest = waiting.splice(MAX_STACKS)
    for (const each of waiting) each.reject(reason(), this.#isQuiet)
    if (rest.length === 0) return
    const failed = Promise.reject(reason())
    failed.catch(ignore)
    for (const each of rest) {
      if (this.#isQuiet) each.promise.catch(ignore)
      each.resolve(failed)
    }
  }

  /**
   * Rejects new messages. Earlier messages are still sent. If the process exits first, the sending ends there, provided that all of
   * them are in the ring.
   *
   * @param isQuiet - The caller did not end its own sending, so the rejections of later sends need no handler.
   */
  rejectNew(reason: () => RingfenceError, isQuiet: boolean): void {
    if (this.#hasEnded) return
    this.#makeBlockError = reason
    this.#isQuiet ||= isQuiet
    this.#cancelExitFlush?.()
    this.#cancelExitFlush = flushAtExit(() => {
      this.pump()
      // Promises no longer settle, so nothing else ends the sending. Without this end, the peer finds a lost peer.
      if (this.isEmpty && !this.#hasEnded) this.#native.end()
    })
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

function checkSizeArgument(size: number, what: string): void {
  if (!Number.isInteger(size) || size < 0) throw invalid(`a ${what}'s size must be a whole number, not ${show(size)}`)
}

const reservedError = () => invalid('a reservation is open: commit or cancel it first')
const fillingError = () => invalid('a message is being filled: send once `fill` has returned')

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
    if (!this.#open) throw invalid('the reservation was committed or cancelled before: reserve again')
    if (!Number.isInteger(length) || length < 0 || length > this.#size) {
      throw invalid(`commit takes a length from 0 to ${this.#size}, not ${show(length)}`)
    }
    this.#open = false
    // The channel's end detaches the bytes as well, and its error takes precedence.
    const isDetached = this.bytes.length !== this.#size
    const error = isDetached ? this.#finish(null) : this.#finish(length, this.#scratch ? this.bytes : undefined)
    if (error !== null) throw error
    if (isDetached) throw invalid("the reservation's bytes were transferred elsewhere: it is cancelled")
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
