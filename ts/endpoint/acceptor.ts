// The base class of listeners and memberships: the accept queue and its loops, the channels, and the end.

import { Channel, openIncoming, onLeftoversRead } from '../channel/channel.js'
import { addStats, zeroStats, type ListenerStats } from '../channel/stats.js'
import { KEY, type RingfenceError, invalid } from '../errors.js'
import { FAILED, type Failure, type NativeAcceptor, type RawChannel } from '../native.js'
import { reportRefused } from '../runtime/diagnostics.js'
import * as internal from '../runtime/symbols.js'
import { AcceptQueue } from './accept-queue.js'
import { Endpoint, type EndpointEvents } from './endpoint.js'
import type { Opening } from './handshake.js'

/** The figures that a channel no longer has after its end. */
const ZERO_AT_END = { callsInFlight: 0, ringUsed: 0, ringCapacity: 0, queuedBytes: 0 }
/** The figures that grow while the messages that a peer has left are read. */
const RECEIVED_FIGURES = ['messagesReceived', 'bytesReceived', 'attachmentsReceived'] as const

export abstract class Acceptor<
  In,
  Out,
  Events extends EndpointEvents<Channel<In, Out>> & Record<keyof Events, unknown[]>,
>
  extends Endpoint<Channel<In, Out>, Events>
  implements AsyncIterable<Channel<In, Out>>
{
  readonly #native: NativeAcceptor
  readonly #opening: Opening
  /** @internal */
  protected readonly [internal.acceptQueue]: AcceptQueue<Channel<In, Out>>
  /**
   * The channels that are open now.
   *
   * @internal
   */
  protected readonly [internal.openChannels] = new Set<Channel<In, Out>>()
  /** Sums over the channels that have ended. */
  readonly #endedSums = zeroStats()

  /**
   * @param message - The error message if the key is not {@link KEY}.
   * @param keepsAll - Whether the queue drops no channel even before the first loop.
   * @param vacate - As of {@link Endpoint}.
   * @internal
   */
  protected constructor(
    key: symbol,
    message: string,
    native: NativeAcceptor,
    opening: Opening,
    keepsAll: boolean,
    vacate: () => void,
  ) {
    if (key !== KEY) throw invalid(message)
    super(opening, native, vacate)
    this.#native = native
    this.#opening = opening
    this[internal.acceptQueue] = new AcceptQueue(
      keepsAll,
      (paused) => native.pause(paused ? 1 : 0),
      (channel) => this[internal.handedOut](channel),
    )
  }

  /**
   * The binding's next event: a channel, a refusal, 0 if there is none, or `FAILED` if an error has ended the endpoint.
   *
   * @internal
   */
  protected abstract [internal.next](): RawChannel | Failure | number

  /**
   * Called for each new channel, once it counts as open.
   *
   * @internal
   */
  protected [internal.admitted](_channel: Channel<In, Out>): void {}

  /**
   * Called once the program has received a channel.
   *
   * @internal
   */
  protected [internal.handedOut](_channel: Channel<In, Out>): void {}

  /**
   * Called when an error has ended the endpoint.
   *
   * @internal
   */
  protected abstract [internal.failed](error: RingfenceError): void

  /** Yields a channel for each peer. Several loops share the channels, and leaving one closes nothing. */
  [Symbol.asyncIterator](): AsyncIterator<Channel<In, Out>, undefined> {
    return this[internal.acceptQueue].iterator()
  }

  /** The peers so far, and the sums over all of their channels. After the end, the last figures remain. */
  stats(): ListenerStats {
    const sums = { ...this.#endedSums }
    for (const channel of this[internal.openChannels]) addStats(sums, channel.stats())
    return { ...this[internal.counts].stats(this[internal.openChannels].size), ...sums }
  }

  /** @internal */
  protected override [internal.handleEvent](): boolean {
    if (this[internal.acceptQueue].hasEnded) return false
    const event = this[internal.next]()
    if (event === FAILED) {
      const error = this.#opening.errorOf(this.#native.failure())
      // A member that reconnected as a guest was refused.
      if (error.code === 'ERR_RINGFENCE_PEER_REFUSED') reportRefused(this.address, error)
      this[internal.failed](error)
      return false
    }
    if (typeof event === 'number') return false
    if ('role' in event) this.#admit(event)
    else this[internal.reportRefusal](event)
    return true
  }

  #admit(raw: RawChannel): void {
    const channel = openIncoming(raw, this.#opening)
    if (!(channel instanceof Channel)) {
      this[internal.reportRefusal](channel)
      return
    }
    // A subscriber of a diagnostics channel may just have closed this endpoint.
    if (this[internal.acceptQueue].hasEnded) {
      void channel.close()
      return
    }
    // Before any event: a listener may call `close`, which must find this channel.
    this.#count(channel)
    this[internal.acceptQueue].add(channel)
    this[internal.admitted](channel)
  }

  #count(channel: Channel<In, Out>): void {
    this[internal.counts].accepted += 1
    this[internal.openChannels].add(channel)
    void channel.closed.then(() => {
      this[internal.openChannels].delete(channel)
      const atEnd = channel.stats()
      addStats(this.#endedSums, { ...atEnd, ...ZERO_AT_END })
      // The peer's unread messages are still read after the end.
      onLeftoversRead(channel, () => {
        const latest = channel.stats()
        for (const name of RECEIVED_FIGURES) this.#endedSums[name] += latest[name] - atEnd[name]
      })
    })
  }

  /**
   * Ends the loops: no more channels will be made. With an error, a loop fails with it.
   *
   * @internal
   */
  protected [internal.stop](error?: RingfenceError): void {
    const queue = this[internal.acceptQueue]
    if (queue.hasEnded) return
    this[internal.release]()
    if (error !== undefined) queue.fail(error)
    queue.end()
  }
}
