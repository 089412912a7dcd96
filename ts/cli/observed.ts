// Reads the statistics of observable processes from the publishers that `observe` (ts/runtime/observe.ts) creates.

import { setMaxListeners } from 'node:events'
import { statSync } from 'node:fs'

import { subscribe, type Subscription } from '../channel/subscription.js'
import { settledWithin } from '../runtime/deferred.js'
import { RingfenceError } from '../errors.js'
import { MAX_SNAPSHOT, observeAddress, pidOfObserveAddress, type Observed, type Snapshot } from '../runtime/observe.js'
import { addressesOf, throwIfResourceShortage, listeningSockets } from '../runtime/sockets.js'
import { parseSnapshot } from './snapshot.js'

/** Milliseconds to wait for the first snapshots of a process. */
const DEFAULT_TIMEOUT = 10_000

/**
 * Minimum milliseconds between two snapshots that are compared: half of a process's interval. Each new observer makes the process publish
 * one more snapshot immediately, and no rate can be computed from a millisecond.
 */
const MIN_INTERVAL = 250

/**
 * An observed process that publishes nothing for this many milliseconds is stopped or busy. Its last rates are out of date, and are shown
 * as 0.
 */
const MAX_SILENCE = 3000

const RATED_FIGURES = ['messagesSent', 'bytesSent', 'messagesReceived', 'bytesReceived'] as const

/** Messages and bytes per second. */
type Rates = Record<`${(typeof RATED_FIGURES)[number]}PerSecond`, number>

/** A process, and the traffic of its channels. */
export interface ObservedProcess {
  pid: number
  uid: number
  executable: string
  channels: (Observed & Rates)[]
}

/** An observable process: its last snapshot, and the one that it is compared with. */
class Source {
  readonly #subscription: Subscription
  #before: Snapshot | null = null
  /** The snapshot that becomes `#before` once a snapshot at least `MIN_INTERVAL` later has arrived. */
  #next: Snapshot | null = null
  /** When `#next` arrived, by this process's clock. The other process's clock may stand still. */
  #nextArrivedAt = -Infinity
  #now: Snapshot | null = null
  /** When the last snapshot arrived. */
  #lastArrivedAt = 0
  hasEnded = false
  /** Resolves once two comparable snapshots have arrived, or no more will arrive. */
  readonly ready: Promise<void>

  constructor(subscription: Subscription) {
    this.#subscription = subscription
    this.ready = new Promise((resolve) => {
      void this.#read(resolve).finally(resolve)
    })
  }

