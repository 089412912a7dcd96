// The promises of messages that wait to be sent: which messages share a promise, and in which order the promises resolve.

import { Deferred } from '../runtime/deferred.js'
import { fairness } from '../runtime/fairness.js'
import { timers } from '../runtime/timers.js'

/** A promise, and the offset where the last record that it covers ends. */
export interface Pending {
  end: number
  promise: Deferred
  /** {@link SendPromises.full} when the promise was made. A different value later means that the send waited. -1: the ring was full. */
  full: number
}

/** The promises of one send queue. */
export class SendPromises {
  /** The promise that the first records of the arena share. */
  #shared: Deferred | null = null
  /** The offset where the records of the shared promise end. Set once other records follow. */
  #sharedEnd = 0
  /** The promises of the other records, in order. */
  #separate: Pending[] = []
  /** The last promise that resolves after an earlier one, until it has resolved. */
  #lastInOrder: Deferred | null = null
  /** Finished sends that had to wait for room. */
  #waits = 0
  /** Milliseconds for which the ring was full while messages waited. */
  #waitedMs = 0
  /** The time since when the ring is full; null if it is not full. */
  #fullSince: number | null = null
  /** The number of times that the ring became full. */
  #fullCount = 0

  /** The promise that records with certain room share; null if there is none yet. */
  get shared(): Promise<void> | null {
    return this.#shared === null ? null : this.#shared.promise
  }

  /** Makes the shared promise. */
  share(): Promise<void> {
    return (this.#shared = new Deferred()).promise
  }

  /** Makes a separate promise for the record from `start` to `end`, which may have to wait. */
  addSeparate(start: number, end: number): Promise<void> {
    if (this.#separate.length === 0) this.#sharedEnd = start
    const pending = this.pending(end)
    this.#separate.push(pending)
    return pending.promise.promise
  }

  /** Makes a new promise. */
  pending(end: number): Pending {
    return { end, promise: new Deferred(), full: this.#fullSince === null ? this.#fullCount : -1 }
  }

  /** Removes and returns the promises of the arena's records, with offsets relative to `from`. */
  detachArena(from: number, to: number): Pending[] {
    const detached = this.#separate.map((pending) => ({ ...pending, end: pending.end - from }))
    if (this.#shared !== null) {
      const end = this.#separate.length === 0 ? to : this.#sharedEnd
      // The records of the shared promise have room, and wait for none.
      detached.unshift({ end: end - from, promise: this.#shared, full: this.#fullCount })
    }
    this.#shared = null
    this.#separate = []
    return detached
  }

  /** Resolves promises of the arena's records before `from`, which are in the ring. */
  resolveArena(from: number, to: number): void {
    const shared = this.#shared
    if (shared !== null && from >= (this.#separate.length === 0 ? to : this.#sharedEnd)) {
      this.#shared = null
      this.resolveInOrder(shared)
    }
    this.resolveUpTo(this.#separate, from)
  }

  /** Resolves and removes the promises whose records end at or before `sent`. */
  resolveUpTo(list: Pending[], sent: number): void {
    let count = 0
    while (count < list.length && list[count]!.end <= sent) count += 1
    if (count === 0) return
    for (const { promise, full } of list.splice(0, count)) {
      if (full !== this.#fullCount) this.#waits += 1
      this.resolveInOrder(promise)
    }
  }

  /** Resolves the promise of a message that is in the ring, after the promises that were made before it. */
  resolveInOrder(promise: Deferred): void {
    fairness.spend()
    const { previous } = this
    if (previous === null) {
      promise.resolve()
      return
    }
    this.#lastInOrder = promise
    const resolve = () => {
      promise.resolve()
      if (this.#lastInOrder === promise) this.#lastInOrder = null
    }
    previous.then(resolve, resolve)
  }

  /** The promise after which a new one resolves; null: it can resolve now. */
  get previous(): Promise<void> | null {
    return this.#lastInOrder === null ? fairness.due : this.#lastInOrder.promise
  }

  /** Notes that a message waits for room. */
  markFull(): void {
    if (this.#fullSince !== null) return
    this.#fullSince = timers.now()
    this.#fullCount += 1
  }

  /** Notes that nothing waits for room any longer. */
  markFree(): void {
    if (this.#fullSince === null) return
    this.#waitedMs += timers.now() - this.#fullSince
    this.#fullSince = null
  }

  /** The number of sends that had to wait for room, including those in `queued` that wait now. */
  waits(queued: readonly Pending[][]): number {
    if (this.#fullSince === null) return this.#waits
    return queued.reduce((sum, { length }) => sum + length, this.#waits + this.#separate.length)
  }

  /** Microseconds for which at least one send waited. */
  get waitedMicros(): number {
    const now = this.#fullSince === null ? 0 : timers.now() - this.#fullSince
    return Math.round((this.#waitedMs + now) * 1000)
  }

  /** Removes and returns all promises, those in `queued` first: the queue has ended. */
  end(queued: readonly Pending[][]): Deferred[] {
    this.#waits = this.waits(queued)
    this.markFree()
    const rest = [...queued.flat(), ...this.#separate].map(({ promise }) => promise)
    if (this.#shared !== null) rest.push(this.#shared)
    this.#shared = null
    this.#separate = []
    return rest
  }
}
