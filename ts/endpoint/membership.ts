import { prepareClose, type Channel } from '../channel/channel.js'
import { Acceptor } from './acceptor.js'
import type { EndpointEvents } from './endpoint.js'
import { runHandshakeAt, type Opening } from './handshake.js'
import { lingerOf } from './options.js'
import { tryPromise } from '../runtime/deferred.js'
import * as internal from '../runtime/symbols.js'
import { timers } from '../runtime/timers.js'
import { closedByDestroy } from '../channel/resource.js'
import type { Codec } from '../adapters/codec.js'
import { KEY, type RingfenceError } from '../errors.js'
import type { Failure, NativeMembership, RawChannel } from '../native.js'
import type { Closed, MemberOptions, Message, MessageInput } from '../types.js'

// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
let make: (native: NativeMembership, opening: Opening) => Membership<any, any>

/** The events of a {@link Membership}. */
export interface MembershipEvents<Peer> extends EndpointEvents<Peer> {
  /** The host has left, and this process, formerly its guest, is now the host. */
  role: [role: 'host' | 'guest']
}

/**
 * A place at an address, kept while partners connect and disconnect.
 *
 * `for await (const channel of membership)` yields a channel for each partner, one after the other. Leaving the loop closes nothing,
 * and several loops share the channels. The event `connection` is emitted for each channel, too, after the `disconnect` of the one before.
 * A channel ends like any other: what the partner sent before can still be read while the next partner connects. A process that closes
 * only the channel keeps its place, and so does the partner.
 *
 * The channel also keeps the process alive, and has its own `unref`.
 *
 * Before the first loop, the last 16 channels are kept for it. From then on no channel is dropped: once 16 channels wait for a loop,
 * further partners wait at the address.
 *
 * @example
 * ```js
 * const membership = await member('/run/me/meet')
 * for await (const channel of membership) for await (const message of channel) console.log(String(message))
 * ```
 */
export class Membership<In = Message, Out = MessageInput> extends Acceptor<
  In,
  Out,
  MembershipEvents<Channel<In, Out>>