  async #read(ready: () => void): Promise<void> {
    try {
      for await (const message of this.#subscription) {
        this.#now = parseSnapshot(message, this.#subscription.peer)
        const arrivedAt = performance.now()
        this.#lastArrivedAt = arrivedAt
        if (arrivedAt - this.#nextArrivedAt < MIN_INTERVAL) continue
        this.#before = this.#next
        this.#next = this.#now
        this.#nextArrivedAt = arrivedAt
        if (this.#before !== null) ready()
      }
    } catch {
      // An error ends the observation of this process.
    }
    this.hasEnded = true
  }

  close(): Promise<void> {
    return this.#subscription.close()
  }

  /** Two snapshots to compare; null if there are none yet, or no time has passed between them by the process's clock. */
  get lastTwo(): { before: Snapshot; now: Snapshot } | null {
    const before = this.#before
    if (before === null) return null
    // `#now` is set before `#before`.
    const now = this.#now!
    return now.at <= before.at ? null : { before, now }
  }

  /** Returns null if no snapshot has arrived. */
  observed(address: string | undefined): ObservedProcess | null {
    if (this.#now === null) return null
    const { pid, uid, executable, at, channels } = this.#now
    const before = this.#before
    const isSilent = performance.now() - this.#lastArrivedAt > MAX_SILENCE
    const seconds = before === null || isSilent ? 0 : (at - before.at) / 1000
    const rated = channels
      .filter((channel) => address === undefined || channel.address === address)
      .map((channel) => {
        const earlier = before?.channels.find(({ id }) => id === channel.id)
        return Object.assign(channel, ratesOf(earlier, channel, seconds))
      })
    return { pid, uid, executable, channels: rated }
  }
}

function ratesOf(before: Observed | undefined, now: Observed, seconds: number): Rates {
  const isComparable = before !== undefined && seconds > 0
  const rateOf = (figure: (typeof RATED_FIGURES)[number]) =>
    isComparable ? (Number(now[figure] ?? 0) - Number(before[figure] ?? 0)) / seconds : 0
  return Object.fromEntries(RATED_FIGURES.map((figure) => [`${figure}PerSecond`, rateOf(figure)])) as Rates
}

/**
 * The observable processes of this user, found by the kernel's list of addresses. Any user may bind any number of these addresses. If
 * another process than the named one has an address, it is skipped.
 */
function observedPids(): number[] {
  const listening = listeningSockets()
  const candidates = new Set([...listening.values()].map(pidOfObserveAddress))
  return [...candidates].filter((pid) => pid !== null && pid !== process.pid && isObservable(pid)) as number[]

  function isObservable(pid: number): boolean {
    try {
      if (statSync(`/proc/${pid}`).uid !== process.geteuid!()) return false
      return addressesOf(pid, listening).includes(observeAddress(pid))
    } catch (error) {
      throwIfResourceShortage(error)
      // A hardened process hides its descriptors. The handshake shows whether it is the right one.
      return (error as NodeJS.ErrnoException).code === 'EACCES'
    }
  }
}

/** The observable processes of this user. */
export class Sources {
  readonly #sources = new Map<number, Source>()
  /** Processes with a handshake in progress. */
  readonly #connecting = new Set<number>()
  readonly #closing = new AbortController()
  readonly #timeout: number

  /** @param timeout - Milliseconds to wait for a process that is stopped or busy. */
  constructor(timeout = DEFAULT_TIMEOUT) {
    this.#timeout = timeout
    // Every handshake adds a listener.
    setMaxListeners(0, this.#closing.signal)
  }

  /**
   * Connects to new observable processes (only to those in `only`, if given), and removes those that have disconnected.
   *
   * @throws {@link RingfenceError} NO_SPACE if this process lacks the resources to inspect all of them
   */
  async find(only?: ReadonlySet<number>): Promise<void> {
    for (const [pid, source] of this.#sources) {
      if (!source.hasEnded) continue
      this.#sources.delete(pid)
      // The subscription may still be open: reading also ends at a malformed snapshot.
      await source.close()
    }
    const isNew = (pid: number) => !this.#sources.has(pid) && !this.#connecting.has(pid) && only?.has(pid) !== false
    const found = observedPids().filter(isNew)
    await Promise.all(found.map((pid) => this.#connect(pid)))
  }

  async #connect(pid: number): Promise<void> {
    this.#connecting.add(pid)
    // A process of another user refuses this one, and a process that is exiting fails. Both are skipped.
    const subscription = await subscribe(observeAddress(pid), {
      delivery: 'latest',
      from: 'latest',
      policy: { executable: 'any' },
      maxMessageSize: MAX_SNAPSHOT,
      handshakeTimeout: this.#timeout,
      signal: this.#closing.signal,
    })
      .catch((error: unknown) => {
        if (error instanceof RingfenceError && error.code === 'ERR_RINGFENCE_NO_SPACE') throw error
        return null
      })
      .finally(() => this.#connecting.delete(pid))
    if (subscription === null) return
    // Any process of this user may have bound the address of another process.
    if (subscription.peer.pid !== pid || this.#closing.signal.aborted) await subscription.close()
    else this.#sources.set(pid, new Source(subscription))
  }

  async ready(): Promise<void> {
    await settledWithin(this.#timeout, Promise.all([...this.#sources.values()].map(({ ready }) => ready)))
  }

  observed(address: string | undefined): ObservedProcess[] {
    const all = [...this.#sources.values()]
      .map((source) => source.observed(address))
      .filter((observed) => observed !== null)
      .filter(({ channels }) => address === undefined || channels.length > 0)
    return all.sort((one, other) => one.pid - other.pid)
  }

  /** Two snapshots to compare for each process, by process id. */
  lastTwo(): Map<number, { before: Snapshot; now: Snapshot }> {
    const all = [...this.#sources].map(([pid, { lastTwo }]) => [pid, lastTwo] as const)
    return new Map(all.filter((entry): entry is [number, { before: Snapshot; now: Snapshot }] => entry[1] !== null))
  }

  async close(): Promise<void> {
    this.#closing.abort()
    await Promise.all([...this.#sources.values()].map((source) => source.close()))
  }
}
