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

const DONE: IteratorResult<never, undefined> = { done: true, value: undefined }

/**
 * Returns an iterator. `return()` cancels the pending calls of next(), which then take nothing. A destroyed stream has called next() ahead,
 * and the message that arrived for that call would be lost.
 *
 * @param poll - Returns the next value; `undefined` if the caller must wait for it, `null` at the end.
 * @param decode - Converts a raw value. An error fails only that call of next(). `isLast`: no later call of next() was made.
 */
export function loop<Raw, Value = Raw>(
  poll: (reader: object) => Raw | null | undefined,
  wait: (reader: object) => Wait<Raw>,
  decode?: (raw: Raw, isLast: boolean) => Value,
): Loop<Value> {
  const pendingWaits = new Set<Wait<Raw>>()
  let isDone = false
  let calls = 0
  const toResult = (raw: Raw | null, call: number): IteratorResult<Value, undefined> => {
    if (raw === null) return DONE
    return {
      done: false,
      value: decode === undefined ? (raw as unknown as Value) : decode(raw, call === calls && !isDone),
    }
  }
  // Kept out of next(): the closures would slow it down even if it does not wait.
  const waitForNext = (call: number): Promise<IteratorResult<Value, undefined>> => {
    const pending = wait(iterator)
    pendingWaits.add(pending)
    return pending.promise.then(
      (raw) => {
        pendingWaits.delete(pending)
        return toResult(raw, call)
      },
      (error: unknown) => {
        pendingWaits.delete(pending)
        throw error
      },
    )
  }
  const iterator: Loop<Value> = {
    next() {
      if (isDone) return Promise.resolve(DONE)
      calls += 1
      try {
        const raw = poll(iterator)
        return raw === undefined ? waitForNext(calls) : Promise.resolve(toResult(raw, calls))
      } catch (error) {
        return Promise.reject(error as Error)
      }
    },
    return() {
      isDone = true
      for (const pending of pendingWaits) pending.cancel()
      return Promise.resolve(DONE)
    },
    [Symbol.asyncIterator]: () => iterator,
    async [Symbol.asyncDispose]() {
      await iterator.return()
    },
  }
  return iterator
}

/** The source of a {@link batchLoop}. */
export interface BatchSource<Raw, Value> {
  /** Does the same as `poll` of {@link loop}. */
  poll(): Raw | null | undefined
  /** Returns the next message if there is one now and the event loop is not due; otherwise null. */
  pollMore(): Raw | null
  /** Appends fetched messages, up to `max` in all. Returns whether there were any. Omitted if each message takes a call. */
  takeRun?: ((into: Value[], max: number) => boolean) | undefined
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
  const decode = (first: Raw, isLast: boolean): Value[] => {
    const batch = [source.decode(first)]
    // The messages behind this one belong to the later calls, which may have got theirs already.
    if (!isLast) return batch
    try {
      while (batch.length < max) {
        if (source.takeRun?.(batch, max) === true) continue
        const raw = source.pollMore()
        if (raw === null) break
        batch.push(source.decode(raw))
      }
    } catch (error) {
      failure = { error }
    }
    return batch
  }
  const poll = () => {
    if (failure !== null) {
      const { error } = failure
      failure = null
      throw error
    }
    if (signal?.aborted) throw aborted(signal)
    return source.poll()
  }
  return loop(poll, (reader) => source.wait(reader, signal), decode)
}
