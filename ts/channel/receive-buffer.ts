// Hands fetched messages to waiting callers, to visitors, or to a merge.

import { closeAttachments } from './attachments.js'
import { RingfenceError, invalid } from '../errors.js'
import { fairness } from '../runtime/fairness.js'
import { Fetched, type FetchOwner } from './fetch.js'
import { FAILED, FIRST, HEADER, MORE, type NativeReader } from '../native.js'
import type { Received } from './stats.js'
import type { AttachmentOptions, Visit } from '../types.js'
import { Waiters, type Wait } from './waiters.js'
import { setWeakImmediate } from '../runtime/weak-immediate.js'
import { timers } from '../runtime/timers.js'

/** The value of a wait that only checks for readability. */
const EMPTY = Buffer.alloc(0)

/** The calls of the channel whose messages a buffer reads. */
interface Calls {
  /** Whether call frames must be read, also if no caller waits for a message. */
  readonly isActive: boolean
  /** Calls {@link ReceiveBuffer.readCalls} soon. */
  scheduleRead(): void
  handleFrame(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): void
}

/** The channel or the subscription whose messages a buffer reads. */
export interface BufferOwner extends FetchOwner {
  /** The calls of a channel, made on first use. */
  readonly calls?: Calls
  /** Called each time that a caller wanted a message and found a clean end. */
  endWithPeer(): void
}

/** Milliseconds until the next attempt to read a call frame that there was no memory for. */
const RETRY_DELAY = 50
/** Call frames: a ring of the default size holds fewer. */
const MAX_FRAMES_PER_TURN = 1 << 18

export class ReceiveBuffer {
  /** The calls of the channel; null until there are some. */
  calls: Calls | null = null
  readonly owner: BufferOwner
  readonly #native: NativeReader
  readonly #fetched: Fetched
  readonly #waiters = new Waiters<Buffer>()
  /** Whether the peer will send a wakeup once there is something to read. */
  isArmed = false
  /** One turn of the event loop is passing before the peer is asked for a wakeup. */
  #isTurnPending = false
  /** The source keeps no process alive, so reading from it does not either, however many messages arrive. */
  isWeak = false
  /** Call frames are read on in a microtask. */
  #isCallReadPending = false
  /** Called on events while a merge reads the source; null if the program reads it directly. */
  #notifyMerge: (() => void) | null = null
  /** Whether the last {@link visit} stopped because nothing was left, or nothing of its round. */
  isDrained = false
  /** This side has closed the channel. */
  isClosed = false
  /** The number of fetched messages that this side's close has discarded. */
  #discarded = 0
  /** Messages handed out, and their bytes. They are counted here, since fetched messages may be discarded or transferred. */
  #messages = 0
  #bytes = 0
  /** The call frames that {@link ReceiveBuffer.readNow} may read until the event loop has turned. */
  #framesLeft = MAX_FRAMES_PER_TURN

  /** @param attachments - The attachments that this side accepts. */
  constructor(native: NativeReader, busy: boolean, owner: BufferOwner, attachments?: AttachmentOptions) {
    this.#native = native
    this.owner = owner
    this.#fetched = new Fetched(native, busy, this, attachments)
  }

  // Called by the fetched messages, which report failure and end to `owner`.

  called(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): void {
    this.#count(1, length)
    this.owner.calls!.handleFrame(memory, words, at, length)
  }

  backlogHasRoom(): void {
    timers.queueMicrotask(() => this.serve())
  }

  /** Sets whether awaiting a turn of the event loop keeps the process alive. */
  keepAlive(alive: boolean): void {
    // The messages that a peer has left fill at most one ring, and are read to the end.
    this.isWeak = !alive && this.#fetched.endState === null && this.#fetched.release === null
  }

  /** The turn of the event loop to await before more is handed out; null if none is due. */
  get due(): Promise<void> | null {
    return this.isWeak ? fairness.weakDue : fairness.due
  }

  /** Whether everything was read up to a clean end, or this side has closed the channel. */
  get isEnded(): boolean {
    if (!this.isRead || !(this.isClosed || this.hasCleanEnd)) return false
    this.#reportCleanEnd()
    return true
  }

  /** Whether no more messages will arrive and everything was read. */
  get isRead(): boolean {
    try {
      return !this.#fetched.hasMessage(false) && this.#fetched.endState !== null
    } catch (error) {
      // There is a message, but no memory for it: the call that receives it reports that.
      if (isNoSpace(error)) return false
      throw error
    }
  }

