// Hands fetched messages out: to callers that wait, to visitors, to a merge.

import { RingfenceError, invalid } from '../errors.js'
import { fairness } from '../runtime/fairness.js'
import { Fetched } from './fetch.js'
import { FAILED, FIRST, HEADER, MORE, type NativeReader } from '../native.js'
import type { Received } from './stats.js'
import type { Visit } from '../types.js'
import { Waiters, type Wait } from './waiters.js'
import { afterWeakTurn } from '../runtime/weak-turn.js'
import { timers } from '../runtime/timers.js'

/** What a wait for readability finds. */
const EMPTY = Buffer.alloc(0)

export class ReceiveBuffer {
  readonly #native: NativeReader
  readonly #fetched: Fetched
  readonly #waiters = new Waiters<Buffer>()
  #armed = false
  /** A turn of the event loop passes just now before the peer is asked for a wakeup. */
  #turning = false
  /** The source keeps no process alive: reading from it does not either, however much arrives. */
  #isWeak = false
  /** Waiting callers are served once the event loop has turned. */
  #deferred = false
  /** Notified of events if a merge reads, and not the caller; null: the caller reads. */
  #merged: (() => void) | null = null
  /** The last visits ended because there was nothing more. */
  #dry = false
  readonly #told: () => void
  /** This side has closed the channel. */
  #closed = false
  /** Fetched messages that the close of this side has discarded. */
  #discarded = 0
  /** Messages that were handed out, and their bytes: counted here, since fetched ones may be discarded or transferred. */
  #messages = 0
  #bytes = 0

  /**
   * @param failed - Told what the binding's calls say.
   * @param ended - Told once the peer has said that no more will come, and everything was fetched.
   * @param told - Told each time that a caller that wanted a message is told so.
   */
  constructor(
    native: NativeReader,
    busy: boolean,
    failed: (error: RingfenceError) => void,
    ended: () => void,
    told: () => void,
  ) {
    this.#native = native
    this.#fetched = new Fetched(native, busy, { failed, ended })
    this.#told = told
  }

  /** Whether a turn of the event loop that is waited for keeps the process alive. */
  keepAlive(alive: boolean): void {
    // What a peer has left is no more than a ring, and is read to its end.
    this.#isWeak = !alive && this.#fetched.over === null && this.#fetched.release === null
  }

  /** Whether what it reads keeps no process alive. */
  get isWeak(): boolean {
    return this.#isWeak
  }

  /** What is waited for before more is handed out; null: nothing. */
  get due(): Promise<void> | null {
    return this.#isWeak ? fairness.dueWeakly : fairness.due
  }

