// The figures of processes that let themselves be observed: read from their publishers, as `observe` in ts/observe.ts fills them.

import { setMaxListeners } from 'node:events'
import { statSync } from 'node:fs'

import { subscribe, type Subscription } from '../channel/subscription.js'
import { within } from '../runtime/deferred.js'
import { RingfenceError } from '../errors.js'
import { LONGEST, observedAt, observedPid, type Observed, type Snapshot } from '../runtime/observe.js'
import { addressesOf, failIfShort, listeningSockets } from '../runtime/sockets.js'
import { snapshotIn } from './snapshot.js'

/** How long the first figures of a process are waited for, in milliseconds. */
const PATIENCE = 10_000

/**
 * How far apart two snapshots are at least that are compared, in milliseconds: half of what a process lets pass between two. Each process that
 * begins to look has it tell one more, at once, and of a millisecond no rate can be told.
 */
const APART = 250

/**
 * A process that tells nothing for so many milliseconds, though it is looked at, is stopped or busy: nothing goes through meanwhile, and its
 * last rates are no rates any more.
 */
const SILENT = 3000

/** What goes through in a second. */
interface Rates {
  messagesSentPerSecond: number
  bytesSentPerSecond: number
  messagesReceivedPerSecond: number
  bytesReceivedPerSecond: number
}

/** A process, and what goes through its channels. */
export interface Watched {
  pid: number
  uid: number
  executable: string
  channels: (Observed & Rates)[]
}

/** A process that tells its figures: what came last, and what it is compared with. */
class Source {
  readonly #subscription: Subscription
  #before: Snapshot | null = null
  /** What the next ones are compared with, once they are far enough from it. */
  #next: Snapshot | null = null
  /** When that came, by the clock of this process: the other's may stand still. */
  #came = -Infinity
  #now: Snapshot | null = null
  /** When something came last. */
  #told = 0
  isOver = false
  /** Resolves once two have come that can be compared, or no more will. */
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
      // It is not looked at any more.
    }
    this.isOver = true
  }

  close(): Promise<void> {
    return this.#subscription.close()
  }

  /** Two to be compared; null: there are none yet, or by its clock no time has passed between them. */
  get lastTwo(): { before: Snapshot; now: Snapshot } | null {
    const before = this.#before
    if (before === null) return null
    // One has come after that.
    const now = this.#now!
    return now.at <= before.at ? null : { before, now }
  }

  /** null: nothing has come. */
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
  const rate = (figure: keyof Observed) => {
    if (before === undefined || !(seconds > 0)) return 0
    return (Number(now[figure] ?? 0) - Number(before[figure] ?? 0)) / seconds
  }
  return {
    messagesSentPerSecond: rate('messagesSent'),
    bytesSentPerSecond: rate('bytesSent'),
    messagesReceivedPerSecond: rate('messagesReceived'),
    bytesReceivedPerSecond: rate('bytesReceived'),
  }
}

/**
 * Processes of this user that tell their figures, as the kernel lists their addresses. Any user may take such an address, and as many as it
 * likes: where another process has it, that is not asked.
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
      // A hardened one does not show what it has open, and is asked.
      return (error as NodeJS.ErrnoException).code === 'EACCES'
    }
  }
}

/** The processes of this user that tell their figures. */
export class Sources {
  readonly #sources = new Map<number, Source>()
  /** Handshakes that are under way. */
  readonly #coming = new Set<number>()
  readonly #over = new AbortController()
  readonly #patience: number

  /** `patience`: how long a process may take that is stopped, or busy with something else. */
  constructor(patience = PATIENCE) {
    this.#patience = patience
    // Every handshake listens to it.
    setMaxListeners(0, this.#over.signal)
  }

  /**
   * Looks for processes that have come, of these if they are named, and forgets those that have gone.
   *
   * @throws {@link RingfenceError} NO_SPACE: not all could be looked at.
   */
  async find(only?: ReadonlySet<number>): Promise<void> {
    for (const [pid, source] of this.#sources) {
      if (!source.isOver) continue
      this.#sources.delete(pid)
      // One that tells no figures goes on with what it tells.
      await source.close()
    }
    const isFresh = (pid: number) => !this.#sources.has(pid) && !this.#coming.has(pid) && only?.has(pid) !== false
    const fresh = observedPids().filter(isFresh)
    await Promise.all(fresh.map((pid) => this.#come(pid)))
  }

  async #come(pid: number): Promise<void> {
    this.#coming.add(pid)
    // Another user's process refuses, and so does one that ends just now.
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
    // Any process of this user may have taken the address of another one.
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

  /** Of each process, by its number, two snapshots to be compared. */
  lastTwo(): Map<number, { before: Snapshot; now: Snapshot }> {
    const all = [...this.#sources].map(([pid, { lastTwo }]) => [pid, lastTwo] as const)
    return new Map(all.filter((entry): entry is [number, { before: Snapshot; now: Snapshot }] => entry[1] !== null))
  }

  async close(): Promise<void> {
    this.#over.abort()
    await Promise.all([...this.#sources.values()].map((source) => source.close()))
  }
}
