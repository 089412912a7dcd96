import { afterWeakTurn } from './weak-turn.js'
import { timers } from './timers.js'

/** Milliseconds that may pass in promises alone, before timers, signals and other sockets have their turn. */
const BUDGET = 2
/** Milliseconds after which the clock is looked at again, about. */
const SLICE = 0.25
/** Messages that may go by before the clock is looked at: where each takes long, fewer do. */
const MOST = 256

/**
 * Lets the event loop turn. A loop that awaits what is there already goes on in microtasks. Meanwhile no timer fires, and no
 * signal and no abort is handled. So every 2 ms a promise is kept back until the event loop has turned.
 *
 * The budget is one for the whole thread, since the event loop is one: two channels that are read side by side share it.
 */
class Fairness {
  /** Messages until the next look at the clock. */
  #left = 1
  #stride = 1
  #looked = timers.now()
  /** When the loop is known to have turned. It may have turned since: then one turn too many is waited for. */
  #since = this.#looked
  #due: Promise<void> | null = null
  /** Where the turn is waited for by those alone who keep no process alive. */
  #weak: NodeJS.Immediate | null = null
  #looks = 0

  /** A message was handed out, taken over, or asked for. `isWeak`: by one that keeps no process alive. */
  spend(isWeak = false): void {
    this.#left -= 1
    if (this.#left <= 0) this.look(isWeak)
  }

  /** Messages that may be handed out in one go before {@link look} is to be called. */
  get stride(): number {
    return this.#stride
  }

  /** How often the clock was looked at: every quarter of a millisecond, about, and more often where messages are handled fast. */
  get looks(): number {
    return this.#looks
  }

  /** Looks at the clock, which is returned. `isWeak` as in {@link spend}. */
  look(isWeak = false): number {
    this.#looks += 1
    const now = timers.now()
    const took = now - this.#looked
    this.#looked = now
    if (took > SLICE) this.#stride = Math.max(1, Math.floor((this.#stride * SLICE) / took))
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

  /** Whether so much time has passed between two looks that a caller which goes on without a promise should stop. */
  isLong(from: number, now: number): boolean {
    return now - from >= BUDGET
  }

  /** What to wait for before a promise is kept; null: nothing. */
  get due(): Promise<void> | null {
    if (this.#weak !== null) {
      this.#weak.ref()
      this.#weak = null
    }
    return this.#due
  }

  /** As {@link due}, for one that keeps no process alive by its waiting. */
  get dueWeakly(): Promise<void> | null {
    return this.#due
  }
}

export const fairness = new Fairness()
