// Loops over what comes: `for await`, and other callers of next() and return().

import type { Wait } from './waiters.js'

const OVER: IteratorResult<never, undefined> = { done: true, value: undefined }

/**
 * A loop. One that is left while it waits takes no value: a destroyed stream has called next() ahead, and a value that came for
 * it then would be lost.
 *
 * @param now - What is there now; `undefined` where it must be waited for, `null` where no more will come.
 */
export function loop<Value>(
  now: () => Value | null | undefined,
  wait: () => Wait<Value>,
): AsyncIterator<Value, undefined> {
  const waiting = new Set<Wait<Value>>()
  let left = false
  // Apart from next(), which would be slower by its closures even where there is nothing to wait for.
  const later = (): Promise<IteratorResult<Value, undefined>> => {
    const own = wait()
    waiting.add(own)
    return own.promise.then(
      (value) => {
        waiting.delete(own)
        return toResult(value)
      },
      (error: unknown) => {
        waiting.delete(own)
        throw error
      },
    )
  }
  return {
    next() {
      if (left) return Promise.resolve(OVER)
      try {
        const value = now()
        if (value !== undefined) return Promise.resolve(toResult(value))
      } catch (error) {
        return Promise.reject(error as Error)
      }
      return later()
    },
    return() {
      left = true
      for (const own of waiting) own.leave()
      return Promise.resolve(OVER)
    },
  }
}

function toResult<Value>(value: Value | null): IteratorResult<Value, undefined> {
  return value === null ? OVER : { done: false, value }
}
