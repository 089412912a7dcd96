// Values over what sends and reads messages. A typed channel, publisher or subscription is the plain one with a codec before it; it adds
// no queue and no state of its own.

import {
  borrows,
  checkCodec,
  decodeWith,
  encodesToNothing,
  encodeWith,
  malformed,
  type Codec,
  type CodecOptions,
} from '../adapters/codec.js'
import { invalid, show } from '../errors.js'
import { checkReceiveEach, plainObject } from '../endpoint/options.js'
// oxlint-disable-next-line import/no-cycle -- a type alone
import type { Channel } from './channel.js'
import type { CloseReason, Evidence, Identity, WaitOptions } from '../types.js'

/** Only `with` makes them. */
const KEY = Symbol('ringfence')

/** What sends messages. */
export interface Sends {
  send(message: Uint8Array | string, options?: WaitOptions): Promise<void>
  trySend(message: Uint8Array | string): boolean
}

/** What reads messages. */
export interface Reads extends AsyncIterable<Buffer> {
  receive(options?: { signal?: AbortSignal }): Promise<Buffer | null>
  tryReceive(): Buffer | null
  receiveEach(visit: (bytes: Uint8Array, offset: number, length: number) => void, max?: number): number
  waitReadable(options?: { signal?: AbortSignal }): Promise<boolean>
  readonly readableEnded: boolean
}

/**
 * What is there now for the next reader in line, before a promise is made: null where no more will come, `undefined` where it must be
 * waited for, as a loop is told.
 */
export type Now = () => Buffer | null | undefined

/** Encodes, and sends. */
export class Encoder<T> {
  readonly #to: Sends
  readonly #codec: Codec<T>

  constructor(to: Sends, codec: Codec<T>) {
    this.#to = to
    this.#codec = codec
  }

  send(value: T, options?: WaitOptions): Promise<void> {
    let message: Uint8Array | string
    try {
      message = this.#encode(value)
    } catch (error) {
      return Promise.reject(error as Error)
    }
    return this.#to.send(message, options)
  }

  trySend(value: T): boolean {
    return this.#to.trySend(this.#encode(value))
  }

  /** Undefined would be taken for the end by the one who reads it, whatever a codec makes of it. */
  #encode(value: T): Uint8Array | string {
    if (value === undefined) throw encodesToNothing(value, undefined)
    return encodeWith(this.#codec, value)
  }
}

const OVER: IteratorResult<never, undefined> = { done: true, value: undefined }

