// Iterators over incoming values, for `for await` and other callers of next() and return().

import { checkBatches } from '../endpoint/options.js'
import { aborted } from '../errors.js'
import type { BatchOptions } from '../types.js'
import type { Wait } from './waiters.js'

/** An iterator of messages that can be iterated and disposed of. */
export interface Loop<Value> extends AsyncIterator<Value, undefined>, AsyncDisposable {
  return(): Promise<IteratorResult<Value, undefined>>
  [Symbol.asyncIterator](): this
}

const OVER: IteratorResult<never, undefined> = { done: true, value: undefined }

/**
 * Returns an iterator. `return()` cancels the pending calls of next(), which then take nothing. A destroyed stream has called next() ahead,
 * and the message that arrived for that call would be lost.
 *
 * @param now - Returns the next value; `undefined` if the caller must wait for it, `null` at the end.
 * @param decode - Converts a raw value. An error fails only that call of next().
 */
export function loop<Raw, Value = Raw>(
  now: () => Raw | null | undefined,
  wait: (reader: object) => Wait<Raw>,
  decode?: (raw: Raw) => Value,
): Loop<Value> {
  const waiting = new Set<Wait<Raw>>()
  const toResult = (raw: Raw | null): IteratorResult<Value, undefined> => {
    if (raw === null) return OVER
    return { done: false, value: decode === undefined ? (raw as unknown as Value) : decode(raw) }
  }
  let left = false
  // Kept out of next(): the closures would slow it down even if it does not wait.
  const later = (): Promise<IteratorResult<Value, undefined>> => {
    const own = wait(self)
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
  const self: Loop<Value> = {
    next() {
      if (left) return Promise.resolve(OVER)
      try {
        const raw = now()
        return raw === undefined ? later() : Promise.resolve(toResult(raw))
      } catch (error) {
        return Promise.reject(error as Error)
      }
    },
    return() {
      left = true
      for (const own of waiting) own.leave()
      return Promise.resolve(OVER)
    },
    [Symbol.asyncIterator]: () => self,
    async [Symbol.asyncDispose]() {
      await self.return()
    },
  }
  return self
}

/** The source of a {@link batchLoop}. */
export interface BatchSource<Raw, Value> {
  /** Does the same as `now` of {@link loop}. */
  now(): Raw | null | undefined
  /** Returns the next message if there is one now and the event loop is not due; otherwise null. */
  more(): Raw | null
  /** Appends fetched messages, up to `max` in all. Returns whether there were any. Omitted if each message takes a call. */
  run?: ((into: Value[], max: number) => boolean) | undefined
  wait(reader: object, signal: AbortSignal | undefined): Wait<Raw>
  decode(raw: Raw): Value
}

/** Returns an iterator of arrays of at least one and at most `max` values. */
export function batchLoop<Raw, Value>(
  source: BatchSource<Raw, Value>,
  options: BatchOptions | undefined,
): Loop<Value[]> {
  const { signal, max } = checkBatches(options)
  /** An error that occurred after the last batch had values. The next call throws it. */
  let failure: { error: unknown } | null = null
  const decode = (first: Raw): Value[] => {
    const batch = [source.decode(first)]
    try {
      while (batch.length < max) {
        if (source.run?.(batch, max) === true) continue
        const raw = source.more()
        if (raw === null) break
        batch.push(source.decode(raw))
      }
    } catch (error) {
      failure = { error }
    }
    return batch
  }
  const now = () => {
    if (failure !== null) {
      const { error } = failure
      failure = null
      throw error
    }
    if (signal?.aborted) throw aborted(signal)
    return source.now()
  }
  return loop(now, (reader) => source.wait(reader, signal), decode)
}
