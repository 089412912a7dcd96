// One to many: the receiving side.

import { Readable } from 'node:stream'

import type { Codec } from '../adapters/codec.js'
import { WebStreams } from '../adapters/web.js'
import { nowOpen, openNow, tellSubscribed } from '../runtime/diagnostics.js'
import { RingfenceError, fromFailure, invalid } from '../errors.js'
import { runHandshakeAt } from '../endpoint/handshake.js'
import { batchLoop, loop, type Loop } from './loops.js'
import { FAILED, REASONS, REFUSED, type NativeSubscription } from '../native.js'
import { checkReceiveEach, readerSignal, type ChannelSettings } from '../endpoint/options.js'
import { PeerView } from './peer-view.js'
import { ReceiveBuffer } from './receive-buffer.js'
import { registerSource } from './sources.js'
import type { SubscriptionStats } from './stats.js'
import { Values } from './values.js'
import type {
  BatchOptions,
  Delivery,
  Evidence,
  GoneReason,
  Identity,
  Message,
  SubscribeOptions,
  Visit,
  WaitOptions,
} from '../types.js'
import { timers } from '../runtime/timers.js'

/** Only {@link subscribe} makes subscriptions. */
const KEY = Symbol('ringfence')
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
let make: (native: NativeSubscription, settings: ChannelSettings) => Subscription<any>

const closedHere = () => new RingfenceError('CLOSED', 'the subscription is closed')
const refusedHere = () =>
  new RingfenceError('CLOSED', 'the subscription was closed: its publisher is no longer who the policy asks for')
const exposed = () =>
  new RingfenceError(
    'OBJECT_EXPOSED',
    'another process tried to open the shared memory of one of the two sides: it was wiped, and the subscription is closed',
  )
const evicted = () =>
  new RingfenceError(
    'EVICTED',
    'the publisher has let go of this subscriber, which held it up for longer than its `stall` allows: read faster, take ' +
      "a larger ring, or subscribe with the delivery 'best-effort' or 'latest'",
  )

/** The shared state of a subscription: the buffer, and how it ends. A subscription of values shares it. */
class SubscriptionCore {
  readonly native: NativeSubscription
  readonly buffer: ReceiveBuffer
  readonly view: PeerView
  readonly closed: Promise<GoneReason>
  #reason: GoneReason | null = null
  #whyOver = closedHere
  #resolveClosed!: (reason: GoneReason) => void
  readonly #onEnd: () => void

  /** @param onEnd - Called once, when the subscription has ended. */
  constructor(native: NativeSubscription, settings: ChannelSettings, onEnd: () => void) {
    this.native = native
    this.#onEnd = onEnd
    this.view = new PeerView(native)
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
    this.buffer = new ReceiveBuffer(
      readerOf(native),
      settings.busyPollMicros > 0,
      (error) => this.#failed(error),
      // The reader that has found the end must return first.
      () => timers.queueMicrotask(() => this.hear()),
      () => {},
    )
    if (native.watch(() => this.hear()) === FAILED) throw fromFailure(native.failure())
  }

  /** The error of a call after the end; `undefined` before it. */
  get over(): RingfenceError | undefined {
    return this.#reason === null ? undefined : this.#whyOver()
  }

  keepAlive(alive: boolean): void {
    this.native.keepAlive(alive ? 1 : 0)
    this.buffer.keepAlive(alive)
  }

