// The sending half of a broadcast: one ring, the queue of messages that are not in it yet, and the subscribers that read it.

import type { Codec } from '../adapters/codec.js'
import { WebStreams } from '../adapters/web.js'
import { Deferred, RESOLVED, tryPromise, untilAborted } from '../runtime/deferred.js'
import { trackOpen, openResources, reportEvicted, reportSubscribed } from '../runtime/diagnostics.js'
import { Endpoint, type EndpointEvents } from './endpoint.js'
import { KEY, RingfenceError, fromFailure, invalid } from '../errors.js'
import { runHandshakeAt, type Opening } from './handshake.js'
import { FAILED, REASONS, type NativePublisher } from '../native.js'
import { lingerOf } from './options.js'
import type { GoneReason } from './peer.js'
import { closedFor, closedByDestroy, counted } from '../channel/resource.js'
import { SendQueue, type Fill } from '../channel/send-queue.js'
import { LONGEST_TIMER, timers } from '../runtime/timers.js'
import * as internal from '../runtime/symbols.js'
import type { PublisherStats } from '../channel/stats.js'
import type { Closed, MessageInput, PublishOptions, Reservation, SendOptions, WaitOptions } from '../types.js'
import { closeSubscriber, makeSubscriber, type Subscriber } from './subscriber.js'
import { Values } from '../channel/values.js'

// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
type AnyPublisher = Publisher<any>
let make: (native: NativePublisher, opening: Opening) => AnyPublisher

const closedError = () => new RingfenceError('CLOSED', 'the publisher is closed')
const endedError = () => new RingfenceError('CLOSED', 'the publisher has ended: it sends no more')
const exposedError = () =>
  new RingfenceError(
    'OBJECT_EXPOSED',
    "another process tried to open the publisher's shared memory: it was wiped, and the publisher is closed",
  )

/**
 * The sending half of a broadcast to any number of subscribers. Each message is written once, into one ring that all of them read.
 *
 * Each subscriber passes the same handshake as a client of a service. It can write only its own position, so it can neither see nor
 * disturb another subscriber. A slow 'reliable' subscriber delays the publisher for up to `stall` milliseconds.
 *
 * After {@link Publisher.end}, the publisher closes once the last subscriber has read everything or has disconnected, at the latest after
 * `stall`.
 *
 * @example
 * ```js
 * const publisher = await publish('/run/me/prices')
 * publisher.on('connection', ({ peer }) => console.log(`process ${peer.pid} has subscribed`))
 * await publisher.send('message')
 * ```
 */
export class Publisher<Out = MessageInput> extends Endpoint<Subscriber, EndpointEvents<Subscriber>> {
  /** Bytes of the ring. */
  readonly capacity: number
  /** Bytes of the longest message: an eighth of the ring, or less if the option is smaller. */
  readonly maxMessageSize: number
  readonly #native: NativePublisher
  /** The publisher that this one is a view of, or itself. */
  readonly #root: AnyPublisher
  readonly #queue: SendQueue
  readonly #stall: number
  /** Converts values to messages; null if messages are bytes. */
  readonly #values: Values<unknown> | null
  #streams: WebStreams<never, Out> | null = null
  readonly #subscribers = new Map<number, Subscriber>()
  #ending: Promise<void> | null = null
  #sealing: Promise<void> | null = null
  #closing: Promise<void> | null = null

  static {
    make = (native, opening) => new Publisher(KEY, opening, native, opening.settings.values)
  }

