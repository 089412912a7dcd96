// Values over a publisher and its subscriptions: encoded once, whatever the number of subscribers.

import type { Codec, CodecOptions } from '../adapters/codec.js'
import { invalid } from '../errors.js'
import { Decoder, Encoder, checkWith, type Now } from './typed.js'
import type { Closed, Delivery, Evidence, GoneReason, Identity } from '../types.js'
// oxlint-disable-next-line import/no-cycle -- a type alone
import type { Publisher } from '../endpoint/publisher.js'
import type { Subscriber } from '../endpoint/subscriber.js'
// oxlint-disable-next-line import/no-cycle -- a type alone
import type { Subscription } from './subscription.js'

/** Only `with` makes them. */
const KEY = Symbol('ringfence')

/** Makes a typed publisher; only {@link Publisher.with} calls it. */
export function typedPublisher<T>(publisher: Publisher, codec: Codec<T>): TypedPublisher<T> {
  checkWith(codec, {})
  return new TypedPublisher(KEY, publisher, codec)
}

/** Makes a typed subscription; only {@link Subscription.with} calls it. */
export function typedSubscription<T>(
  subscription: Subscription,
  codec: Codec<T>,
  options: CodecOptions,
  now: Now,
): TypedSubscription<T> {
  checkWith(codec, options)
  return new TypedSubscription(KEY, subscription, new Decoder(subscription, codec, options, now))
}

/** A {@link Publisher} whose messages are values. All that is not said here is as with the publisher. */
export class TypedPublisher<T> implements AsyncDisposable {
  /** The publisher itself, with its events, and the messages as bytes. */
  readonly publisher: Publisher
  readonly #encoder: Encoder<T>

  /** @internal */
  constructor(key: symbol, publisher: Publisher, codec: Codec<T>) {
    if (key !== KEY) throw invalid('typed publishers are made by with')
    this.publisher = publisher
    this.#encoder = new Encoder(publisher, codec)
  }

  /** As {@link Publisher.address}. */
  get address(): string {
    return this.publisher.address
  }

  /** As {@link Publisher.capacity}. */
  get capacity(): number {
    return this.publisher.capacity
  }

  /** As {@link Publisher.maxMessageSize}, of a value's bytes. */
  get maxMessageSize(): number {
    return this.publisher.maxMessageSize
  }

  /** As {@link Publisher.sequence}. */
  get sequence(): bigint {
    return this.publisher.sequence
  }

  /** As {@link Publisher.subscribers}. */
  get subscribers(): readonly Subscriber[] {
    return this.publisher.subscribers
  }

  /** As {@link Publisher.bufferedAmount}. */
  get bufferedAmount(): number {
    return this.publisher.bufferedAmount
  }

  /** As {@link Publisher.closed}. */
  get closed(): Promise<Closed> {
    return this.publisher.closed
  }

  /**
   * As {@link Publisher.send}; the value is encoded once. Rejects with INVALID_ARGUMENT, with the `cause`, where it cannot be encoded, or
   * encodes to nothing; nothing is published then.
   */
  send(value: T): Promise<void> {
    return this.#encoder.send(value)
  }

  /**
   * As {@link Publisher.trySend}.
   *
   * @throws {@link RingfenceError} also INVALID_ARGUMENT, as {@link TypedPublisher.send} rejects
   */
  trySend(value: T): boolean {
    return this.#encoder.trySend(value)
  }

  /** As {@link Publisher.waitWritable}: `size` in bytes. */
  waitWritable(size?: number): Promise<void> {
    return this.publisher.waitWritable(size)
  }

  /** As {@link Publisher.end}. */
  end(): Promise<void> {
    return this.publisher.end()
  }

  /** As {@link Publisher.seal}. */
  seal(): Promise<void> {
    return this.publisher.seal()
  }

  /** As {@link Publisher.close}. */
  close(options?: { linger?: number }): Promise<void> {
    return this.publisher.close(options)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.publisher.close()
  }

  /** As {@link Publisher.ref}. */
  ref(): this {
    this.publisher.ref()
    return this
  }

  /** As {@link Publisher.unref}. */
  unref(): this {
    this.publisher.unref()
    return this
  }
}

/**
 * A {@link Subscription} whose messages are values. No more, or nothing now, is `undefined`; a message that cannot be decoded is
 * MALFORMED, with its `bytes`, for one call.
 */
export class TypedSubscription<T> implements AsyncIterable<T>, AsyncDisposable {
  /** The subscription itself, with the messages as bytes. */
  readonly subscription: Subscription
  readonly #decoder: Decoder<T>

  /** @internal */
  constructor(key: symbol, subscription: Subscription, decoder: Decoder<T>) {
    if (key !== KEY) throw invalid('typed subscriptions are made by with')
    this.subscription = subscription
    this.#decoder = decoder
  }

  /** As {@link Subscription.peer}. */
  get peer(): Identity {
    return this.subscription.peer
  }

  /** As {@link Subscription.evidence}. */
  get evidence(): readonly Evidence[] {
    return this.subscription.evidence
  }

  /** As {@link Subscription.delivery}. */
  get delivery(): Delivery {
    return this.subscription.delivery
  }

  /** As {@link Subscription.lost}. */
  get lost(): bigint {
    return this.subscription.lost
  }

  /** As {@link Subscription.sequence}. */
  get sequence(): bigint {
    return this.subscription.sequence
  }

  /** As {@link Subscription.readableEnded}. */
  get readableEnded(): boolean {
    return this.subscription.readableEnded
  }

  /** As {@link Subscription.closed}. */
  get closed(): Promise<GoneReason> {
    return this.subscription.closed
  }

  /** As {@link Subscription.receive}; undefined: no more will come. Rejects also with MALFORMED. */
  receive(options?: { signal?: AbortSignal }): Promise<T | undefined> {
    return this.#decoder.receive(options)
  }

  /**
   * As {@link Subscription.tryReceive}; undefined: there is nothing now.
   *
   * @throws {@link RingfenceError} also MALFORMED
   */
  tryReceive(): T | undefined {
    return this.#decoder.tryReceive()
  }

  /**
   * As {@link Subscription.receiveEach}; the values are the visitor's to keep.
   *
   * @throws {@link RingfenceError} also MALFORMED: that message counts as visited, and the next call goes on behind it.
   */
  receiveEach(visit: (value: T) => void, max?: number): number {
    return this.#decoder.receiveEach(visit, max)
  }

  /** As {@link Subscription.waitReadable}. */
  waitReadable(options?: { signal?: AbortSignal }): Promise<boolean> {
    return this.subscription.waitReadable(options)
  }

  [Symbol.asyncIterator](): AsyncIterator<T, undefined> {
    return this.#decoder[Symbol.asyncIterator]()
  }

  /** As {@link Subscription.verify}. */
  verify(): Promise<Identity> {
    return this.subscription.verify()
  }

  /** As {@link Subscription.close}. */
  close(): Promise<void> {
    return this.subscription.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.subscription.close()
  }

  /** As {@link Subscription.ref}. */
  ref(): this {
    this.subscription.ref()
    return this
  }

  /** As {@link Subscription.unref}. */
  unref(): this {
    this.subscription.unref()
    return this
  }
}