  close(): void {
    if (this.#reason === null) this.#finish('closed', closedHere)
    else if (this.buffer.outlives) this.buffer.close(closedHere)
  }

  /** Called when the line is readable. */
  hear(): void {
    if (this.#reason !== null) return
    const answer = this.native.listen()
    const reason = REASONS[answer] ?? null
    if (reason === null) {
      this.native.disarm()
      this.buffer.awake()
    } else if (answer === REFUSED) {
      this.#finish(reason, refusedHere)
    } else {
      this.#gone(reason)
    }
  }

  /** Called when the core has ended the subscription. */
  #gone(reason: GoneReason): void {
    if (reason === 'exposed') this.#finish(reason, exposed)
    else if (reason === 'evicted') this.#finish(reason, evicted)
    else if (reason === 'corrupt') this.#finish(reason, () => new RingfenceError('RING_CORRUPT', 'as was found before'))
    else this.#finish(reason, closedHere, true)
  }

  /** Returns why the source of a merge has ended. The event loop may not be notified yet. */
  reasonOfEnd(): GoneReason {
    this.hear()
    return this.#reason ?? 'closed'
  }

  /** Handles a failed call into the core. An error that ends the subscription there ends it here as well. */
  #failed(error: RingfenceError): void {
    if (this.#reason !== null) return
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') {
      this.#finish('corrupt', () => new RingfenceError('RING_CORRUPT', error.message, { cause: error }))
    } else if (error.code === 'ERR_RINGFENCE_UNSUPPORTED') {
      this.#finish('closed', () => error)
    } else if (error.code !== 'ERR_RINGFENCE_NO_SPACE') {
      // A call noticed the end before the event loop was notified.
      this.hear()
    }
  }

  /** `outlives`: the messages that the publisher left can still be read. */
  #finish(reason: GoneReason, why: () => RingfenceError, outlives = false): void {
    if (this.#reason !== null) return
    this.#reason = reason
    this.#whyOver = why
    if (outlives) {
      this.native.outlive()
      this.buffer.outlive(() => this.native.close())
    } else {
      this.native.close()
      if (why === closedHere || why === refusedHere) this.buffer.close(why)
      else this.buffer.stop(why)
    }
    this.#resolveClosed(reason)
    this.#onEnd()
  }
}

/**
 * The receiving half of a broadcast. It is read like a channel.
 *
 * `for await (const message of subscription)` yields messages until the publisher has ended. Leaving the loop neither closes the
 * subscription nor loses a message. `await using` closes it. An open subscription keeps the process alive until {@link Subscription.unref}.
 */
export class Subscription<In = Message> implements AsyncIterable<In>, AsyncDisposable {
  /** The delivery mode. */
  readonly delivery: Delivery
  /** Bytes of the publisher's ring. */
  readonly capacity: number
  /** Bytes of the longest message that the publisher may send. */
  readonly maxMessageSize: number
  /**
   * Resolves when the subscription has ended, whichever side ended it, even if messages are unread. They can still be read, unless the
   * publisher has evicted this subscriber. Never rejects.
   */
  readonly closed: Promise<GoneReason>

  readonly #core: SubscriptionCore
  readonly #buffer: ReceiveBuffer
  /** Converts messages to values; null: the messages are bytes. */
  readonly #values: Values<unknown> | null
  #streams: WebStreams<In, never> | null = null

