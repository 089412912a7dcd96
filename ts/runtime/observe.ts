// A process lets its own user look at its figures while it runs: over a publisher, which holds nobody up and keeps no process alive.

import { builtin } from '../native.js'
import { publish, type Publisher } from '../endpoint/publisher.js'
import type { Subscription } from '../channel/subscription.js'
import type { Channel } from '../channel/channel.js'
import { openNow } from './diagnostics.js'
import { timers } from './timers.js'
import type { ChannelStats, PublisherStats, SubscriptionStats } from '../channel/stats.js'

/** How often the figures are told while a process looks, in milliseconds. */
const INTERVAL = 500
/** Of the ring: a message has an eighth of that at most. */
const CAPACITY = 4 * 1024 * 1024
/** Bytes of a message of figures, at most. */
export const LONGEST = CAPACITY / 8
/** Things in one message, each of less than 1 KiB, so that all of them fit. */
const MOST = 500
/** Subscribers that a publisher names as behind. */
export const MOST_BEHIND = 8

/** Where a process tells its figures. */
export const observedAt = (pid: number): string => `@ringfence-observe-${pid}`

/** The process that tells its figures at an address; null for any other address. */
export function observedPid(address: string): number | null {
  const pid = Number(/^@ringfence-observe-(\d+)$/.exec(address)?.[1])
  return pid > 0 ? pid : null
}

/** A channel, a publisher or a subscription, with its figures. */
export interface Observed extends Partial<ChannelStats & PublisherStats & SubscriptionStats> {
  /** Of this one and no other of its process. */
  id: number
  address: string | null
  /** The process at the other end; null for a publisher, which has many. */
  peer: number | null
  role: 'host' | 'guest' | 'publisher' | 'subscriber'
  /** Of a publisher: the subscribers that lag, the slowest first, at most {@link MOST_BEHIND}, with the bytes that they lag. */
  behind?: [pid: number, lag: number][]
}

/** What a process tells of itself. */
export interface Snapshot {
  pid: number
  uid: number
  executable: string
  /** When it was taken, in milliseconds of a clock that does not jump. */
  at: number
  channels: Observed[]
  /** How many there are besides. */
  more: number
}

/** The figures of this process can be looked at; {@link Observation.close} ends that. */
export interface Observation extends AsyncDisposable {
  /** Where they are published. */
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

function observed([open, address]: [object, string | null]): Observed {
  const id = idOf(open)
  return { id, address, ...describe(open as Channel | Publisher | Subscription) }
}

function describe(open: Channel | Publisher | Subscription): Omit<Observed, 'id' | 'address'> {
  if ('role' in open) return { peer: open.peer.pid, role: open.role, ...open.stats() }
  if ('subscribers' in open) {
    const behind = open.subscribers
      .map((subscriber): [number, number] => [subscriber.peer.pid, subscriber.stats().lag])
      .filter(([, lag]) => lag > 0)
      .sort(([, one], [, other]) => other - one)
    const lag = behind[0]?.[1] ?? 0
    return { peer: null, role: 'publisher', ...open.stats(), lag, behind: behind.slice(0, MOST_BEHIND) }
  }
  return { peer: open.peer.pid, role: 'subscriber', ...open.stats() }
}

function snapshot(): Snapshot {
  const all = [...openNow]
  return {
    pid: process.pid,
    uid: process.geteuid!(),
    executable: process.execPath,
    at: timers.now(),
    channels: all.slice(0, MOST).map(observed),
    more: Math.max(0, all.length - MOST),
  }
}

/** A program may load both builds of this package, and its process has one address for both. */
const OBSERVING: unique symbol = Symbol.for('ringfence.observing')
const ofAllBuilds = globalThis as { [OBSERVING]?: Promise<Observation> | undefined }

/**
 * Lets processes of the same user look at the figures of this one, with `ringfence top`: they are published, while one looks, at the
 * abstract address `@ringfence-observe-PID`. `RINGFENCE_OBSERVE=1` in the environment does the same from the start. It keeps no process
 * alive, and costs nothing while no process looks but the memory of a ring (4 MiB). Called again, it answers the same.
 *
 * @throws {@link RingfenceError} as {@link publish}; ADDRESS_OCCUPIED also in a worker thread, where another thread of the process is observed
 */
export function observe(): Promise<Observation> {
  const observing = ofAllBuilds[OBSERVING]
  if (observing !== undefined) return observing
  // One that is over must not take the next one's place away.
  const forget = () => {
    if (ofAllBuilds[OBSERVING] === begun) ofAllBuilds[OBSERVING] = undefined
  }
  const begun = begin(forget).catch((error: unknown) => {
    forget()
    throw error
  })
  ofAllBuilds[OBSERVING] = begun
  return begun
}

/** @param over - Called once the figures are told no more. */
async function begin(over: () => void): Promise<Observation> {
  const address = observedAt(process.pid)
  const publisher = await publish(address, {
    capacity: CAPACITY,
    deliveries: ['latest', 'best-effort'],
    // The command line may be another program than this one.
    policy: { executable: 'any' },
  })
  publisher.unref()
  // It is no business of the program's.
  openNow.delete(publisher)
  const tell = () => {
    try {
      if (publisher.subscribers.length > 0) publisher.trySend(JSON.stringify(snapshot()))
    } catch {
      // It has ended, and the event loop has not heard of it yet, or there is no memory: nothing that a program may be put out by.
    }
  }
  // Only while one looks: a process that is idle is not woken.
  let timer: NodeJS.Timeout | undefined
  const rest = () => {
    timers.clearInterval(timer)
    timer = undefined
  }
  publisher.on('connection', () => {
    tell()
    timer ??= timers.setInterval(tell, INTERVAL).unref()
  })
  publisher.on('disconnect', () => {
    if (publisher.subscribers.length === 0) rest()
  })
  const end = () => {
    rest()
    over()
  }
  // Also where another process has opened its memory.
  void publisher.closed.then(end)
  const close = () => {
    end()
    return publisher.close()
  }
  return { address, close, [Symbol.asyncDispose]: close }
}

/** For a process that was started with `RINGFENCE_OBSERVE=1`. */
export function observeIfAsked(): void {
  if (process.env['RINGFENCE_OBSERVE'] !== '1' || !builtin.threads.isMainThread) return
  observe().catch((error: Error) => process.emitWarning(`RINGFENCE_OBSERVE: ${error.message}`))
}
