// Loops over what comes: `for await`, and whatever else calls next() and return().

/** Somebody who waits for what comes next. */
export interface Wait<Value> {
  /** null: no more will come, or it has left. */
  readonly promise: Promise<Value | null>
  /** Waits no more: what comes next is for others. */
  leave(): void
}

const OVER: IteratorResult<never, undefined> = { done: true, value: undefined }

/**
 * A loop. One that is left while it waits takes nothing any more: a stream that is destroyed has called next() ahead, and what
 * came for it then would be nobody's.
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
