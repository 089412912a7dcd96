import type { Duplex } from 'node:stream'

import { structured, type Codec } from '../adapters/codec.js'
import { toDuplex } from '../adapters/duplex.js'
// oxlint-disable-next-line import/no-cycle -- it imports types of this file alone
import { Port, type MessagePortLike } from '../adapters/port.js'
import { WebStreams } from '../adapters/web.js'
import { tellClosed, tellOpen } from '../runtime/diagnostics.js'
import { invalid, show, type RingfenceError } from '../errors.js'
import { untilAborted } from '../runtime/deferred.js'
import { atExit } from '../runtime/exit.js'
import { ChannelCore } from './core.js'
import { batchLoop, loop, type Loop } from './loops.js'
import { withOperations, type Failure, type NativeChannel, type RawChannel } from '../native.js'
import { checkReceiveEach, lingerOf, readerSignal, type ChannelSettings } from '../endpoint/options.js'
import type { ReceiveBuffer } from './receive-buffer.js'
import type { Fill, SendQueue } from './send-queue.js'
import { registerSource } from './sources.js'
import type { ChannelStats } from './stats.js'
import { toToken } from './tokens.js'
import { Values } from './values.js'
import type {
  BatchOptions,
  CloseReason,
  Evidence,
  Identity,
  Message,
  MessageInput,
  Reservation,
  Visit,
  WaitOptions,
} from '../types.js'

/** Only `join`, `connect`, `member` and listeners make channels. */
const KEY = Symbol('ringfence')
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
type AnyChannel = Channel<any, any>
let make: (native: NativeChannel, settings: ChannelSettings) => AnyChannel

/** Frees the host's address if the process exits while the channel is open. */
export let vacateAtExit: (channel: AnyChannel, address: string) => void

/** The error to report if the peer disconnected without having ended its sending; `undefined` after a clean end. */
export let cutOff: (channel: AnyChannel) => RingfenceError | undefined

/** Channel operations for adapters, which report the end of a channel themselves. */
export interface Quiet<In> {
  /** Does the same as {@link Channel.waitReadable}, but does not end this side if the peer has ended. */
  waitReadable(reader?: object | null): Promise<boolean>
  /** Returns a loop that yields whenever a message is available. It takes no message, and finishes once no more will arrive. */
  arrivals(): AsyncIterator<unknown, undefined>
  /** Does the same as {@link Channel.tryReceive}, but does not end this side if the peer has ended. */
  tryReceive(): In | undefined
  /** The error to report at the end if the peer disconnected before it had ended its sending. */
  cutOff(): RingfenceError | undefined
  /** Must be called after the end of the peer's sending was reported. */
  told(): void
}

// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export let quietOf: <In>(channel: Channel<In, any>) => Quiet<In>

/** Calls back once the messages that the peer left were read or dropped; never if it left none. */
export let whenRead: (channel: AnyChannel, callback: () => void) => void

/** Flushes pending messages and rejects new ones. Returns a function that marks the channel closed. */
export let depart: (channel: AnyChannel) => () => void

/**
 * A bidirectional connection between this process and its peer.
 *
 * `for await (const message of channel)` yields messages until the peer's end. Leaving the loop neither closes the channel nor loses a
 * message. `await using` closes the channel. An open channel keeps the process alive, as a socket does, until {@link Channel.unref}.
 *
 * With the option `codec`, and if made by {@link Channel.with}, the channel's messages are values.
 */
export class Channel<In = Message, Out = MessageInput> implements AsyncIterable<In>, AsyncDisposable {
  /** The role of this process at the rendezvous. Both sides have the same rights afterwards. */
  readonly role: 'host' | 'guest'
  /** Bytes of the ring that this side writes. */
  readonly capacity: number
  /** Bytes of the longest message that this side may send. The peer sets this limit. */
  readonly maxMessageSize: number
  /**
   * Resolves when the channel has ended, whichever side ended it, and has released everything, the address included. Messages that the peer
   * sent before can still be read: their memory stays mapped until they are read, or {@link Channel.close} is called. Never rejects.
   */
  readonly closed: Promise<CloseReason>

