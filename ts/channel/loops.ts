// Loops over what comes: `for await`, and other callers of next() and return().

import type { Wait } from './waiters.js'

const OVER: IteratorResult<never, undefined> = { done: true, value: undefined }

/**
 * Returns an iterator. One that is left while it waits takes nothing: a destroyed stream has called next() ahead, and what arrived for it
 * then would be lost.
 *
 * @param now - Returns what is there now; `undefined` if it must be waited for, `null` at the end.
 * @param decode - Makes the value of what arrived. An error fails that call of next() alone.
 */
export function loop<Raw, Value = Raw>(
  now: () => Raw | null | undefined,
  wait: () => Wait<Raw>,
  decode?: (raw: Raw) => Value,
): AsyncIterator<Value, undefined> {
  const waiting = new Set<Wait<Raw>>()
  const toResult = (raw: Raw | null): IteratorResult<Value, undefined> => {
    if (raw === null) return OVER
    return { done: false, value: decode === undefined ? (raw as unknown as Value) : decode(raw) }
  }
  let left = false
  // Apart from next(), which would be slower by its closures even where there is nothing to wait for.
  const later = (): Promise<IteratorResult<Value, undefined>> => {
    const own = wait()
    waiting.add(own)
    return own.promise.then(
      (raw) => {
        waiting.delete(own)
        return toResult(raw)
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
        const raw = now()
        if (raw !== undefined) return Promise.resolve(toResult(raw))
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
