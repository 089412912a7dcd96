import type { EventEmitter } from 'node:events'
import type { Duplex } from 'node:stream'

import { decodeWith, encodeWith, structured, type Codec } from '../adapters/codec.js'
import { toDuplex } from '../adapters/duplex.js'
import { Port, type PortEventListener, type PortMessageEvent } from '../adapters/port.js'
import { inThisContext } from '../runtime/context.js'
import { reportClosed, reportOpen, reportHandlerError } from '../runtime/diagnostics.js'
import { KEY, invalid, messageOf, RingfenceError } from '../errors.js'
import { isThenable, tryPromise, untilAborted } from '../runtime/deferred.js'
import { atExit } from '../runtime/exit.js'
import * as internal from '../runtime/symbols.js'
import { toBytes } from './arena.js'
import { ChannelCore, type PreparedClose } from './core.js'
import { withOperations, type Failure, type NativeChannel, type RawChannel } from '../native.js'
import type { Opening } from '../endpoint/handshake.js'
import { concurrencyOf } from '../endpoint/options.js'
import type { Fill, SendQueue } from './send-queue.js'
import { Source, webStreamsOf } from './source.js'
import type { ChannelStats } from './stats.js'
import { toToken } from './tokens.js'
import { Values } from './values.js'
import type {
  CallContext,
  CallOptions,
  Message,
  MessageInput,
  Reservation,
  SendOptions,
  ServeOptions,
  WaitOptions,
} from '../types.js'

// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
type AnyChannel = Channel<any, any>
type ChannelOpening = Pick<Opening, 'address' | 'settings'>
let make: (native: NativeChannel, opening: ChannelOpening) => AnyChannel

/** Frees the host's address if the process exits while the channel is open. */
export let vacateAtExit: (channel: AnyChannel, address: string) => void

/** Calls back once the messages that the peer left were read or dropped; never if it left none. */
export let onLeftoversRead: (channel: AnyChannel, callback: () => void) => void

/** Flushes pending messages for up to `linger` milliseconds, and rejects new ones. Resolves with a function that marks the channel closed. */
export let prepareClose: (channel: AnyChannel, linger: number) => Promise<PreparedClose>

/**
 * A bidirectional connection between this process and its peer.
 *
 * `for await (const message of channel)` yields messages until the peer's end. Leaving the loop neither closes the channel nor loses a
 * message. `await using` closes the channel. An open channel keeps the process alive, as a socket does, until {@link Channel.unref}.
 *
 * `closed` resolves when the channel has ended, whichever side ended it, and has released the address. Messages that the peer sent before
 * can still be read: their memory stays mapped until they are read, or {@link Channel.close} is called.
 *
 * With the option `codec`, and if made by {@link Channel.with}, the channel's messages are values.
 */
export class Channel<In = Message, Out = MessageInput> extends Source<In> {
  /** The role of this process at the rendezvous. Both sides have the same rights afterwards. */
  readonly role: 'host' | 'guest'
  /** Bytes of the ring that this side writes. */
  readonly capacity: number
  /** Bytes of the longest message that this side may send. The peer sets this limit. */
  readonly maxMessageSize: number
  readonly #core: ChannelCore
  readonly #queue: SendQueue
  readonly #values: Values<unknown> | null

