import type { Codec } from '../adapters/codec.js'
import { openChannel, type Channel } from '../channel/channel.js'
import { Endpoint, KEY, openEndpoint, type EndpointEvents, type EndpointParts } from './endpoint.js'
import { invalid, show, type RingfenceError } from '../errors.js'
import { destroyedBy } from '../channel/resource.js'
import { runHandshakeAt } from './handshake.js'
import { letEnd, makeHeld, type Merge } from '../channel/merge.js'
import type { Failure, NativeListener, RawChannel } from '../native.js'
import { lingerOf, plainObject } from './options.js'
import { timers } from '../runtime/timers.js'
import type { Closed, ConnectOptions, ListenOptions } from '../types.js'

let make: (parts: EndpointParts<NativeListener>) => Listener

const toListeners = () => "the channels of this listener go to its listeners of 'connection': no loop gets one"
const toMessages = () => 'messages() reads the channels of this listener: neither a loop nor a listener gets one'

/**
 * A service at its address.
 *
 * `for await (const channel of listener)` yields a channel for each client. Leaving the loop does not close the listener, and several
 * loops share the channels. The other way to get them is the event `connection`: it is emitted for each channel, also for those that
 * connected before the first listener of this event, and as long as there is one, a loop over the listener is INVALID_ARGUMENT.
 *
 * The event `refused` reports each client that got no channel: PEER_REFUSED with `check`, `wanted` and `found`, HANDSHAKE_TIMEOUT,
 * PROTOCOL, PEER_LOST, ADDRESS_OCCUPIED if the service is full, or a local error such as NO_SPACE.
 *
 * The queue is bounded: once 16 channels wait for a loop, further clients wait at the address, and fail there at their own time
 * limit. Up to 64 handshakes that are already under way still end in channels.
 *
 * @example
 * ```js
 * const listener = await listen('/run/me/service')
 * listener.on('connection', async (channel) => {
 *   for await (const message of channel) await channel.send(message)
 * })
 * ```
 */
export class Listener extends Endpoint<EndpointEvents<Channel>> {
  readonly #native: NativeListener
  readonly #signal: AbortSignal | undefined
  readonly #abort = () => void this.close()
  /** Reads from all channels, where `messages` was called. */
  #merged: Merge<Channel> | null = null

  static {
    make = (parts) => new Listener(KEY, parts)
  }

