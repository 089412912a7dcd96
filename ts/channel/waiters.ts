// Callers that wait for a channel, a message or a token: the first that came is the first served.

import { aborted, invalid, type RingfenceError } from '../errors.js'
import { Line, Place } from './line.js'

/** One wait, as the caller sees it. */
export interface Wait<Value> {
  /** null: no more will come, or the wait was left. */
  readonly promise: Promise<Value | null>
  /** Ends the wait: what comes next is for others. */
  leave(): void
}

/** One wait, as the owner of the values sees it. */
export class Waiter<Value> extends Place implements Wait<Value> {
  readonly promise: Promise<Value | null>
  /** Takes the value; false: only wants to know that there is one. */
  readonly takes: boolean
  readonly reader: object | null
  #resolve!: (value: Value | null) => void
  #reject!: (error: Error) => void
  /** Removes the listener of the signal. */
  #forget: (() => void) | null = null

  constructor(takes: boolean, signal: AbortSignal | undefined, reader: object | null) {
    super()
    this.takes = takes
    this.reader = reader
    this.promise = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    if (signal !== undefined) this.#hear(signal)
  }

  #hear(signal: AbortSignal): void {
    const abort = () => {
      this.line?.remove(this)
      this.failed(aborted(signal))
    }
    signal.addEventListener('abort', abort, { once: true })
    this.#forget = () => signal.removeEventListener('abort', abort)
  }

  found(value: Value | null): void {
    this.#forget?.()
    this.#resolve(value)
  }

  failed(error: Error): void {
    this.#forget?.()
    this.#reject(error)
  }

  leave(): void {
    if (this.line?.remove(this) === true) this.found(null)
  }
}

export class Waiters<Value> {
  readonly #line = new Line<Waiter<Value>>()

  get isEmpty(): boolean {
    return this.#line.isEmpty
  }

  /** The one that has waited longest. */
  get first(): Waiter<Value> | undefined {
    return this.#line.first ?? undefined
  }

  /** Whether one of them wants the value itself. */
  get hasTaker(): boolean {
    return this.#line.places.some((waiter) => waiter.takes)
  }

  /** @param signal - Its abort rejects the wait with an AbortError. */
  add(signal?: AbortSignal, takes = true): Wait<Value> {
    return this.#push(new Waiter<Value>(takes, signal, null))
  }

  /**
   * As {@link add}, for one of the readers of which only one may wait.
   *
   * @param reader - Identifies the reader. `null` waits beside any reader.
   * @throws {@link RingfenceError} INVALID_ARGUMENT if another reader waits.
   */
  addReader(reader: object | null, signal: AbortSignal | undefined, takes: boolean): Wait<Value> {
    if (reader !== null)
      for (let other = this.#line.first; other !== null; other = other.behind)
        if (other.reader !== null && other.reader !== reader) throw secondReader()
    return this.#push(new Waiter<Value>(takes, signal, reader))
  }

  #push(waiter: Waiter<Value>): Wait<Value> {
    this.#line.push(waiter)
    return waiter
  }

  /** Takes out the one that has waited longest. */
  shift(): Waiter<Value> | undefined {
    return this.#line.shift() ?? undefined
  }

  /** Whether it was still waiting. */
  remove(waiter: Waiter<Value>): boolean {
    return this.#line.remove(waiter)
  }

  /** No more will come. */
  end(): void {
    for (const waiter of this.#line.clear()) waiter.found(null)
  }

  /** @param error - Called for each, so that each stack is the caller's own. */
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
