import type { EventEmitter } from 'node:events'

import type { Codec } from '../adapters/codec.js'
import { openChannel, type Channel } from '../channel/channel.js'
import { Acceptor } from './acceptor.js'
import type { EndpointEvents } from './endpoint.js'
import { KEY, invalid, type RingfenceError } from '../errors.js'
import { closedByDestroy, counted } from '../channel/resource.js'
import { runHandshakeAt, type Opening } from './handshake.js'
import { allowEnd, makePersistent, type Merge } from '../channel/merge.js'
import type { Failure, NativeListener, RawChannel } from '../native.js'
import { lingerOf, oneOf, plainObject } from './options.js'
import * as internal from '../runtime/symbols.js'
import { timers } from '../runtime/timers.js'
import type { ConnectOptions, ListenOptions, Message, MessageInput } from '../types.js'

// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
let make: (native: NativeListener, opening: Opening) => Listener<any, any>

const CONNECTION_IN_USE =
  "the listeners of 'connection' get the channels of this listener: remove them to use a loop or messages()"
const MESSAGES_IN_USE =
  "messages() reads the channels of this listener: close it to use a loop or a listener of 'connection'"

/**
 * A service at its address.
 *
 * `for await (const channel of listener)` yields a channel for each client. Leaving the loop does not close the listener, and several
 * loops share the channels. The event `connection` is the alternative. It is emitted for each channel, including those that connected
 * before the first listener of the event. As long as the event has a listener, a loop over this object fails with INVALID_ARGUMENT.
 *
 * The event `refused` reports each client that got no channel: PEER_REFUSED with `check`, `wanted` and `found`, HANDSHAKE_TIMEOUT,
 * PROTOCOL, PEER_LOST, ADDRESS_OCCUPIED if the service is full, or a local error such as NO_SPACE.
 *
 * The queue is bounded: once 16 channels wait for a loop, further clients wait at the address until their own timeout. Up to 64
 * handshakes that are already in progress still result in channels.
 *
 * @example
 * ```js
 * const listener = await listen('/run/me/service')
 * listener.on('connection', async (channel) => {
 *   for await (const message of channel) await channel.send(message)
 * })
 * ```
 */