  readonly #core: ChannelCore
  readonly #queue: SendQueue
  readonly #buffer: ReceiveBuffer
  /** Converts messages to values; null: the messages are bytes. */
  readonly #values: Values<unknown> | null
  #streams: WebStreams<In, Out> | null = null

  static {
    depart = (channel) => channel.#core.depart()
    cutOff = (channel) => channel.#core.cutOff()
    quietOf = (channel) => ({
      waitReadable: (reader) => channel.#core.waitReadable(undefined, reader),
      arrivals: () =>
        loop<unknown>(
          () => channel.#core.arrivedNow(),
          (reader) => channel.#buffer.wait(false, undefined, reader),
        ),
      tryReceive: () => channel.#decode(channel.#buffer.takeNow()),
      cutOff: () => channel.#core.cutOff(),
      told: () => channel.#core.endWithPeer(),
    })
    make = (native, settings) => {
      const core = new ChannelCore(native, settings, (reason) => tellClosed(channel, reason))
      const channel = new Channel(KEY, core, settings.codec === undefined ? null : new Values(settings.codec))
      return channel
    }
    whenRead = (channel, callback) => {
      channel.#core.whenRead = callback
    }
    vacateAtExit = (channel, address) => {
      void channel.closed.then(atExit(address, () => channel.#core.native.vacate()))
    }
    registerSource((value) =>
      #core in value
        ? { buffer: value.#buffer, values: value.#values, reason: () => value.#core.reasonOfEnd() }
        : undefined,
    )
  }

  private constructor(key: symbol, core: ChannelCore, values: Values<unknown> | null) {
    if (key !== KEY) throw invalid('channels are made by join, connect, listen and member')
    const { native } = core
    this.#core = core
    this.#queue = core.queue
    this.#buffer = core.buffer
    this.#values = values
    this.role = native.role
    this.capacity = native.capacity
    this.maxMessageSize = native.maxMessageSize
    this.closed = core.closed
  }

  /** The peer's identity at the last check, in the handshake or by {@link Channel.verify}. */
  get peer(): Identity {
    return this.#core.view.peer
  }

  /** Every check of the handshake, in order, and the checks of the last {@link Channel.verify}. */
  get evidence(): readonly Evidence[] {
    return this.#core.view.evidence
  }

  /**
   * Checks the peer again now, against the policy that the channel was made with. `authorize` is not called again. {@link Channel.peer} and
   * {@link Channel.evidence} then show the results of this check.
   *
   * @returns The peer's identity. Rejects with PEER_REFUSED if the policy no longer holds, or the check cannot be made: the channel is then
   * closed at once, and its unread messages are discarded. PEER_LOST if the peer has exited, or executes another program; CLOSED after this
   * side's close; RING_CORRUPT; NO_SPACE if there is no thread for the check; HANDSHAKE_TIMEOUT if the peer's executable cannot be read
   * within `handshakeTimeout`. NO_SPACE and HANDSHAKE_TIMEOUT say nothing about the peer, and the channel stays open.
   *
   * If the channel has ended, the rejection needs no handler, as with {@link Channel.send}. PEER_REFUSED, NO_SPACE and HANDSHAKE_TIMEOUT,
   * which only this call reports, need one as usual.
   */
  verify(options?: WaitOptions): Promise<Identity> {
    return this.#core.view.verify(
      () => this.#core.over,
      () => this.#core.hear(),
      options,
    )
  }

  /**
   * Sends a message, in fragments if necessary. The message is copied before the call returns. Strings are sent as UTF-8. For a
   * view, the bytes that it shows are sent.
   *
   * @returns A promise that resolves once the message is in the ring, which outlives this process. Await it to avoid outrunning the
   * peer. It rejects with MESSAGE_TOO_LARGE above {@link Channel.maxMessageSize}; PEER_LOST once the peer is gone; CLOSED after `end` or
   * `close`; RING_CORRUPT; OBJECT_EXPOSED; INVALID_ARGUMENT for a value that is not a message or cannot be encoded (with the `cause`), and
   * while a reservation is open. A message whose promise `close` has rejected is not in the ring, and never will be.
   *
   * An abort of `options.signal` removes the message if no part of it is in the ring yet. After that it has no effect.
   *
   * If the channel has ended, the rejection needs no handler: a program need not await each promise, since {@link Channel.closed} reports
   * the end. A mistake in the call itself (INVALID_ARGUMENT, MESSAGE_TOO_LARGE, CLOSED after this side's `end` on an open channel) is an
   * unhandled rejection as usual if the promise has no handler.
   */
  send(message: Out, options?: WaitOptions): Promise<void> {
    if (this.#values === null) return this.#queue.send(message as MessageInput, options)
    return this.#values.send(this.#queue, message, options)
  }

  /**
   * Puts a message into the ring if there is room now.
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
    if (typeof write !== 'function') throw invalid(`fill takes a function, not ${show(write)}`)
    return this.#queue.fill(size, write)
  }

  /**
   * Reserves room for a message in the ring itself, to be filled in place and committed. Only one reservation may be open at a time.
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
   */
  stats(): ChannelStats {
    return this.#core.stats()
  }

  /** Resolves when `trySend` or `reserve` of `size` bytes can succeed. Rejects as `trySend` throws. */
  waitWritable(size = 1, options?: WaitOptions): Promise<void> {
    return this.#queue.waitWritable(size, options)
  }

  /**
   * Receives the next message.
   *
   * @returns `undefined` after the end: no more will arrive, and everything was read.
   * Rejects with CLOSED after this side's close; RING_CORRUPT; OBJECT_EXPOSED, after which unread messages are lost; MALFORMED, with the
   * `bytes`, for a message that the codec cannot decode (the next call returns the next message); AbortError if the signal is aborted,
   * which loses no message.
   */
  receive(options?: WaitOptions): Promise<In | undefined> {
    if (this.#values === null) return this.#receive(options) as Promise<In | undefined>
    return this.#receiveValue(this.#values, options) as Promise<In | undefined>
  }

  async #receive(options?: WaitOptions): Promise<Buffer | undefined> {
    const signal = readerSignal(options)
    let message = this.#core.receiveNow()
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
   * @throws {@link RingfenceError} CLOSED after this side's close; RING_CORRUPT; MALFORMED
   */
  tryReceive(): In | undefined {
    return this.#decode(this.#buffer.tryReceive())
  }

  #decode(message: Buffer | null): In | undefined {
    if (message === null) return undefined
    return (this.#values === null ? message : this.#values.decode(message)) as In
  }

  /**
   * Visits the messages that are available now, in order. Messages that arrive during the call are left to the next call. So a loop of
   * `waitReadable` and `receiveEach` lets the event loop turn, however fast the peer sends.
   *
   * The bytes are valid during the visit, and must not be transferred: the memory holds other messages as well. A channel of values passes
   * the visitor each value, which it may keep.
   *
   * @param visit - If it throws, the error is passed on: the current message counts as visited, and the others stay unread.
   * @param max - The maximum number of messages, however long that takes. By default, visits stop after about 2 ms, and the other messages
   * stay unread: {@link Channel.waitReadable} then resolves once the event loop has turned. `Infinity` visits all available messages.
   * @returns The number of visited messages.
   * @throws {@link RingfenceError} CLOSED after this side's close; RING_CORRUPT; MALFORMED, after which the next call continues behind that
   * message; NO_SPACE if there is no memory for the next message, which the next call tries again; INVALID_ARGUMENT if a visitor has
   * transferred the memory, which loses the other messages in it.
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
    const readable = await this.#core.waitReadable(readerSignal(options))
    if (!readable) this.#core.endWithPeer()
    return readable
  }

  /**
   * Whether no more messages will arrive and everything was read. Without `allowHalfOpen`, the first access that returns `true` ends this
   * side's sending, as the `undefined` of {@link Channel.receive} does.
   */
  get readableEnded(): boolean {
    return this.#buffer.isEnded
  }

  /**
   * Yields arrays of at least one and at most `max` available messages. Meant for fast loops: it needs one promise for each array instead
   * of one for each message.
   *
   * @example
   * for await (const messages of channel.batches()) for (const message of messages) handle(message)
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for wrong options; an AbortError if the signal is aborted already
   */
  batches(options?: BatchOptions): Loop<In[]> {
    const buffer = this.#buffer
    return batchLoop<Buffer, In>(
      {
        now: () => this.#core.nextNow(),
        more: () => (buffer.due === null ? buffer.takeNow() : null),
        wait: (reader, signal) => buffer.wait(true, signal, reader),
        decode: (message) => this.#decode(message)!,
      },
      options,
    )
  }

  /** A message that cannot be decoded ends the loop with an error. Another loop continues behind that message. */
  [Symbol.asyncIterator](): Loop<In> {
    const values = this.#values
    return loop<Buffer, In>(
      () => this.#core.nextNow(),
      (reader) => this.#buffer.wait(true, undefined, reader),
      values === null ? undefined : (message) => values.decode(message) as In,
    )
  }

  /**
   * Returns the same channel with values as messages, encoded and decoded by the codec: {@link json}, {@link structured}, or a custom one.
   * A channel may have several such views, and may be used directly at the same time. Each message goes to the first reader.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if it is no codec
   */
  with<T>(codec: Codec<T>): Channel<T, T> {
    return new Channel<T, T>(KEY, this.#core, new Values(codec) as Values<unknown>)
  }

  /**
   * Sends the peer a token: a 64-bit number, separate from the messages, in a realtime signal. It reaches the peer however full the rings
   * are, and however busy the peer is. Returns once the kernel has accepted it. See {@link Channel.tokens}.
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
   */
  tokens(): AsyncIterable<bigint> {
    return { [Symbol.asyncIterator]: () => this.#core.tokens.iterate() }
  }

  /**
   * Ends this side's sending; the other direction stays open. Resolves once everything that was sent before is in the ring, or the channel
   * has ended. The channel closes itself once both sides have ended and this side has read everything, up to the final `undefined`. A side
   * that stops reading earlier must call {@link Channel.close}.
   *
   * @param options - An abort ends only the waiting. It does not undo the end.
   */
  end(options?: WaitOptions): Promise<void> {
    return untilAborted(options, () => this.#core.end())
  }

  /**
   * Closes the channel. The peer can still read what is in the ring. Pending sends have `linger` milliseconds (default 0), and then reject
   * with CLOSED.
   *
   * @returns A promise that resolves once everything is released.
   */
  async close(options: { linger?: number } = {}): Promise<void> {
    await this.#core.close(lingerOf(options))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
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
   * - An error that a listener throws is an uncaught exception.
   * - It has the methods that agents and servers call on a socket: `setTimeout`, `setKeepAlive`, `setNoDelay`, `ref` and `unref`.
   * - `allowHalfOpen` is the channel's.
   */
  duplex(): Duplex {
    const core = this.#core
    const { buffer, native, queue } = core
    buffer.mustBeFree()
    const stream = {}
    return toDuplex({
      allowHalfOpen: core.allowHalfOpen,
      maxMessageSize: this.maxMessageSize,
      maxAtOnce: native.maxAtOnce,
      get due() {
        return buffer.due
      },
      trySend: (message) => queue.trySend(message),
      send: (message) => queue.send(message),
      tryReceive: () => buffer.takeNow(),
      waitReadable: () => core.waitReadable(undefined, stream),
      end: (withPeer) => (withPeer ? core.endAfterPeer() : core.end()),
      close: () => this.close(),
      cutOff: () => core.cutOff(),
      ref: () => this.ref(),
      unref: () => this.unref(),
    })
  }

  #web(): WebStreams<In, Out> {
    if (this.#streams !== null) return this.#streams
    const quiet = quietOf(this)
    const sink = {
      closed: this.closed,
      send: (message: Out) => this.send(message),
      waitWritable: (size: number) => this.waitWritable(size),
      end: () => this.end(),
      close: () => this.close(),
    }
    return (this.#streams = new WebStreams<In, Out>({ ...quiet, close: sink.close }, sink))
  }

  /**
   * A web stream with one chunk for each message, made on first use. A message is taken from the channel when the stream's reader asks for
   * it, so the backpressure is the channel's. The stream ends after the peer's end. It errors with PEER_LOST, after all messages, if the
   * peer disconnected before it had ended its sending. `cancel()` closes the channel.
   *
   * With {@link Channel.writable} the channel is a pair of streams for `pipeThrough`. `pipeline` of `node:stream` takes the channel as a
   * source, and its `writable` as a destination.
   *
   * @example
   * await channel.readable.pipeThrough(new TextDecoderStream()).pipeTo(sink)
   */
  get readable(): ReadableStream<In> {
    return this.#web().readable
  }

  /**
   * A web stream that sends a message for each chunk, made on first use. A write is done once its message is in the ring. `close()` ends
   * this side's sending, and `abort()` closes the channel. Without `allowHalfOpen`, the end of {@link Channel.readable} ends this side too,
   * unless a writer or a pipe holds the stream.
   */
  get writable(): WritableStream<Out> {
    return this.#web().writable
  }

  /**
   * The channel as a Node `MessagePort`, for comlink, birpc, capnweb and other libraries that use one. Only the port may then read the
   * channel. Values are encoded by the channel's codec, or else by {@link structured}, which is for trusted peers: use
   * `channel.with(json()).port()` if the peer may turn hostile.
   *
   * A listener of 'message' starts the port and keeps the process alive. Without one, messages stay in the ring, and the peer waits. A
   * message that cannot be decoded is reported by 'messageerror'. 'close' follows the last message once the channel has ended. An error
   * that a listener throws is an uncaught exception.
   */
  port(): MessagePortLike {
    this.#buffer.mustBeFree()
    const raw = this.#values === null ? this : new Channel(KEY, this.#core, null)
    const bytes = raw as unknown as Channel
    const codec = this.#values?.codec ?? structured()
    return new Port(bytes, codec, quietOf(bytes) as Quiet<Buffer>, this as unknown as Channel<unknown, unknown>)
  }

  /** Keeps the process alive while the channel is open, which is the default. */
  ref(): this {
    this.#core.keepAlive(true)
    return this
  }

  /** Lets the process exit while the channel is open. */
  unref(): this {
    this.#core.keepAlive(false)
    return this
  }
}

/** Opens a channel over the binding's object. */
export function openChannel(raw: RawChannel, settings: ChannelSettings, address: string | null): AnyChannel {
  const channel = make(withOperations(raw), settings)
  tellOpen(channel, address)
  return channel
}

/** Opens a channel for an incoming connection. A failure is reported like any other refusal. */
export function openArrived(raw: RawChannel, settings: ChannelSettings, address: string): AnyChannel | Failure {
  try {
    return openChannel(raw, settings, address)
  } catch (error) {
    // The peer must be notified now, not when the garbage is collected.
    withOperations(raw).close()
    const { message, code } = error as RingfenceError
    return { code: code.replace('ERR_RINGFENCE_', ''), message, identity: raw.peer } as Failure
  }
}