  /** Whether no more will come, and all was read. */
  get isEnded(): boolean {
    try {
      if (this.#fetched.has(false) || this.#fetched.over === null) return false
    } catch (error) {
      // There is a message, and no memory for it: the call that receives it tells.
      if (isShortage(error)) return false
      throw error
    }
    this.#tellIfEnded()
    return true
  }

  /** Messages that were fetched and not handed out, those included that this side's close has discarded. */
  get unread(): number {
    return this.#discarded + this.#fetched.count
  }

  /** The messages that were handed out so far, and their bytes. Running visits count when they end. */
  get received(): Received {
    return { messages: this.#messages, bytes: this.#bytes }
  }

  #count(messages: number, bytes: number): void {
    this.#messages += messages
    this.#bytes += bytes
  }

  /** The next message, in memory of the caller's own. */
  #take(spin: boolean): Buffer | null {
    const message = this.#fetched.take(spin)
    if (message !== null) {
      this.#count(1, message.length)
      fairness.spend(this.#isWeak)
    }
    return message
  }

  /** Whether more may come, for a caller that has found nothing. @throws the reason, if that is no orderly end. */
  #isOpen(): boolean {
    if (this.#fetched.over === null) return true
    if (this.#fetched.over !== 'ended') throw this.#fetched.over()
    return false
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if a merge reads: a direct read would take what the merge is to hand out. */
  mustBeFree(): void {
    if (this.#merged !== null) throw merged()
  }

  /** The next message, if there is one now. Its caller learns of the end elsewhere. */
  takeNow(): Buffer | null {
    this.mustBeFree()
    const message = this.#take(false)
    if (message === null) this.#isOpen()
    return message
  }

  tryReceive(): Buffer | null {
    const message = this.takeNow()
    if (message === null) this.#tellIfEnded()
    return message
  }

  /** The caller has found nothing: if none will come, it knows that now. */
  #tellIfEnded(): void {
    if (this.#fetched.over === 'ended') this.#told()
  }

  /** As {@link receiveNow}, for a loop: it ends where this side has closed the channel. */
  nextNow(): Buffer | null | undefined {
    return this.#closed ? null : this.receiveNow()
  }

  /** A message if there is one, `undefined` if one must be waited for, `null` if none will come. */
  receiveNow(): Buffer | null | undefined {
    this.mustBeFree()
    if (this.#closed) this.#isOpen()
    if (!this.#waiters.isEmpty || this.due !== null) return undefined
    const message = this.#take(true)
    if (message !== null) return message
    if (this.#isOpen()) return undefined
    this.#told()
    return null
  }

  /** As {@link isReadableNow}, for a loop: it ends if this side has closed the channel. */
  arrivedNow(): boolean | undefined {
    return this.#closed ? false : this.isReadableNow()
  }

  isReadableNow(): boolean | undefined {
    this.mustBeFree()
    fairness.spend(this.#isWeak)
    if (this.#closed) this.#isOpen()
    if (this.due !== null) return undefined
    if (this.#fetched.has(true)) return true
    return this.#isOpen() ? undefined : false
  }

  /** Waits for a message (`takes`), or until there is one; called once `receiveNow` has found none. */
  wait(takes: boolean, signal?: AbortSignal, reader: object | null = this): Wait<Buffer> {
    const wait = this.#waiters.addReader(reader, signal, takes)
    // A visitor that reads gets the message after its own, also where the event loop is due: its drain would visit that one otherwise.
    this.serve(this.#fetched.visitors > 0)
    return wait
  }

  /** @param max - Undefined: no more than the event loop can spare the time for. */
  receiveEach(visit: Visit, max: number | undefined): number {
    this.mustBeFree()
    const count = this.#visit(visit, max, Infinity, FIRST)
    if (count === 0 && max !== 0 && !this.#isOpen()) this.#tellIfEnded()
    return count
  }

  /**
   * Visits what is there.
   *
   * @param bytes - No further message is visited once so many have been.
   * @param round - `FIRST`, or `MORE` where the round began in an earlier call.
   */
  #visit(visit: Visit, max: number | undefined, bytes: number, round: number): number {
    const fetched = this.#fetched
    const most = max ?? Infinity
    let count = 0
    let payload = 0
    /** Messages until the next look at the clock; where that has been looked at, the first time. */
    let left = fairness.stride
    let began = 0
    let goesOn = false
    let dry = false
    fetched.visited = true
    fetched.visitors += 1
    try {
      while (count < most && bytes > 0) {
        if (fetched.at === fetched.end) {
          // Between two visits of the outermost visitor the chunk is not looked at.
          fetched.visitors -= 1
          let there: boolean
          try {
            there = fetched.large.message !== null || fetched.fetchToShow(false, round)
          } catch (error) {
            // The caller must learn of its visits first. The next call finds the message again.
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
          visit(large, 0, large.length)
        } else {
          const memory = fetched.memory
          const words = fetched.words
          const start = fetched.at
          // Small integers, as long as nothing is limited: `most` and `bytes` are numbers of another kind to the engine where they are
          // infinite, and what is made of them is converted for each message.
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
            // A visitor that reads, itself, may have changed all of this.
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

  /** The peer has rung. */
  awake(): void {
    this.#armed = false
    this.serve()
  }

  /** Gives what is there to the callers that wait, and has the peer ring for the rest. `now`: also where the event loop is due. */
  serve(now = false): void {
    if (this.#merged !== null) {
      this.#merged()
      return
    }
    for (let waiter = this.#waiters.first; waiter !== undefined; waiter = this.#waiters.first) {
      const due = now ? null : this.due
      if (due !== null) {
        this.#defer(due)
        return
      }
      let message: Buffer | null = null
      let there = false
      try {
        if (waiter.takes) message = this.#take(false)
        else there = this.#fetched.has(false)
      } catch (error) {
        // The error is this one's: the others are told what they find.
        if (this.#waiters.remove(waiter)) waiter.failed(error as Error)
        continue
      }
      if (message !== null || there) {
        this.#waiters.shift()
        waiter.found(message ?? EMPTY)
        continue
      }
      if (this.#fetched.over !== null) {
        this.#tellEnd()
        return
      }
      if (this.#armed || this.#looksAgain()) return
      const armed = this.#native.armReader()
      if (armed === FAILED) this.#fetched.nothing(FAILED)
      else this.#armed = armed === 1
    }
  }

  /** Whether this side looks once more, by itself, before it has the peer ring. */
  #looksAgain(): boolean {
    if (this.#turning) return true
    if (!this.#fetched.pace.waits()) return false
    this.#turning = true
    if (this.#isWeak) afterWeakTurn(this.#turn)
    else timers.setImmediate(this.#turn)
    return true
  }

  readonly #turn = (): void => {
    this.#turning = false
    this.serve()
  }

  #defer(due: Promise<void>): void {
    if (this.#deferred) return
    this.#deferred = true
    void due.then(() => {
      this.#deferred = false
      this.serve()
    })
  }

  /** No more will come for the callers that wait. */
  #tellEnd(): void {
    const over = this.#fetched.over!
    // The binding may know that this side has cut the peer off before it has been told here: that is an end as any close.
    if (over === 'ended' || over().code === 'ERR_RINGFENCE_CLOSED') {
      if (over === 'ended' && this.#waiters.hasTaker) this.#told()
      this.#waiters.end()
    } else this.#waiters.fail(over)
  }

  /**
   * The peer has gone. What it has left is read where it lies, when it is asked for: a copy would take as much memory as the peer
   * likes. `letGo` is called once, when nothing is left, or it may not be read any more.
   */
  outlive(letGo: () => void): void {
    this.#fetched.release = letGo
    this.#armed = this.#isWeak = false
    this.serve()
    try {
      // Where nothing is left, that is known at once.
      if (this.#fetched.over === null) this.#fetched.has(false)
    } catch (error) {
      // There is a message, and no memory for it: the call that receives it tells.
      if (!isShortage(error)) throw error
    }
    if (this.#fetched.over !== null) this.#fetched.releaseRing()
  }

  /** Whether something may be left of a peer that has gone. */
  get outlives(): boolean {
    return this.#fetched.release !== null
  }

  /** The channel has ended: what was not fetched before will not come. Where that is no end, `why` says so. */
  stop(why: () => RingfenceError): void {
    this.#fetched.over ??= why
    this.#isWeak = false
    this.serve()
  }

  /** This side has closed the channel: pending calls end, and later calls fail with the reason. */
  close(why: () => RingfenceError): void {
    this.#closed = true
    this.#discarded = this.unread
    this.#fetched.over = 'ended'
    this.#fetched.clear()
    this.#tellEnd()
    this.#fetched.over = why
    this.#fetched.releaseRing()
    this.#merged?.()
  }

  // From here on: what a merge reads by.

  /**
   * A merge reads from now on, and not the caller.
   *
   * @param told - Called when there may be something to read, or no more will come. It must not read at once.
   * @throws {@link RingfenceError} INVALID_ARGUMENT where it is read already.
   */
  lend(told: () => void): void {
    this.mustBeFree()
    if (!this.#waiters.isEmpty || this.#fetched.visitors > 0)
      throw invalid('the source is being read: a merge takes it once no call waits for its messages')
    this.#merged = told
  }

  /** The caller reads again. */
  giveBack(): void {
    this.#merged = null
  }

  /** The next message; null where there is none now, or none will come ({@link isThrough}). @throws as {@link #fetch} */
  take(): Buffer | null {
    return this.#take(false)
  }

  /** Whether there is something to read. @throws as {@link #fetch} */
  hasMessage(): boolean {
    return this.#fetched.has(false)
  }

  /** As {@link receiveEach}, as far as `bytes`; `round` is `FIRST`, or `MORE` for a round that has begun. Does not tell the end. */
  visit(visit: Visit, max: number | undefined, bytes: number, round: number): number {
    return this.#visit(visit, max, bytes, round)
  }

  /** Whether the last {@link visit} ended since there was nothing more, or nothing more of its round. */
  get isDry(): boolean {
    return this.#dry
  }

  /** Whether it is known that no more will come, and all was read. Does not look into the ring. */
  get isThrough(): boolean {
    return this.#fetched.over !== null && !this.#fetched.hasUnread
  }

  /** Whether the peer will ring once there is something to read. */
  get isArmed(): boolean {
    return this.#armed
  }

  /** Has the peer ring once there is something. Whether that is so: where not, there is something, or no more will come. */
  arm(): boolean {
    return this.#armBy(this.#native.armReader())
  }

  /** The first half of {@link arm}, for a merge that arms many. Whether a barrier must be made before the second. */
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
