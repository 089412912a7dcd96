import { depart, type Channel } from '../channel/channel.js'
import { Endpoint, KEY, openEndpoint, type EndpointParts } from './endpoint.js'
import { timers } from '../runtime/timers.js'
import type { RingfenceError } from '../errors.js'
import type { Failure, NativeMembership, RawChannel } from '../native.js'
import type { MemberOptions } from '../types.js'

let make: (parts: EndpointParts<NativeMembership>) => Membership

/**
 * The token that a host sends when it leaves. It is only a hint: the guest decides by the host's memory and the line. A program
 * may send other tokens with meanings of its own.
 */
export const LEAVING: bigint = Buffer.from('leaving\0').readBigUInt64LE()

/** What a {@link Membership} tells. */
export interface MembershipEvents {
  /** A partner has come; this is the channel with it. */
  channel: [channel: Channel]
  /** The role of this process has changed: the host has gone, and its guest is the host. */
  role: [role: 'host' | 'guest']
  /**
   * The partner has sent a token; {@link LEAVING} comes from a host that leaves. As long as there is a listener of this event, it
   * takes the tokens of all partners, and shares them with loops over `tokens()` of a channel.
   */
  token: [token: bigint]
  /** A process came and got no channel. The membership goes on. */
  refused: [refusal: RingfenceError]
  /** The place is left; or it was lost, and this is why. */
  close: [reason: RingfenceError | null]
}

/**
 * A place at an address, kept while partners come and go.
 *
 * `for await (const channel of membership)` yields a channel for each partner, one after the other; leaving the loop leaves
 * nothing else, and several loops share what comes. The event `channel` tells of each as well. A channel ends like any
 * other: what was sent before can still be read there, while the next partner comes. A process that closes a channel without
 * leaving keeps its place, and so does the partner.
 *
 * A membership keeps the process alive, as a `net.Server` does, until {@link Membership.unref}; so does its channel, which
 * has an `unref` of its own.
 *
 * What a listener of an event throws is an uncaught exception, as with any emitter, and keeps no later event from being told.
 *
 * Before the first loop, the last 16 channels are kept for it. From then on no channel is dropped: once 16 channels wait here
 * for a loop, newcomers wait at the address.
 */
export class Membership extends Endpoint<MembershipEvents> {
  readonly #native: NativeMembership
  #role: 'host' | 'guest'
  #channel: Channel | null = null
  /** Its tokens are told as events. */
  #listened: Channel | null = null
  /** The loops that tell them: one that has ended may have some left. */
  readonly #loops = new Set<AsyncIterator<bigint, undefined>>()
  #leaving: Promise<void> | null = null
  /** Events of the beginning; null once they are told. */
  #untold: (() => void)[] | null = []

  static {
    make = (parts) => new Membership(KEY, parts)
  }

  private constructor(key: symbol, parts: EndpointParts<NativeMembership>) {
    super(key, 'memberships are made by member', parts, false)
    this.#native = parts.native
    this.#role = parts.native.role
    this.hearOf('newListener', (name) => {
      if (name === 'token' && this.#channel !== null) void this.#tellTokens(this.#channel)
    })
    this.hearOf('removeListener', (name) => {
      if (name === 'token' && this.listenerCount('token') === 0) this.#leaveTokens()
    })
    // A guest comes with its channel. The caller of `member` hears of that as well: it has its listeners a turn later.
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

  /** The channel with the partner; null where there is none at present. */
  get channel(): Channel | null {
    return this.#channel
  }

  /**
   * Closes the channel, and hands the address over to the partner, if there is one: what was sent before is there to be read,
   * and sends that are still pending reject with CLOSED. The last to leave removes what is at the address. Loops over the
   * membership end.
   *
   * @returns A promise that resolves once everything is let go of: a partner has taken the address over by then. One that does
   * not answer (its process is stopped, say) is waited for as long as `timeout` says, and finds the address its own once it
   * goes on.
   */
  leave(): Promise<void> {
    this.#leaving ??= this.#leave()
    return this.#leaving
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.leave()
  }

  async #leave(): Promise<void> {
    if (this.isOver) return
    const closed = this.#channel === null ? undefined : depart(this.#channel)
    await new Promise<void>((resolve) => {
      if (this.#native.leave(() => resolve()) === 0) resolve()
    })
    closed?.()
    if (this.isOver) return
    this.takeUnclaimed()
    this.finish(null)
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
      if (this.#channel === channel) this.#channel = null
    })
    this.tell('channel', channel)
    if (this.listenerCount('token') > 0) void this.#tellTokens(channel)
  }

  /**
   * The place was lost. What has come is still there to be taken.
   *
   * @internal
   */
  protected override failed(error: RingfenceError): void {
    this.#native.close()
    this.finish(error)
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

  /** Tells the channel's tokens as events, as long as somebody listens; once for each channel. */
  async #tellTokens(channel: Channel): Promise<void> {
    if (this.#listened === channel) return
    this.#listened = channel
    const tokens = channel.tokens()[Symbol.asyncIterator]()
    this.#loops.add(tokens)
    try {
      for (;;) {
        const { value } = await tokens.next()
        if (value === undefined) return
        this.tell('token', value)
      }
    } catch (error) {
      this.tell('refused', error as RingfenceError)
    } finally {
      this.#loops.delete(tokens)
    }
  }

  /** What comes from now on is for others. */
  #leaveTokens(): void {
    for (const tokens of this.#loops) void tokens.return!()
    this.#listened = null
  }
}

/**
 * Takes a place at an address, and keeps it while partners come and go. Two processes hold an address, as with {@link join}: the
 * first is the host, the second its guest, and they have a channel. When the guest goes, the host takes the next. When the host
 * goes, by {@link Membership.leave} or by its death, the guest is the host from that moment on, and takes the next; no other
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
