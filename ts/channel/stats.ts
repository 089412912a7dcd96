// The figures of open resources. They are computed when they are read.

import type { RingfenceError } from '../errors.js'

/** Counters of the tokens of a channel. */
export interface TokenStats {
  /** Tokens that were sent. */
  tokensSent: number
  /** Tokens that were handed out to loops, or that a loop can still read after the end. */
  tokensReceived: number
  /**
   * Signals with this channel's number (`realtimeSignal`) that this process has received since it started and that were not tokens of any
   * of its channels. Another process forged them, or sent them to a channel that had ended.
   */
  tokensStray: number
  /** Tokens that were dropped because 65,536 were already waiting for a loop. */
  tokensDropped: number
}

/** Counters of a channel since it was made, and the fill level of its ring. The last figures stay available after its end. */
export interface ChannelStats extends TokenStats {
  /** Messages that were sent and are in the ring, the frames of calls included. Failed and abandoned ones are not counted. */
  messagesSent: number
  /** Bytes of their payloads. */
  bytesSent: number
  /** Messages that were handed out, and frames of calls. */
  messagesReceived: number
  /** Bytes of their payloads. */
  bytesReceived: number
  /** Attachments of the messages sent. */
  attachmentsSent: number
  /** Attachments of the messages that were read from the ring, whether or not the program has them already. */
  attachmentsReceived: number
  /** Calls of this side that wait for a reply. */
  callsInFlight: number
  /** Replies that arrived after their call was cancelled, and were dropped. */
  lateReplies: number
  /** Calls of `send` that had to wait for room, including those that wait now. */
  waits: number
  /** Microseconds for which at least one of them waited. */
  waitedMicros: number
  /** The number of times that this side woke its peer. */
  wakeupsSent: number
  /** The number of times that this side went to sleep, to wait for messages or for room. */
  sleeps: number
  /** Bytes of this side's ring that the peer has not read; after the end, the last known value. */
  ringUsed: number
  /** Bytes of this side's ring. */
  ringCapacity: number
  /** Bytes of messages that were sent but are not in the ring yet. */
  queuedBytes: number
}

/** The peers that have connected to an address, or tried to. */
export interface EndpointStats {
  /** Peers that are connected now. */
  open: number
  /** Peers that were accepted so far. */
  accepted: number
  /**
   * Peers that were refused so far, by the check that failed (`uid`, `executable`, …), or else by the error code without `ERR_RINGFENCE_`.
   * `other` is a check by the peer that this version does not know.
   */
  refused: Record<string, number>
}

/**
 * The peers of a listener, and sums over all its channels; for `ringUsed`, `ringCapacity` and `queuedBytes` over the open ones.
 * `tokensStray` is not a sum: its channels have one signal.
 */
export interface ListenerStats extends ChannelStats, EndpointStats {}

/** The same figures as of a listener, over all partners. */
export interface MembershipStats extends ChannelStats, EndpointStats {}

/** The subscribers of a publisher, its sent messages, and the fill level of its ring. The last figures stay available after the end. */
export interface PublisherStats extends EndpointStats {
  /** Messages that were put into the ring. */
  messagesSent: number
  /** Bytes of their payloads. */
  bytesSent: number
  /** Attachments of the messages sent, counted for each subscriber that got them. */
  attachmentsSent: number
  /**
   * Attachments that a subscriber did not get with their message: it does not accept them, or it is not 'reliable' and has too many unread.
   */
  attachmentsWithheld: number
  /** Subscribers that were evicted because they delayed the publisher for longer than `stall`. */
  evicted: number
  /** Calls of `send` that had to wait for room, including those that wait now. */
  waits: number
  /** Microseconds for which at least one of them waited. */
  waitedMicros: number
  /** Bytes of the ring that the slowest reliable subscriber has not read; 0 without one. */
  ringUsed: number
  /** Bytes of the ring. */
  ringCapacity: number
  /** Bytes of messages that were sent but are not in the ring yet. */
  queuedBytes: number
}

/** The publisher's figures for one subscriber. */
export interface SubscriberStats {
  /** Bytes that were published and that the subscriber has not read. */
  lag: number
}

/** Counters of a subscription since it was made, and how far it lags behind. The last figures stay available after its end. */
export interface SubscriptionStats {
  /** Messages that were handed out. */
  messagesReceived: number
  /** Bytes of their payloads. */
  bytesReceived: number
  /** Messages that were published since the subscription began and will never be handed out. */
  lost: number
  /** Attachments of the messages that were read from the ring, whether or not the program has them already. */
  attachmentsReceived: number
  /** Bytes that were published and not read. */
  lag: number
  /** The number of times that this side went to sleep, to wait for messages. */
  sleeps: number
}

/** Counters of a merge since it was made. */
export interface MergeStats {
  /** The current number of sources. */
  sources: number
  /** Messages handed out, from all sources. */
  messagesReceived: number
  /** Bytes of their payloads. */
  bytesReceived: number
}

/** The number of received messages, and their bytes. */
export interface Received {
  messages: number
  bytes: number
}

const NOTHING: Readonly<ChannelStats> = {
  messagesSent: 0,
  bytesSent: 0,
  messagesReceived: 0,
  bytesReceived: 0,
  attachmentsSent: 0,
  attachmentsReceived: 0,
  callsInFlight: 0,
  lateReplies: 0,
  tokensSent: 0,
  tokensReceived: 0,
  tokensStray: 0,
  tokensDropped: 0,
  waits: 0,
  waitedMicros: 0,
  wakeupsSent: 0,
  sleeps: 0,
  ringUsed: 0,
  ringCapacity: 0,
  queuedBytes: 0,
}

const FIGURES = Object.keys(NOTHING) as (keyof ChannelStats)[]

/** The sums over several channels. */
export class Sums {
  readonly #sums = { ...NOTHING }

  add(stats: ChannelStats): this {
    const tokensStray = Math.max(this.#sums.tokensStray, stats.tokensStray)
    for (const figure of FIGURES) this.#sums[figure] += stats[figure]
    this.#sums.tokensStray = tokensStray
    return this
  }

  /** Adds the messages that were received since `before`, for a channel that has ended. */
  addRest(before: ChannelStats, now: ChannelStats): void {
    this.#sums.messagesReceived += now.messagesReceived - before.messagesReceived
    this.#sums.bytesReceived += now.bytesReceived - before.bytesReceived
    this.#sums.attachmentsReceived += now.attachmentsReceived - before.attachmentsReceived
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

/** Clears the figures that a channel no longer has after its end. */
export function ofEnded(stats: ChannelStats): ChannelStats {
  return { ...stats, callsInFlight: 0, ringUsed: 0, ringCapacity: 0, queuedBytes: 0 }
}
