// A clock that stands still: tests decide when it is time for a turn of the event loop, and when it has slept. Such tests run serially, since
// a process has one clock.

import { internals } from './internals.js'

/** In whole milliseconds, so that differences are exact. */
export const clock = { now: Math.ceil(performance.now()), slept: 0 }
performance.now = () => clock.now

interface Insides {
  fairness: { readClock(isWeak?: boolean): number; readonly clockReads: number; readonly due: Promise<void> | null }
  timers: typeof globalThis & { nextTick: typeof process.nextTick; now(): number; slept(): number }
}

const { timers } = await internals<Insides>('runtime/timers.js')
timers.now = () => clock.now
timers.slept = () => clock.slept

/** Not exported by the package. */
export const { fairness } = await internals<Insides>('runtime/fairness.js')

/** The event loop has just turned, and the clock is read again after the next message. */
export async function afterTurn(): Promise<void> {
  for (let round = 0; round < 10; round += 1) {
    clock.now += 3
    fairness.readClock()
    await fairness.due
  }
}
