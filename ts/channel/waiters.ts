// Callers that wait for a channel, a message or a token. They are served in the order of their calls.

import { aborted, invalid, type RingfenceError } from '../errors.js'
import { onAbort } from '../runtime/aborts.js'
import { rejection } from '../runtime/deferred.js'
import { LinkedList, ListNode } from './linked-list.js'

/** One wait, for the caller. */
export interface Wait<Value> {
  /** Resolves with null if no more will arrive, or the wait was cancelled. */
  readonly promise: Promise<Value | null>
  /** Ends the wait. The next value goes to another caller. */
  cancel(): void
}

/** One wait, for the owner of the values. */
export class Waiter<Value> extends ListNode implements Wait<Value> {
  readonly promise: Promise<Value | null>
  #settle!: (value: Value | null | Promise<never>) => void
  /** Removes the abort listener from the signal. */
  #removeAbortListener: (() => void) | null = null

  /** @param consumes - Whether the caller takes the value; if false, it only checks that there is one. */
  constructor(
    readonly consumes: boolean,
    readonly signal: AbortSignal | undefined,
    readonly reader: object | null,
  ) {
    super()
    this.promise = new Promise((resolve) => {
      this.#settle = resolve
    })
    if (signal !== undefined) this.#removeAbortListener = onAbort(signal, () => this.abort())
  }

  abort(): void {
    this.list?.remove(this)
    this.reject(aborted(this.signal!))
  }

  resolve(value: Value | null): void {
    this.#removeAbortListener?.()
    this.#settle(value)
  }

  reject(error: Error): void {
    this.#removeAbortListener?.()
    this.#settle(rejection(error))
  }

  cancel(): void {
    if (this.list?.remove(this) === true) this.resolve(null)
  }
}

export class Waiters<Value> extends LinkedList<Waiter<Value>> {
  /** The callers are served once the event loop has turned. */
  isDeferred = false

  /** Whether a caller waits for a value to take. Ends aborted waits. */
  get hasConsumer(): boolean {
    return this.first !== null && this.#some((waiter) => waiter.consumes)
  }

  /** Whether a reader waits, and not only a web stream that watches for the end. Ends aborted waits. */
  get hasReader(): boolean {
    return this.#some((waiter) => waiter.reader !== null)
  }

  /** Ends the waits whose signal is aborted, if an earlier listener of the signal is calling. Their own listener has not run then. */
  dropAborted(): void {
    for (let waiter = this.first, next; waiter !== null; waiter = next) {
      next = waiter.next
      if (waiter.signal?.aborted) waiter.abort()
    }
  }

  /** Whether the condition holds for a caller that waits. Ends aborted waits first. */
  #some(matches: (waiter: Waiter<Value>) => boolean): boolean {
    this.dropAborted()
    for (let waiter = this.first; waiter !== null; waiter = waiter.next) if (matches(waiter)) return true
    return false
  }

  /**
   * @param signal - Its abort rejects the wait with an AbortError.
   * @param reader - Identifies the reader. Only one may wait at a time. `null` may wait alongside any reader.
   * @throws {@link RingfenceError} INVALID_ARGUMENT if another reader waits.
   */
  add(signal?: AbortSignal, consumes = true, reader: object | null = null): Wait<Value> {
    this.ensureNoOther(reader)
    const waiter = new Waiter<Value>(consumes, signal, reader)
    this.push(waiter)
    return waiter
  }

  /**
   * Whether the next value belongs to another call of this reader. `null` only watches. Ends aborted waits.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if another reader waits.
   */
  hasConsumerBefore(reader: object | null): boolean {
    this.ensureNoOther(reader)
    return reader !== null && this.hasConsumer
  }

  /** Ends aborted waits. @throws {@link RingfenceError} INVALID_ARGUMENT if another reader waits. */
  ensureNoOther(reader: object | null): void {
    if (reader === null || this.first === null) return
    if (this.#some((other) => other.reader !== null && other.reader !== reader)) throw secondReaderError()
  }

  /**
   * Called by a call that takes values without waiting, on behalf of `reader`. It would overtake a caller that waits for one. Ends aborted
   * waits.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if another reader waits, or a call of this one that consumes.
   */
  ensureNoneOvertaken(reader: object): void {
    if (this.#some((other) => other.consumes || (other.reader !== null && other.reader !== reader)))
      throw secondReaderError()
  }

  /**
   * Hands values to the callers, in the order of their calls.
   *
   * @param find - Finds the value for a caller that `consumes` it, or only checks that there is one; null if there is none. An error belongs to
   * that caller, and the others continue.
   * @param due - Returns the turn of the event loop to await before the next caller is served; null if none is due.
   * @returns null if no caller is left; 'none' if there is no value for the next one; or the turn to await.
   */
  serve(find: (consumes: boolean) => Value | null, due: () => Promise<void> | null): Promise<void> | 'none' | null {
    for (let waiter = this.first; waiter !== null; waiter = this.first) {
      if (waiter.signal?.aborted) {
        waiter.abort()
        continue
      }
      const turn = due()
      if (turn !== null) return turn
      try {
        const value = find(waiter.consumes)
        if (value === null) return 'none'
        if (this.remove(waiter)) waiter.resolve(value)
      } catch (error) {
        if (this.remove(waiter)) waiter.reject(error as Error)
      }
    }
    return null
  }

  /** Calls `serve` after this turn of the event loop, unless a call is due already. */
  defer(turn: Promise<void>, serve: () => void): void {
    if (this.isDeferred) return
    this.isDeferred = true
    void turn.then(() => {
      this.isDeferred = false
      serve()
    })
  }

  /** Ends all waits with null: no more will arrive. Aborted ones end with their AbortError. */
  end(): void {
    this.dropAborted()
    for (const waiter of this.clear()) waiter.resolve(null)
  }

  /** Fails all waits, aborted ones with their AbortError. @param error - Called for each waiter, so that each error has its own stack. */
  fail(error: () => Error): void {
    this.dropAborted()
    for (const waiter of this.clear()) waiter.reject(error())
  }
}

function secondReaderError(): RingfenceError {
  return invalid(
    'another reader waits for the next message: read in one place only (one loop, stream or port, or calls of `receive`), and leave a loop, ' +
      'or abort a `receive`, before you read elsewhere',
  )
}
