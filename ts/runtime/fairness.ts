import { setWeakImmediate } from './weak-immediate.js'
import { timers } from './timers.js'

/** Milliseconds that may pass in microtasks alone before timers, signals and other sockets are served. */
const BUDGET = 2
/** Approximate milliseconds between two reads of the clock. */
const CLOCK_INTERVAL = 0.25
/** Maximum number of messages between two reads of the clock. If each message takes long, the number is smaller. */
const MAX_STRIDE = 256

/**
 * Keeps the event loop turning. A loop that awaits messages that are already there runs only in microtasks, and in the meantime no timer
 * fires and no signal or abort is handled. So every 2 ms a promise is delayed until the event loop has turned.
 *
 * There is one budget for the whole thread, as there is one event loop. Channels that are read concurrently share it.
 */
class Fairness {
  /** Messages until the next read of the clock. */
  #untilClock = 1
  /** Messages that may be handed out in a row before {@link readClock} must be called. */
  stride = 1
  #lastRead = timers.now()
  /** When the event loop last turned, as far as known. If it has turned since without sleeping, one turn too many is waited for. */
  #lastTurn = this.#lastRead
  /** How long the event loop had slept at the last check. */
  #slept = 0
  #due: Promise<void> | null = null
  /** Set as long as no waiter for the turn may keep the process alive. */
  #weak: NodeJS.Immediate | null = null
  /** The number of clock reads so far: about one every quarter of a millisecond, and more if messages are handled fast. */
  clockReads = 0

  /** Counts messages that were handed out, accepted or requested. `isWeak`: the caller must not keep the process alive. */
  spend(isWeak = false, messages = 1): void {
    this.#untilClock -= messages
    if (this.#untilClock <= 0) this.readClock(isWeak)
  }

  /** Reads the clock after the next message, then after two more, four more, and so on: each may take longer than those before. */
  resetStride(): void {
    this.#untilClock = this.stride = 1
  }

  /** Reads the clock and returns the time. `isWeak` as in {@link spend}. */
  readClock(isWeak = false): number {
    this.clockReads += 1
    const now = timers.now()
    const active = this.#activeTime(now)
    this.#lastRead = now
    if (active > CLOCK_INTERVAL) this.stride = Math.max(1, Math.floor((this.stride * CLOCK_INTERVAL) / active))
    else if (this.stride < MAX_STRIDE) this.stride *= 2
    this.#untilClock = this.stride
    if (now - this.#lastTurn >= BUDGET && this.#due === null) {
      this.#due = new Promise((resolve) => {
        const turned = () => {
          this.#due = this.#weak = null
          this.#lastTurn = this.#lastRead = timers.now()
          resolve()
        }
        if (isWeak) this.#weak = setWeakImmediate(turned)
        else timers.setImmediate(turned)
      })
    }
    return now
  }

  /** The time since the last reading of the clock, without what the event loop has slept. If it has slept, it has turned. */
  #activeTime(now: number): number {
    const elapsed = now - this.#lastRead
    if (elapsed <= CLOCK_INTERVAL) return elapsed
    const sleptBefore = this.#slept
    this.#slept = timers.slept()
    if (this.#slept === sleptBefore) return elapsed
    // Shorter intervals do not read how long it has slept, so some of that may be of earlier ones.
    const active = Math.max(0, elapsed - (this.#slept - sleptBefore))
    this.#lastTurn = now - active
    return active
  }

  /** Whether a caller that does not await a promise has used up the budget between two reads of the clock, and should stop. */
  exceedsBudget(from: number, now: number): boolean {
    return now - from >= BUDGET
  }

  /** The promise to wait for before another one is resolved; null if there is none. */
  get due(): Promise<void> | null {
    if (this.#weak !== null) {
      this.#weak.ref()
      this.#weak = null
    }
    return this.#due
  }

  /** Like {@link due}, for a caller whose wait must not keep the process alive. */
  get weakDue(): Promise<void> | null {
    return this.#due
  }
}

export const fairness = new Fairness()
