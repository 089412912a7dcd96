// Hands fetched messages to waiting callers, to visitors, or to a merge.

import { closeAttachments } from './attachments.js'
import { RingfenceError, invalid } from '../errors.js'
import { fairness } from '../runtime/fairness.js'
import { Fetched } from './fetch.js'
import { FAILED, FIRST, HEADER, MORE, type NativeReader } from '../native.js'
import type { Received } from './stats.js'
import type { AttachmentOptions, Visit } from '../types.js'
import { Waiters, type Wait } from './waiters.js'
import { afterWeakTurn } from '../runtime/weak-turn.js'
import { timers } from '../runtime/timers.js'

/** The value of a wait that only checks for readability. */
const EMPTY = Buffer.alloc(0)

/** The calls of the channel whose messages a buffer reads. */
interface Calls {
  /** Whether call frames must be read, also if no caller waits for a message. */
  readonly isActive: boolean
  /** Calls {@link ReceiveBuffer.readCalls} soon. */
  readOn(): void
  take(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): void
}

/** The channel or the subscription whose messages a buffer reads. */
export interface Reading {
  /** The calls of a channel, made on first use. */
  readonly calls?: Calls
  /** Called with the error of a failed call into the binding. */
  failed(error: RingfenceError): void
  /** Called once no more will arrive and everything was fetched. Returns the error of later reads; null after a clean end. */
  foundEnd(): (() => RingfenceError) | null
  /** Called each time that a caller wanted a message and found a clean end. */
  endWithPeer(): void
}

/** Milliseconds until the next attempt to read a call frame that there was no memory for. */
const PAUSE = 50
/** Call frames: a ring of the default size holds fewer. */
const MOST_AT_DEADLINE = 1 << 18

export class ReceiveBuffer {
  /** The calls of the channel; null until there are some. */
  calls: Calls | null = null
  readonly #owner: Reading
  readonly #native: NativeReader
  readonly #fetched: Fetched
  readonly #waiters = new Waiters<Buffer>()
  #armed = false
  /** One turn of the event loop is passing before the peer is asked for a wakeup. */
  #turning = false
  /** The source keeps no process alive, so reading from it does not either, however many messages arrive. */
  #isWeak = false
  /** Call frames are read on in a microtask. */
  #isReading = false
  /** Called on events while a merge reads the source; null if the program reads it directly. */
  #merged: (() => void) | null = null
  /** The last visits stopped because nothing was left. */
  #dry = false
  /** This side has closed the channel. */
  #closed = false
  /** The number of fetched messages that this side's close has discarded. */
  #discarded = 0
  /** Messages handed out, and their bytes. They are counted here, since fetched messages may be discarded or transferred. */
  #messages = 0
  #bytes = 0
  /** The call frames that {@link ReceiveBuffer.readNow} may read until the event loop has turned. */
  #atDeadline = MOST_AT_DEADLINE

  /** @param accepts - The attachments that this side accepts. */
  constructor(native: NativeReader, busy: boolean, owner: Reading, accepts?: AttachmentOptions) {
    this.#native = native
    this.#owner = owner
    this.#fetched = new Fetched(native, busy, this, accepts)
  }

  // The events of the fetched messages.

  failed(error: RingfenceError): void {
    this.#owner.failed(error)
  }

  ended(): (() => RingfenceError) | null {
    return this.#owner.foundEnd()
  }

  called(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): void {
    this.#count(1, length)
    this.#owner.calls!.take(memory, words, at, length)
  }

  hasRoom(): void {
    timers.queueMicrotask(() => this.serve())
  }

  /** Sets whether awaiting a turn of the event loop keeps the process alive. */
  keepAlive(alive: boolean): void {
    // The messages that a peer has left fill at most one ring, and are read to the end.
    this.#isWeak = !alive && this.#fetched.over === null && this.#fetched.release === null
  }

  /** Whether reading from the source keeps no process alive. */
  get isWeak(): boolean {
    return this.#isWeak
  }

  /** The turn of the event loop to await before more is handed out; null if none is due. */
  get due(): Promise<void> | null {
    return this.#isWeak ? fairness.dueWeakly : fairness.due
  }

