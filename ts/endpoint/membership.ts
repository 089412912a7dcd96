import { depart, type Channel } from '../channel/channel.js'
import { Endpoint, KEY, openEndpoint, type EndpointEvents, type EndpointParts } from './endpoint.js'
import { timers } from '../runtime/timers.js'
import { destroyedBy } from '../channel/resource.js'
import type { RingfenceError } from '../errors.js'
import type { Failure, NativeMembership, RawChannel } from '../native.js'
import type { MemberOptions } from '../types.js'

let make: (parts: EndpointParts<NativeMembership>) => Membership

/** The events of a {@link Membership}. */
export interface MembershipEvents extends EndpointEvents<Channel> {
  /** The host has left, and this process, which was its guest, is the host now. */
  role: [role: 'host' | 'guest']
}

/**
 * A place at an address, kept while partners connect and disconnect.
 *
 * `for await (const channel of membership)` yields a channel for each partner, one after the other. Leaving the loop closes nothing,
 * and several loops share the channels. The event `connection` is emitted for each channel, too. A channel ends like any other: what
 * the partner sent before can still be read while the next partner connects. A process that closes only the channel keeps its place,
 * and so does the partner.
 *
 * The channel keeps the process alive as well, and has an `unref` of its own.
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
export class Membership extends Endpoint<MembershipEvents> {
  readonly #native: NativeMembership
  #role: 'host' | 'guest'
  #channel: Channel | undefined
  #closing: Promise<void> | null = null
  /** The first events; null once they were emitted. */
  #untold: (() => void)[] | null = []

  static {
    make = (parts) => new Membership(KEY, parts)
  }

  private constructor(key: symbol, parts: EndpointParts<NativeMembership>) {
    super(key, 'memberships are made by member', parts, false)
    this.#native = parts.native
    this.#role = parts.native.role
    // A guest starts with a channel. The caller of `member` can add listeners only a turn later: keep the first events until then.
    this.poll()
    timers.setImmediate(() => {
      const untold = this.#untold!
      this.#untold = null
      for (const say of untold) say()
    })
  }

  /** Which part this process has now. */
  get role(): 'host' | 'guest' {
    return this.#role
  }

  /** The channel with the partner, if there is one at present. */
  get channel(): Channel | undefined {
    return this.#channel
  }

  /**
   * Closes the channel, and leaves the address to the partner, if there is one. The last to leave removes the file at the address.
   * Loops over the membership end.
   *
   * @returns A promise that resolves once everything is released and the partner has taken the address over. If the partner does not
   * answer because its process is stopped, it resolves after the time limit of a handshake, and the partner owns the address once it
   * continues.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    if (this.ended !== null) return
    const closed = this.#channel === undefined ? undefined : depart(this.#channel)
    await new Promise<void>((resolve) => {
      if (this.#native.leave(() => resolve()) === 0) resolve()
    })
    closed?.()
    if (this.ended !== null) return
    this.takeUnclaimed()
    this.finish({ reason: 'closed' })
  }

  /** Leaves the address, and destroys the channel. Does not wait until the partner has taken the address over. */
  destroy(error?: Error): void {
    if (this.ended !== null) return
    void this.#channel?.close()
    this.#native.close()
    this.takeUnclaimed()
    this.finish(destroyedBy(error))
  }

  /** @internal */
  protected override next(): RawChannel | Failure | number {
    for (;;) {
      const event = this.#native.next()
      if (typeof event !== 'string') return event
      this.#role = event
      this.tell('role', event)
    }
  }

  /** @internal */
  protected override admitted(channel: Channel): void {
    this.#channel = channel
    void channel.closed.then(() => {
      if (this.#channel === channel) this.#channel = undefined
    })
    this.tell('connection', channel)
    this.follow(channel)
  }

  /**
   * The place was lost. What has come is still there to be taken.
   *
   * @internal
   */
  protected override failed(error: RingfenceError): void {
    this.#native.close()
    this.finish({ reason: 'failed', error })
  }

  /**
   * To a partner as well: one that ends in the same moment would count on this one, and both would leave the files there.
   *
   * @internal
   */
  protected override vacate(): void {
    this.#native.vacate()
  }

  /** @internal */
  protected override tell<Name extends keyof MembershipEvents>(name: Name, ...what: MembershipEvents[Name]): void {
    const say = () => super.tell(name, ...what)
    if (this.#untold === null) say()
    else this.#untold.push(say)
  }

  /** @internal */
  protected override summary(): string[] {
    return [this.#role, ...(this.#channel === undefined ? [] : [`peer ${this.#channel.peer.pid}`])]
  }
}

/**
 * Takes a place at an address, and keeps it while partners come and go. Two processes hold an address, as with {@link join}: the
 * first is the host, the second its guest, and they have a channel. When the guest goes, the host takes the next. When the host
 * goes, by {@link Membership.close} or by its death, the guest is the host from that moment on, and takes the next; no other
 * process can take the address in between.
 *
 * Resolves once a place is held: for a host at once, for a guest with the channel. Where two hold the address it rejects with
 * ADDRESS_OCCUPIED, or with the option `wait` waits for a place. The signal ends that waiting; the membership is not tied to
 * it. Members meet members alone: `join` and `connect` fail here with PROTOCOL, which says so.
 *
 * A guest that is let in gets the listening socket, and the lock beside a path. A hostile guest can keep others from the address;
 * it cannot take the identity of another process.
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link join}
 */
export function member(address: string, options: MemberOptions = {}): Promise<Membership> {
  return openEndpoint('member', address, options, make)
}