  /** Whether a clean end was found. */
  get hasCleanEnd(): boolean {
    return this.#fetched.endState === 'ended'
  }

  /** The error of later reads after everything was read. */
  get readError(): RingfenceError | null {
    const { endState } = this.#fetched
    return typeof endState === 'function' ? endState() : null
  }

  /** The number of fetched messages that were not handed out, those included that this side's close has discarded. */
  get unread(): number {
    return this.#discarded + this.#fetched.count
  }

  /** The messages handed out so far, and their bytes. Running visits count when they end. */
  get received(): Received {
    return { messages: this.#messages, bytes: this.#bytes }
  }

  #count(messages: number, bytes: number): void {
    this.#messages += messages
    this.#bytes += bytes
  }

  /** Takes the next message, in the caller's own memory; null if there is none now, or none will arrive ({@link isFinished}). */
  take(spin = false): Buffer | null {
    const message = this.#fetched.take(spin)
    if (message !== null) {
      this.#count(1, message.length)
      fairness.spend(this.isWeak)
    }
    return message
  }

  /** Called first by each call that reads. @throws the reason if this side has closed the channel. */
  #ensureNotClosed(): void {
    const { endState } = this.#fetched
    if (this.isClosed && typeof endState === 'function') throw endState()
  }

  /**
   * Whether more may arrive, for a caller that found nothing. A read may find that the peer is gone, and so close this side: the call that
   * reads then ends like one that waits.
   *
   * @throws the reason, if the end was not orderly.
   */
  #mayHaveMore(): boolean {
    const { endState } = this.#fetched
    if (endState === null) return true
    if (endState !== 'ended' && !this.isClosed) throw endState()
    return false
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if a merge reads: a direct read would take the merge's message. */
  ensureNotMerged(): void {
    if (this.#notifyMerge !== null) throw mergedError()
  }

  /**
   * Takes the next message if there is one now. The caller detects the end by other means.
   *
   * @param reader - Must overtake no caller that waits; null: the caller has waited itself.
   */
  takeNow(reader: object | null): Buffer | null {
    this.ensureNotMerged()
    if (reader !== null && this.#waiters.first !== null) this.#waiters.ensureNoneOvertaken(reader)
    this.#ensureNotClosed()
    const message = this.take()
    if (message === null) this.#mayHaveMore()
    return message
  }

  /** Appends the messages of the current block, in the caller's own memory, up to `max` in all. Returns whether there were any. */
  takeRun(into: Buffer[], max: number): boolean {
    this.ensureNotMerged()
    if (this.due !== null) return false
    const { length } = into
    const bytes = this.#fetched.takeRun(into, max)
    const count = into.length - length
    if (count === 0) return false
    this.#count(count, bytes)
    fairness.spend(this.isWeak, count)
    return true
  }

  tryReceive(): Buffer | null {
    const message = this.takeNow(this)
    if (message === null) this.#reportCleanEnd()
    return message
  }

  /** Reports the end to the owner: the caller that found nothing now knows it. */
  #reportCleanEnd(): void {
    if (this.#fetched.endState === 'ended') this.owner.endWithPeer()
  }

  /** Does the same as {@link receiveNow}, for a loop: it ends if this side has closed the channel. */
  nextNow(): Buffer | null | undefined {
    return this.isClosed ? null : this.receiveNow()
  }

  /** Returns a message if there is one, `undefined` if the caller must wait for it, `null` if none will arrive. */
  receiveNow(): Buffer | null | undefined {
    this.ensureNotMerged()
    this.#ensureNotClosed()
    if (!this.#waiters.isEmpty || this.due !== null) return undefined
    const message = this.take(true)
    if (message !== null) return message
    if (this.#mayHaveMore()) return undefined
    this.#reportCleanEnd()
    return null
  }

  /** Does the same as {@link isReadableNow}, for a loop: it ends if this side has closed the channel. */
  loopReadableNow(reader: object): true | null | undefined {
    const isReadable = this.isClosed ? false : this.isReadableNow(reader)
    return isReadable === false ? null : isReadable
  }

  isReadableNow(reader: object | null = this): boolean | undefined {
    this.ensureNotMerged()
    if (this.#waiters.first !== null && this.#waiters.hasConsumerBefore(reader)) return undefined
    fairness.spend(this.isWeak)
    this.#ensureNotClosed()
    if (this.due !== null) return undefined
    if (this.#fetched.hasMessage(true)) return true
    return this.#mayHaveMore() ? undefined : false
  }

  /** Waits for a message (`consumes`), or until there is one. Called once `receiveNow` has found none. */
  wait(consumes: boolean, signal?: AbortSignal, reader: object | null = this): Wait<Buffer> {
    const wait = this.#waiters.add(signal, consumes, reader)
    // A visitor that receives gets the message behind its own even if the event loop is due. Otherwise its `receiveEach` would visit it.
    this.serve(this.#fetched.visitors > 0)
    return wait
  }

  /** @param max - By default, as many as the event loop can spare the time for. */
  receiveEach(visit: Visit, max: number | undefined): number {
    this.ensureNotMerged()
    if (this.#waiters.first !== null) this.#waiters.ensureNoneOvertaken(this)
    if (max !== 0) this.#ensureNotClosed()
    const count = this.visit(visit, max, Infinity, FIRST)
    if (count === 0 && max !== 0 && !this.#mayHaveMore()) this.#reportCleanEnd()
    return count
  }

  /**
   * Visits the messages that are available. Does not report the end.
   *
   * @param bytes - Visits stop once this number of bytes was visited.
   * @param round - `FIRST`, or `MORE` if the round began in an earlier call.
   */
  visit(visit: Visit, max: number | undefined, bytes: number, round: number): number {
    const fetched = this.#fetched
    const limit = max ?? Infinity
    let count = 0
    let payloadBytes = 0
    /** Messages until the next clock check. `startedAt` is the time of the first check, or 0. */
    let untilClock = fairness.stride
    let startedAt = 0
    let mustWake = false
    let isDrained = false
    fetched.lastReadByVisitor = true
    fetched.visitors += 1
    try {
      while (count < limit && bytes > 0) {
        // A visitor waits: it has found nothing, and the next message is its own.
        if (this.#waiters.hasConsumer) break
        if (fetched.at === fetched.end) {
          // Between two visits of the outermost visitor no visitor sees the chunk, so it may be overwritten.
          fetched.visitors -= 1
          let hasMore: boolean
          try {
            hasMore = fetched.large.message !== null || fetched.fetchForVisitor(false, round)
          } catch (error) {
            // The caller must get the count of its visits first. The next call finds the message again.
            if (count > 0 && isNoSpace(error)) break
            throw error
          } finally {
            fetched.visitors += 1
          }
          mustWake = hasMore
          round = MORE
          isDrained = !hasMore
          if (isDrained) break
        }
        const large = fetched.large.message
        if (large !== null) {
          fetched.large.message = null
          count += 1
          payloadBytes += large.length
          untilClock -= 1
          bytes -= large.length + HEADER
          try {
            visit(large, 0, large.length)
          } finally {
            // A visitor of values has removed those that it hands on.
            closeAttachments(large)
          }
        } else {
          const memory = fetched.memory
          const words = fetched.words
          const start = fetched.at
          // Keeps the loop's bounds small integers. `limit` and `bytes` may be infinite, which makes them doubles to the engine: bounds
          // derived from them would need a conversion for each message.
          let end = fetched.end
          if (bytes < end - start) end = start + bytes
          let stop = count + untilClock
          if (limit < stop) stop = limit
          const begin = count
          let at = start
          while (at < end && count < stop) {
            const length = words[at >>> 2]
            if (length === undefined) {
              fetched.refetch()
              break
            }
            const next = at + HEADER + ((length + 7) & ~7)
            fetched.at = next
            count += 1
            payloadBytes += length
            visit(memory, at + HEADER, length)
            at = next
            // The visitor may itself have read messages and changed all of this.
            if (fetched.at !== next || fetched.memory !== memory) break
          }
          untilClock -= count - begin
          bytes -= at - start
        }
        if (untilClock <= 0) {
          const now = fairness.readClock(this.isWeak)
          untilClock = fairness.stride
          if (startedAt === 0) startedAt = now
          else if (max === undefined && fairness.exceedsBudget(startedAt, now)) break
        }
      }
    } finally {
      fetched.visitors -= 1
      this.#count(count, payloadBytes)
      fetched.releaseIfRead()
      if (mustWake) this.#native.wake()
    }
    this.isDrained = isDrained
    return count
  }

  /** Handles a wakeup from the peer. */
  handleWakeup(): void {
    this.isArmed = false
    this.serve()
  }

  /**
   * Hands messages to waiting callers, and asks the peer for a wakeup if more callers wait.
   *
   * @param ignoresTurn - Make the first attempt even if the event loop is due. Further ones would let a flood of call frames stop it.
   */
  serve(ignoresTurn = false): void {
    if (this.#notifyMerge !== null) {
      if (this.calls !== null) this.#readCallFrames(false)
      this.#notifyMerge()
      return
    }
    for (;;) {
      if (!ignoresTurn && this.due === null) this.#framesLeft = MAX_FRAMES_PER_TURN
      const outcome = this.#waiters.serve(this.#next, ignoresTurn ? () => null : () => this.due)
      if (outcome === null) break
      if (outcome !== 'none') return this.#waiters.defer(outcome, () => this.serve())
      if (this.#fetched.endState !== null) return this.#endWaiters()
      if (this.isArmed || this.#rechecksLater()) return
      this.arm()
      ignoresTurn = false
    }
    if (this.calls !== null) this.#readCallFrames(false)
  }

  readonly #next = (consumes: boolean): Buffer | null => {
    if (consumes) return this.take()
    return this.#fetched.hasMessage(false) ? EMPTY : null
  }

  /** Reads call frames, now and whenever the peer wakes this side. */
  readCalls(): void {
    this.#isCallReadPending = false
    if (this.#notifyMerge !== null || !this.#waiters.isEmpty) this.serve()
    else this.#readCallFrames(true)
  }

  /**
   * Reads the call frames that are in the ring now, even if the event loop is due to turn. A peer that sends frames without end must not stop
   * the event loop, so it reads a limited number in each turn.
   */
  readNow(): void {
    const calls = this.calls!
    while (calls.isActive && this.#framesLeft > 0) {
      const before = this.#messages
      try {
        // Stops after the frames of one fetch if the event loop is due.
        while (calls.isActive && this.#fetched.readCalls(false));
      } catch {
        // A caller that receives finds the same, and reports it.
        break
      }
      if (this.#messages === before) break
      this.#framesLeft -= this.#messages - before
    }
    this.serve()
  }

  /** Whether a caller that waits spins first. */
  get spins(): boolean {
    return this.#fetched.busy
  }

  /** Whether call frames will be read on later. */
  get willReadCalls(): boolean {
    const { endState, backlog } = this.#fetched
    return (
      (this.#waiters.isDeferred || this.#isTurnPending || this.#isCallReadPending) &&
      this.calls !== null &&
      endState === null &&
      !backlog.isFull
    )
  }

  /** Reads on for call frames, since no caller takes messages. */
  #readCallFrames(spin: boolean): void {
    const fetched = this.#fetched
    while (this.calls!.isActive && fetched.endState === null) {
      const { due } = this
      if (due !== null) {
        this.#waiters.defer(due, () => this.serve())
        return
      }
      this.#framesLeft = MAX_FRAMES_PER_TURN
      try {
        if (fetched.readCalls(spin)) {
          // The receivers of these frames come first. Those that spin read on by themselves.
          if (fetched.busy) this.#rechecksLater(true)
          else {
            this.#isCallReadPending = true
            this.calls!.scheduleRead()
          }
          return
        }
      } catch {
        // There is no memory for a message, or a visitor has transferred it: a caller that receives finds the same, and reports it.
        timers.setTimeout(() => this.serve(), RETRY_DELAY).unref()
        return
      }
      if (fetched.backlog.isFull || fetched.endState !== null || this.isArmed || this.#rechecksLater(spin)) return
      this.arm()
    }
  }

  /** Whether this side re-checks the ring on its own before it asks the peer for a wakeup. */
  #rechecksLater(hasSpun = false): boolean {
    if (this.#isTurnPending) return true
    // After a handler has answered in this turn, this side spins again.
    const { busy, pace } = this.#fetched
    if (!(hasSpun && busy) && !pace.shouldWait()) return false
    this.#isTurnPending = true
    if (this.isWeak) setWeakImmediate(this.#turn)
    else timers.setImmediate(this.#turn)
    return true
  }

  readonly #turn = (): void => {
    this.#isTurnPending = false
    this.serve()
  }

  /** Ends the waiting calls: no more messages will arrive. */
  #endWaiters(): void {
    const endState = this.#fetched.endState!
    if (endState === 'ended') {
      if (this.#waiters.hasConsumer) this.owner.endWithPeer()
      this.#waiters.end()
    } else this.#waiters.fail(endState)
  }

  /**
   * Keeps the messages readable that a peer has left behind. They are read in place, on demand: a copy would let the peer decide how much
   * memory is used. `release` is called once, when nothing is left or reading is no longer allowed.
   */
  keepLeftovers(release: () => void): void {
    this.#fetched.release = release
    this.isArmed = this.isWeak = false
    this.serve()
    try {
      // Detects at once if nothing is left.
      if (this.#fetched.endState === null) this.#fetched.hasMessage(false)
    } catch (error) {
      // There is a message, but no memory for it: the call that receives it reports that.
      if (!isNoSpace(error)) throw error
    }
    if (this.#fetched.endState !== null) this.#fetched.releaseRing()
  }

  /** Whether a peer that is gone may have left messages. */
  get mayHaveLeftovers(): boolean {
    return this.#fetched.release !== null
  }

  /** Ends the buffer with the channel. No more will be fetched; `reason` gives the error, unless the end was orderly. */
  stop(reason: () => RingfenceError): void {
    this.#fetched.endState ??= reason
    this.isWeak = false
    this.serve()
  }

  /** This side has closed the channel: pending calls end, and later calls fail with the reason. */
  close(reason: () => RingfenceError): void {
    this.isClosed = true
    this.fail('ended')
    this.#fetched.endState = reason
  }

  /** This side has closed a channel that the peer had ended: what the peer left is dropped, in its ring or fetched already. */
  dropLeftovers(reason: () => RingfenceError): void {
    if (this.mayHaveLeftovers || this.#fetched.hasUnread) this.close(reason)
  }

  /** The end of the channel drops unread messages. Pending calls end or fail, and later calls fail with the reason. */
  fail(endState: 'ended' | (() => RingfenceError)): void {
    this.#discarded = this.unread
    this.#fetched.endState = endState
    this.#fetched.clear()
    this.#endWaiters()
    this.#fetched.releaseRing()
    this.#notifyMerge?.()
  }

  // The interface for merges.

  /**
   * Lets a merge read from now on, instead of the program.
   *
   * @param notify - Called when there may be something to read, or no more will arrive. It must not read at once.
   * @throws {@link RingfenceError} INVALID_ARGUMENT if the source is already being read.
   */
  attachMerge(notify: () => void): void {
    this.ensureNotMerged()
    if (this.#waiters.hasReader || this.#fetched.visitors > 0)
      throw invalid('the source is being read: a merge takes it once no call waits for its messages')
    this.#notifyMerge = notify
  }

  /** Lets the program read again. */
  detachMerge(): void {
    this.#notifyMerge = null
    // A web stream may watch for the end, which the merge may have read.
    if (!this.#waiters.isEmpty) timers.queueMicrotask(() => this.serve())
  }

  /** Whether there is something to read. @throws as {@link #fetch} */
  hasMessage(): boolean {
    return this.#fetched.hasMessage(false)
  }

  /** Whether it is known that no more will arrive, and everything was read. Does not check the ring. */
  get isFinished(): boolean {
    return this.#fetched.endState !== null && !this.#fetched.hasUnread
  }

  /** Asks the peer for a wakeup. Returns whether one will arrive: if not, there is something to read, or no more will arrive. */
  arm(): boolean {
    return this.#setArmed(this.#native.armReader())
  }

  /** The first half of {@link arm}, for a merge that arms many sources. Returns whether a memory barrier must precede the second half. */
  park(): boolean {
    const answer = this.#native.parkReader()
    if (answer === FAILED) this.#fetched.handleNoMessage(FAILED)
    return answer === 1
  }

  /** The second half of {@link arm}. */
  checkParked(): boolean {
    return this.#fetched.endState === null && this.#setArmed(this.#native.checkParked())
  }

  #setArmed(answer: number): boolean {
    if (answer === FAILED) this.#fetched.handleNoMessage(FAILED)
    else this.isArmed = answer === 1
    return this.isArmed
  }
}

function mergedError(): RingfenceError {
  return invalid('a merge reads this source: delete it there, or close the merge, before it is read directly')
}

function isNoSpace(error: unknown): boolean {
  return error instanceof RingfenceError && error.code === 'ERR_RINGFENCE_NO_SPACE'
}
