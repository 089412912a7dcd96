import { fairness } from './fairness.js'
import { afterWeakTurn } from './weak-turn.js'
import { timers } from './timers.js'

/** Events between two reads of the clock. Each event may call listeners of the program. */
const EVENTS = 16

/**
 * Handles the events of a binding until there are none. Clients that reconnect as fast as they are refused must not block the event loop:
 * after 2 ms the remaining events wait for its next turn.
 */
export class Pump {
  readonly #handle: () => boolean
  #rests = false

  /** @param handle - Handles one event, and returns whether another one may follow. */
  constructor(handle: () => boolean) {
    this.#handle = handle
  }

  /** Handles the pending events. */
  readonly run = (): void => {
    // libuv calls this again for events that are still pending, before the event loop turns.
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
