import { fairness } from './fairness.js'
import { setWeakImmediate } from './weak-immediate.js'
import { timers } from './timers.js'

/** Events between two reads of the clock. Each event may call listeners of the program. */
const EVENTS_PER_CHECK = 16

/**
 * Returns a function that handles the events of a binding until there are none. Clients that reconnect as fast as they are refused must not
 * block the event loop: after 2 ms the remaining events wait for its next turn.
 *
 * @param handle - Handles one event, and returns whether another one may follow.
 */
export function makePump(handle: () => boolean): () => void {
  let isPaused = false
  return function run() {
    // libuv calls this again for events that are still pending, before the event loop turns.
    if (isPaused) return
    const startedAt = timers.now()
    for (let count = 1; handle(); count += 1) {
      if (count % EVENTS_PER_CHECK > 0 || !fairness.exceedsBudget(startedAt, timers.now())) continue
      isPaused = true
      setWeakImmediate(() => {
        isPaused = false
        run()
      })
      return
    }
  }
}