  static {
    make = (native, settings) => {
      const core = new SubscriptionCore(native, settings, () => openNow.delete(subscription))
      const subscription = new Subscription(KEY, core, settings.codec === undefined ? null : new Values(settings.codec))
      return subscription
    }
    registerSource((value) =>
      #core in value
        ? { buffer: value.#buffer, values: value.#values, reason: () => value.#core.reasonOfEnd() }
        : undefined,
    )
  }

  private constructor(key: symbol, core: SubscriptionCore, values: Values<unknown> | null) {
    if (key !== KEY) throw invalid('subscriptions are made by subscribe')
    const { native } = core
    this.#core = core
    this.#buffer = core.buffer
    this.#values = values
    this.delivery = native.delivery
    this.capacity = native.capacity
    this.maxMessageSize = native.maxMessageSize
    this.closed = core.closed
  }

  /** The publisher's identity at the last check, in the handshake or by {@link Subscription.verify}. */
  get peer(): Identity {
    return this.#core.view.peer
  }

  /** Every check of the handshake, in order, and the checks of the last {@link Subscription.verify}. */
  get evidence(): readonly Evidence[] {
    return this.#core.view.evidence
  }

  /**
   * Messages that were published since the subscription began and will never be handed out. Counted when the next message is handed out.
   * Always 0 with delivery 'reliable'. The messages handed out and the lost ones add up to the increase of `sequence` since the start.
   */
  get lost(): bigint {
    return this.#core.native.lost(this.#buffer.unread)
  }

  /**
   * The number of the last message that was handed out, in the publisher's count, which starts at 1. Before the first message, the number
   * of the message after which the subscription began.
   */
  get sequence(): bigint {
    return this.#core.native.sequence(this.#buffer.unread)
  }

  /**
   * Counters of this subscription, and its lag. The visits of a `receiveEach` count when it returns. The last figures stay after the end.
   */
  stats(): SubscriptionStats {
    const figures = this.#core.native.stats()
    const { messages, bytes } = this.#buffer.received
    return {
      messagesReceived: messages,
      bytesReceived: bytes,
      lost: Number(this.lost),
      lag: figures[0]!,
      sleeps: figures[1]!,
    }
  }

  /**
   * Receives the next message.
   *
   * @returns `undefined` after the end: no more will arrive, and everything was read. Rejects with EVICTED if the publisher has evicted
   * this subscriber; CLOSED after this side's close; RING_CORRUPT; OBJECT_EXPOSED; MALFORMED, with the `bytes`, for a message that the
   * codec cannot decode; AbortError if the signal is aborted, which loses no message.
   */
  receive(options?: WaitOptions): Promise<In | undefined> {
    if (this.#values === null) return this.#receive(options) as Promise<In | undefined>
    return this.#receiveValue(this.#values, options) as Promise<In | undefined>
  }

  async #receive(options?: WaitOptions): Promise<Buffer | undefined> {
    const signal = readerSignal(options)
    let message = this.#buffer.receiveNow()
    if (message === undefined) message = await this.#buffer.wait(true, signal).promise
    return message ?? undefined
  }

  async #receiveValue(values: Values<unknown>, options?: WaitOptions): Promise<unknown> {
    const message = await this.#receive(options)
    return message === undefined ? undefined : values.decode(message)
  }

