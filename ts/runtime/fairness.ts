import { afterWeakTurn } from './weak-turn.js'
import { timers } from './timers.js'

/** Milliseconds that may pass in microtasks alone before timers, signals and other sockets are served. */
const BUDGET = 2
/** Approximate milliseconds between two reads of the clock. */
const SLICE = 0.25
/** Maximum number of messages between two reads of the clock. If each message takes long, the number is smaller. */
const MOST = 256

/**
 * Keeps the event loop turning. A loop that awaits messages that are already there runs only in microtasks, and in the meantime no timer
 * fires and no signal or abort is handled. So every 2 ms a promise is held back until the event loop has turned.
 *
 * There is one budget for the whole thread, as there is one event loop. Channels that are read concurrently share it.
 */
class Fairness {
  /** Messages until the next read of the clock. */
  #left = 1
  #stride = 1
  #looked = timers.now()
  /** When the event loop last turned, as far as known. If it has turned since without sleeping, one turn too many is waited for. */
  #since = this.#looked
  /** How long the event loop had slept at the last check. */
  #slept = 0
  #due: Promise<void> | null = null
  /** Set as long as no waiter for the turn may keep the process alive. */
  #weak: NodeJS.Immediate | null = null
  #looks = 0

  /** Counts messages that were handed out, accepted or requested. `isWeak`: the caller must not keep the process alive. */
  spend(isWeak = false, messages = 1): void {
    this.#left -= messages
    if (this.#left <= 0) this.look(isWeak)
  }

  /** Reads the clock after the next message, then after two more, four more, and so on: each may take longer than those before. */
  slower(): void {
    this.#left = this.#stride = 1
  }

  /** Messages that may be handed out in a row before {@link look} must be called. */
  get stride(): number {
    return this.#stride
  }

  /** The number of clock reads so far: about one every quarter of a millisecond, and more if messages are handled fast. */
  get looks(): number {
    return this.#looks
  }

  /** Reads the clock and returns the time. `isWeak` as in {@link spend}. */
  look(isWeak = false): number {
    this.#looks += 1
    const now = timers.now()
    const awake = this.#awake(now)
    this.#looked = now
    if (awake > SLICE) this.#stride = Math.max(1, Math.floor((this.#stride * SLICE) / awake))
    else if (this.#stride < MOST) this.#stride *= 2
    this.#left = this.#stride
    if (now - this.#since >= BUDGET && this.#due === null) {
      this.#due = new Promise((resolve) => {
        const turned = () => {
          this.#due = this.#weak = null
          this.#since = this.#looked = timers.now()
          resolve()
        }
        if (isWeak) this.#weak = afterWeakTurn(turned)
        else timers.setImmediate(turned)
      })
    }
    return now
  }

  /** The time since the last reading of the clock, without what the event loop has slept. If it has slept, it has turned. */
  #awake(now: number): number {
    const took = now - this.#looked
    if (took <= SLICE) return took
    const last = this.#slept
    this.#slept = timers.slept()
    if (this.#slept === last) return took
    // Shorter intervals do not read how long it has slept, so some of that may be of earlier ones.
    const awake = Math.max(0, took - (this.#slept - last))
    this.#since = now - awake
    return awake
  }

  /** Whether a caller that does not await a promise has used up the budget between two reads of the clock, and should stop. */
  isLong(from: number, now: number): boolean {
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
  get dueWeakly(): Promise<void> | null {
    return this.#due
  }
}

export const fairness = new Fairness()
