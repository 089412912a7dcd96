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

/** A figure, as monitoring systems get it. */
export interface Figure {
  readonly type: 'counter' | 'gauge'
  /** Its name, in words that are joined by dots. */
  readonly name: string
  /** Bytes, seconds or a thing that is counted, in UCUM as OpenTelemetry has it. */
  readonly unit: string
  readonly help: string
  /** Its name in Prometheus, without the prefix and the suffix, if it is another one. */
  readonly prometheusName: string | undefined
}

const counter = figure.bind(null, 'counter')
const gauge = figure.bind(null, 'gauge')
function figure(type: Figure['type'], name: string, unit: string, help: string, prometheusName?: string): Figure {
  return { type, name, unit, help, prometheusName }
}

const CHANNEL_FIGURES = {
  messagesSent: counter('messages.sent', '{message}', 'Messages that were sent and are in the ring.'),
  messagesReceived: counter('messages.received', '{message}', 'Messages that were handed out.'),
  bytesSent: counter('sent', 'By', 'Bytes of the messages sent.'),
  bytesReceived: counter('received', 'By', 'Bytes of the messages handed out.'),
  waits: counter('waits', '{wait}', 'Sends that had to wait for room.'),
  waitedMicros: counter('waited', 's', 'For how long at least one send waited for room.'),
  wakeupsSent: counter('wakeups', '{wakeup}', 'How often this side has woken its peer.', 'wakeups_sent'),
  tokensSent: counter('tokens.sent', '{token}', 'Tokens that were sent.'),
  tokensReceived: counter('tokens.received', '{token}', 'Tokens that were read.'),
  tokensStray: counter(
    'tokens.stray',
    '{signal}',
    'Signals in this process that were no tokens; each channel shows all of them.',
  ),
  tokensDropped: counter('tokens.dropped', '{token}', 'Tokens that were dropped because no loop read them.'),
  attachmentsSent: counter('attachments.sent', '{attachment}', 'Attachments of the messages sent.'),
  attachmentsReceived: counter('attachments.received', '{attachment}', 'Attachments of the messages read.'),
  sleeps: counter('sleeps', '{sleep}', 'How often this side went to sleep.'),
  lateReplies: counter('late_replies', '{reply}', 'Replies to cancelled calls.'),
  callsInFlight: gauge('calls.in_flight', '{call}', 'Calls that wait for a reply.'),
  ringUsed: gauge('ring.used', 'By', 'Bytes of the ring that are not read.'),
  ringCapacity: gauge('ring.capacity', 'By', 'Bytes of the ring.'),
  queuedBytes: gauge('queued', 'By', 'Bytes that were sent and are not in the ring.'),
} as const satisfies Record<keyof ChannelStats, Figure>

type FigureName = keyof (ChannelStats & PublisherStats & SubscriptionStats & MergeStats)

/** All figures of all resources. */
export const FIGURES: Readonly<Record<FigureName, Figure>> = {
  ...CHANNEL_FIGURES,
  attachmentsWithheld: counter(
    'attachments.withheld',
    '{attachment}',
    'Attachments that subscribers did not get with their message.',
  ),
  lost: counter('lost', '{message}', 'Messages that were skipped.', 'messages_lost'),
  evicted: counter('evicted', '{subscriber}', 'Subscribers that were evicted because they were too slow.'),
  accepted: counter('accepted', '{peer}', 'Peers that were accepted.'),
  refused: counter('refused', '{peer}', 'Peers that were refused.'),
  open: gauge('open', '{peer}', 'Peers that are connected.', 'open_peers'),
  sources: gauge('sources', '{source}', 'Sources of the merge.', 'merge_sources'),
  lag: gauge('lag', 'By', 'Bytes that are published and not read.'),
}

const CHANNEL_FIGURE_NAMES = Object.keys(CHANNEL_FIGURES) as (keyof ChannelStats)[]

/** The sums over no channel. */
export const zeroStats = () =>
  Object.fromEntries(CHANNEL_FIGURE_NAMES.map((name) => [name, 0])) as unknown as ChannelStats

/** Adds the figures of a channel to sums over several. */
export function addStats(sums: ChannelStats, stats: ChannelStats): void {
  const tokensStray = Math.max(sums.tokensStray, stats.tokensStray)
  for (const name of CHANNEL_FIGURE_NAMES) sums[name] += stats[name]
  sums.tokensStray = tokensStray
}

/** Counts the peers of an endpoint. */
export class PeerCounts {
  accepted = 0
  readonly #refused = new Map<string, number>()

  countRefusal({ check, code }: RingfenceError): void {
    const reason = check ?? code.slice('ERR_RINGFENCE_'.length)
    this.#refused.set(reason, (this.#refused.get(reason) ?? 0) + 1)
  }

  stats(open: number): EndpointStats {
    return { open, accepted: this.accepted, refused: Object.fromEntries(this.#refused) }
  }
}
