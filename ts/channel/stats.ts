// The figures of everything that is open. Reading them costs something; nothing is computed before.

import type { RingfenceError } from '../errors.js'

/** What a channel has done since it was made, and how full its ring is. The last figures stay after its end. */
export interface ChannelStats {
  /** Messages that were sent and are in the ring. One that failed, or was given up, is not counted. */
  messagesSent: number
  /** Bytes of their payloads. */
  bytesSent: number
  /** Messages that were handed out. */
  messagesReceived: number
  /** Bytes of their payloads. */
  bytesReceived: number
  /** Calls of `send` that had to wait for room, those that wait now included. */
  waits: number
  /** For how long at least one of them waited, in microseconds. */
  waitedMicros: number
  /** How often this side has woken its peer. */
  wakeupsSent: number
  /** How often this side has gone to sleep, for want of messages or of room. */
  sleeps: number
  /** Bytes of this side's ring that the peer has not read; after the end, as it was when it was last known. */
  ringUsed: number
  /** Bytes of this side's ring. */
  ringCapacity: number
  /** Bytes of messages that were sent and are not in the ring yet. */
  queuedBytes: number
}

/** The peers that have connected to an address, or tried to. */
export interface EndpointStats {
  /** Peers that are connected now. */
  open: number
  /** Peers that were accepted so far. */
  accepted: number
  /**
   * Peers that were refused so far: their number by the check that failed (`uid`, `executable`, …), else by the code of the error,
   * without `ERR_RINGFENCE_`. `other` is a check by the peer that this version does not know.
   */
  refused: Record<string, number>
}

/** The peers of a listener, and the sums over all of its channels; `ringUsed`, `ringCapacity` and `queuedBytes` over the open ones. */
export interface ListenerStats extends ChannelStats, EndpointStats {}

/** As of a listener, over all partners. */
export interface MembershipStats extends ChannelStats, EndpointStats {}

/** The subscribers of a publisher, what it has sent, and how full its ring is. After the end, the last figures remain. */
export interface PublisherStats extends EndpointStats {
  /** Messages that are in the ring, or were. */
  messagesSent: number
  /** Bytes of their payloads. */
  bytesSent: number
  /** Subscribers that were evicted because they delayed the publisher for longer than `stall`. */
  evicted: number
  /** Calls of `send` that had to wait for room, those that wait now included. */
  waits: number
  /** Microseconds for which at least one of them waited. */
  waitedMicros: number
  /** Bytes of the ring that the slowest reliable subscriber has not read; 0 without one. */
  ringUsed: number
  /** Bytes of the ring. */
  ringCapacity: number
  /** Bytes of messages that were sent and are not in the ring yet. */
  queuedBytes: number
}

/** What a publisher sees of a subscriber. */
export interface SubscriberStats {
  /** Bytes that are published and that it has not read. */
  lag: number
}

/** What a subscription has done since it was made, and how far behind it is. The last figures stay after its end. */
export interface SubscriptionStats {
  /** Messages that were handed out. */
  messagesReceived: number
  /** Bytes of their payloads. */
  bytesReceived: number
  /** Messages that were published since it began and will never be handed out. */
  lost: number
  /** Bytes that are published and not read. */
  lag: number
  /** How often this side has gone to sleep, for want of messages. */
  sleeps: number
}

/** What a merge has done since it was made. */
export interface MergeStats {
  /** Sources in it now. */
  sources: number
  /** Messages that it has handed out, of whichever source. */
  messagesReceived: number
  /** Bytes of their payloads. */
  bytesReceived: number
}

/** What has come, and its bytes. */
export interface Received {
  messages: number
  bytes: number
}

const NOTHING: Readonly<ChannelStats> = {
  messagesSent: 0,
  bytesSent: 0,
  messagesReceived: 0,
  bytesReceived: 0,
  waits: 0,
  waitedMicros: 0,
  wakeupsSent: 0,
  sleeps: 0,
  ringUsed: 0,
  ringCapacity: 0,
  queuedBytes: 0,
}

const FIGURES = Object.keys(NOTHING) as (keyof ChannelStats)[]

/** Sums of channels. */
export class Sums {
  readonly #sums = { ...NOTHING }

  add(stats: ChannelStats): this {
    for (const figure of FIGURES) this.#sums[figure] += stats[figure]
    return this
  }

  /** What was received since `before`, of a channel that has ended. */
  addRest(before: ChannelStats, now: ChannelStats): void {
    this.#sums.messagesReceived += now.messagesReceived - before.messagesReceived
    this.#sums.bytesReceived += now.bytesReceived - before.bytesReceived
  }

  get sums(): ChannelStats {
    return { ...this.#sums }
  }
}

/** Counts the peers of an endpoint. */
export class PeerCounts {
  accepted = 0
  readonly #refused = new Map<string, number>()

  refuse({ check, code }: RingfenceError): void {
    const by = check ?? code.slice('ERR_RINGFENCE_'.length)
    this.#refused.set(by, (this.#refused.get(by) ?? 0) + 1)
  }

  stats(open: number): EndpointStats {
    return { open, accepted: this.accepted, refused: Object.fromEntries(this.#refused) }
  }
}

/** Without the figures that a channel no longer has after its end. */
export function ofEnded(stats: ChannelStats): ChannelStats {
  return { ...stats, ringUsed: 0, ringCapacity: 0, queuedBytes: 0 }
}
