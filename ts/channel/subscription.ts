// One to many: the receiving side.

import { Readable } from 'node:stream'

import type { Codec } from '../adapters/codec.js'
import { trackOpen, openResources, reportSubscribed } from '../runtime/diagnostics.js'
import { KEY, RingfenceError, invalid } from '../errors.js'
import { runHandshakeAt, type ChannelSettings, type Opening } from '../endpoint/handshake.js'
import type { NativeSubscription } from '../native.js'
import { SourceCore } from './source-core.js'
import { Source } from './source.js'
import type { SubscriptionStats } from './stats.js'
import { Values } from './values.js'
import type { Closed, Delivery, Message, SubscribeOptions } from '../types.js'
import * as internal from '../runtime/symbols.js'
import { timers } from '../runtime/timers.js'

// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
type AnySubscription = Subscription<any>
let make: (native: NativeSubscription, opening: Opening) => AnySubscription

const closedError = () => new RingfenceError('CLOSED', 'the subscription is closed')
const refusedError = () =>
  new RingfenceError('CLOSED', 'the subscription was closed: its publisher no longer satisfies the policy')

class SubscriptionCore extends SourceCore {
  declare readonly native: NativeSubscription

  /** @param onEnd - Called once, when the subscription has ended. */
  constructor(native: NativeSubscription, settings: ChannelSettings, onEnd: (closed: Closed) => void) {
    super(native, settings, { closed: closedError, refused: refusedError }, onEnd)
    this.watch(() => this.checkLine())
  }

  async close(): Promise<void> {
    super.destroy()
  }

  override destroy(error?: Error): void {
    // The publisher finds a lost subscriber.
    if (!this.hasEnded()) this.native.close(1)
    super.destroy(error)
  }

  protected closedByPeer(): RingfenceError {
    return closedError()
  }

  handleEnd(): (() => RingfenceError) | null {
    // The reader that has found the end must return first.
    timers.queueMicrotask(() => this.checkLine())
    return this.lostErrorFactory()
  }
}

/**
 * The receiving half of a broadcast. It is read like a channel.
 *
 * `for await (const message of subscription)` yields messages until the publisher has ended. Leaving the loop neither closes the
 * subscription nor loses a message. `await using` closes it. An open subscription keeps the process alive until {@link Subscription.unref}.
 *
 * `closed` resolves when the subscription has ended, whichever side ended it, even if messages are unread. They can still be read, unless
 * the publisher has evicted this subscriber.
 */
export class Subscription<In = Message> extends Source<In> {
  declare readonly address: string
  /** The delivery mode. */
  readonly delivery: Delivery
  /** Bytes of the publisher's ring. */
  readonly capacity: number
  /** Bytes of the longest message that the publisher may send. */
  readonly maxMessageSize: number

  readonly #core: SubscriptionCore

  static {
    make = (native, { settings, address }) => {
      const core = new SubscriptionCore(native, settings, (closed) => {
        openResources.delete(subscription)
        subscription[internal.settle](closed)
      })
      const subscription: AnySubscription = new Subscription(KEY, address, core, settings.values)
      trackOpen(subscription)
      reportSubscribed(subscription, subscription.address, `a subscription (${subscription.delivery})`)
      return subscription
    }
  }

  /** @param from - The address, or the subscription of which the new one is a view. */
  private constructor(
    key: symbol,
    from: string | null | AnySubscription,
    core: SubscriptionCore,
    values: Values<unknown> | null,
  ) {
    if (key !== KEY) throw invalid('subscriptions are made by subscribe')
    super(from, core, values)
    const { native } = core
    this.#core = core
    this.delivery = native.delivery
    this.capacity = native.capacity
    this.maxMessageSize = native.maxMessageSize
  }

  /**
   * Messages that were published since the subscription began and will never be handed out. Counted when the next message is handed out.
   * Always 0 with delivery 'reliable'. The messages handed out and the lost ones add up to the increase of `sequence` since the start.
   */
  get lost(): bigint {
    return this.#core.native.lost(this.#core.buffer.unread)
  }

  /**
   * The number of the last message that was handed out, in the publisher's count, which starts at 1. Before the first message, the number
   * of the message after which the subscription began.
   */
  get sequence(): bigint {
    return this.#core.native.sequence(this.#core.buffer.unread)
  }

  /**
   * Counters of this subscription, and its lag. The visits of a `receiveEach` count when it returns. The last figures stay after the end.
   *
   * @example
   * ```js
   * const { lost, lag } = subscription.stats()
   * ```
   */
  stats(): SubscriptionStats {
    const figures = this.#core.native.stats()
    const { messages, bytes } = this.#core.buffer.received
    return {
      messagesReceived: messages,
      bytesReceived: bytes,
      lost: Number(this.lost),
      lag: figures[0]!,
      sleeps: figures[1]!,
      attachmentsReceived: figures[2]!,
    }
  }

  /**
   * Returns the same subscription with values as messages, decoded by the codec: see {@link Channel.with}.
   *
   * @example
   * ```js
   * for await (const price of subscription.with(json())) console.log(price)
   * ```
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if it is no codec
   */
  with<T>(codec: Codec<T>): Subscription<T> {
    return new Subscription<T>(KEY, this, this.#core, new Values(codec) as Values<unknown>)
  }

  /**
   * A Node stream in object mode with one chunk for each message. It ends and fails as `receive` does. Its end leaves the subscription open.
   *
   * @example
   * ```js
   * await pipeline(subscription.stream(), createWriteStream('log'))
   * ```
   */
  stream(): Readable {
    const stream = Readable.from(this, { highWaterMark: 1 })
    const { push } = stream
    // Destroying the stream ends its loop. Node would emit 'end' for that, and what was read would seem complete.
    stream.push = (message) => !stream.destroyed && push.call(stream, message)
    return stream
  }

  /**
   * Closes the subscription and drops unread messages. Reads that wait end normally. Resolves once everything is released.
   *
   * @example
   * ```js
   * await subscription.close()
   * ```
   */
  override close(options?: { linger?: number | undefined }): Promise<void> {
    return super.close(options)
  }

  /** @internal */
  protected override [internal.summary](): string[] {
    return [this.delivery, `peer ${this.peer.pid}`]
  }
}

/**
 * Subscribes to a publisher at an address. A process may subscribe several times.
 *
 * Rejects with PEER_LOST if no process publishes there, and with ADDRESS_OCCUPIED if the publisher is full. With the option `wait`, it
 * waits for the publisher to start and for a free slot instead. Rejects with PEER_REFUSED, check `delivery`, if the publisher does not
 * offer the requested delivery.
 *
 * @example
 * ```js
 * const subscription = await subscribe('@prices', { wait: true })
 * for await (const message of subscription) console.log(message.toString())
 * ```
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link connect}
 */
export function subscribe<T>(address: string, options: SubscribeOptions & { codec: Codec<T> }): Promise<Subscription<T>>
export function subscribe(address: string, options?: SubscribeOptions): Promise<Subscription>
export function subscribe(address: string, options: SubscribeOptions = {}): Promise<Subscription> {
  return runHandshakeAt('subscribe', address, options, make)
}
