// Callers that wait for a channel, a message or a token: the first that came is the first served.

import { aborted } from './errors.js'

/** One wait, as the caller sees it. */
export interface Wait<Value> {
  /** null: no more will come, or the wait was left. */
  readonly promise: Promise<Value | null>
  /** Ends the wait: what comes next is for others. */
  leave(): void
}

/** One wait, as the owner of the values sees it. */
export interface Waiter<Value> {
  /** Takes the value; false: only wants to know that there is one. */
  readonly takes: boolean
  found(value: Value | null): void
  failed(error: Error): void
}

export class Waiters<Value> {
  readonly #list: Waiter<Value>[] = []

  get isEmpty(): boolean {
    return this.#list.length === 0
  }

  /** The one that has waited longest. */
  get first(): Waiter<Value> | undefined {
    return this.#list[0]
  }

  /** Whether one of them wants the value itself. */
  get hasTaker(): boolean {
    return this.#list.some((waiter) => waiter.takes)
  }

  /** @param signal - Its abort rejects the wait with ABORTED. */
  add(signal?: AbortSignal, takes = true): Wait<Value> {
    let waiter!: Waiter<Value>
    const promise = new Promise<Value | null>((resolve, reject) => {
      const forget = () => signal?.removeEventListener('abort', abort)
      waiter = {
        takes,
        found(value) {
          forget()
          resolve(value)
        },
        failed(error) {
          forget()
          reject(error)
        },
      }
      const abort = () => {
        this.remove(waiter)
        reject(aborted(signal!))
      }
      signal?.addEventListener('abort', abort, { once: true })
    })
    this.#list.push(waiter)
    return {
      promise,
      leave: () => {
        if (this.remove(waiter)) waiter.found(null)
      },
    }
  }

  /** Takes out the one that has waited longest. */
  shift(): Waiter<Value> | undefined {
    return this.#list.shift()
  }

  /** Whether it was still waiting. */
  remove(waiter: Waiter<Value>): boolean {
    const index = this.#list.indexOf(waiter)
    if (index === -1) return false
    this.#list.splice(index, 1)
    return true
  }

  /** No more will come. */
  end(): void {
    for (const waiter of this.#list.splice(0)) waiter.found(null)
  }

  /** @param error - Called for each, so that each stack is the caller's own. */
  fail(error: () => Error): void {
    for (const waiter of this.#list.splice(0)) waiter.failed(error())
  }
}
