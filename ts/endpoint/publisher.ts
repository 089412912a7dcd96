// One to many, the sending side: a queue of what is to be sent over one ring, and the events of those who read it.

import { EventEmitter } from 'node:events'

import type { Authorizer } from './authorize.js'
import type { Codec } from '../adapters/codec.js'
import { defer, untilAborted } from '../runtime/deferred.js'
import { nowOpen, openNow, tellEvicted, tellRefused, tellSubscribed } from '../runtime/diagnostics.js'
import { emit } from '../runtime/emit.js'
import { RingfenceError, fromFailure, invalid } from '../errors.js'
import { atExit } from '../runtime/exit.js'
import { runHandshakeAt, type Opening } from './handshake.js'
import { FAILED, REASONS, type Failure, type NativePublisher } from '../native.js'
import { lingerOf } from './options.js'
import { Pump } from '../runtime/pump.js'
import { SendQueue } from '../channel/send-queue.js'
import type { PublisherStats } from '../channel/stats.js'
import type { BufferSource, GoneReason, PublishOptions, Reservation, WaitOptions } from '../types.js'
import { makeSubscriber, tellGone, type Subscriber } from './subscriber.js'
// oxlint-disable-next-line import/no-cycle -- it imports the type of this file alone
import { typedPublisher, type TypedPublisher } from '../channel/typed-broadcast.js'
import { timers } from '../runtime/timers.js'

/** What a {@link Publisher} emits. */
export interface PublisherEvents {
  /** A subscriber has come. */
  subscriber: [subscriber: Subscriber]
  /** It has gone, and this is why. */
  gone: [subscriber: Subscriber, reason: GoneReason]
  /** A newcomer was not let in; `identity` says who it is, as far as that is known. The publisher goes on. */
  refused: [refusal: RingfenceError]
  /** It has ended. */
  close: [reason: 'closed' | 'exposed']
}

/** Only {@link publish} makes publishers. */
const KEY = Symbol('ringfence')
let make: (address: string, native: NativePublisher, opening: Opening) => Publisher

const closedHere = () => new RingfenceError('CLOSED', 'the publisher is closed')
const endedHere = () => new RingfenceError('CLOSED', 'the publisher has ended: it sends no more')
const exposed = () =>
  new RingfenceError(
    'OBJECT_EXPOSED',
    "another process tried to open the publisher's shared memory: it was wiped, and the publisher is closed",
  )

/**
 * One process that publishes, for any number of subscribers. Each message is written once, into one ring that all of them read.
 *
 * Each subscriber passes the same handshake as an agent of a service. It can write nothing but its own position, so it can neither
 * see nor disturb another one; one that is 'reliable' and slow holds the publisher up for `stall` milliseconds at most.
 *
 * An open publisher keeps the process alive until {@link Publisher.unref}. `await using` closes it.
 */
export class Publisher extends EventEmitter<PublisherEvents> implements AsyncDisposable {
  /** Where it publishes. */
  readonly address: string
  /** Bytes of its ring. */
  readonly capacity: number
  /** Bytes of the longest message: an eighth of the ring, or less where the option says so. */
  readonly maxMessageSize: number
  /**
   * Resolves once it has ended: by {@link Publisher.close}; after {@link Publisher.end}, once the last subscriber has read everything or
   * has gone; or since another process tried to open its memory ('exposed'). Never rejects.
   */
  readonly closed: Promise<'closed' | 'exposed'>

  readonly #native: NativePublisher
  readonly #queue: SendQueue
  readonly #authorizer: Authorizer | undefined
  readonly #signal: AbortSignal | undefined
  readonly #subscribers = new Map<number, Subscriber>()
  #resolveClosed!: (reason: 'closed' | 'exposed') => void
  #over = false
  /** Handles the events of the binding. */
  readonly #poll = new Pump(() => this.#handle()).run
  #ending: Promise<void> | null = null
  #sealing: Promise<void> | null = null
  /** Takes back what is to be done as the process exits. */
  readonly #stay: () => void
  readonly #abort = () => void this.close()

  static {
    make = (address, native, opening) => new Publisher(KEY, address, native, opening)
  }