  /** @internal */
  private constructor(
    key: symbol,
    from: Opening | AnyPublisher,
    native: NativePublisher,
    values: Values<unknown> | null,
  ) {
    if (key !== KEY) throw invalid('publishers are made by publish')
    // If the process exits, subscribers must see a lost publisher and not a clean end.
    super(from, native, () => native.vacate())
    this.#root = from instanceof Publisher ? from.#root : this
    this.capacity = native.capacity
    this.maxMessageSize = native.maxMessageSize
    this.#native = native
    this.#values = values
    if (from instanceof Publisher) {
      this.#queue = from.#queue
      this.#stall = from.#stall
      return
    }
    this.#queue = new SendQueue(native, from.settings.busyPollMicros > 0, (error) => this.#failed(error))
    this.#stall = from.settings.stall
    if (native.watchRoom(() => this.#handleRoom()) === FAILED) {
      this[internal.release]()
      throw fromFailure(native.failure())
    }
    trackOpen(this)
  }

  /** The number of messages sent. */
  get sequence(): bigint {
    // Messages that were sent and for which there is room count already.
    if (this[internal.ended] === null) this.#queue.flush()
    return this.#native.sequence()
  }

  /**
   * Statistics of the messages, the ring and the subscribers. After the end, the last figures remain.
   *
   * @example
   * ```js
   * const { open, evicted } = publisher.stats()
   * ```
   */
  stats(): PublisherStats {
    if (this.#root !== this) return this.#root.stats()
    if (this[internal.ended] === null) this.#queue.flush()
    const figures = this.#native.stats()
    return {
      ...this[internal.counts].stats(this.#subscribers.size),
      messagesSent: figures[0]!,
      bytesSent: figures[1]!,
      evicted: figures[2]!,
      ...this.#queue.stats(),
      ringUsed: figures[3]!,
      ringCapacity: figures[4]!,
      attachmentsSent: figures[5]!,
      attachmentsWithheld: figures[6]!,
    }
  }

  /** The subscribers that are connected now, in the order in which they connected. */
  get subscribers(): readonly Subscriber[] {
    return [...this.#root.#subscribers.values()]
  }

  /**
   * Sends a message to all subscribers. Copies before it returns. Strings are sent as UTF-8.
   *
   * With `options.attachments` each subscriber that accepts them gets sealed buffers and descriptors with the message. The message then also
   * waits while a reliable subscriber holds as many unread ones as it accepts. A subscriber that does not accept them, or that is not
   * reliable and holds too many, gets the message alone: `stats().attachmentsWithheld`.
   *
   * @example
   * ```js
   * await publisher.send('price 101')
   * ```
   *
   * @returns A promise that resolves once the message is in the ring: at once without reliable subscribers, else when the slowest of
   * them has made room. A message in the ring is published and survives this process. Rejects with MESSAGE_TOO_LARGE above
   * {@link Publisher.maxMessageSize}, or for more than 253 attachments; NO_SPACE if the kernel has no room for the attachments; CLOSED after
   * `end` or `close`; OBJECT_EXPOSED; INVALID_ARGUMENT for a value that is not a message, and while a reservation is open.
   *
   * A rejection because the publisher has ended never counts as unhandled, as with a channel.
   */
  send(message: Out, options?: SendOptions): Promise<void> {
    if (this.#values === null) return this.#queue.send(message as MessageInput, options)
    return this.#values.send(this.#queue, message, options)
  }

  /**
   * Puts a message into the ring if there is room now.
   *
   * @example
   * ```js
   * if (!publisher.trySend('price 101')) await publisher.send('price 101')
   * ```
   *
   * @returns Whether there was room.
   * @throws {@link RingfenceError} as `send` rejects
   */
  trySend(message: Out): boolean {
    return this.#queue.trySend(this.#values === null ? (message as MessageInput) : this.#values.encode(message))
  }

  /**
   * Reserves room for one message in the ring itself, to be filled in place and committed. Only one reservation can be open at a time.
   *
   * @example
   * ```js
   * const reservation = publisher.reserve(8)
   * if (reservation !== undefined) {
   *   reservation.bytes[0] = 42
   *   reservation.commit(1)
   * }
   * ```
   *
   * @returns `undefined` if there is no room now.
   * @throws {@link RingfenceError} as `trySend`
   */
  reserve(size: number): Reservation | undefined {
    return this.#queue.reserve(size)
  }

  /**
   * Lets a function write a message in place, without an object for it: see {@link Channel.fill}.
   *
   * @example
   * ```js
   * const isPublished = publisher.fill(8, (bytes, offset) => {
   *   bytes[offset] = 42
   *   return 1
   * })
   * ```
   *
   * @returns Whether there was room.
   * @throws {@link RingfenceError} as `trySend`; INVALID_ARGUMENT also if `write` does not return a whole number from 0 to `length`
   */
  fill(size: number, write: Fill): boolean {
    return this.#queue.fill(size, write)
  }

  /**
   * Resolves when `trySend` or `reserve` of `size` bytes can succeed. Rejects as `trySend` throws.
   *
   * @example
   * ```js
   * while (!publisher.trySend('price 101')) await publisher.waitWritable(9)
   * ```
   *
   * @param size - Bytes of the message, 1 by default.
   */
  waitWritable(size = 1, options?: WaitOptions): Promise<void> {
    return this.#queue.waitWritable(size, options)
  }

  /**
   * Returns this publisher with values instead of bytes, encoded by the codec: see {@link Channel.with}. Each value is encoded once for
   * all subscribers.
   *
   * @example
   * ```js
   * const prices = publisher.with(json())
   * await prices.send({ price: 101 })
   * ```
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if the argument is not a codec
   */
  with<T>(codec: Codec<T>): Publisher<T> {
    return new Publisher<T>(KEY, this, this.#native, new Values(codec) as Values<unknown>)
  }

  /**
   * A web stream that publishes a message for each chunk, made on first use: see {@link Channel.writable}. `close()` ends the publisher,
   * `abort()` closes it.
   */
  get writable(): WritableStream<Out> {
    return (this.#streams ??= new WebStreams<never, Out>(null, this)).writable
  }

  /** Bytes of messages that were sent and are not in the ring yet. */
  get bufferedAmount(): number {
    return this.#queue.bufferedAmount
  }

  /**
   * Ends the sending. Each subscriber still gets every message, then its end. Resolves once everything that was sent before is in the ring
   * and the address is free. {@link Publisher.closed} resolves once the last subscriber has read everything, or after `stall`: a slower
   * subscriber can still read the remaining messages.
   *
   * @example
   * ```js
   * await publisher.end()
   * await publisher.closed
   * ```
   *
   * @param options - An abort ends only the waiting. It does not undo the end.
   */
  end(options?: WaitOptions): Promise<void> {
    return untilAborted(options, () => this.#root.#end())
  }

  #end(): Promise<void> {
    if (this.#ending === null) {
      // The callback may be called at once, and finds that the end was called.
      this.#ending = RESOLVED
      this.#ending = this.#queue.end(endedError, false, () => {
        if (this[internal.ended] !== null) return
        this.#native.end()
        this[internal.poll]()
        this.#closeAfterStall()
      })
    }
    return this.#ending
  }

  #closeAfterStall(): void {
    // Longer ones, and Infinity, have no timer.
    if (this[internal.ended] !== null || this.#stall > LONGEST_TIMER) return
    const timer = timers.setTimeout(() => void this.close(), this.#stall).unref()
    void this.closed.then(() => timers.clearTimeout(timer))
  }

  /**
   * Accepts no further subscribers, permanently. Handshakes in progress are aborted; connected subscribers are not affected. Once the
   * promise resolves, the address is free and this process has no descriptor of the ring.
   *
   * @example
   * ```js
   * await publisher.seal()
   * ```
   *
   * @returns A promise that rejects with NO_SPACE if there is no thread for it. The next call then tries again.
   */
  seal(): Promise<void> {
    if (this.#root !== this) return this.#root.seal()
    if (this[internal.ended] !== null) return Promise.resolve()
    if (this.#sealing === null) {
      const sealed = new Deferred()
      // After a failure, the next call tries again.
      if (this.#native.seal(sealed.resolve) === FAILED) return Promise.reject(fromFailure(this.#native.failure()))
      this.#sealing = sealed.promise
    }
    return this.#sealing
  }

  /**
   * Closes the publisher. Subscribers can still read the messages in the ring; then they end with the reason 'closed'. Pending sends have
   * `linger` milliseconds (1,000 by default) to complete, then they reject with CLOSED.
   *
   * @example
   * ```js
   * await publisher.close({ linger: 5000 })
   * ```
   *
   * @returns A promise that resolves once everything is released, and the address is free. A second call returns the same promise.
   */
  close(options: { linger?: number | undefined } = {}): Promise<void> {
    if (this.#root !== this) return this.#root.close(options)
    return tryPromise(() => {
      const linger = lingerOf(options)
      return (this.#closing ??= this.#close(linger))
    })
  }

  async #close(linger: number): Promise<void> {
    if (this[internal.ended] !== null) return
    const flushed = this.#queue.linger(linger, closedError)
    if (flushed !== null) await flushed
    // Without this end, subscribers find a lost publisher.
    if (this[internal.ended] === null && this.#queue.isEmpty) this.#native.end()
    this.#finish({ reason: 'closed' }, closedError)
  }

  /**
   * Drops the messages that are not in the ring yet, and closes the publisher at once.
   *
   * @example
   * ```js
   * publisher.destroy(new Error('the feed has failed'))
   * ```
   */
  destroy(error?: Error): void {
    this.#root.#finish(closedByDestroy(error), closedError)
  }

  /** A subscriber has made room or disconnected. */
  #handleRoom(): void {
    if (this[internal.ended] !== null) return
    this.#native.listen()
    this.#native.disarm()
    this.#queue.handleWakeup()
  }

  /** @internal */
  protected override [internal.handleEvent](): boolean {
    if (this[internal.ended] !== null) return false
    const event = this.#native.next()
    if (event === FAILED) {
      this.#endedByCore(fromFailure(this.#native.failure()))
      return false
    }
    if (typeof event === 'number') return false
    if ('number' in event) {
      const subscriber = makeSubscriber(event, () => this.#queue.flush())
      this.#subscribers.set(event.number, subscriber)
      this[internal.counts].accepted += 1
      reportSubscribed(subscriber, this.address, `a subscriber (${subscriber.delivery})`)
      this[internal.notify]('connection', subscriber)
    } else if ('gone' in event) {
      this.#disconnected(event.gone, REASONS[event.reason] ?? 'closed')
    } else {
      this[internal.reportRefusal](event)
    }
    return true
  }

  #disconnected(id: number, reason: GoneReason): void {
    const subscriber = this.#subscribers.get(id)
    if (subscriber === undefined) return
    const closed = closedFor(reason, subscriber.peer)
    this.#subscribers.delete(id)
    closeSubscriber(subscriber, closed)
    if (closed.reason === 'evicted') reportEvicted(this, subscriber)
    this[internal.notify]('disconnect', subscriber, closed)
  }

  /** The core has ended the publisher. */
  #endedByCore(error: RingfenceError): void {
    if (error.code === 'ERR_RINGFENCE_OBJECT_EXPOSED' || REASONS[this.#native.reason()] === 'exposed') {
      this.#finish({ reason: 'exposed', error: exposedError() }, exposedError)
    } else if (error.code === 'ERR_RINGFENCE_CLOSED') {
      this.#finish({ reason: 'closed' }, this.#ending === null ? closedError : endedError)
    } else {
      this.#finish({ reason: 'failed', error }, closedError)
    }
  }

  /** A call into the core has failed. Some errors end the publisher. */
  #failed(error: RingfenceError): void {
    const fatalCodes = ['ERR_RINGFENCE_OBJECT_EXPOSED', 'ERR_RINGFENCE_CLOSED', 'ERR_RINGFENCE_UNSUPPORTED']
    if (this[internal.ended] === null && fatalCodes.includes(error.code)) this.#endedByCore(error)
  }

  #finish(closed: Closed, sendError: () => RingfenceError): void {
    if (this[internal.ended] !== null) return
    this[internal.settle](closed)
    openResources.delete(this)
    this.#native.close()
    this[internal.release]()
    this.#queue.stop(sendError, true)
    const subscriberReason = closed.reason === 'exposed' ? 'exposed' : 'closed'
    for (const id of [...this.#subscribers.keys()]) this.#disconnected(id, subscriberReason)
  }

  /** @internal */
  protected override [internal.summary](): string[] {
    return [counted(this.#subscribers.size, 'subscriber')]
  }
}

/**
 * Binds an address at which any number of processes can {@link subscribe}. Each message is written once and reaches all of them. If another
 * process has the address, the call rejects with ADDRESS_OCCUPIED, or waits for the address with the option `wait`.
 *
 * The memory is a memfd: `backing: 'shm'` is INVALID_ARGUMENT, since every subscriber could write a shm object.
 *
 * With the option `codec`, the messages are values.
 *
 * @example
 * ```js
 * const publisher = await publish('/run/me/prices', { codec: json(), deliveries: ['latest'] })
 * await publisher.send({ price: 101 })
 * await publisher.end()
 * ```
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link listen}
 */
export function publish<T>(address: string, options: PublishOptions & { codec: Codec<T> }): Promise<Publisher<T>>
export function publish(address: string, options?: PublishOptions): Promise<Publisher>
export function publish(address: string, options: PublishOptions = {}): Promise<Publisher> {
  return runHandshakeAt('publish', address, options, make)
}
