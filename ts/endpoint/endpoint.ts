// The base class of everything that peers connect to: its address, its events, and the count of its peers.

import { Resource, type ResourceEvents } from '../channel/resource.js'
import { PeerCounts } from '../channel/stats.js'
import { type RingfenceError, fromFailure } from '../errors.js'
import { FAILED, type Failure, type NativeEndpoint } from '../native.js'
import { inThisContext } from '../runtime/context.js'
import { reportRefused } from '../runtime/diagnostics.js'
import { ignore } from '../runtime/deferred.js'
import { atExit } from '../runtime/exit.js'
import { makePump } from '../runtime/pump.js'
import * as internal from '../runtime/symbols.js'
import type { Closed } from '../types.js'
import type { Opening } from './handshake.js'

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
  Peer,
  Events extends EndpointEvents<Peer> & Record<keyof Events, unknown[]>,
> extends Resource<Events> {
  declare readonly address: string

  /** @internal */
  protected readonly [internal.counts] = new PeerCounts()
  /**
   * Handles the events of the binding.
   *
   * @internal
   */
  protected readonly [internal.poll] = makePump(() => this[internal.handleEvent]())
  readonly #native: NativeEndpoint
  readonly #opening: Opening | null
  readonly #onAbort = () => void this.close()
  /** Cancels the work registered for the exit of the process. */
  readonly #cancelExit: () => void

  /**
   * @param from - The call that has made the endpoint, which an abort of its signal closes; or the endpoint of which the new one is a view.
   * @param vacate - Frees the address as the process exits.
   * @internal
   */
  protected constructor(from: Opening | Resource<Events>, native: NativeEndpoint, vacate: () => void) {
    const opening = from instanceof Resource ? null : from
    super(from instanceof Resource ? from : from.address)
    this.#native = native
    this.#opening = opening
    // The channels that it makes belong to the same async context.
    if (opening !== null && native.watch(inThisContext(this[internal.poll])) === FAILED)
      throw fromFailure(native.failure())
    this.#cancelExit = opening === null ? ignore : atExit(this.address, vacate)
    opening?.signal?.addEventListener('abort', this.#onAbort, { once: true })
  }

  /**
   * Handles one event of the binding. Returns whether another one may follow.
   *
   * @internal
   */
  protected abstract [internal.handleEvent](): boolean

  /**
   * Reports a process that was refused.
   *
   * @internal
   */
  protected [internal.reportRefusal](failure: Failure): void {
    const error = this.#opening!.errorOf(failure)
    this[internal.counts].countRefusal(error)
    reportRefused(this.address, error)
    this[internal.notify]('refused', ...([error] as Events['refused']))
  }

  /**
   * Called once no more peers will be accepted.
   *
   * @internal
   */
  protected [internal.release](): void {
    this.#opening?.signal?.removeEventListener('abort', this.#onAbort)
    this.#cancelExit()
  }

  /** @internal */
  protected [internal.keepAlive](alive: boolean): void {
    this.#native.keepAlive(alive ? 1 : 0)
  }
}