  /** @internal */
  private constructor(key: symbol, address: string, native: NativePublisher, opening: Opening) {
    super()
    if (key !== KEY) throw invalid('publishers are made by publish')
    this.address = address
    this.capacity = native.capacity
    this.maxMessageSize = native.maxMessageSize
    this.#native = native
    this.#authorizer = opening.authorizer
    this.#signal = opening.signal
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
    this.#queue = new SendQueue(native, opening.settings.busyPollMicros > 0, (error) => this.#failed(error))
    if (native.watch(this.#poll) === FAILED || native.watchRoom(() => this.#hear()) === FAILED) {
      throw fromFailure(native.failure())
    }
    // The end of the process is no close: the subscribers find that it has exited.
    this.#stay = atExit(address, () => native.vacate())
    nowOpen(this, address)
    this.#signal?.addEventListener('abort', this.#abort, { once: true })
  }

  /** Messages published. */
  get sequence(): bigint {
    // What a caller has sent, and that found room, is in the ring by then.
    if (!this.#over && !this.#queue.isEmpty) this.#queue.pump()
    return this.#native.sequence()
  }

  /** What was published so far, and how full the ring is. The last figures stay after the end. */
  stats(): PublisherStats {
    if (!this.#over && !this.#queue.isEmpty) this.#queue.pump()
    const figures = this.#native.stats()
    return {
      published: figures[0]!,
      bytesPublished: figures[1]!,
      subscribers: this.#subscribers.size,
      evicted: figures[2]!,
      waits: this.#queue.waits,
      waitedMicros: this.#queue.waitedMicros,
      ringUsed: figures[3]!,
      ringCapacity: figures[4]!,
    }
  }

  /** Those that are subscribed now, in the order in which they came. */
  get subscribers(): readonly Subscriber[] {
    return [...this.#subscribers.values()]
  }

  /**
   * Sends a message to all subscribers. Copies before it returns. Strings are sent as UTF-8.
   *
   * @returns A promise that resolves once the message is in the ring: at once without reliable subscribers, else when the slowest of
   * them has made room. A message is published once, and survives this process. Rejects with MESSAGE_TOO_LARGE above
   * {@link Publisher.maxMessageSize}; CLOSED after `end` or `close`; OBJECT_EXPOSED; INVALID_ARGUMENT for what is no message, and while a
   * reservation is open.
   *
   * A rejection because the publisher has ended is never an unhandled one, as with a channel.
   */
  send(message: BufferSource | string, options?: WaitOptions): Promise<void> {
    return this.#queue.send(message, options)
  }

  /**
   * Puts a message into the ring now.
   *
   * @returns Whether there was room.
   * @throws {@link RingfenceError} as `send` rejects
   */
  trySend(message: BufferSource | string): boolean {
    return this.#queue.trySend(message)
  }

  /**
   * Room in the ring itself for a message, to be filled in place and committed. One at a time.
   *
   * @returns null where there is no room now.
   * @throws {@link RingfenceError} as `trySend`
   */
  reserve(size: number): Reservation | null {
    return this.#queue.reserve(size)
  }

  /** Resolves when `trySend` or `reserve` of `size` bytes can succeed. Rejects as `trySend` throws. */
  waitWritable(size = 1, options?: WaitOptions): Promise<void> {
    return this.#queue.waitWritable(size, options)
  }

  /**
   * This publisher with values for messages, as the codec makes them: see {@link Channel.with}. Each is encoded once for all
   * subscribers.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for what is no codec
   */
  with<T>(codec: Codec<T>): TypedPublisher<T> {
    return typedPublisher(this, codec)
  }

  /** Bytes of messages that were sent and are not in the ring yet. */
  get bufferedAmount(): number {
    return this.#queue.bufferedAmount
  }

  /**
   * Sends no more. Each subscriber gets everything, then its end. Resolves once everything that was sent before is in the ring, and the
   * address is free; {@link Publisher.closed} tells when the last subscriber has read it.
   */
  end(options?: WaitOptions): Promise<void> {
    return untilAborted(options, () => this.#end())
  }

  #end(): Promise<void> {
    if (this.#ending === null) {
      this.#queue.refuse(endedHere, false)
      this.#ending = this.#queue.empty().then(() => {
        this.#queue.shut(endedHere, false)
        if (this.#over) return
        this.#native.end()
        this.#poll()
      })
    }
    return this.#ending
  }

  /**
   * Lets no further subscriber in, for good. Handshakes that are under way break off, the address is free, and no descriptor of the ring is
   * left in this process once it resolves. Those that are subscribed go on.
   */
  seal(): Promise<void> {
    if (this.#over) return Promise.resolve()
    if (this.#sealing === null) {
      const sealed = defer()
      // One that has failed is no seal: the next call tries again.
      if (this.#native.seal(sealed.resolve) === FAILED) return Promise.reject(fromFailure(this.#native.failure()))
      this.#sealing = sealed.promise
    }
    return this.#sealing
  }

  /**
   * Closes the publisher. What is in the ring stays readable to the subscribers, which then get their end, and the reason 'closed'. Sends
   * that are still pending have `linger` milliseconds (0), then they reject with CLOSED.
   *
   * @returns A promise that resolves once everything is released, and the address is free.
   */
  async close(options: { linger?: number } = {}): Promise<void> {
    const linger = lingerOf(options)
    if (this.#over) return
    const lingering = this.#queue.linger(linger, closedHere, this.closed)
    if (lingering !== null) await lingering
    this.#finish('closed', closedHere)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Keeps the process alive while it is open, as it does from the start. */
  ref(): this {
    this.#native.keepAlive(1)
    return this
  }

  /** Does not keep the process alive. */
  unref(): this {
    this.#native.keepAlive(0)
    return this
  }

  /** A subscriber has made room, or is gone. */
  #hear(): void {
    if (this.#over) return
    this.#native.listen()
    this.#native.disarm()
    this.#queue.awake()
  }

  /** Handles one event of the binding. */
  #handle(): boolean {
    if (this.#over) return false
    const event = this.#native.next()
    if (event === FAILED) {
      this.#ended(fromFailure(this.#native.failure()))
      return false
    }
    if (typeof event === 'number') return false
    if ('number' in event) {
      const subscriber = makeSubscriber(event)
      this.#subscribers.set(event.number, subscriber)
      tellSubscribed(subscriber, this.address, `a subscriber (${subscriber.delivery})`)
      this.#tell('subscriber', subscriber)
    } else if ('gone' in event) {
      this.#gone(event.gone, REASONS[event.reason] ?? 'closed')
    } else {
      this.#refused(event)
    }
    return true
  }

  #gone(number: number, reason: GoneReason): void {
    const subscriber = this.#subscribers.get(number)
    if (subscriber === undefined) return
    this.#subscribers.delete(number)
    tellGone(subscriber, reason)
    if (reason === 'evicted') tellEvicted(this, subscriber)
    this.#tell('gone', subscriber, reason)
  }

  #refused(failure: Failure): void {
    const error = fromFailure(failure, this.#authorizer?.causeOf(failure))
    tellRefused(this.address, error)
    this.#tell('refused', error)
  }

  /** What a listener throws must not keep later events from being told: it becomes an uncaught exception. */
  #tell<Name extends keyof PublisherEvents>(name: Name, ...what: PublisherEvents[Name]): void {
    emit(this as EventEmitter, name, ...what)
  }

  /** The core has ended it. */
  #ended(error: RingfenceError): void {
    if (error.code === 'ERR_RINGFENCE_OBJECT_EXPOSED' || REASONS[this.#native.reason()] === 'exposed') {
      this.#finish('exposed', exposed)
    } else {
      this.#finish('closed', this.#ending === null ? closedHere : endedHere)
    }
  }

  /** A call into the core has failed: what ends the publisher, ends it here. */
  #failed(error: RingfenceError): void {
    const ends = ['ERR_RINGFENCE_OBJECT_EXPOSED', 'ERR_RINGFENCE_CLOSED', 'ERR_RINGFENCE_UNSUPPORTED']
    if (!this.#over && ends.includes(error.code)) this.#ended(error)
  }

  #finish(reason: 'closed' | 'exposed', unsendable: () => RingfenceError): void {
    if (this.#over) return
    this.#over = true
    openNow.delete(this)
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#native.close()
    this.#stay()
    this.#queue.shut(unsendable, true)
    for (const number of [...this.#subscribers.keys()]) this.#gone(number, reason)
    this.#resolveClosed(reason)
    timers.queueMicrotask(() => this.#tell('close', reason))
  }
}

/**
 * Binds an address, at which any number of processes {@link subscribe}. Each message that is sent reaches all of them, and is written
 * once. Where another process has the address it rejects with ADDRESS_OCCUPIED, or waits for it with the option `wait`.
 *
 * The memory is a memfd: `backing: 'shm'` is INVALID_ARGUMENT, since every subscriber could write a shm object.
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link listen}
 */
export function publish(address: string, options: PublishOptions = {}): Promise<Publisher> {
  return runHandshakeAt('publish', address, options, (native, opening) => make(address, native, opening))
}