  private constructor(key: symbol, parts: EndpointParts<NativeListener>) {
    super(key, 'listeners are made by listen', parts, true)
    this.#native = parts.native
    this.#signal = parts.opening.signal
    this.#signal?.addEventListener('abort', this.#abort, { once: true })
    // Told before the listener is there, which an error keeps it from.
    this.hearOf('newListener', (name) => {
      if (name === 'connection' && this.#merged !== null) throw invalid(toMessages())
      if (name === 'connection') timers.queueMicrotask(() => this.#divert())
    })
    this.hearOf('removeListener', (name) => {
      if (name === 'connection' && this.listenerCount('connection') === 0) this.setTaker(null)
    })
  }

  /** The channels that are open now, also those that no loop has taken yet, in the order in which they were made. */
  get channels(): readonly Channel[] {
    return [...this.open]
  }

  /**
   * The messages of all agents, as they come, each with the channel that it is of: see {@link Merge}. It takes the channels that wait
   * for a loop and those that come from now on, so that a loop over the listener itself, or a listener of 'connection', is
   * INVALID_ARGUMENT from here on; an agent that ends leaves by itself, and `channel.closed` tells why. Calls share what comes, and
   * leaving a loop loses no message. It ends once the listener has closed and the last channel has ended; where the
   * listener has ended by itself, the first that comes to the end is told why.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT where a loop over the listener is under way, or there is a listener of
   * 'connection'.
   */
  messages(): AsyncIterable<[Channel, Buffer]> {
    const merged = (this.#merged ??= this.#mergeAll())
    return { [Symbol.asyncIterator]: () => merged[Symbol.asyncIterator]() }
  }

  #mergeAll(): Merge<Channel> {
    if (this.listenerCount('connection') > 0) throw invalid(toListeners())
    this.mustHaveNoLoop('a loop over this listener gets its channels: leave it before messages() is called')
    const merged = makeHeld()
    if (this.ended !== null) letEnd(merged, this.ended.error ?? null)
    else {
      this.setTaker({
        take: (channel) => void merged.add(channel),
        refusal: () => invalid(toMessages()),
      })
    }
    return merged
  }

  /**
   * Stops listening, and ends the loops over the listener. Handshakes under way break off.
   *
   * @param options.channels - 'keep' (the default) leaves the channels open that the program has; 'close' closes them. Channels that
   *   no loop has taken are closed in any case.
   * @param options.linger - Milliseconds for which the channels that are closed may flush what was sent.
   * @returns A promise that resolves once the address is free, and the closed channels have released everything.
   */
  async close(options: { channels?: 'keep' | 'close' | undefined; linger?: number | undefined } = {}): Promise<void> {
    plainObject('options', options, ['channels', 'linger'])
    const { channels = 'keep' } = options
    const linger = lingerOf({ linger: options.linger })
    if (channels !== 'keep' && channels !== 'close') {
      throw invalid(`channels must be 'keep' or 'close', not ${show(channels)}`)
    }
    const unclaimed = this.#end({ reason: 'closed' })
    // One that was not taken may have ended already, and keep what has come.
    const leaving = new Set(channels === 'close' ? [...unclaimed, ...this.open] : unclaimed)
    await Promise.all([...leaving].map((channel) => channel.close({ linger })))
  }

  /** Stops listening, and destroys all channels. */
  destroy(error?: Error): void {
    const unclaimed = this.#end(destroyedBy(error))
    for (const channel of new Set([...unclaimed, ...this.open])) void channel.close()
  }

  /** @internal */
  protected override next(): RawChannel | Failure | number {
    return this.#native.accept()
  }

  /** @internal */
  protected override failed(error: RingfenceError): void {
    for (const channel of this.#end({ reason: 'failed', error })) void channel.close()
  }

  /** @internal */
  protected override vacate(): void {
    this.#native.close()
  }

  /** @internal */
  protected override summary(): string[] {
    return [this.open.size === 1 ? '1 channel' : `${this.open.size} channels`]
  }

  /** Channels go to the listeners of 'connection', as long as there are any. */
  #divert(): void {
    if (this.listenerCount('connection') === 0) return
    this.setTaker({
      take: (channel) => this.tell('connection', channel),
      refusal: () => invalid(toListeners()),
    })
  }

  /** Returns the channels that no loop will take any more. */
  #end(closed: Closed): Channel[] {
    if (this.ended !== null) return []
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#native.close()
    const unclaimed = this.takeUnclaimed()
    if (this.#merged !== null) letEnd(this.#merged, closed.error ?? null)
    this.finish(closed)
    return unclaimed
  }
}

/**
 * Binds an address for a service. Agents connect there with {@link connect}, each gets a channel and memory of its own, and
 * what they have agreed on is that of {@link join}. Where another process has the address it rejects with ADDRESS_OCCUPIED, or
 * waits for it with the option `wait`; a socket that a dead service has left is taken over. The mode and the group of a path
 * are set before another process can reach it. Any process on this host may connect to an abstract name, or take it first.
 *
 * Handshakes run side by side, on threads of their own, each with the deadline of `handshakeTimeout`. The signal closes the
 * listener, as that of `net.Server` does: loops over it end.
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} INVALID_ARGUMENT, ADDRESS_INVALID, ADDRESS_OCCUPIED, NO_SPACE, TIMEOUT, UNSUPPORTED;
 * AbortError by the signal
 */
export function listen(address: string, options: ListenOptions = {}): Promise<Listener> {
  return openEndpoint('listen', address, options, make)
}

/**
 * Connects to the service at an address, which it never binds. A process may connect several times, and gets a channel
 * each time.
 *
 * Where no service listens it rejects with PEER_LOST, and where the service is full with ADDRESS_OCCUPIED; with the option
 * `wait` it waits for the service to come, and for a seat. What waiting does not solve is ADDRESS_INVALID: a directory
 * that is missing, a file that is no socket, a socket that this process may not connect to.
 *
 * At most 16 handshakes of one process with one address are under way at a time; the others wait for their turn, and
 * `handshakeTimeout` counts from there. A process cannot connect to a service of its own (ADDRESS_OCCUPIED).
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link join}
 */
export function connect<T>(address: string, options: ConnectOptions & { codec: Codec<T> }): Promise<Channel<T, T>>
export function connect(address: string, options?: ConnectOptions): Promise<Channel>
export function connect(address: string, options: ConnectOptions = {}): Promise<Channel> {
  return runHandshakeAt('connect', address, options, (raw, { settings }) => openChannel(raw, settings, address))
}