  static {
    prepareClose = (channel, linger) => channel.#core.prepareClose(linger)
    make = (native, { settings, address }) => {
      const core = new ChannelCore(native, settings, (closed) => {
        reportClosed(channel, closed)
        channel[internal.settle](closed)
      })
      const channel: AnyChannel = new Channel(KEY, address, core, settings.values)
      return channel
    }
    onLeftoversRead = (channel, callback) => {
      channel.#core.onLeftoversRead = callback
    }
    vacateAtExit = (channel, address) => {
      void channel.closed.then(atExit(address, () => channel.#core.native.vacate()))
    }
  }

  /** @param from - The address, or the channel of which the new one is a view. */
  private constructor(
    key: symbol,
    from: string | null | AnyChannel,
    core: ChannelCore,
    values: Values<unknown> | null,
  ) {
    if (key !== KEY) throw invalid('channels are made by join, connect, listen and member')
    super(from, core, values)
    const { native } = core
    this.#core = core
    this.#queue = core.queue
    this.#values = values
    this.role = native.role
    this.capacity = native.capacity
    this.maxMessageSize = native.maxMessageSize
  }

  /**
   * Sends a message, in fragments if necessary. The message is copied before the call returns. Strings are sent as UTF-8. For a
   * view, the bytes that it shows are sent.
   *
   * @example
   * ```js
   * await channel.send('hello')
   * ```
   *
   * @returns A promise that resolves once the message is in the ring, which outlives this process. Await it to avoid outrunning the
   * peer. It rejects with MESSAGE_TOO_LARGE above {@link Channel.maxMessageSize}; PEER_LOST once the peer is gone; CLOSED after `end` or
   * `close`; RING_CORRUPT; OBJECT_EXPOSED; INVALID_ARGUMENT for a value that is not a message or cannot be encoded (with the `cause`), and
   * while a reservation is open. A message whose promise `close` has rejected is not in the ring, and never will be.
   *
   * With `options.attachments` the message carries sealed buffers and descriptors. It then also waits while the peer holds as many unread
   * ones as it accepts. The promise rejects with INVALID_ARGUMENT if the peer does not accept attachments of this kind, MESSAGE_TOO_LARGE if
   * their number or size is beyond its limits, and NO_SPACE if the kernel has no room for them. Nothing was sent then.
   *
   * An abort of `options.signal` removes the message if no part of it is in the ring yet. After that it has no effect.
   *
   * If the channel has ended, the rejection needs no handler: a program need not await each promise, since {@link Channel.closed} reports
   * the end. A mistake in the call itself (INVALID_ARGUMENT, MESSAGE_TOO_LARGE, CLOSED after this side's `end` on an open channel) is an
   * unhandled rejection as usual if the promise has no handler.
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
   * if (!channel.trySend('hello')) await channel.send('hello')
   * ```
   *
   * @returns Whether there was room.
   * @throws {@link RingfenceError} as `send` rejects, but MESSAGE_TOO_LARGE already above half the capacity.
   */
  trySend(message: Out): boolean {
    return this.#queue.trySend(this.#values === null ? (message as MessageInput) : this.#values.encode(message))
  }

  /**
   * Lets a function write a message in place, without an object for it. The counterpart of {@link Channel.receiveEach}.
   *
   * @example
   * ```js
   * const isSent = channel.fill(8, (bytes, offset) => {
   *   bytes[offset] = 42
   *   return 1
   * })
   * ```
   *
   * @param size - The maximum length of the message in bytes.
   * @param write - Called synchronously if there is room, otherwise not at all. Writes at most `length` bytes at `bytes[offset]`, and
   * returns the message's length. It must write nowhere else, keep no reference to `bytes`, and send nothing (INVALID_ARGUMENT). Bytes that
   * it counts but has not written are zeros, or part of a message that this side sent to the peer before. If it throws, `fill` rethrows the
   * error and sends nothing.
   * @returns Whether there was room. The message is sent together with others that this turn of the program fills or sends. It is
   * in the ring before the program's next wait is over, and before the process exits.
   * @throws {@link RingfenceError} as `trySend`; INVALID_ARGUMENT also if `write` does not return a whole number from 0 to `length`
   */
  fill(size: number, write: Fill): boolean {
    return this.#queue.fill(size, write)
  }

  /**
   * Reserves room for a message in the ring itself, to be filled in place and committed. Only one reservation may be open at a time.
   *
   * @example
   * ```js
   * await channel.waitWritable(8)
   * const reservation = channel.reserve(8)
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

  /** Bytes of messages that were sent but are not in the ring yet; 0 once the channel has ended. */
  get bufferedAmount(): number {
    return this.#queue.bufferedAmount
  }

  /**
   * Counters of this channel and the fill level of its ring. The visits of a `receiveEach` count when it returns. The last figures stay
   * available after the end.
   *
   * @example
   * ```js
   * const { ringUsed, ringCapacity } = channel.stats()
   * ```
   */
  stats(): ChannelStats {
    return this.#core.stats()
  }

  /**
   * Resolves when `trySend` or `reserve` of `size` bytes can succeed. Rejects as `trySend` throws.
   *
   * @example
   * ```js
   * while (!channel.trySend('hello')) await channel.waitWritable(5)
   * ```
   *
   * @param size - Bytes of the message, 1 by default.
   */
  waitWritable(size = 1, options?: WaitOptions): Promise<void> {
    return this.#queue.waitWritable(size, options)
  }

  /**
   * Returns the same channel with values as messages, encoded and decoded by the codec: {@link json}, {@link structured}, or a custom one.
   * A channel may have several such views, and may be used directly at the same time. Each message goes to the first reader.
   *
   * @example
   * ```js
   * const values = channel.with(json())
   * await values.send({ add: [1, 2] })
   * ```
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if it is no codec
   */
  with<T>(codec: Codec<T>): Channel<T, T> {
    return new Channel<T, T>(KEY, this, this.#core, new Values(codec) as Values<unknown>)
  }

  /**
   * Calls the peer: sends it a request, and returns the reply of its {@link Channel.serve}. Any number of calls may be in flight, and replies
   * arrive in any order. The channel's codec encodes requests and replies. Calls and messages share the channel in the order in which they
   * were sent; {@link Channel.receive} returns messages only. The request is copied before the call returns.
   *
   * At most 16,384 requests of at most 16 MiB together are unanswered at a time. Further calls wait here.
   *
   * While calls are in flight, the channel is read even if the program receives no messages. Up to 1 MiB or 4,096 of its messages are kept for
   * the program then. Beyond that the channel is not read, and calls wait, until the program takes a message.
   *
   * @example
   * const [sum] = await channel.with(json<number[]>()).call([1, 2], { timeout: 1000 })
   *
   * @returns The reply. Rejects with a {@link RemoteError} if the handler threw; TIMEOUT after `timeout` milliseconds; AbortError if the
   * signal is aborted; PEER_LOST if the peer is lost, or ends its sending before it has answered; CLOSED after this side's close;
   * MESSAGE_TOO_LARGE if the request and its 16 bytes of head exceed {@link Channel.maxMessageSize}; MALFORMED if the codec cannot decode
   * the reply; INVALID_ARGUMENT; NO_SPACE; RING_CORRUPT; OBJECT_EXPOSED. A timeout and an abort free the call at once here, and abort the
   * handler's signal.
   *
   * Short replies share memory, which Node does not transfer: transfer a copy. A byte stream of Node 20 transfers the memory of a reply
   * that is enqueued, and so empties other replies.
   */
  call(request: Out, options?: CallOptions): Promise<In> {
    if (this.#values === null) return this.#call(request, options) as Promise<In>
    return this.#callWithCodec(request, options)
  }

  #call(request: Out, options: CallOptions | undefined): Promise<Buffer> {
    try {
      return this.#core.calls.call(this.#encodeBody(request), options)
    } catch (error) {
      return Promise.reject(error as Error)
    }
  }

  async #callWithCodec(request: Out, options: CallOptions | undefined): Promise<In> {
    return this.#decodeBody(await this.#call(request, options)) as In
  }

  /**
   * Answers the peer's {@link Channel.call}s, until it has ended. The handler gets each request, and returns the reply or a promise of it. An
   * error that it throws reaches the caller as a {@link RemoteError} with its name, message and code.
   *
   * At most `concurrency` handlers run at a time. Further requests wait in a queue, which the caller's limits bound. A handler that continues
   * after its caller has given up occupies its place until it returns.
   *
   * @example
   * await channel.with(json<number[]>()).serve(([a = 0, b = 0]) => [a + b], { concurrency: 10 })
   *
   * @returns A promise that resolves once the peer has ended its sending and everything was answered, or this side has closed the channel.
   * Rejects with PEER_LOST if the peer is lost; RING_CORRUPT; OBJECT_EXPOSED; INVALID_ARGUMENT if the channel is served already. A rejection
   * for the end of the channel needs no handler, as with {@link Channel.send}.
   */
  serve(handler: (request: In, context: CallContext) => Out | Promise<Out>, options?: ServeOptions): Promise<void> {
    return tryPromise(() => {
      const concurrency = concurrencyOf(handler, options)
      const answer = (request: Buffer, context: CallContext) => {
        const reply = handler(this.#decodeBody(request) as In, context)
        return isThenable(reply) ? encodeReplyLater(reply) : this.#encodeReply(reply)
      }
      const encodeReplyLater = async (reply: PromiseLike<Out>) => this.#encodeReply(await reply)
      // Any call that reads the channel may find the request, in a context of its own.
      return this.#core.calls.serve(inThisContext(answer), concurrency, (error) => reportHandlerError(this, error))
    })
  }

  #encodeBody(value: Out): Uint8Array {
    const message = this.#values === null ? (value as MessageInput) : encodeWith(this.#values.codec, value)
    return typeof message === 'string' ? Buffer.from(message) : toBytes(message)
  }

  /** The caller gets the error, so it must say which side is wrong. */
  #encodeReply(value: Out): Uint8Array {
    try {
      return this.#encodeBody(value)
    } catch (cause) {
      if ((cause as RingfenceError).code !== 'ERR_RINGFENCE_INVALID_ARGUMENT') throw cause
      const message = `the handler of this call has returned a value that cannot be sent: ${messageOf(cause)}`
      throw new RingfenceError('INVALID_ARGUMENT', message, { cause })
    }
  }

  #decodeBody(body: Buffer): unknown {
    return this.#values === null ? body : decodeWith(this.#values.codec, body)
  }

