// The base class of listeners and memberships: their events, the accept queue and its loops, and the end.

import type { EventEmitter } from 'node:events'

import { AcceptQueue, type Taker } from './accept-queue.js'
import type { Authorizer } from './authorize.js'
import { Channel, openArrived, whenRead } from '../channel/channel.js'
import { Resource, type ResourceEvents } from '../channel/resource.js'
import { tellRefused } from '../runtime/diagnostics.js'
import { type RingfenceError, fromFailure, invalid } from '../errors.js'
import { atExit } from '../runtime/exit.js'
import { runHandshakeAt, type Opening } from './handshake.js'
import { FAILED, type Endpoints, type Failure, type NativeAcceptor, type RawChannel } from '../native.js'
import type { ChannelSettings } from './options.js'
import { Pump } from '../runtime/pump.js'
import { PeerCounts, Sums, ofEnded, type ListenerStats } from '../channel/stats.js'
import type { Closed, Options } from '../types.js'

/** Only this package makes endpoints. */
export const KEY = Symbol('ringfence')

/** The constructor arguments of an endpoint. */
export interface EndpointParts<Native extends NativeAcceptor> {
  address: string
  native: Native
  opening: Opening
}

/** The events of everything that peers connect to. */
export interface EndpointEvents<Peer> extends ResourceEvents {
  /** A peer has connected. */
  connection: [peer: Peer]
  /**
   * A peer whose channel the program has received has disconnected, or this side has closed the channel. It precedes `close`, unless the
   * channel stays open beyond the end of the endpoint.
   */
  disconnect: [peer: Peer, closed: Closed]
  /** A process was refused, or failed in its handshake. The error has its `identity`, as far as that is known. */
  refused: [error: RingfenceError]
}

export abstract class Endpoint<
  In,
  Out,
  Events extends EndpointEvents<Channel<In, Out>> & Record<keyof Events, unknown[]>,
