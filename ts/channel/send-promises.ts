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
  #single: Pending[] = []
  /** The last promise that resolves after an earlier one, until it has resolved. */
  #behind: Deferred | null = null
  /** Finished sends that had to wait for room. */
  #waits = 0
  /** Milliseconds for which the ring was full while messages waited. */
  #waited = 0
  /** The time since when the ring is full; null if it is not full. */
  #fullSince: number | null = null
  /** The number of times that the ring became full. */
  #full = 0

  /** The promise that records with certain room share; null if there is none yet. */
  get shared(): Promise<void> | null {
    return this.#shared === null ? null : this.#shared.promise
  }

  /** Makes the shared promise. */
  share(): Promise<void> {
    return (this.#shared = new Deferred()).promise
  }

  /** Makes a separate promise for the record from `start` to `end`, which may have to wait. */
  single(start: number, end: number): Promise<void> {
    if (this.#single.length === 0) this.#sharedEnd = start
    const pending = this.pending(end)
    this.#single.push(pending)
    return pending.promise.promise
  }

  /** Makes a new promise. */
  pending(end: number): Pending {
    return { end, promise: new Deferred(), full: this.#fullSince === null ? this.#full : -1 }
  }

  /** Removes and returns the promises of the arena's records, with offsets relative to `from`. */
  moveFrom(from: number, to: number): Pending[] {
    const moved = this.#single.map((single) => ({ ...single, end: single.end - from }))
    if (this.#shared !== null) {
      const end = this.#single.length === 0 ? to : this.#sharedEnd
      // The records of the shared promise have room, and wait for none.
      moved.unshift({ end: end - from, promise: this.#shared, full: this.#full })
    }
    this.#shared = null
    this.#single = []
    return moved
  }

  /** Resolves promises of the arena's records before `from`, which are in the ring. */
  keepArena(from: number, to: number): void {
    const shared = this.#shared
    if (shared !== null && from >= (this.#single.length === 0 ? to : this.#sharedEnd)) {
      this.#shared = null
      this.keep(shared)
    }
    this.keepUpTo(this.#single, from)
  }

  /** Resolves and removes the promises whose records end at or before `sent`. */
  keepUpTo(list: Pending[], sent: number): void {
    let count = 0
    while (count < list.length && list[count]!.end <= sent) count += 1
    if (count === 0) return
    for (const { promise, full } of list.splice(0, count)) {
      if (full !== this.#full) this.#waits += 1
      this.keep(promise)
    }
  }

  /** Resolves the promise of a message that is in the ring, after the promises that were made before it. */
  keep(promise: Deferred): void {
    fairness.spend()
    const { before } = this
    if (before === null) {
      promise.resolve()
      return
    }
    this.#behind = promise
    const resolve = () => {
      promise.resolve()
      if (this.#behind === promise) this.#behind = null
    }
    before.then(resolve, resolve)
  }

  /** The promise after which a new one resolves; null: it can resolve now. */
  get before(): Promise<void> | null {
    return this.#behind === null ? fairness.due : this.#behind.promise
  }

  /** Notes that a message waits for room. */
  isFull(): void {
    if (this.#fullSince !== null) return
    this.#fullSince = timers.now()
    this.#full += 1
  }

  /** Notes that nothing waits for room any longer. */
  isFree(): void {
    if (this.#fullSince === null) return
    this.#waited += timers.now() - this.#fullSince
    this.#fullSince = null
  }

  /** The number of sends that had to wait for room, including those in `line` that wait now. */
  waits(line: readonly Pending[][]): number {
    if (this.#fullSince === null) return this.#waits
    return line.reduce((sum, { length }) => sum + length, this.#waits + this.#single.length)
  }

  /** Microseconds for which at least one send waited. */
  get waitedMicros(): number {
    const now = this.#fullSince === null ? 0 : timers.now() - this.#fullSince
    return Math.round((this.#waited + now) * 1000)
  }

  /** Removes and returns all promises, those in `line` first: the queue has ended. */
  end(line: readonly Pending[][]): Deferred[] {
    this.#waits = this.waits(line)
    this.isFree()
    const left = [...line.flat(), ...this.#single].map(({ promise }) => promise)
    if (this.#shared !== null) left.push(this.#shared)
    this.#shared = null
    this.#single = []
    return left
  }
}
