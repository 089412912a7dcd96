// The timers and the clock of the runtime, as they were when this package was loaded. Test tools replace the global ones (node:test,
// jest, sinon), and a channel must go on where those stand still.

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
  /** Milliseconds, as `performance.now`. */
  now: performance.now.bind(performance),
}

/** Milliseconds of the longest timer. Node fires a longer one after 1 ms. */
export const LONGEST_TIMER = 2 ** 31 - 1