/** Reads, and decodes. */
export class Decoder<T> implements AsyncIterable<T> {
  readonly #from: Reads
  readonly #codec: Codec<T>
  readonly #lends: boolean
  readonly #now: Now
  /** One for all messages: a closure for each would cost as much as a short message. */
  #found: T | undefined
  readonly #keep = (bytes: Uint8Array, offset: number, length: number): void => {
    this.#found = this.#decode(toBuffer(bytes, offset, length))
  }

  constructor(from: Reads, codec: Codec<T>, options: CodecOptions, now: Now) {
    this.#from = from
    this.#codec = codec
    this.#lends = borrows(codec, options)
    this.#now = now
  }

  async receive(options?: { signal?: AbortSignal }): Promise<T | undefined> {
    const message = await this.#from.receive(options)
    return message === null ? undefined : this.#decode(message)
  }

  tryReceive(): T | undefined {
    if (!this.#lends) {
      const message = this.#from.tryReceive()
      return message === null ? undefined : this.#decode(message)
    }
    this.#found = undefined
    this.#from.receiveEach(this.#keep, 1)
    const found = this.#found
    this.#found = undefined
    return found
  }

  receiveEach(visit: (value: T) => void, max?: number): number {
    checkReceiveEach(visit, max)
    return this.#from.receiveEach((bytes, offset, length) => {
      const shown = toBuffer(bytes, offset, length)
      visit(this.#decode(this.#lends ? shown : Buffer.concat([shown])))
    }, max)
  }

  [Symbol.asyncIterator](): AsyncIterator<T, undefined> {
    const messages = this.#from[Symbol.asyncIterator]()
    let left = false
    const later = (): Promise<IteratorResult<T, undefined>> =>
      messages.next().then(({ done, value }) => (done ? OVER : { done: false, value: this.#decode(value) }))
    return {
      next: () => {
        if (left) return Promise.resolve(OVER)
        try {
          const message = this.#now()
          // Also the end is told by the loop beneath.
          if (message === undefined || message === null) return later()
          return Promise.resolve({ done: false, value: this.#decode(message) })
        } catch (error) {
          return Promise.reject(error as Error)
        }
      },
      return: () => {
        left = true
        void messages.return!()
        return Promise.resolve(OVER)
      },
    }
  }

  #decode(bytes: Buffer): T {
    const value = decodeWith(this.#codec, bytes)
    // It would be taken for the end.
    if (value === undefined) throw malformed(bytes, new TypeError('the codec has made undefined of it'))
    return value
  }
}

function toBuffer(bytes: Uint8Array, offset: number, length: number): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset + offset, length)
}

/** Checks what `with` was given. */
export function checkWith(codec: unknown, options: CodecOptions): void {
  checkCodec(codec)
  plainObject('options', options, ['borrow'])
  const { borrow } = options
  if (borrow !== undefined && typeof borrow !== 'boolean')
    throw invalid(`borrow must be true or false, not ${show(borrow)}`)
}

/** Makes a typed channel; only {@link Channel.with} calls it. */
export function typedChannel<T>(channel: Channel, codec: Codec<T>, options: CodecOptions, now: Now): TypedChannel<T> {
  checkWith(codec, options)
  return make(channel, codec, options, now)
}

let make: <T>(channel: Channel, codec: Codec<T>, options: CodecOptions, now: Now) => TypedChannel<T>

/**
 * A {@link Channel} whose messages are values. All that is not said here is as with the channel, which it shares with every other
 * typed channel over it.
 *
 * No more, or nothing now, is `undefined`, so that null is a value. A message that cannot be decoded is MALFORMED, with its `bytes`: the one
 * call that would have had it fails, and the next goes on with the next message.
 */
export class TypedChannel<T> implements AsyncIterable<T>, AsyncDisposable {
  /** The channel itself, with the messages as bytes. */
  readonly channel: Channel
  readonly #encoder: Encoder<T>
  readonly #decoder: Decoder<T>

  static {
    make = <U>(channel: Channel, codec: Codec<U>, options: CodecOptions, now: Now) =>
      new TypedChannel<U>(KEY, channel, [new Encoder(channel, codec), new Decoder(channel, codec, options, now)])
  }

  private constructor(key: symbol, channel: Channel, parts: [Encoder<T>, Decoder<T>]) {
    if (key !== KEY) throw invalid('typed channels are made by with')
    this.channel = channel
    ;[this.#encoder, this.#decoder] = parts
  }

  /** As {@link Channel.role}. */
  get role(): 'host' | 'guest' {
    return this.channel.role
  }

  /** As {@link Channel.peer}. */
  get peer(): Identity {
    return this.channel.peer
  }

  /** As {@link Channel.evidence}. */
  get evidence(): readonly Evidence[] {
    return this.channel.evidence
  }

  /** As {@link Channel.capacity}. */
  get capacity(): number {
    return this.channel.capacity
  }

  /** As {@link Channel.maxMessageSize}, of a value's bytes. */
  get maxMessageSize(): number {
    return this.channel.maxMessageSize
  }

  /** As {@link Channel.bufferedAmount}. */
  get bufferedAmount(): number {
    return this.channel.bufferedAmount
  }

  /** As {@link Channel.readableEnded}. */
  get readableEnded(): boolean {
    return this.channel.readableEnded
  }

  /** As {@link Channel.closed}. */
  get closed(): Promise<CloseReason> {
    return this.channel.closed
  }

  /**
   * As {@link Channel.send}. Rejects with INVALID_ARGUMENT, with the `cause`, where the value cannot be encoded, or encodes to
   * nothing (undefined, a function); nothing is sent then.
   */
  send(value: T, options?: WaitOptions): Promise<void> {
    return this.#encoder.send(value, options)
  }

  /**
   * As {@link Channel.trySend}.
   *
   * @throws {@link RingfenceError} also INVALID_ARGUMENT, as {@link TypedChannel.send} rejects
   */
  trySend(value: T): boolean {
    return this.#encoder.trySend(value)
  }

  /** As {@link Channel.waitWritable}: `size` in bytes. */
  waitWritable(size?: number, options?: WaitOptions): Promise<void> {
    return this.channel.waitWritable(size, options)
  }

  /** As {@link Channel.receive}; undefined: no more will come. Rejects also with MALFORMED. */
  receive(options?: { signal?: AbortSignal }): Promise<T | undefined> {
    return this.#decoder.receive(options)
  }

  /**
   * As {@link Channel.tryReceive}; undefined: there is nothing now.
   *
   * @throws {@link RingfenceError} also MALFORMED
   */
  tryReceive(): T | undefined {
    return this.#decoder.tryReceive()
  }

  /**
   * As {@link Channel.receiveEach}; the values are the visitor's to keep.
   *
   * @throws {@link RingfenceError} also MALFORMED: that message counts as visited, and the next call goes on behind it.
   */
  receiveEach(visit: (value: T) => void, max?: number): number {
    return this.#decoder.receiveEach(visit, max)
  }

  /** As {@link Channel.waitReadable}. */
  waitReadable(options?: { signal?: AbortSignal }): Promise<boolean> {
    return this.channel.waitReadable(options)
  }

  /** A loop ends with an error at what is MALFORMED, as a loop does; another goes on behind it. */
  [Symbol.asyncIterator](): AsyncIterator<T, undefined> {
    return this.#decoder[Symbol.asyncIterator]()
  }

  /** As {@link Channel.verify}. */
  verify(options?: WaitOptions): Promise<Identity> {
    return this.channel.verify(options)
  }

  /** As {@link Channel.sendToken}. */
  sendToken(token: bigint | number): void {
    this.channel.sendToken(token)
  }

  /** As {@link Channel.tokens}. */
  tokens(): AsyncIterable<bigint> {
    return this.channel.tokens()
  }

  /** As {@link Channel.end}. */
  end(options?: WaitOptions): Promise<void> {
    return this.channel.end(options)
  }

  /** As {@link Channel.close}. */
  close(options?: { linger?: number }): Promise<void> {
    return this.channel.close(options)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.channel.close()
  }

  /** As {@link Channel.ref}. */
  ref(): this {
    this.channel.ref()
    return this
  }

  /** As {@link Channel.unref}. */
  unref(): this {
    this.channel.unref()
    return this
  }
}