  /**
   * Sends the peer a token: a 64-bit number, separate from the messages, in a realtime signal. It reaches the peer however full the rings
   * are, and however busy the peer is. Returns once the kernel has accepted it. See {@link Channel.tokens}.
   *
   * @example
   * ```js
   * channel.sendToken(7)
   * ```
   *
   * @param token - A bigint from 0 to 2^64 - 1, or a safe integer from 0.
   * @throws {@link RingfenceError} INVALID_ARGUMENT; NO_SPACE if the peer's signal queue is full (RLIMIT_SIGPENDING of its user);
   * UNSUPPORTED if this process may not send the peer a signal (another user's, without CAP_KILL), or the peer's system does not pass on
   * all data of a signal; PEER_LOST once the peer is gone; CLOSED after this side's close; RING_CORRUPT; OBJECT_EXPOSED.
   */
  sendToken(token: bigint | number): void {
    this.#core.sendToken(toToken(token))
  }

  /**
   * The tokens from the peer, in the order in which it sent them. Their order relative to its messages is undefined. Several loops share
   * the tokens, and leaving a loop loses none.
   *
   * The loop ends when the channel has ended and the tokens that had arrived were read; at once if this side has closed the channel. Up to
   * 65,536 tokens wait here for a loop. Further tokens are dropped and counted in `tokensDropped` of {@link Channel.stats}. Waiting for a token does
   * not keep the process alive, but the open channel does. Rejects with NO_SPACE if there is no descriptor to wait with.
   *
   * Each token was sent by the peer: its signal carries a secret that was sent only over the private line.
   *
   * @example
   * ```js
   * for await (const token of channel.tokens()) console.log(token)
   * ```
   */
  tokens(): AsyncIterable<bigint> {
    return { [Symbol.asyncIterator]: () => this.#core.tokens.iterate() }
  }

  /**
   * Ends this side's sending; the other direction stays open. Resolves once everything that was sent before is in the ring, or the channel
   * has ended. The channel closes itself once both sides have ended and this side has read everything, up to the final `undefined`. A side
   * that stops reading earlier must call {@link Channel.close}.
   *
   * @example
   * ```js
   * await channel.send('the last message')
   * await channel.end()
   * ```
   *
   * @param options - An abort ends only the waiting. It does not undo the end.
   */
  end(options?: WaitOptions): Promise<void> {
    return untilAborted(options, () => this.#core.end())
  }

  /**
   * The channel as a byte stream. Message boundaries are not kept, empty messages are skipped, and `end()` ends this side's sending.
   *
   * - `destroy()` sends what was written before, ends the sending and closes the channel, as `end()` and `destroy()` of a socket do. If the
   *   peer does not read, that takes at most 5 s. Then the remainder is lost, and the peer's stream fails.
   * - `destroy(error)` closes the channel at once. The peer's stream fails.
   * - The readable side fails with code 'ECONNRESET' if the peer is gone before it ended its sending: its process has exited, or it has
   *   closed the channel without an end. The failure comes after all data that has arrived, and the last data may be missing. A write that
   *   the peer can no longer read fails with 'EPIPE'. The `cause` of both is the channel's PEER_LOST.
   * - A program that does not read gets the peer's end, and that failure, if it listens for 'error' and no data is unread.
   * - An error that a listener throws is an uncaught exception.
   * - It has the members of a socket that agents and servers use: `bytesRead`, `bytesWritten`, `destroySoon`,
   *   `readyState`, `ref`, `setKeepAlive`, `setNoDelay`, `setTimeout` and `unref`.
   * - `allowHalfOpen` is the channel's.
   *
   * @example
   * ```js
   * await pipeline(createReadStream('a-file'), channel.duplex())
   * ```
   */
  duplex(): Duplex {
    this.#core.buffer.ensureNotMerged()
    return toDuplex(this.#core)
  }

  /**
   * A web stream that sends a message for each chunk, made on first use. A write is done once its message is in the ring. `close()` ends
   * this side's sending, and `abort()` destroys the channel. Without `allowHalfOpen`, this side ends after the end of
   * {@link Channel.readable}, once no writer and no pipe holds the stream and its chunks were sent.
   */
  get writable(): WritableStream<Out> {
    return webStreamsOf(this).writable as WritableStream<Out>
  }

  /**
   * The channel as a Node `MessagePort`, for comlink, birpc, capnweb and other libraries that use one. Only the port may then read the
   * channel. Values are encoded by the channel's codec, or else by {@link structured}, which is for trusted peers: use
   * `channel.with(json()).port()` if the peer may turn hostile.
   *
   * A listener of 'message' starts the port and keeps the process alive. Without one, messages stay in the ring, and the peer waits. A
   * message that cannot be decoded is reported by 'messageerror'. 'close' follows the last message once the channel has ended. An error
   * that a listener throws is an uncaught exception.
   *
   * @example
   * ```js
   * const port = channel.port()
   * port.on('message', (value) => console.log(value))
   * port.postMessage({ add: [1, 2] })
   * ```
   */
  port(): MessagePortLike {
    this.#core.buffer.ensureNotMerged()
    return new Port(this.#core, this.#values?.codec ?? structured(), this as unknown as Channel<unknown, unknown>)
  }

  /** @internal */
  protected override [internal.summary](): string[] {
    return [this.role, `peer ${this.peer.pid}`]
  }
}

/**
 * A channel with the interface of a Node `MessagePort`, without what needs transfer lists.
 *
 * - 'message': a value has arrived. A listener starts the port, and keeps the process alive until it is removed.
 * - 'messageerror': a message could not be decoded or sent. The listener gets the error.
 * - 'close': the port has closed, after its last message.
 *
 * As with Node's port, a listener that was added before is not added again. An error that a listener throws is an uncaught exception.
 */
export interface MessagePortLike extends EventEmitter {
  /** The underlying channel. */
  readonly channel: Channel<unknown, unknown>
  /**
   * Sends a value, in the order of the calls. Never waits. Does nothing after `close`, or once the peer is gone. If a value cannot be sent
   * because the program holds a reservation of the channel or is filling a message, 'messageerror' reports it.
   *
   * @param transfer - Nothing, or an empty list: neither memory nor a MessagePort can be transferred to another process.
   * @throws a DataCloneError (a DOMException) for a value that cannot be encoded; {@link RingfenceError} INVALID_ARGUMENT for a list that is not
   * empty; MESSAGE_TOO_LARGE; NO_SPACE if 256 MiB are waiting because the peer does not read.
   */
  postMessage(value: unknown, transfer?: readonly unknown[] | { transfer?: readonly unknown[] | undefined }): void
  /** Does the same as `on`, for listeners that take an event. */
  addEventListener(
    event: string,
    listener: PortEventListener | null,
    options?: boolean | { once?: boolean | undefined; signal?: AbortSignal | undefined },
  ): void
  removeEventListener(event: string, listener: PortEventListener | null, options?: unknown): void
  onmessage: ((event: PortMessageEvent) => void) | null
  onmessageerror: ((event: PortMessageEvent) => void) | null
  onclose: ((event: Event) => void) | null
  /** Starts taking messages, even without a listener. */
  start(): void
  /**
   * Closes the port and the channel. Earlier values are still sent, for at most 5 s if the peer does not read. Only 'close' is emitted
   * after that.
   *
   * @param callback - Called once the port has closed.
   */
  close(callback?: () => void): void
  /** Keeps the process alive while the port is open. */
  ref(): void
  /** Lets the process exit while the port is open. */
  unref(): void
  hasRef(): boolean
}

/** Opens a channel over the binding's object. */
export function openChannel(raw: RawChannel, opening: ChannelOpening): AnyChannel {
  const channel = make(withOperations(raw), opening)
  reportOpen(channel)
  return channel
}

/** Opens a channel for an incoming connection. A failure is reported like any other refusal. */
export function openIncoming(raw: RawChannel, opening: ChannelOpening): AnyChannel | Failure {
  try {
    return openChannel(raw, opening)
  } catch (error) {
    // The peer must be notified now, not when the garbage is collected.
    withOperations(raw).close()
    const { message, code } = error as RingfenceError
    return { code: code.replace('ERR_RINGFENCE_', ''), message, identity: raw.peer } as Failure
  }
}
