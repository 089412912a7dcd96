// The promises of messages that wait to be sent: which messages share one, and in which order they are kept.

import { defer, type Deferred } from '../runtime/deferred.js'
import { fairness } from '../runtime/fairness.js'
import { timers } from '../runtime/timers.js'
import { FlushPromise } from './flush-promise.js'

/** A promise, and where the last record ends that it covers. */
export interface Pending {
  end: number
  promise: FlushPromise | Deferred
  /** {@link SendPromises.full} when it was made: another number later, if it has waited since. -1: the ring was full. */
  full: number
}

/** The promises of one send queue. */
export class SendPromises {
  /** The promise that the first records of the arena share… */
  #shared: FlushPromise | Deferred | null = null
  /** …and where the last of these records ends, once others follow. */
  #sharedEnd = 0
  /** The promises of the other records, in order. */
  #single: Pending[] = []
  /** The last promise that a flush settles: later ones are kept after it. */
  #settling: FlushPromise | null = null
  /** The last promise that is kept after another, until it is kept. */
  #behind: Deferred | null = null
  /** Sends that had to wait for room, and have ended since. */
  #waits = 0
  /** How long the ring was full with something in line, in milliseconds. */
  #waited = 0
  /** Since when it is full; null: it is not. */
  #fullSince: number | null = null
  /** How often it was. */
  #full = 0

  /** The promise that records share which surely find room; null: none has one yet. */
  get shared(): Promise<void> | null {
    return this.#shared === null ? null : this.#shared.promise
  }

  /** Makes the shared promise. It runs the flush in the next microtask, and is kept by it. */
  shareFlush(flush: () => void): Promise<void> {
    return (this.#shared = this.#settling = new FlushPromise(flush)).promise
  }

  /** Makes the shared promise. The flush is scheduled already. */
  share(): Promise<void> {
    return (this.#shared = defer()).promise
  }

  /** A promise of its own for the record from `start` to `end`, which may have to wait. */
  single(start: number, end: number): Promise<void> {
    if (this.#single.length === 0) this.#sharedEnd = start
    const pending = this.pending(end)
    this.#single.push(pending)
    return pending.promise.promise
  }

  /** A new promise. */
  pending(end: number): Pending {
    return { end, promise: defer(), full: this.#fullSince === null ? this.#full : -1 }
  }

  /** Takes out the promises of the arena's records, counted from `from`. */
  moveFrom(from: number, to: number): Pending[] {
    const moved = this.#single.map((single) => ({ ...single, end: single.end - from }))
    if (this.#shared !== null) {
      const end = this.#single.length === 0 ? to : this.#sharedEnd
      // These have room, and wait for none.
      moved.unshift({ end: end - from, promise: this.#shared, full: this.#full })
    }
    this.#shared = null
    this.#single = []
    return moved
  }

  /** The arena's records before `from` are in the ring. */
  keepArena(from: number, to: number): void {
    const shared = this.#shared
    if (shared !== null && from >= (this.#single.length === 0 ? to : this.#sharedEnd)) {
      this.#shared = null
      this.keep(shared)
    }
    this.keepUpTo(this.#single, from)
  }

  /** Keeps the first promises, those whose records end there or before, and forgets them. */
  keepUpTo(list: Pending[], sent: number): void {
    let count = 0
    while (count < list.length && list[count]!.end <= sent) count += 1
    if (count === 0) return
    for (const { promise, full } of list.splice(0, count)) {
      if (full !== this.#full) this.#waits += 1
      this.keep(promise)
    }
  }

  /** The message is in the ring: keeps its promise, after those that were made before it. */
  keep(promise: FlushPromise | Deferred): void {
    fairness.spend()
    const isSettling = promise === this.#settling
    const before = isSettling ? fairness.due : this.before
    if (before === null) {
      promise.resolve()
      return
    }
    if (!isSettling) this.#behind = promise
    const resolve = () => {
      promise.resolve()
      if (this.#behind === promise) this.#behind = null
    }
    before.then(resolve, resolve)
  }

  /** The promise that a new one is kept after; null: it can be kept now. */
  get before(): Promise<void> | null {
    if (this.#behind !== null) return this.#behind.promise
    if (this.#settling === null) return fairness.due
    if (!this.#settling.isSettled) return this.#settling.promise
    this.#settling = null
    return fairness.due
  }

  /** A message waits for room. */
  isFull(): void {
    if (this.#fullSince !== null) return
    this.#fullSince = timers.now()
    this.#full += 1
  }

  /** Nothing waits for room any longer. */
  isFree(): void {
    if (this.#fullSince === null) return
    this.#waited += timers.now() - this.#fullSince
    this.#fullSince = null
  }

  /** How many sends had to wait for room, those in `line` that wait now included. */
  waits(line: readonly Pending[][]): number {
    if (this.#fullSince === null) return this.#waits
    return line.reduce((sum, { length }) => sum + length, this.#waits + this.#single.length)
  }

  /** How long they waited, in microseconds: concurrent waits count once. */
  get waitedMicros(): number {
    const now = this.#fullSince === null ? 0 : timers.now() - this.#fullSince
    return Math.round((this.#waited + now) * 1000)
  }

  /** The queue has ended: takes out all promises, those in `line` first. */
  end(line: readonly Pending[][]): (FlushPromise | Deferred)[] {
    this.#waits = this.waits(line)
    this.isFree()
    const left = [...line.flat(), ...this.#single].map(({ promise }) => promise)
    if (this.#shared !== null) left.push(this.#shared)
    this.#shared = null
    this.#single = []
    return left
  }
}
