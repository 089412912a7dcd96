// A clock that stands still: the event loop is due where a test says so, and never else. Tests that go by it run one by one, for it is one
// for all of a process.

import { insideOf } from './inside.js'

/** In whole milliseconds: what lies between two moments is exact. */
export const clock = { now: Math.ceil(performance.now()) }
performance.now = () => clock.now

interface Insides {
  fairness: { look(isWeak?: boolean): number; readonly looks: number; readonly due: Promise<void> | null }
  timers: typeof globalThis & { nextTick: typeof process.nextTick; now(): number }
}

const { timers } = await insideOf<Insides>('runtime/timers.js')
timers.now = () => clock.now

/** Not exported by the package. */
export const { fairness } = await insideOf<Insides>('runtime/fairness.js')

/** The event loop has just turned, and the clock is looked at again after the next message. */
export async function rested(): Promise<void> {
  for (let round = 0; round < 10; round += 1) {
    clock.now += 3
    fairness.look()
    await fairness.due
  }
}
