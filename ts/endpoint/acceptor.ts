// The base class of listeners and memberships: the accept queue and its loops, the channels, and the end.

import type { EventEmitter } from 'node:events'

import { Channel, openIncoming, onLeftoversRead } from '../channel/channel.js'
import { addStats, zeroStats, type ListenerStats } from '../channel/stats.js'
import { KEY, type RingfenceError, invalid } from '../errors.js'
import { FAILED, type Endpoints, type Failure, type NativeAcceptor, type RawChannel } from '../native.js'
import { reportRefused } from '../runtime/diagnostics.js'
import type { Closed, Options } from '../types.js'
import { AcceptQueue } from './accept-queue.js'
import { Endpoint, type EndpointEvents } from './endpoint.js'
import { runHandshakeAt, type Opening } from './handshake.js'
import type { ChannelSettings } from './options.js'

/** The figures that a channel no longer has after its end. */
const ZERO_AT_END = { callsInFlight: 0, ringUsed: 0, ringCapacity: 0, queuedBytes: 0 }
/** The figures that grow while the messages that a peer has left are read. */
const RECEIVED_FIGURES = ['messagesReceived', 'bytesReceived', 'attachmentsReceived'] as const

/** The constructor arguments of an acceptor. */
export interface AcceptorParts<Native extends NativeAcceptor> {
  address: string
  native: Native
  opening: Opening
}

export abstract class Acceptor<
  In,
  Out,
  Events extends EndpointEvents<Channel<In, Out>> & Record<keyof Events, unknown[]>,
>
  extends Endpoint<Channel<In, Out>, Events>
  implements AsyncIterable<Channel<In, Out>>
{
  readonly #native: NativeAcceptor
  readonly #settings: ChannelSettings
  /** @internal */
  protected readonly acceptQueue: AcceptQueue<Channel<In, Out>>
  /** This class's own listeners. `removeAllListeners` must remove only the program's. */
  readonly #ownListeners = new Map<'newListener' | 'removeListener', (name: unknown) => void>()
  /**
   * The channels that are open now.
   *
   * @internal
   */
  protected readonly openChannels = new Set<Channel<In, Out>>()
  /** Channels that the program has received. */
  readonly #handedOut = new WeakSet<Channel<In, Out>>()
  /** Sums over the channels that have ended. */
  readonly #endedSums = zeroStats()
  /**
   * No more channels will be made.
   *
   * @internal
   */
  protected stopped = false

  /**
   * @param message - The error message if the key is not {@link KEY}.
   * @param keepsAll - Whether the queue drops no channel even before the first loop.
   * @internal
   */
  protected constructor(key: symbol, message: string, parts: AcceptorParts<NativeAcceptor>, keepsAll: boolean) {
    if (key !== KEY) throw invalid(message)
    const { address, native, opening } = parts
    super(address, native, opening)
    this.#native = native
    this.#settings = opening.settings
    this.acceptQueue = new AcceptQueue(
      keepsAll,
      (paused) => native.pause(paused ? 1 : 0),
      (channel) => this.watchDisconnect(channel),
    )
  }

  /**
   * The binding's next event: a channel, a refusal, 0 if there is none, or `FAILED` if an error has ended the endpoint.
   *
   * @internal
   */
  protected abstract next(): RawChannel | Failure | number

  /**
   * Called for each new channel, after it was added to {@link openChannels}.
   *
   * @internal
   */
  protected admitted(_channel: Channel<In, Out>): void {}

  /**
   * Called when an error has ended the endpoint.
   *
   * @internal
   */
  protected abstract failed(error: RingfenceError): void

  /** Yields a channel for each peer. Several loops share the channels, and leaving one closes nothing. */
  [Symbol.asyncIterator](): AsyncIterator<Channel<In, Out>, undefined> {
    return this.acceptQueue.iterator()
  }

  /** The peers so far, and the sums over all of their channels. After the end, the last figures remain. */
  stats(): ListenerStats {
    const sums = { ...this.#endedSums }
    for (const channel of this.openChannels) addStats(sums, channel.stats())
    return { ...this.counts.stats(this.openChannels.size), ...sums }
  }

  /** Like that of every emitter, but keeps the listeners that this object itself has added. */
  override removeAllListeners(...name: Parameters<EventEmitter<Events>['removeAllListeners']>): this {
    super.removeAllListeners(...name)
    for (const [event, listener] of this.#ownListeners) this.#addOwnListener(event, listener)
    return this
  }

  /**
   * Calls `listener` for each listener that is added or removed, depending on `event`, even after `removeAllListeners`.
   *
   * @internal
   */
  protected onListenerChange(event: 'newListener' | 'removeListener', listener: (name: unknown) => void): void {
    this.#ownListeners.set(event, listener)
    this.#addOwnListener(event, listener)
  }

  #addOwnListener(event: string, listener: (name: unknown) => void): void {
    const emitter = this as EventEmitter
    if (!emitter.listeners(event).includes(listener)) emitter.on(event, listener)
  }

  /** @internal */
  protected override handleEvent(): boolean {
    if (this.stopped) return false
    const event = this.next()
    if (event === FAILED) {
      const error = this.errorOf(this.#native.failure())
      // A member that reconnected as a guest was refused.
      if (error.code === 'ERR_RINGFENCE_PEER_REFUSED') reportRefused(this.address, error)
      this.failed(error)
      return false
    }
    if (typeof event === 'number') return false
    if ('role' in event) this.#admit(event)
    else this.reportRefusal(event)
    return true
  }

  #admit(raw: RawChannel): void {
    const channel = openIncoming(raw, this.#settings, this.address)
    if (!(channel instanceof Channel)) {
      this.reportRefusal(channel)
      return
    }
    // A subscriber of a diagnostics channel may just have closed this endpoint.
    if (this.stopped) {
      void channel.close()
      return
    }
    // Before any event: a listener may call `close`, which must find this channel.
    this.#count(channel)
    this.acceptQueue.add(channel)
    this.admitted(channel)
  }

  #count(channel: Channel<In, Out>): void {
    this.counts.accepted += 1
    this.openChannels.add(channel)
    void channel.closed.then(() => {
      this.openChannels.delete(channel)
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
   * Emits 'disconnect' once the channel has ended. Called when the program has received the channel.
   *
   * @internal
   */
  protected watchDisconnect(channel: Channel<In, Out>): void {
    if (this.#handedOut.has(channel)) return
    this.#handedOut.add(channel)
    void channel.closed.then((closed) => this.notify('disconnect', ...([channel, closed] as Events['disconnect'])))
  }

  /**
   * Ends the loops: no more channels will be made. With an error, a loop fails with it.
   *
   * @internal
   */
  protected stop(error?: RingfenceError): void {
    if (this.stopped) return
    this.stopped = true
    this.release()
    if (error !== undefined) this.acceptQueue.fail(error)
    this.acceptQueue.end()
  }

  /**
   * Ends the loops and the resource.
   *
   * @internal
   */
  protected finish(closed: Closed): void {
    this.stop(closed.error)
    this.settle(closed)
  }
}

/** Runs the call that makes an acceptor. */
export function openAcceptor<Name extends 'listen' | 'member', Made extends AsyncDisposable>(
  name: Name,
  address: string,
  options: Options,
  make: (parts: AcceptorParts<Endpoints[Name]>) => Made,
): Promise<Made> {
  return runHandshakeAt(name, address, options, (native, opening) => make({ address, native, opening }))
}