export class Listener<In = Message, Out = MessageInput> extends Acceptor<In, Out, EndpointEvents<Channel<In, Out>>> {
  readonly #native: NativeListener
  /** Reads from all channels, once `messages` was called. */
  #merged: Merge<Channel<In, Out>, In> | null = null
  /** Settles once all channels that calls of `close` are closing are closed. */
  #closing: Promise<unknown> | null = null
  /** This class's own listeners. `removeAllListeners` must remove only the program's. */
  readonly #ownListeners = {
    // 'newListener' is emitted before the listener is added, so that an error prevents the addition.
    newListener: (name: unknown) => {
      if (name === 'connection' && this.#merged !== null) throw invalid(MESSAGES_IN_USE)
      if (name === 'connection') timers.queueMicrotask(() => this.#deliverToListeners())
    },
    removeListener: (name: unknown) => {
      if (name === 'connection' && this.listenerCount('connection') === 0) this[internal.acceptQueue].setConsumer(null)
    },
  }

  static {
    make = (native, opening) => new Listener(KEY, native, opening)
  }

  private constructor(key: symbol, native: NativeListener, opening: Opening) {
    super(key, 'listeners are made by listen', native, opening, true, () => native.close())
    this.#native = native
    this.#addOwnListeners()
  }

  #addOwnListeners(): void {
    const emitter = this as EventEmitter
    for (const [event, listener] of Object.entries(this.#ownListeners))
      if (!emitter.listeners(event).includes(listener)) emitter.on(event, listener)
  }

  /** Like that of every emitter, but keeps the listeners that this object itself has added. */
  override removeAllListeners(
    ...name: Parameters<EventEmitter<EndpointEvents<Channel<In, Out>>>['removeAllListeners']>
  ): this {
    super.removeAllListeners(...name)
    this.#addOwnListeners()
    return this
  }

  /** The open channels in the order in which they were made, including those that no loop has taken yet. */
  get channels(): readonly Channel<In, Out>[] {
    return [...this[internal.openChannels]]
  }

  /**
   * The messages of all clients as they arrive, each with its channel: see {@link Merge}.
   *
   * The merge takes the queued channels and all later ones. While it is open, a loop over the listener itself or a listener of
   * 'connection' is INVALID_ARGUMENT. Several calls return the same merge, and leaving a loop over it loses no message. The merge ends once
   * the listener has closed and the last channel has ended. If an error has ended the listener, the first call that reaches the end of the
   * merge rejects with it. If the program closes the merge, its channels stay open, and later ones go to loops or 'connection' again.
   *
   * @example
   * ```js
   * for await (const [channel, message] of listener.messages()) await channel.send(`thanks for ${message}`)
   * ```
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if a loop over the listener is in progress, or 'connection' has a listener.
   */
  messages(): Merge<Channel<In, Out>, In> {
    return (this.#merged ??= this.#makeMerge())
  }

  #makeMerge(): Merge<Channel<In, Out>, In> {
    if (this.listenerCount('connection') > 0) throw invalid(CONNECTION_IN_USE)
    if (this[internal.acceptQueue].hasLoop)
      throw invalid('a loop over this listener gets its channels: leave it before messages() is called')
    const merged: Merge<Channel<In, Out>, In> = makePersistent(() => {
      this.#merged = null
      this[internal.acceptQueue].setConsumer(null)
    })
    if (this[internal.acceptQueue].hasEnded) allowEnd(merged, this[internal.ended]?.error ?? null)
    else {
      this[internal.acceptQueue].setConsumer({
        accept: (channel) => void merged.add(channel),
        refusal: () => invalid(MESSAGES_IN_USE),
      })
    }
    return merged
  }

  /**
   * Stops listening, and ends the loops over the listener. Handshakes in progress are aborted.
   *
   * @param options.channels - 'keep' (the default) leaves open the channels that the program has received; 'close' closes them. Channels
   *   that no loop has taken are closed in any case.
   * @param options.linger - Milliseconds for which closed channels may flush pending sends, 1,000 by default.
   * @example
   * ```js
   * await listener.close({ channels: 'close', linger: 5000 })
   * ```
   *
   * @returns A promise that resolves once the address is free, and the closed channels have released everything. Rejects with
   * INVALID_ARGUMENT for wrong options.
   */
  async close(options: { channels?: 'keep' | 'close' | undefined; linger?: number | undefined } = {}): Promise<void> {
    plainObject('options', options, ['channels', 'linger'])
    const { channels = 'keep' } = options
    const linger = lingerOf({ linger: options.linger })
    oneOf('channels', channels, ['keep', 'close'])
    const isFirst = !this[internal.acceptQueue].hasEnded
    const unclaimed = this.#stop()
    // A channel in the queue may have ended already, and still hold unread messages.
    const closing = new Set(channels === 'close' ? [...unclaimed, ...this[internal.openChannels]] : unclaimed)
    // A later call resolves no earlier than this one.
    this.#closing = Promise.all([this.#closing, ...[...closing].map((channel) => channel.close({ linger }))])
    await this.#closing
    if (isFirst) this[internal.settle]({ reason: 'closed' })
  }

  /** Stops listening, and destroys all channels. With an error, a loop over the listener, or over {@link Listener.messages}, fails with it. */
  destroy(error?: Error): void {
    const closed = closedByDestroy(error)
    const unclaimed = this.#stop(closed.error)
    for (const channel of new Set([...unclaimed, ...this[internal.openChannels]])) channel.destroy()
    this[internal.settle](closed)
  }

  /** @internal */
  protected override [internal.next](): RawChannel | Failure | number {
    return this.#native.accept()
  }

  /** @internal */
  protected override [internal.failed](error: RingfenceError): void {
    for (const channel of this.#stop(error)) void channel.close()
    this[internal.settle]({ reason: 'failed', error })
  }

  /** @internal */
  protected override [internal.handedOut](channel: Channel<In, Out>): void {
    void channel.closed.then((closed) => this[internal.notify]('disconnect', channel, closed))
  }

  /** @internal */
  protected override [internal.summary](): string[] {
    return [counted(this[internal.openChannels].size, 'channel')]
  }

  /** Hands channels to the listeners of 'connection' as long as there are any. */
  #deliverToListeners(): void {
    if (this.listenerCount('connection') === 0) return
    this[internal.acceptQueue].setConsumer({
      accept: (channel) => this[internal.notify]('connection', channel),
      refusal: () => invalid(CONNECTION_IN_USE),
    })
  }

  /** Stops listening. Returns the channels that no loop has taken. */
  #stop(error?: RingfenceError): Channel<In, Out>[] {
    if (this[internal.acceptQueue].hasEnded) return []
    this.#native.close()
    const unclaimed = this[internal.acceptQueue].removeUnclaimed()
    if (this.#merged !== null) allowEnd(this.#merged, error ?? null)
    this[internal.stop](error)
    return unclaimed
  }
}

/**
 * Binds an address for a service. Clients connect to it with {@link connect}. Each client gets its own channel and memory, with the same
 * guarantees as {@link join}.
 *
 * If another process has the address, the call rejects with ADDRESS_OCCUPIED, or waits for the address with the option `wait`. A socket
 * that a dead service has left behind is replaced. The mode and group of a path are set before another process can reach it. Any process
 * on this host may connect to an abstract name, or bind it first.
 *
 * Handshakes run concurrently, each on its own thread and with its own deadline of `handshakeTimeout`. The signal closes the listener, as
 * with `net.Server`, and loops over it end.
 *
 * With the option `codec`, the messages of all channels are values.
 *
 * @example
 * ```js
 * const listener = await listen('/run/me/service', { codec: json(), maxPeers: 100 })
 * for await (const [channel, request] of listener.messages()) await channel.send({ done: request })
 * ```
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} INVALID_ARGUMENT, ADDRESS_INVALID, ADDRESS_OCCUPIED, NO_SPACE, TIMEOUT, UNSUPPORTED;
 * AbortError by the signal
 */
export function listen<T>(address: string, options: ListenOptions & { codec: Codec<T> }): Promise<Listener<T, T>>
export function listen(address: string, options?: ListenOptions): Promise<Listener>
export function listen(address: string, options: ListenOptions = {}): Promise<Listener> {
  return runHandshakeAt('listen', address, options, make)
}

/**
 * Connects to the service at an address. Never binds the address. A process may connect several times, and gets a channel each time.
 *
 * If no service listens, the call rejects with PEER_LOST; if the service is full, with ADDRESS_OCCUPIED. With the option `wait` it waits
 * in both cases. Problems that waiting cannot solve are ADDRESS_INVALID: a missing directory, a file that is not a socket, a socket that
 * this process may not connect to.
 *
 * At most 16 handshakes of one process with one address run at a time. Others are queued, and their `handshakeTimeout` starts when they
 * leave the queue. A process cannot connect to its own service (ADDRESS_OCCUPIED).
 *
 * With the option `codec`, the messages are values.
 *
 * @example
 * ```js
 * const channel = await connect('/run/me/service', { codec: json(), wait: true, timeout: 10_000 })
 * await channel.send({ job: 'sweep' })
 * console.log(await channel.receive())
 * ```
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link join}
 */
export function connect<T>(address: string, options: ConnectOptions & { codec: Codec<T> }): Promise<Channel<T, T>>
export function connect(address: string, options?: ConnectOptions): Promise<Channel>
export function connect(address: string, options: ConnectOptions = {}): Promise<Channel> {
  return runHandshakeAt('connect', address, options, openChannel)
}
