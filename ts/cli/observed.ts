// Reads the statistics of observable processes from the publishers that `observe` (ts/runtime/observe.ts) creates.

import { setMaxListeners } from 'node:events'
import { statSync } from 'node:fs'

import { subscribe, type Subscription } from '../channel/subscription.js'
import { within } from '../runtime/deferred.js'
import { RingfenceError } from '../errors.js'
import { LONGEST, observedAt, observedPid, type Observed, type Snapshot } from '../runtime/observe.js'
import { addressesOf, failIfShort, listeningSockets } from '../runtime/sockets.js'
import { snapshotIn } from './snapshot.js'

/** Milliseconds to wait for the first snapshots of a process. */
const PATIENCE = 10_000

/**
 * Minimum milliseconds between two snapshots that are compared: half of a process's interval. Each new observer makes the process publish
 * one more snapshot immediately, and no rate can be computed from a millisecond.
 */
const APART = 250

/**
 * An observed process that publishes nothing for this many milliseconds is stopped or busy. Its last rates are out of date, and are shown
 * as 0.
 */
const SILENT = 3000

const RATED = ['messagesSent', 'bytesSent', 'messagesReceived', 'bytesReceived'] as const

/** Messages and bytes per second. */
type Rates = Record<`${(typeof RATED)[number]}PerSecond`, number>

/** A process, and the traffic of its channels. */
export interface Watched {
  pid: number
  uid: number
  executable: string
  channels: (Observed & Rates)[]
}

/** An observable process: its last snapshot, and the one that it is compared with. */
class Source {
  readonly #subscription: Subscription
  #before: Snapshot | null = null
  /** The snapshot that becomes `#before` once a snapshot at least `APART` later has arrived. */
  #next: Snapshot | null = null
  /** When `#next` arrived, by this process's clock. The other process's clock may stand still. */
  #came = -Infinity
  #now: Snapshot | null = null
  /** When the last snapshot arrived. */
  #told = 0
  isOver = false
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
        this.#now = snapshotIn(message, this.#subscription.peer)
        const came = performance.now()
        this.#told = came
        if (came - this.#came < APART) continue
        this.#before = this.#next
        this.#next = this.#now
        this.#came = came
        if (this.#before !== null) ready()
      }
    } catch {
      // An error ends the observation of this process.
    }
    this.isOver = true
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
  watched(address: string | undefined): Watched | null {
    if (this.#now === null) return null
    const { pid, uid, executable, at, channels } = this.#now
    const before = this.#before
    const isSilent = performance.now() - this.#told > SILENT
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
  const isKnown = before !== undefined && seconds > 0
  const rateOf = (figure: (typeof RATED)[number]) =>
    isKnown ? (Number(now[figure] ?? 0) - Number(before[figure] ?? 0)) / seconds : 0
  return Object.fromEntries(RATED.map((figure) => [`${figure}PerSecond`, rateOf(figure)])) as Rates
}

/**
 * The observable processes of this user, found by the kernel's list of addresses. Any user may bind any number of these addresses. If
 * another process than the named one has an address, it is skipped.
 */
function observedPids(): number[] {
  const listening = listeningSockets()
  const named = new Set([...listening.values()].map(observedPid))
  return [...named].filter((pid) => pid !== null && pid !== process.pid && mayTell(pid)) as number[]

  function mayTell(pid: number): boolean {
    try {
      if (statSync(`/proc/${pid}`).uid !== process.geteuid!()) return false
      return addressesOf(pid, listening).includes(observedAt(pid))
    } catch (error) {
      failIfShort(error)
      // A hardened process hides its descriptors. The handshake shows whether it is the right one.
      return (error as NodeJS.ErrnoException).code === 'EACCES'
    }
  }
}

/** The observable processes of this user. */
export class Sources {
  readonly #sources = new Map<number, Source>()
  /** Processes with a handshake in progress. */
  readonly #coming = new Set<number>()
  readonly #over = new AbortController()
  readonly #patience: number

  /** @param patience - Milliseconds to wait for a process that is stopped or busy. */
  constructor(patience = PATIENCE) {
    this.#patience = patience
    // Every handshake adds a listener.
    setMaxListeners(0, this.#over.signal)
  }

  /**
   * Connects to new observable processes (only to those in `only`, if given), and removes those that have disconnected.
   *
   * @throws {@link RingfenceError} NO_SPACE if this process lacks the resources to inspect all of them
   */
  async find(only?: ReadonlySet<number>): Promise<void> {
    for (const [pid, source] of this.#sources) {
      if (!source.isOver) continue
      this.#sources.delete(pid)
      // The subscription may still be open: reading also ends at a malformed snapshot.
      await source.close()
    }
    const isFresh = (pid: number) => !this.#sources.has(pid) && !this.#coming.has(pid) && only?.has(pid) !== false
    const fresh = observedPids().filter(isFresh)
    await Promise.all(fresh.map((pid) => this.#come(pid)))
  }

  async #come(pid: number): Promise<void> {
    this.#coming.add(pid)
    // A process of another user refuses this one, and a process that is exiting fails. Both are skipped.
    const subscription = await subscribe(observedAt(pid), {
      delivery: 'latest',
      from: 'latest',
      policy: { executable: 'any' },
      maxMessageSize: LONGEST,
      handshakeTimeout: this.#patience,
      signal: this.#over.signal,
    })
      .catch((error: unknown) => {
        if (error instanceof RingfenceError && error.code === 'ERR_RINGFENCE_NO_SPACE') throw error
        return null
      })
      .finally(() => this.#coming.delete(pid))
    if (subscription === null) return
    // Any process of this user may have bound the address of another process.
    if (subscription.peer.pid !== pid || this.#over.signal.aborted) await subscription.close()
    else this.#sources.set(pid, new Source(subscription))
  }

  async ready(): Promise<void> {
    await within(this.#patience, Promise.all([...this.#sources.values()].map(({ ready }) => ready)))
  }

  watched(address: string | undefined): Watched[] {
    const all = [...this.#sources.values()]
      .map((source) => source.watched(address))
      .filter((watched) => watched !== null)
      .filter(({ channels }) => address === undefined || channels.length > 0)
    return all.sort((one, other) => one.pid - other.pid)
  }

  /** Two snapshots to compare for each process, by process id. */
  lastTwo(): Map<number, { before: Snapshot; now: Snapshot }> {
    const all = [...this.#sources].map(([pid, { lastTwo }]) => [pid, lastTwo] as const)
    return new Map(all.filter((entry): entry is [number, { before: Snapshot; now: Snapshot }] => entry[1] !== null))
  }

  async close(): Promise<void> {
    this.#over.abort()
    await Promise.all([...this.#sources.values()].map((source) => source.close()))
  }
}
