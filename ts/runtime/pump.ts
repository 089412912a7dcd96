import { fairness } from './fairness.js'
import { afterWeakTurn } from './weak-turn.js'
import { timers } from './timers.js'

/** Events between two looks at the clock: each may have listeners of the program. */
const EVENTS = 16

/**
 * Handles the events of a binding until there is none. Newcomers who come again as fast as they are turned away must not keep the event loop from
 * turning: after 2 ms the rest waits for its next turn.
 */
export class Pump {
  readonly #handle: () => boolean
  #rests = false

  /** `handle` handles one event, and says whether another one may follow. */
  constructor(handle: () => boolean) {
    this.#handle = handle
  }

  /** What is there is handled. */
  readonly run = (): void => {
    // libuv calls for what is still there again and again, before anything else has its turn.
    if (this.#rests) return
    const began = timers.now()
    for (let count = 1; this.#handle(); count += 1) {
      if (count % EVENTS > 0 || !fairness.isLong(began, timers.now())) continue
      this.#rests = true
      afterWeakTurn(() => {
        this.#rests = false
        this.run()
      })
      return
    }
  }
}