  /** Whether everything was read up to a clean end, or this side has closed the channel. */
  get isEnded(): boolean {
    if (!this.isRead || !(this.#closed || this.hasCleanEnd)) return false
    this.#tellIfEnded()
    return true
  }

  /** Whether no more messages will arrive and everything was read. */
  get isRead(): boolean {
    try {
      return !this.#fetched.has(false) && this.#fetched.over !== null
    } catch (error) {
      // There is a message, but no memory for it: the call that receives it reports that.
      if (isShortage(error)) return false
      throw error
    }
  }

  /** Whether a clean end was found. */
  get hasCleanEnd(): boolean {
    return this.#fetched.over === 'ended'
  }

  /** The error of later reads after everything was read. */
  get endError(): RingfenceError | null {
    const { over } = this.#fetched
    return typeof over === 'function' ? over() : null
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

  /** Takes the next message, in the caller's own memory; null if there is none now, or none will arrive ({@link isThrough}). */
  take(spin = false): Buffer | null {
    const message = this.#fetched.take(spin)
    if (message !== null) {
      this.#count(1, message.length)
      fairness.spend(this.#isWeak)
    }
    return message
  }

  /** Whether more may arrive, for a caller that found nothing. @throws the reason, if the end was not orderly. */
  #isOpen(): boolean {
    if (this.#fetched.over === null) return true
    if (this.#fetched.over !== 'ended') throw this.#fetched.over()
    return false
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if a merge reads: a direct read would take the merge's message. */
  mustBeFree(): void {
    if (this.#merged !== null) throw merged()
  }

  /** Takes the next message if there is one now. The caller detects the end by other means. */
  takeNow(): Buffer | null {
    this.mustBeFree()
    const message = this.take()
    if (message === null) this.#isOpen()
    return message
  }

  /** Appends the messages of the current block, in the caller's own memory, up to `max` in all. Returns whether there were any. */
  takeRun(into: Buffer[], max: number): boolean {
    this.mustBeFree()
    if (this.due !== null) return false
    const { length } = into
    const bytes = this.#fetched.takeRun(into, max)
    const count = into.length - length
    if (count === 0) return false
    this.#count(count, bytes)
    fairness.spend(this.#isWeak, count)
    return true
  }

  tryReceive(): Buffer | null {
    const message = this.takeNow()
    if (message === null) this.#tellIfEnded()
    return message
  }

  /** Reports the end to the owner: the caller that found nothing now knows it. */
  #tellIfEnded(): void {
    if (this.#fetched.over === 'ended') this.#owner.endWithPeer()
  }

  /** Does the same as {@link receiveNow}, for a loop: it ends if this side has closed the channel. */
  nextNow(): Buffer | null | undefined {
    return this.#closed ? null : this.receiveNow()
  }

  /** Returns a message if there is one, `undefined` if the caller must wait for it, `null` if none will arrive. */
  receiveNow(): Buffer | null | undefined {
    this.mustBeFree()
    if (this.#closed) this.#isOpen()
    if (!this.#waiters.isEmpty || this.due !== null) return undefined
    const message = this.take(true)
    if (message !== null) return message
    if (this.#isOpen()) return undefined
    this.#owner.endWithPeer()
    return null
  }

  /** Does the same as {@link isReadableNow}, for a loop: it ends if this side has closed the channel. */
  arrivedNow(): true | null | undefined {
    const isReadable = this.#closed ? false : this.isReadableNow()
    return isReadable === false ? null : isReadable
  }

  isReadableNow(): boolean | undefined {
    this.mustBeFree()
    fairness.spend(this.#isWeak)
    if (this.#closed) this.#isOpen()
    if (this.due !== null) return undefined
    if (this.#fetched.has(true)) return true
    return this.#isOpen() ? undefined : false
  }

  /** Waits for a message (`takes`), or until there is one. Called once `receiveNow` has found none. */
  wait(takes: boolean, signal?: AbortSignal, reader: object | null = this): Wait<Buffer> {
    const wait = this.#waiters.add(signal, takes, reader)
    // A visitor that receives gets the message behind its own even if the event loop is due. Otherwise its `receiveEach` would visit it.
    this.serve(this.#fetched.visitors > 0)
    return wait
  }

  /** @param max - By default, as many as the event loop can spare the time for. */
  receiveEach(visit: Visit, max: number | undefined): number {
    this.mustBeFree()
    const count = this.visit(visit, max, Infinity, FIRST)
    if (count === 0 && max !== 0 && !this.#isOpen()) this.#tellIfEnded()
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
    const most = max ?? Infinity
    let count = 0
    let payload = 0
    /** Messages until the next clock check. `began` is the time of the first check, or 0. */
    let left = fairness.stride
    let began = 0
    let goesOn = false
    let dry = false
    fetched.visited = true
    fetched.visitors += 1
    try {
      while (count < most && bytes > 0) {
        if (fetched.at === fetched.end) {
          // Between two visits of the outermost visitor no visitor sees the chunk, so it may be overwritten.
          fetched.visitors -= 1
          let there: boolean
          try {
            there = fetched.large.message !== null || fetched.fetchToShow(false, round)
          } catch (error) {
            // The caller must get the count of its visits first. The next call finds the message again.
            if (count > 0 && isShortage(error)) break
            throw error
          } finally {
            fetched.visitors += 1
          }
          goesOn = there
          round = MORE
          dry = !there
          if (dry) break
        }
        const large = fetched.large.message
        if (large !== null) {
          fetched.large.message = null
          count += 1
          payload += large.length
          left -= 1
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
          // Keeps the loop's bounds small integers. `most` and `bytes` may be infinite, which makes them doubles to the engine: bounds
          // derived from them would need a conversion for each message.
          let end = fetched.end
          if (bytes < end - start) end = start + bytes
          let stop = count + left
          if (most < stop) stop = most
          const begin = count
          let at = start
          while (at < end && count < stop) {
            const length = words[at >>> 2]
            if (length === undefined) {
              fetched.fetchAgain()
              break
            }
            const next = at + HEADER + ((length + 7) & ~7)
            fetched.at = next
            count += 1
            payload += length
            visit(memory, at + HEADER, length)
            at = next
            // The visitor may itself have read messages and changed all of this.
            if (fetched.at !== next || fetched.memory !== memory) break
          }
          left -= count - begin
          bytes -= at - start
        }
        if (left <= 0) {
          const now = fairness.look(this.#isWeak)
          left = fairness.stride
          if (began === 0) began = now
          else if (max === undefined && fairness.isLong(began, now)) break
        }
      }
    } finally {
      fetched.visitors -= 1
      this.#count(count, payload)
      fetched.releaseIfRead()
      if (goesOn) this.#native.wake()
    }
    this.#dry = dry
    return count
  }

  /** Handles a wakeup from the peer. */
  awake(): void {
    this.#armed = false
    this.serve()
  }

  /** Hands messages to waiting callers, and asks the peer for a wakeup if more callers wait. `now`: even if the event loop is due. */
  serve(now = false): void {
    if (this.#merged !== null) {
      if (this.calls !== null) this.#readOn(false)
      this.#merged()
      return
    }
    for (;;) {
      if (!now && this.due === null) this.#atDeadline = MOST_AT_DEADLINE
      const left = this.#waiters.serve(this.#find, now ? () => null : () => this.due)
      if (left === null) break
      if (left !== 'none') return this.#waiters.defer(left, () => this.serve())
      if (this.#fetched.over !== null) return this.#tellEnd()
      if (this.#armed || this.#looksAgain()) return
      this.arm()
    }
    if (this.calls !== null) this.#readOn(false)
  }

  readonly #find = (takes: boolean): Buffer | null => {
    if (takes) return this.take()
    return this.#fetched.has(false) ? EMPTY : null
  }

  /** Reads call frames, now and whenever the peer wakes this side. */
  readCalls(): void {
    this.#isReading = false
    if (this.#merged !== null || !this.#waiters.isEmpty) this.serve()
    else this.#readOn(true)
  }

  /**
   * Reads the call frames that are in the ring now, even if the event loop is due to turn. A peer that sends frames without end must not stop
   * the event loop, so it reads a limited number in each turn.
   */
  readNow(): void {
    const calls = this.calls!
    while (calls.isActive && this.#atDeadline > 0) {
      const before = this.#messages
      try {
        // Stops after the frames of one fetch if the event loop is due.
        while (calls.isActive && this.#fetched.readOn(false));
      } catch {
        // A caller that receives finds the same, and reports it.
        break
      }
      if (this.#messages === before) break
      this.#atDeadline -= this.#messages - before
    }
    this.serve()
  }

  /** Whether a caller that waits spins first. */
  get spins(): boolean {
    return this.#fetched.busy
  }

  /** Whether call frames will be read on later. */
  get readsOn(): boolean {
    const { over, kept } = this.#fetched
    return (
      (this.#waiters.isDeferred || this.#turning || this.#isReading) &&
      this.calls !== null &&
      over === null &&
      !kept.isFull
    )
  }

  /** Reads on for call frames, since no caller takes messages. */
  #readOn(spin: boolean): void {
    const fetched = this.#fetched
    while (this.calls!.isActive && fetched.over === null) {
      const { due } = this
      if (due !== null) {
        this.#waiters.defer(due, () => this.serve())
        return
      }
      this.#atDeadline = MOST_AT_DEADLINE
      try {
        if (fetched.readOn(spin)) {
          // The receivers of these frames come first. Those that spin read on by themselves.
          if (fetched.busy) this.#looksAgain(true)
          else {
            this.#isReading = true
            this.calls!.readOn()
          }
          return
        }
      } catch {
        // There is no memory for a message, or a visitor has transferred it: a caller that receives finds the same, and reports it.
        timers.setTimeout(() => this.serve(), PAUSE).unref()
        return
      }
      if (fetched.kept.isFull || fetched.over !== null || this.#armed || this.#looksAgain(spin)) return
      this.arm()
    }
  }

  /** Whether this side re-checks the ring on its own before it asks the peer for a wakeup. */
  #looksAgain(spun = false): boolean {
    if (this.#turning) return true
    // After a handler has answered in this turn, this side spins again.
    const { busy, pace } = this.#fetched
    if (!(spun && busy) && !pace.waits()) return false
    this.#turning = true
    if (this.#isWeak) afterWeakTurn(this.#turn)
    else timers.setImmediate(this.#turn)
    return true
  }

  readonly #turn = (): void => {
    this.#turning = false
    this.serve()
  }

  /** Ends the waiting calls: no more messages will arrive. */
  #tellEnd(): void {
    const over = this.#fetched.over!
    if (over === 'ended') {
      if (this.#waiters.hasTaker) this.#owner.endWithPeer()
      this.#waiters.end()
    } else this.#waiters.fail(over)
  }

  /**
   * Keeps the messages readable that a peer has left behind. They are read in place, on demand: a copy would let the peer decide how much
   * memory is used. `letGo` is called once, when nothing is left or reading is no longer allowed.
   */
  outlive(letGo: () => void): void {
    this.#fetched.release = letGo
    this.#armed = this.#isWeak = false
    this.serve()
    try {
      // Detects at once if nothing is left.
      if (this.#fetched.over === null) this.#fetched.has(false)
    } catch (error) {
      // There is a message, but no memory for it: the call that receives it reports that.
      if (!isShortage(error)) throw error
    }
    if (this.#fetched.over !== null) this.#fetched.releaseRing()
  }

  /** Whether a peer that is gone may have left messages. */
  get outlives(): boolean {
    return this.#fetched.release !== null
  }

  /** Whether this side has closed the channel. */
  get isClosed(): boolean {
    return this.#closed
  }

  /** Ends the buffer with the channel. No more will be fetched; `why` gives the error, unless the end was orderly. */
  stop(why: () => RingfenceError): void {
    this.#fetched.over ??= why
    this.#isWeak = false
    this.serve()
  }

  /** This side has closed the channel: pending calls end, and later calls fail with the reason. */
  close(why: () => RingfenceError): void {
    this.#closed = true
    this.fail('ended')
    this.#fetched.over = why
  }

  /** This side has closed a channel that the peer had ended: what the peer left is dropped, in its ring or fetched already. */
  dropLeft(why: () => RingfenceError): void {
    if (this.outlives || this.#fetched.hasUnread) this.close(why)
  }

  /** The end of the channel drops unread messages. Pending calls end or fail, and later calls fail with the reason. */
  fail(over: 'ended' | (() => RingfenceError)): void {
    this.#discarded = this.unread
    this.#fetched.over = over
    this.#fetched.clear()
    this.#tellEnd()
    this.#fetched.releaseRing()
    this.#merged?.()
  }

  // The interface for merges.

  /**
   * Lets a merge read from now on, instead of the program.
   *
   * @param told - Called when there may be something to read, or no more will arrive. It must not read at once.
   * @throws {@link RingfenceError} INVALID_ARGUMENT if the source is already being read.
   */
  lend(told: () => void): void {
    this.mustBeFree()
    if (!this.#waiters.isEmpty || this.#fetched.visitors > 0)
      throw invalid('the source is being read: a merge takes it once no call waits for its messages')
    this.#merged = told
  }

  /** Lets the program read again. */
  giveBack(): void {
    this.#merged = null
  }

  /** Whether there is something to read. @throws as {@link #fetch} */
  hasMessage(): boolean {
    return this.#fetched.has(false)
  }

  /** Whether the last {@link visit} stopped because nothing was left, or nothing of its round. */
  get isDry(): boolean {
    return this.#dry
  }

  /** Whether it is known that no more will arrive, and everything was read. Does not check the ring. */
  get isThrough(): boolean {
    return this.#fetched.over !== null && !this.#fetched.hasUnread
  }

  /** Whether the peer will send a wakeup once there is something to read. */
  get isArmed(): boolean {
    return this.#armed
  }

  /** Asks the peer for a wakeup. Returns whether one will arrive: if not, there is something to read, or no more will arrive. */
  arm(): boolean {
    return this.#armBy(this.#native.armReader())
  }

  /** The first half of {@link arm}, for a merge that arms many sources. Returns whether a memory barrier must precede the second half. */
  park(): boolean {
    const answer = this.#native.parkReader()
    if (answer === FAILED) this.#fetched.nothing(FAILED)
    return answer === 1
  }

  /** The second half of {@link arm}. */
  lookParked(): boolean {
    return this.#fetched.over === null && this.#armBy(this.#native.lookParked())
  }

  #armBy(answer: number): boolean {
    if (answer === FAILED) this.#fetched.nothing(FAILED)
    else this.#armed = answer === 1
    return this.#armed
  }
}

function merged(): RingfenceError {
  return invalid('a merge reads this source: delete it there, or close the merge, before it is read directly')
}

function isShortage(error: unknown): boolean {
  return error instanceof RingfenceError && error.code === 'ERR_RINGFENCE_NO_SPACE'
}
