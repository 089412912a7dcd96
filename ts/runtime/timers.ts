// The timers and the clock of the runtime, as they were when this package was loaded. Test tools (node:test, jest, sinon) replace the
// global ones, and a channel must keep working while those are frozen.

import { performance } from 'node:perf_hooks'

const { setTimeout, clearTimeout, setInterval, clearInterval, setImmediate, queueMicrotask } = globalThis

/** An object, so that this package's own tests can replace them here. */
export const timers = {
  setTimeout,
  clearTimeout,
  setInterval,
  clearInterval,
  setImmediate,
  queueMicrotask,
  nextTick: process.nextTick.bind(process),
  /** Milliseconds, as of `performance.now`. */
  now: performance.now.bind(performance),
  /** Milliseconds that the event loop has slept: `uv_metrics_idle_time`, which Node has libuv count. */
  slept: () => performance.nodeTiming.idleTime,
  /** Milliseconds, as of `Date.now`. */
  date: Date.now.bind(Date),
}

/** Milliseconds of the longest timer. Node fires a longer one after 1 ms. */
export const LONGEST_TIMER = 2 ** 31 - 1

/**
 * Calls `expire` once `timers.now()` has reached `expiresAt`: Node may fire a timer a millisecond early, and holds none for longer than
 * {@link LONGEST_TIMER}. Does not keep the process running. Returns a function that cancels it.
 */
export function atDeadline(expiresAt: number, expire: () => void): () => void {
  const wait = () => timers.setTimeout(check, Math.min(Math.ceil(expiresAt - timers.now()), LONGEST_TIMER)).unref()
  const check = () => {
    if (timers.now() < expiresAt) timer = wait()
    else expire()
  }
  let timer = wait()
  return () => timers.clearTimeout(timer)
}
