import { signalOf } from '../endpoint/options.js'
import { aborted } from '../errors.js'
import { onAbort } from './aborts.js'
import { LONGEST_TIMER, timers } from './timers.js'
import type { WaitOptions } from '../types.js'

/** A promise that other code resolves or rejects. */
export interface Deferred<Value = void> {
  readonly promise: Promise<Value>
  resolve(value: Value): void
  reject(error: Error): void
}

export function defer<Value = void>(): Deferred<Value> {
  const deferred = {} as { -readonly [Key in keyof Deferred<Value>]: Deferred<Value>[Key] }
  deferred.promise = new Promise((resolve, reject) => {
    deferred.resolve = resolve
    deferred.reject = reject
  })
  return deferred
}

/** Makes the call. An exception becomes a rejection. */
export function promised<Value>(call: () => Promise<Value>): Promise<Value> {
  try {
    return call()
  } catch (error) {
    return Promise.reject(error as Error)
  }
}

/**
 * A promise that rejects with this error, to resolve another promise with. The stack of the error then shows the functions that await that
 * promise: V8 finds them in a microtask of the promise, and not where the event loop calls back. Only a rejection pays for it.
 */
export async function rejection(error: Error): Promise<never> {
  // The promise that was resolved with this one subscribes to it in the next microtask.
  await Promise.resolve()
  await Promise.resolve()
  showCaller(error)
  throw error
}

/** Replaces the stack of an error by that of the microtask that runs now. Must be called after an `await` of the caller's function. */
export function showCaller(error: Error): void {
  Error.captureStackTrace(error, showCaller)
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
    const forget = onAbort(signal, () => reject(aborted(signal)))
    promise.then(forget, forget)
  })
}

/** Resolves once one of the promises has resolved, or after `milliseconds`. */
export async function within(milliseconds: number, ...those: Promise<unknown>[]): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<void>((resolve) => {
    timer = timers.setTimeout(resolve, Math.min(milliseconds, LONGEST_TIMER))
  })
  await Promise.race([...those, late])
  timers.clearTimeout(timer)
}