> {
  readonly #native: NativeMembership
  #role: 'host' | 'guest'
  #channel: Channel<In, Out> | undefined
  #closing: Promise<void> | null = null
  /** The channel that 'connection' was emitted for, until 'disconnect' was. */
  #announced: Channel<In, Out> | undefined
  /** The channels whose 'connection' is still to be emitted. */
  readonly #unannounced: Channel<In, Out>[] = []
  /** Events to emit once the caller of `member` can add listeners; null afterwards. */
  #deferredEvents: (() => void)[] | null = []

  static {
    // The signal has no effect on the membership.
    make = (native, opening) => new Membership(KEY, native, { ...opening, signal: undefined })
  }

  private constructor(key: symbol, native: NativeMembership, opening: Opening) {
    // Leaves the address even if there is a partner. If the partner exits at the same moment, it relies on this process to remove the files,
    // and otherwise neither would.
    super(key, 'memberships are made by member', native, opening, false, () => native.vacate())
    this.#native = native
    this.#role = native.role
    // A guest starts with a channel. The caller of `member` can add listeners only one turn later: hold events back until then.
    this[internal.poll]()
    timers.setImmediate(() => {
      const events = this.#deferredEvents!
      this.#deferredEvents = null
      for (const emitEvent of events) emitEvent()
    })
  }

  /** The current role of this process. */
  get role(): 'host' | 'guest' {
    return this.#role
  }

  /** The channel with the partner, if there is one at present. */
  get channel(): Channel<In, Out> | undefined {
    return this.#channel
  }

  /**
   * Closes the channel, and hands the address to the partner, if there is one. The last member to leave removes the file at the address.
   * Loops over the membership end.
   *
   * @example
   * ```js
   * await membership.close({ linger: 5000 })
   * ```
   *
   * @param options.linger - Milliseconds for which what was sent may be flushed, 1000 by default.
   * @returns A promise that resolves once everything is released and the partner has taken the address over. If the partner does not
   * answer because its process is stopped, it resolves after the time limit of a handshake, and the partner owns the address once it
   * continues. Rejects with INVALID_ARGUMENT for wrong options.
   */
  close(options: { linger?: number | undefined } = {}): Promise<void> {
    return tryPromise(() => {
      const linger = lingerOf(options)
      return (this.#closing ??= this.#close(linger))
    })
  }

  async #close(linger: number): Promise<void> {
    if (this[internal.ended] !== null) return
    const prepared = this.#channel && (await prepareClose(this.#channel, linger))
    if (this[internal.ended] !== null) return
    const flushed = prepared === undefined || prepared.flushed
    await new Promise<void>((resolve) => {
      if (this.#native.leave(() => resolve(), flushed ? 1 : 0) === 0) resolve()
    })
    prepared?.finish()
    if (this[internal.ended] !== null) return
    this[internal.acceptQueue].removeUnclaimed()
    this.#finish({ reason: 'closed' })
  }

  /** Leaves the address, and destroys the channel. Does not wait until the partner has taken the address over. */
  destroy(error?: Error): void {
    if (this[internal.ended] !== null) return
    for (const channel of this[internal.openChannels]) channel.destroy()
    this.#native.close()
    this[internal.acceptQueue].removeUnclaimed()
    this.#finish(closedByDestroy(error))
  }

  /** @internal */
  protected override [internal.next](): RawChannel | Failure | number {
    for (;;) {
      const event = this.#native.next()
      if (typeof event !== 'string') return event
      this.#role = event
      this[internal.notify]('role', event)
    }
  }

  /** @internal */
  protected override [internal.admitted](channel: Channel<In, Out>): void {
    this.#channel = channel
    void channel.closed.then(() => {
      if (this.#channel === channel) this.#channel = undefined
    })
    this.#unannounced.push(channel)
    this.#announceNext()
  }

  /** The binding may report a partner before the end of the last one. A program expects 'disconnect' first. */
  #announceNext(): void {
    if (this.#announced !== undefined || this[internal.acceptQueue].hasEnded) return
    const channel = this.#unannounced.shift()
    if (channel === undefined) return
    this.#announced = channel
    this[internal.notify]('connection', channel)
    void channel.closed.then((closed) => {
      this[internal.notify]('disconnect', channel, closed)
      this.#announced = undefined
      this.#announceNext()
    })
  }

  /**
   * The membership was lost. Loops still get the queued channels.
   *
   * @internal
   */
  protected override [internal.failed](error: RingfenceError): void {
    this.#native.close()
    this.#finish({ reason: 'failed', error })
  }

  #finish(closed: Closed): void {
    this[internal.stop](closed.error)
    this[internal.settle](closed)
  }

  /** @internal */
  protected override [internal.notify]<Name extends keyof MembershipEvents<Channel<In, Out>>>(
    name: Name,
    ...args: MembershipEvents<Channel<In, Out>>[Name]
  ): void {
    const emitEvent = () => super[internal.notify](name, ...args)
    if (this.#deferredEvents === null) emitEvent()
    else this.#deferredEvents.push(emitEvent)
  }

  /** @internal */
  protected override [internal.summary](): string[] {
    return [this.#role, ...(this.#channel === undefined ? [] : [`peer ${this.#channel.peer.pid}`])]
  }
}

/**
 * Takes a place at an address, and keeps it while partners connect and disconnect. Two processes hold an address, as with {@link join}:
 * the first is the host, the second its guest, and they share a channel. When the guest disconnects, the host accepts the next one. When
 * the host leaves, by {@link Membership.close} or by its exit, the guest becomes the host at once and accepts the next guest. No other
 * process can take the address in between.
 *
 * Resolves once this process holds a place: immediately for a host, with the channel for a guest. If two processes hold the address, the
 * call rejects with ADDRESS_OCCUPIED, or waits for a place with the option `wait`. The signal aborts only that wait, and has no effect on
 * the membership. Members connect only to members: `join` and `connect` at this address fail with PROTOCOL.
 *
 * An accepted guest receives the listening socket and, for a path, the lock file. A hostile guest can block the address for others, but
 * cannot take the identity of another process.
 *
 * With the option `codec`, the messages of all channels are values.
 *
 * @example
 * ```js
 * const membership = await member('/run/me/meet', { codec: json() })
 * membership.on('connection', (channel) => channel.send({ from: process.pid }))
 * membership.on('role', (role) => console.log(`this process is the ${role} now`))
 * ```
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link join}
 */
export function member<T>(address: string, options: MemberOptions & { codec: Codec<T> }): Promise<Membership<T, T>>
export function member(address: string, options?: MemberOptions): Promise<Membership>
export function member(address: string, options: MemberOptions = {}): Promise<Membership> {
  return runHandshakeAt('member', address, options, make)
}