>
  extends Resource<Events>
  implements AsyncIterable<Channel<In, Out>>
{
  declare readonly address: string

  readonly #native: NativeAcceptor
  readonly #authorizer: Authorizer | undefined
  readonly #settings: ChannelSettings
  readonly #acceptQueue: AcceptQueue<Channel<In, Out>>
  /** This class's own listeners. `removeAllListeners` must remove only the program's. */
  readonly #hearing = new Map<'newListener' | 'removeListener', (name: unknown) => void>()
  readonly #open = new Set<Channel<In, Out>>()
  /** Channels that the program has received. */
  readonly #followed = new WeakSet<Channel<In, Out>>()
  readonly #counts = new PeerCounts()
  /** Sums over the channels that have ended. */
  readonly #past = new Sums()
  /** Cancels the work registered for the exit of the process. */
  readonly #stay: () => void
  #stopped = false
  /**
   * Handles the events of the binding.
   *
   * @internal
   */
  protected readonly poll = new Pump(() => this.#handle()).run

  /**
   * @param made - The error message if the key is not {@link KEY}.
   * @param keepsAll - Whether the queue drops no channel even before the first loop.
   * @internal
   */
  protected constructor(key: symbol, made: string, parts: EndpointParts<NativeAcceptor>, keepsAll: boolean) {
    if (key !== KEY) throw invalid(made)
    const { address, native, opening } = parts
    super(address)
    this.#native = native
    this.#authorizer = opening.authorizer
    this.#settings = opening.settings
    this.#acceptQueue = new AcceptQueue(
      keepsAll,
      (paused) => native.pause(paused ? 1 : 0),
      (channel) => this.follow(channel),
    )
    if (native.watch(this.poll) === FAILED) throw fromFailure(native.failure())
    this.#stay = atExit(address, () => this.vacate())
  }

  /**
   * The binding's next event: a channel, a refusal, 0 if there is none, or `FAILED` if an error has ended the endpoint.
   *
   * @internal
   */
  protected abstract next(): RawChannel | Failure | number

  /**
   * Called for each new channel, after it was added to {@link open}.
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

  /**
   * Frees the address as the process exits.
   *
   * @internal
   */
  protected abstract vacate(): void

  /** Yields a channel for each peer. Several loops share the channels, and leaving one closes nothing. */
  [Symbol.asyncIterator](): AsyncIterator<Channel<In, Out>, undefined> {
    return this.#acceptQueue.iterator()
  }

  /** The peers so far, and the sums over all of their channels. After the end, the last figures remain. */
  stats(): ListenerStats {
    const sums = new Sums().add(this.#past.sums)
    for (const channel of this.#open) sums.add(channel.stats())
    return { ...this.#counts.stats(this.#open.size), ...sums.sums }
  }

  /** Keeps the process alive while the endpoint is open, which is the default. */
  ref(): this {
    this.#native.keepAlive(1)
    return this
  }

  /** Lets the process exit while the endpoint is open. */
  unref(): this {
    this.#native.keepAlive(0)
    return this
  }

  /** Like that of every emitter, but keeps the listeners that this object itself has added. */
  override removeAllListeners(...name: Parameters<EventEmitter<Events>['removeAllListeners']>): this {
    super.removeAllListeners(...name)
    for (const [event, hear] of this.#hearing) this.#listen(event, hear)
    return this
  }

  /**
   * Calls `hear` for each listener that is added or removed, depending on `event`, even after `removeAllListeners`.
   *
   * @internal
   */
  protected hearOf(event: 'newListener' | 'removeListener', hear: (name: unknown) => void): void {
    this.#hearing.set(event, hear)
    this.#listen(event, hear)
  }

  #listen(event: string, hear: (name: unknown) => void): void {
    const emitter = this as EventEmitter
    if (!emitter.listeners(event).includes(hear)) emitter.on(event, hear)
  }

  /**
   * The channels that are open now.
   *
   * @internal
   */
  protected get open(): ReadonlySet<Channel<In, Out>> {
    return this.#open
  }

  /** Handles one event of the binding. */
  #handle(): boolean {
    if (this.#stopped) return false
    const event = this.next()
    if (event === FAILED) {
      const failure = this.#native.failure()
      const error = fromFailure(failure, this.#authorizer?.causeOf(failure))
      // A member that reconnected as a guest was refused.
      if (error.code === 'ERR_RINGFENCE_PEER_REFUSED') tellRefused(this.address, error)
      this.failed(error)
      return false
    }
    if (typeof event === 'number') return false
    if ('role' in event) this.#admit(event)
    else this.#refuse(event)
    return true
  }

  #admit(raw: RawChannel): void {
    const channel = openArrived(raw, this.#settings, this.address)
    if (!(channel instanceof Channel)) {
      this.#refuse(channel)
      return
    }
    // A subscriber of a diagnostics channel may just have closed this endpoint.
    if (this.#stopped) {
      void channel.close()
      return
    }
    // Before any event: a listener may call `close`, which must find this channel.
    this.#count(channel)
    this.#acceptQueue.add(channel)
    this.admitted(channel)
  }

  #count(channel: Channel<In, Out>): void {
    this.#counts.accepted += 1
    this.#open.add(channel)
    void channel.closed.then(() => {
      this.#open.delete(channel)
      const atEnd = channel.stats()
      this.#past.add(ofEnded(atEnd))
      // The peer's unread messages are still read after the end.
      whenRead(channel, () => this.#past.addRest(atEnd, channel.stats()))
    })
  }

  #refuse(failure: Failure): void {
    const error = fromFailure(failure, this.#authorizer?.causeOf(failure))
    this.#counts.refuse(error)
    tellRefused(this.address, error)
    this.#tellOwn('refused', error)
  }

  /**
   * Emits 'disconnect' once the channel has ended. Called when the program has received the channel.
   *
   * @internal
   */
  protected follow(channel: Channel<In, Out>): void {
    if (this.#followed.has(channel)) return
    this.#followed.add(channel)
    void channel.closed.then((closed) => this.#tellOwn('disconnect', channel, closed))
  }

  #tellOwn<Name extends keyof EndpointEvents<Channel<In, Out>>>(
    name: Name,
    ...what: EndpointEvents<Channel<In, Out>>[Name]
  ): void {
    this.tell(name, ...(what as Events[Name]))
  }

  /**
   * Hands the channels to the taker instead of the loops.
   *
   * @internal
   */
  protected setTaker(taker: Taker<Channel<In, Out>> | null): void {
    this.#acceptQueue.setTaker(taker)
  }

  /**
   * @throws {@link RingfenceError} INVALID_ARGUMENT, with this reason, if a loop over this endpoint is in progress.
   * @internal
   */
  protected mustHaveNoLoop(why: string): void {
    if (this.#acceptQueue.hasLoop) throw invalid(why)
  }

  /**
   * Removes and returns the channels that no loop has taken.
   *
   * @internal
   */
  protected takeUnclaimed(): Channel<In, Out>[] {
    return this.#acceptQueue.discard()
  }

  /**
   * Whether no more channels will be made.
   *
   * @internal
   */
  protected get stopped(): boolean {
    return this.#stopped
  }

  /**
   * Ends the loops: no more channels will be made. With an error, a loop fails with it.
   *
   * @internal
   */
  protected stop(error?: RingfenceError): void {
    if (this.#stopped) return
    this.#stopped = true
    this.#stay()
    if (error !== undefined) this.#acceptQueue.fail(error)
    this.#acceptQueue.end()
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

/** Runs the call that makes an endpoint. */
export function openEndpoint<Name extends 'listen' | 'member', Made extends AsyncDisposable>(
  name: Name,
  address: string,
  options: Options,
  make: (parts: EndpointParts<Endpoints[Name]>) => Made,
): Promise<Made> {
  return runHandshakeAt(name, address, options, (native, opening) => make({ address, native, opening }))
}
