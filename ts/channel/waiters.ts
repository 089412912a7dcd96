// Callers that wait for a channel, a message or a token. They are served in the order of their calls.

import { aborted, invalid, type RingfenceError } from '../errors.js'
import { onAbort } from '../runtime/aborts.js'
import { rejection } from '../runtime/deferred.js'
import { Line, Place } from './line.js'

/** One wait, for the caller. */
export interface Wait<Value> {
  /** Resolves with null if no more will arrive, or the wait was left. */
  readonly promise: Promise<Value | null>
  /** Ends the wait. The next value goes to another caller. */
  leave(): void
}

/** One wait, for the owner of the values. */
export class Waiter<Value> extends Place implements Wait<Value> {
  readonly promise: Promise<Value | null>
  #resolve!: (value: Value | null | Promise<never>) => void
  /** Removes the abort listener from the signal. */
  #forget: (() => void) | null = null

  /** @param takes - Whether the caller takes the value; if false, it only checks that there is one. */
  constructor(
    readonly takes: boolean,
    signal: AbortSignal | undefined,
    readonly reader: object | null,
  ) {
    super()
    this.promise = new Promise((resolve) => {
      this.#resolve = resolve
    })
    if (signal !== undefined)
      this.#forget = onAbort(signal, () => {
        this.line?.remove(this)
        this.failed(aborted(signal))
      })
  }

  found(value: Value | null): void {
    this.#forget?.()
    this.#resolve(value)
  }

  failed(error: Error): void {
    this.#forget?.()
    this.#resolve(rejection(error))
  }

  leave(): void {
    if (this.line?.remove(this) === true) this.found(null)
  }
}

export class Waiters<Value> {
  readonly #line = new Line<Waiter<Value>>()
  /** The callers are served once the event loop has turned. */
  isDeferred = false

  get isEmpty(): boolean {
    return this.#line.isEmpty
  }

  /** The caller that has waited longest. */
  get first(): Waiter<Value> | undefined {
    return this.#line.first ?? undefined
  }

  /** Whether a caller takes the value. */
  get hasTaker(): boolean {
    return this.#line.places.some((waiter) => waiter.takes)
  }

  /**
   * @param signal - Its abort rejects the wait with an AbortError.
   * @param reader - Identifies the reader. Only one may wait at a time. `null` may wait alongside any reader.
   * @throws {@link RingfenceError} INVALID_ARGUMENT if another reader waits.
   */
  add(signal?: AbortSignal, takes = true, reader: object | null = null): Wait<Value> {
    if (reader !== null)
      for (let other = this.#line.first; other !== null; other = other.behind)
        if (other.reader !== null && other.reader !== reader) throw secondReader()
    const waiter = new Waiter<Value>(takes, signal, reader)
    this.#line.push(waiter)
    return waiter
  }

  /**
   * Hands values to the callers, in the order of their calls.
   *
   * @param find - Finds the value for a caller that `takes` it, or only checks that there is one; null if there is none. An error belongs to
   * that caller, and the others continue.
   * @param due - Returns the turn of the event loop to await before the next caller is served; null if none is due.
   * @returns null if no caller is left; 'none' if there is no value for the next one; or the turn to await.
   */
  serve(find: (takes: boolean) => Value | null, due: () => Promise<void> | null): Promise<void> | 'none' | null {
    for (let waiter = this.first; waiter !== undefined; waiter = this.first) {
      const turn = due()
      if (turn !== null) return turn
      try {
        const value = find(waiter.takes)
        if (value === null) return 'none'
        if (this.remove(waiter)) waiter.found(value)
      } catch (error) {
        if (this.remove(waiter)) waiter.failed(error as Error)
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

  /** Removes and returns the caller that has waited longest. */
  shift(): Waiter<Value> | undefined {
    return this.#line.shift() ?? undefined
  }

  /** Removes a caller. Returns whether it was still waiting. */
  remove(waiter: Waiter<Value>): boolean {
    return this.#line.remove(waiter)
  }

  /** Ends all waits with null: no more will arrive. */
  end(): void {
    for (const waiter of this.#line.clear()) waiter.found(null)
  }

  /** @param error - Called for each waiter, so that each error has its own stack. */
  fail(error: () => Error): void {
    for (const waiter of this.#line.clear()) waiter.failed(error())
  }
}

function secondReader(): RingfenceError {
  return invalid(
    'another reader waits for the next message: read in one place only (one loop, stream or port, or calls of `receive`), and leave a loop ' +
      'before you read elsewhere',
  )
}
