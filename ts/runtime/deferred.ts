import { signalOf } from '../endpoint/options.js'
import { aborted } from '../errors.js'
import { onAbort } from './aborts.js'
import { LONGEST_TIMER, timers } from './timers.js'
import type { WaitOptions } from '../types.js'

/** A promise that other code resolves or rejects. */
export class Deferred<Value = void> {
  readonly promise: Promise<Value>
  resolve!: (value: Value | Promise<Value>) => void

  constructor() {
    this.promise = new Promise((resolve) => {
      this.resolve = resolve
    })
  }

  /** The stack of the error then shows the function that awaits the promise. @param isQuiet - The rejection needs no handler. */
  reject(error: Error, isQuiet = false): void {
    this.resolve(rejection(error, isQuiet ? this.promise : null))
  }
}

/** A resolved promise, for callers that need not wait. */
export const RESOLVED: Promise<void> = Promise.resolve()

/** Calls back in the next microtask. `queueMicrotask` makes an async resource for each call, which costs more than a message. */
export function runInMicrotask(call: () => void): void {
  void RESOLVED.then(call)
}

/** Makes the call. An exception becomes a rejection. */
export function tryPromise<Value>(call: () => Promise<Value>): Promise<Value> {
  try {
    return call()
  } catch (error) {
    return Promise.reject(error as Error)
  }
}

/**
 * A promise that rejects with this error, to resolve another promise with. The stack of the error then shows the functions that await that
 * promise: V8 finds them in a microtask of the promise, and not where the event loop calls back. Only a rejection pays for it.
 *
 * @param handled - The other promise, if its rejection needs no handler. It gets one last: V8 shows the function that awaits a promise only if
 * that is its only handler.
 */
export function rejection(error: Error, handled: Promise<unknown> | null = null): Promise<never> {
  const rejected = reject()
  return rejected

  async function reject(): Promise<never> {
    // The promise that was resolved with this one subscribes to it in the next microtask.
    await Promise.resolve()
    await Promise.resolve()
    captureCallStack(error)
    // A promise that was settled before, for example by an abort, never subscribes.
    rejected.catch(ignore)
    handled?.catch(ignore)
    throw error
  }
}

/**
 * Replaces the stack of an error by that of the call that runs now, or of a microtask after an `await` of the caller's function.
 *
 * @param call - A function on the stack, which is left out like those that it calls.
 */
export function captureCallStack(error: Error, call: (...args: never[]) => unknown = captureCallStack): void {
  Error.captureStackTrace(error, call)
}

/** Whether `await` would wait for this value. */
export function isThenable(value: unknown): value is PromiseLike<unknown> {
  const isObjectLike = (typeof value === 'object' && value !== null) || typeof value === 'function'
  return isObjectLike && typeof (value as { then?: unknown }).then === 'function'
}

/** Handles a rejection that is reported elsewhere as well, or does not matter. */
export function ignore(): void {}

/** Waits for a call until the signal of the options is aborted. The abort ends only the wait, not the call. */
export function untilAborted<T>(options: WaitOptions | undefined, call: () => Promise<T>): Promise<T> {
  if (options === undefined) return call()
  return new Promise((resolve, reject) => {
    const signal = signalOf(options)
    const promise = call()
    promise.then(resolve, reject)
    if (signal === undefined) return
    const removeAbortListener = onAbort(signal, () => reject(aborted(signal)))
    promise.then(removeAbortListener, removeAbortListener)
  })
}

/** Resolves once the promise has resolved, or after `milliseconds`. */
export async function settledWithin(milliseconds: number, promise: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<void>((resolve) => {
    timer = timers.setTimeout(resolve, Math.min(milliseconds, LONGEST_TIMER))
  })
  await Promise.race([promise, timeout])
  timers.clearTimeout(timer)
}
