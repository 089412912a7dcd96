// What can be seen of what is open: plain numbers, which cost nothing before they are asked for.

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
  bellsRung: number
  /** How often this side has gone to sleep, for want of messages or of room. */
  sleeps: number
  /** Bytes of this side's ring that the peer has not read; after the end, as it was when it was last known. */
  ringUsed: number
  /** Bytes of this side's ring. */
  ringCapacity: number
  /** Bytes of messages that were sent and are not in the ring yet. */
  staged: number
}

/**
 * What has come to an address since it was bound, and the sums of all channels that came of it; `ringUsed`, `ringCapacity` and
 * `staged` of those alone that are open.
 */
export interface ListenerStats extends ChannelStats {
  /** Channels that are open now. */
  open: number
  /** Channels that were made. */
  accepted: number
  /**
   * Newcomers that got no channel: how many, by the check that failed (`uid`, `executable`, …), or where it was no check by the error's
   * code, without `ERR_RINGFENCE_`; `other` for a check of the peer's that this version does not know.
   */
  refused: Record<string, number>
}

/** As of a listener, over all partners that came. */
export type MembershipStats = ListenerStats

/** What a publisher has done since it was made, and how full its ring is. The last figures stay after its end. */
export interface PublisherStats {
  /** Messages that were published. */
  published: number
  /** Bytes of their payloads. */
  bytesPublished: number
  /** Those that are subscribed now. */
  subscribers: number
  /** Subscribers that were let go of since they had held it up for longer than `stall`. */
  evicted: number
  /** Calls of `send` that had to wait for room, those that wait now included. */
  waits: number
  /** For how long at least one of them waited, in microseconds. */
  waitedMicros: number
  /** Bytes of the ring that the slowest reliable subscriber has not read; 0 where there is none. */
  ringUsed: number
  /** Bytes of the ring. */
  ringCapacity: number
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
  bellsRung: 0,
  sleeps: 0,
  ringUsed: 0,
  ringCapacity: 0,
  staged: 0,
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

/** Without what an ended channel does not have any more. */
export function ofEnded(stats: ChannelStats): ChannelStats {
  return { ...stats, ringUsed: 0, ringCapacity: 0, staged: 0 }
}