  /**
   * Receives the next message if there is one now.
   *
   * @returns `undefined` if there is none.
   * @throws {@link RingfenceError} as `receive` rejects
   */
  tryReceive(): In | undefined {
    const message = this.#buffer.tryReceive()
    if (message === null) return undefined
    return (this.#values === null ? message : this.#values.decode(message)) as In
  }

  /**
   * Visits the messages that are available now, in order: see {@link Channel.receiveEach}. The bytes are valid during the visit.
   *
   * @returns The number of visited messages.
   * @throws {@link RingfenceError} as `receive` rejects
   */
  receiveEach(visit: Visit<In>, max?: number): number {
    checkReceiveEach(visit, max)
    const visitor = this.#values === null ? (visit as Visit) : this.#values.visitor(visit as (value: unknown) => void)
    return this.#buffer.receiveEach(visitor, max)
  }

  /**
   * Waits until a message is available.
   *
   * @returns `false` if no more messages will arrive and everything was read. Rejects as `receive`.
   */
  async waitReadable(options?: WaitOptions): Promise<boolean> {
    return this.#waitReadable(readerSignal(options))
  }

  async #waitReadable(signal?: AbortSignal, reader?: object | null): Promise<boolean> {
    const readable = this.#buffer.isReadableNow()
    return readable ?? (await this.#buffer.wait(false, signal, reader).promise) !== null
  }

  /** Whether no more messages will arrive and everything was read. */
  get readableEnded(): boolean {
    return this.#buffer.isEnded
  }

  /**
   * Yields arrays of at least one and at most `max` available messages. Meant for fast loops: it needs one promise for each array instead
   * of one for each message.
   *
   * @example
   * for await (const messages of subscription.batches()) for (const message of messages) handle(message)
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for wrong options; an AbortError if the signal is aborted already
   */
  batches(options?: BatchOptions): Loop<In[]> {
    const buffer = this.#buffer
    const values = this.#values
    return batchLoop<Buffer, In>(
      {
        now: () => buffer.nextNow(),
        more: () => (buffer.due === null ? buffer.takeNow() : null),
        wait: (reader, signal) => buffer.wait(true, signal, reader),
        decode: (message) => (values === null ? message : values.decode(message)) as In,
      },
      options,
    )
  }

  [Symbol.asyncIterator](): Loop<In> {
    const values = this.#values
    return loop<Buffer, In>(
      () => this.#buffer.nextNow(),
      (reader) => this.#buffer.wait(true, undefined, reader),
      values === null ? undefined : (message) => values.decode(message) as In,
    )
  }

  /**
   * Returns the same subscription with values as messages, decoded by the codec: see {@link Channel.with}.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if it is no codec
   */
  with<T>(codec: Codec<T>): Subscription<T> {
    return new Subscription<T>(KEY, this.#core, new Values(codec) as Values<unknown>)
  }

  /** Checks the publisher's process again now, against the policy. `authorize` is not called again. See {@link Channel.verify}. */
  verify(options?: WaitOptions): Promise<Identity> {
    return this.#core.view.verify(
      () => this.#core.over,
      () => this.#core.hear(),
      options,
    )
  }

  /** Closes the subscription and drops unread messages. Resolves once everything is released. */
  async close(): Promise<void> {
    this.#core.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** A web stream with one chunk for each message, made on first use: see {@link Channel.readable}. `cancel()` closes the subscription. */
  get readable(): ReadableStream<In> {
    const source = {
      waitReadable: (reader: object | null) => this.#waitReadable(undefined, reader),
      tryReceive: () => this.tryReceive(),
      close: () => this.close(),
    }
    return (this.#streams ??= new WebStreams<In, never>(source, null)).readable
  }

  /** A Node stream in object mode with one chunk for each message. Its end leaves the subscription open. */
  stream(): Readable {
    return Readable.from(this, { highWaterMark: 1 })
  }

  /** Keeps the process alive while the subscription is open, which is the default. */
  ref(): this {
    this.#core.keepAlive(true)
    return this
  }

  /** Lets the process exit while the subscription is open. */
  unref(): this {
    this.#core.keepAlive(false)
    return this
  }
}

/** The functions that the buffer reads with. With delivery 'latest', a message fetched ahead would be outdated when it is handed out. */
function readerOf(native: NativeSubscription): ConstructorParameters<typeof ReceiveBuffer>[0] {
  const own = {
    pull: native.pull,
    pullBusy: native.pullBusy,
    wake: native.wake,
    gather: native.gather,
    armReader: native.armReader,
    parkReader: native.parkReader,
    lookParked: native.lookParked,
    failure: native.failure,
  }
  return native.delivery === 'latest' ? { ...own, hasMessage: native.hasMessage } : own
}

/**
 * Subscribes to a publisher at an address. A process may subscribe several times.
 *
 * Rejects with PEER_LOST if no process publishes there, and with ADDRESS_OCCUPIED if the publisher is full. With the option `wait`, it
 * waits for the publisher to start and for a free slot instead. Rejects with PEER_REFUSED, check `delivery`, if the publisher does not
 * offer the requested delivery.
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link connect}
 */
export function subscribe<T>(address: string, options: SubscribeOptions & { codec: Codec<T> }): Promise<Subscription<T>>
export function subscribe(address: string, options?: SubscribeOptions): Promise<Subscription>
export function subscribe(address: string, options: SubscribeOptions = {}): Promise<Subscription> {
  return runHandshakeAt('subscribe', address, options, (native, { settings }) => {
    const subscription = make(native, settings)
    nowOpen(subscription, address)
    tellSubscribed(subscription, address, `a subscription (${subscription.delivery})`)
    return subscription
  })
}
