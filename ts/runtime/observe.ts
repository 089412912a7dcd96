// Lets other processes of the same user read this process's statistics while it runs. They are published by a publisher that neither waits
// for its subscribers nor keeps the process alive.

import { builtin } from '../native.js'
import { publish, type Publisher } from '../endpoint/publisher.js'
import type { Subscription } from '../channel/subscription.js'
import type { Channel } from '../channel/channel.js'
import { openResources } from './diagnostics.js'
import { timers } from './timers.js'
import type { ChannelStats, PublisherStats, SubscriptionStats } from '../channel/stats.js'

/** Milliseconds between two snapshots while a process observes this one. */
const INTERVAL = 500
/** Bytes of the ring. A message may have an eighth of that. */
const CAPACITY = 4 * 1024 * 1024
/** Bytes of the longest snapshot. */
export const MAX_SNAPSHOT = CAPACITY / 8
/** Maximum number of entries in one snapshot. Each has less than 1 KiB, so that all of them fit. */
export const MAX_ENTRIES = 500
/** Maximum number of lagging subscribers that are listed for a publisher. */
export const MAX_LAGGING = 8

/** The address at which a process publishes its statistics. */
export const observeAddress = (pid: number): string => `@ringfence-observe-${pid}`

/** The process that publishes its statistics at an address; null for any other address. */
export function pidOfObserveAddress(address: string): number | null {
  const pid = Number(/^@ringfence-observe-(\d+)$/.exec(address)?.[1])
  return pid > 0 ? pid : null
}

/** A channel, a publisher or a subscription, with its statistics. */
export interface Observed extends Partial<ChannelStats & PublisherStats & SubscriptionStats> {
  /** Unique within the process. */
  id: number
  address: string | null
  /** The process at the other end; null for a publisher, which may have many. */
  peer: number | null
  role: 'host' | 'guest' | 'publisher' | 'subscriber'
  /** For a publisher: up to {@link MAX_LAGGING} lagging subscribers, the slowest first, with their lag in bytes. */
  behind?: [pid: number, lag: number][]
}

/** The statistics that a process publishes about itself. */
export interface Snapshot {
  pid: number
  uid: number
  executable: string
  /** When it was taken, in milliseconds of a monotonic clock. */
  at: number
  channels: Observed[]
  /** The number of entries that were left out. */
  more: number
}

/** The observability of this process, until {@link Observation.close}. */
export interface Observation extends AsyncDisposable {
  /** The address at which the statistics are published. */
  readonly address: string
  close(): Promise<void>
}

const ids = new WeakMap<object, number>()
let last = 0

function idOf(open: object): number {
  let id = ids.get(open)
  if (id === undefined) ids.set(open, (id = last += 1))
  return id
}

function toObserved(open: Channel | Publisher | Subscription): Observed {
  return { id: idOf(open), address: open.address, ...describe(open) }
}

function describe(open: Channel | Publisher | Subscription): Omit<Observed, 'id' | 'address'> {
  if ('role' in open) return { peer: open.peer.pid, role: open.role, ...open.stats() }
  if ('subscribers' in open) {
    const behind = open.subscribers
      .map((subscriber): [number, number] => [subscriber.peer.pid, subscriber.stats().lag])
      .filter(([, lag]) => lag > 0)
      .sort(([, one], [, other]) => other - one)
    const lag = behind[0]?.[1] ?? 0
    return { peer: null, role: 'publisher', ...open.stats(), lag, behind: behind.slice(0, MAX_LAGGING) }
  }
  return { peer: open.peer.pid, role: 'subscriber', ...open.stats() }
}

function snapshot(): Snapshot {
  const all = [...openResources] as (Channel | Publisher | Subscription)[]
  return {
    pid: process.pid,
    uid: process.geteuid!(),
    executable: process.execPath,
    at: timers.now(),
    channels: all.slice(0, MAX_ENTRIES).map(toObserved),
    more: Math.max(0, all.length - MAX_ENTRIES),
  }
}

/** Shared by both builds of this package, since a program may load both and the process has only one address. */
const OBSERVATION: unique symbol = Symbol.for('ringfence.observing')
const shared = globalThis as { [OBSERVATION]?: Promise<Observation> | undefined }

/**
 * Lets processes of the same user read the statistics of this one, with `ringfence top`. While a process subscribes, they are published at
 * the abstract address `@ringfence-observe-PID`. `RINGFENCE_OBSERVE=1` in the environment does the same from the start. This does not keep
 * the process alive. While no process subscribes, it costs only the memory of a ring (4 MiB). Further calls return the same promise.
 *
 * @throws {@link RingfenceError} as {@link publish}; ADDRESS_OCCUPIED also in a worker thread if another thread of the process is observed
 */
export function observe(): Promise<Observation> {
  const current = shared[OBSERVATION]
  if (current !== undefined) return current
  // An observation that has ended must not remove its successor.
  const clear = () => {
    if (shared[OBSERVATION] === started) shared[OBSERVATION] = undefined
  }
  const started = startObservation(clear).catch((error: unknown) => {
    clear()
    throw error
  })
  shared[OBSERVATION] = started
  return started
}

/** @param onEnd - Called once the observation has ended. */
async function startObservation(onEnd: () => void): Promise<Observation> {
  const address = observeAddress(process.pid)
  const publisher = await publish(address, {
    capacity: CAPACITY,
    deliveries: ['latest', 'best-effort'],
    // The command line may run another executable than this program.
    policy: { executable: 'any' },
  })
  publisher.unref()
  // The statistics list only what the program has opened.
  openResources.delete(publisher)
  const publishSnapshot = () => {
    try {
      if (publisher.subscribers.length > 0) publisher.trySend(JSON.stringify(snapshot()))
    } catch {
      // The publisher has ended and the event loop was not notified yet, or there is no memory. Neither may disturb the program.
    }
  }
  // The timer runs only while a process subscribes, so that an idle process is not woken.
  let timer: NodeJS.Timeout | undefined
  const stopTimer = () => {
    timers.clearInterval(timer)
    timer = undefined
  }
  publisher.on('connection', () => {
    publishSnapshot()
    timer ??= timers.setInterval(publishSnapshot, INTERVAL).unref()
  })
  publisher.on('disconnect', () => {
    if (publisher.subscribers.length === 0) stopTimer()
  })
  const end = () => {
    stopTimer()
    onEnd()
  }
  // The publisher also ends if another process opens its memory.
  void publisher.closed.then(end)
  const close = () => {
    end()
    return publisher.close()
  }
  return { address, close, [Symbol.asyncDispose]: close }
}

/** Observes a process that was started with `RINGFENCE_OBSERVE=1`. */
export function observeIfAsked(): void {
  if (process.env['RINGFENCE_OBSERVE'] !== '1' || !builtin.threads.isMainThread) return
  observe().catch((error: Error) => process.emitWarning(`RINGFENCE_OBSERVE: ${error.message}`))
}
