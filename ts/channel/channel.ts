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

/** For adapters, which report the end of a channel themselves. */
export interface Quiet<In> {
  /** As {@link Channel.waitReadable}, but does not end this side if the peer has ended. */
  waitReadable(reader?: object | null): Promise<boolean>
  /** A loop over the moments at which there is a message to take. It takes none, and ends once no more will arrive. */
  arrivals(): AsyncIterator<unknown, undefined>
  /** As {@link Channel.tryReceive}, but does not end this side if the peer has ended. */
  tryReceive(): In | undefined
  /** The error to report at the end if the peer disconnected before it had ended its sending. */
  cutOff(): RingfenceError | undefined
  /** The end of the peer's sending was reported. */
  told(): void
}

// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export let quietOf: <In>(channel: Channel<In, any>) => Quiet<In>

/** Calls back once what the peer left was read or dropped; not at all if it left nothing. */
export let whenRead: (channel: AnyChannel, callback: () => void) => void

/** Flushes pending messages and rejects new ones. Returns a function that marks the channel closed. */
export let depart: (channel: AnyChannel) => () => void

/**
 * Both directions between this process and its peer.
 *
 * `for await (const message of channel)` yields messages until the peer's end; leaving the loop neither closes the
 * channel nor loses a message. `await using` closes it. An open channel keeps the process alive, as a socket does,
 * until {@link Channel.unref}.
 *
 * With the option `codec`, and from {@link Channel.with}, its messages are values.
 */
export class Channel<In = Message, Out = MessageInput> implements AsyncIterable<In>, AsyncDisposable {
  /** The role of this process at the rendezvous. Both sides have the same rights afterwards. */
  readonly role: 'host' | 'guest'
  /** Bytes of the ring that this side writes. */
  readonly capacity: number
  /** Bytes of the longest message that this side may send; the peer sets it. */
  readonly maxMessageSize: number
  /**
   * Resolves when the channel has ended, whichever side ended it, and has released everything, the address included. What the
   * peer sent before can still be read: its memory stays mapped until it is read, or {@link Channel.close} is called.
   * Never rejects.
   */
  readonly closed: Promise<CloseReason>

  readonly #core: ChannelCore
  readonly #queue: SendQueue
  readonly #buffer: ReceiveBuffer
  /** Makes values of messages; null: the messages are bytes. */
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

  /** The peer's identity at the last check: when the channel was made, or by {@link Channel.verify}. */
  get peer(): Identity {
    return this.#core.view.peer
  }

  /** Every check of the handshake, in order, and those of the last {@link Channel.verify}. */
  get evidence(): readonly Evidence[] {
    return this.#core.view.evidence
  }

  /**
   * Checks the peer again, now, and compares with the policy that the channel was made with (`authorize` is not called
   * again). {@link Channel.peer} and {@link Channel.evidence} are then those of this check.
   *
   * @returns The peer's identity. Rejects with PEER_REFUSED if the policy no longer holds, or the check cannot be made:
   * then the channel is closed at once, and what it held is discarded. PEER_LOST if the peer has exited, or executes
   * another program; CLOSED after this side's close; RING_CORRUPT; NO_SPACE if there is no thread for it; HANDSHAKE_TIMEOUT if
   * the peer's executable cannot be read within `handshakeTimeout`: these two say nothing about the peer, and the channel stays open.
   *
   * A rejection because the channel has ended is never an unhandled one, as with {@link Channel.send}. PEER_REFUSED, NO_SPACE and
   * HANDSHAKE_TIMEOUT, which only this call reports, are unhandled as usual if the promise has no handler.
   */
  verify(options?: WaitOptions): Promise<Identity> {
    return this.#core.view.verify(
      () => this.#core.over,
      () => this.#core.hear(),
      options,
    )
  }

  /**
   * Sends a message, in fragments if necessary. Copies before it returns. Strings are sent as UTF-8; of a view, the bytes that it
   * shows.
   *
   * @returns A promise that resolves once the message is in the ring, where it survives this process: await it
   * to not outrun the peer. It rejects with MESSAGE_TOO_LARGE above {@link Channel.maxMessageSize}; PEER_LOST once
   * the peer is gone; CLOSED after `end` or `close`; RING_CORRUPT; OBJECT_EXPOSED; INVALID_ARGUMENT for anything that is no message
   * or cannot be encoded (with the `cause`), and while a reservation is open. A message whose promise `close` has rejected is not in
   * the ring, and never will be.
   *
   * An abort of `options.signal` removes a message of which no part is in the ring yet; after that it does nothing.
   *
   * A rejection because the channel has ended is never an unhandled one: a program need not await each promise, since
   * {@link Channel.closed} reports the end. A mistake in the call itself (INVALID_ARGUMENT, MESSAGE_TOO_LARGE, CLOSED
   * after this side's `end` on an open channel) is unhandled as usual if the promise has no handler.
   */
  send(message: Out, options?: WaitOptions): Promise<void> {
    if (this.#values === null) return this.#queue.send(message as MessageInput, options)
    return this.#values.send(this.#queue, message, options)
  }

  /**
   * Puts a message into the ring now.
   *
   * @returns Whether there was room.
   * @throws {@link RingfenceError} as `send` rejects, but MESSAGE_TOO_LARGE above half the capacity already.
   */
  trySend(message: Out): boolean {
    return this.#queue.trySend(this.#values === null ? (message as MessageInput) : this.#values.encode(message))
  }

  /**
   * Has a message written in place, with no object for it: as {@link Channel.receiveEach}, for writing.
   *
   * @param size - Bytes that the message may have.
   * @param write - Called at once, where there is room, and else not at all: writes at most `length` bytes at `bytes[offset]`, and returns
   * how many the message has. It must write nowhere else, keep nothing of `bytes`, and send nothing (INVALID_ARGUMENT). Bytes that
   * it counts and has not written are zeros, or of a message that this side sent to the peer before. What it throws is passed on,
   * and nothing is sent.
   * @returns Whether there was room. The message goes with the others that this turn of the program fills and sends: it is in the ring
   * before the program's next wait is over, and before the process exits.
   * @throws {@link RingfenceError} as `trySend`; INVALID_ARGUMENT also where `write` returns no whole number from 0 to `length`
   */
  fill(size: number, write: Fill): boolean {
    if (typeof write !== 'function') throw invalid(`fill takes a function, not ${show(write)}`)
    return this.#queue.fill(size, write)
  }

  /**
   * Room in the ring itself for a message, to be filled in place and committed. One at a time.
   *
   * @returns `undefined` if there is no room now.
   * @throws {@link RingfenceError} as `trySend`
   */
  reserve(size: number): Reservation | undefined {
    return this.#queue.reserve(size)
  }

  /** Bytes of messages that were sent and are not in the ring yet; 0 once the channel has ended. */
  get bufferedAmount(): number {
    return this.#queue.bufferedAmount
  }

  /**
   * What has gone through so far, and how full the ring is. The visits of a `receiveEach` count when it returns. The last figures stay after
   * the end.
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
   * `bytes`, for a message that the codec cannot decode: the next call gets the next message; AbortError by the signal, which loses nothing.
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
   * Visits the messages that are there now, in their order. What comes meanwhile is left to the next call, so that a loop of
   * `waitReadable` and `receiveEach` lets the event loop turn, however fast the peer sends.
   *
   * The bytes are valid during the visit, and must not be transferred elsewhere: the memory holds other messages as well. A channel of
   * values passes the visitor each value, which it may keep.
   *
   * @param visit - What it throws is passed on; the message has been visited then, and the rest stays.
   * @param max - At most so many, however long that takes. Left out, visits end after about 2 ms, and the rest stays:
   * {@link Channel.waitReadable} resolves then once the event loop has turned. `Infinity` visits all that is there.
   * @returns How many were visited.
   * @throws {@link RingfenceError} CLOSED after this side's close; RING_CORRUPT; MALFORMED, after which the next call continues behind that
   * message; NO_SPACE if there is no memory for the next
   * message, which stays and is tried again by the next call; INVALID_ARGUMENT where a visitor has transferred the memory
   * elsewhere all the same: what it took along is lost.
   */
  receiveEach(visit: Visit<In>, max?: number): number {
    checkReceiveEach(visit, max)
    const visitor = this.#values === null ? (visit as Visit) : this.#values.visitor(visit as (value: unknown) => void)
    return this.#buffer.receiveEach(visitor, max)
  }

  /**
   * Waits until there is something to read.
   *
   * @returns false: no more will come, and everything was read. Rejects as `receive`.
   */
  async waitReadable(options?: WaitOptions): Promise<boolean> {
    const readable = await this.#core.waitReadable(readerSignal(options))
    if (!readable) this.#core.endWithPeer()
    return readable
  }

  /**
   * Whether no more will come and everything was read. Without `allowHalfOpen`, the call that finds this ends this side's
   * sending, as the `undefined` of {@link Channel.receive} does.
   */
  get readableEnded(): boolean {
    return this.#buffer.isEnded
  }

  /**
   * Yields arrays of messages: at least one, and at most `max` of those that are there. For loops that want speed: one promise for each
   * array, and not for each message.
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

  /** A loop ends with an error at a message that cannot be decoded; another loop continues behind that message. */
  [Symbol.asyncIterator](): Loop<In> {
    const values = this.#values
    return loop<Buffer, In>(
      () => this.#core.nextNow(),
      (reader) => this.#buffer.wait(true, undefined, reader),
      values === null ? undefined : (message) => values.decode(message) as In,
    )
  }

  /**
   * Returns the same channel with values for messages, as the codec encodes and decodes them: {@link json}, {@link structured}, or a codec of
   * your own. A channel may have several, and be used itself at the same time; each message goes to the first reader.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if it is no codec
   */
  with<T>(codec: Codec<T>): Channel<T, T> {
    return new Channel<T, T>(KEY, this.#core, new Values(codec) as Values<unknown>)
  }

  /**
   * Sends the peer a token: a number of 64 bits beside the messages, as a realtime signal, which the peer has however full
   * the rings are, and whatever it is busy with. Returns once the kernel has it. See {@link Channel.tokens}.
   *
   * @param token - A bigint from 0 to 2^64 - 1, or a safe integer from 0.
   * @throws {@link RingfenceError} INVALID_ARGUMENT; NO_SPACE where the peer's queue of signals is full (RLIMIT_SIGPENDING
   * of its user); UNSUPPORTED where this process may not send the peer a signal (another user's, without CAP_KILL), or the
   * peer's system does not hand on all that comes with one; PEER_LOST once the peer has gone; CLOSED after this side's
   * close; RING_CORRUPT; OBJECT_EXPOSED.
   */
  sendToken(token: bigint | number): void {
    this.#core.sendToken(toToken(token))
  }

  /**
   * The tokens that the peer sends, in its order; in no order with its messages. Several loops share them, and leaving one
   * loses none. Ends when the channel has ended, after what has come; at once where this side has closed it. Up to 65,536
   * wait here for a loop; further ones are counted in {@link Channel.droppedTokens}. Waiting for one does not keep the process
   * alive, which the open channel does. Rejects with NO_SPACE where there is no descriptor to wait with.
   *
   * Each was sent by the peer: its signal carries a secret that only the private line has carried.
   */
  tokens(): AsyncIterable<bigint> {
    return { [Symbol.asyncIterator]: () => this.#core.tokens.iterate() }
  }

  /**
   * How many signals of this channel's number (`realtimeSignal`) this process has been sent, since it began, that were no token
   * of any of its channels: another process has made them up, or has sent them to a channel that had ended.
   */
  get strayTokens(): number {
    return this.#core.native.strayTokens()
  }

  /** How many tokens of this channel were dropped, since 65,536 waited already. */
  get droppedTokens(): number {
    return this.#core.native.droppedTokens()
  }

  /**
   * Sends no more; the other direction goes on. Resolves once everything that was sent before is in the ring, or the
   * channel has ended. Once both sides have ended, and everything was read here to the `undefined` behind it, the channel closes by itself;
   * a side that does not read on calls {@link Channel.close}.
   *
   * @param options - An abort ends the waiting. It does not undo the end.
   */
  end(options?: WaitOptions): Promise<void> {
    return untilAborted(options, () => this.#core.end())
  }

  /**
   * Closes the channel. What is in the ring stays readable to the peer. Sends that are still pending have `linger`
   * milliseconds (0), then they reject with CLOSED.
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
   * The channel as a stream of bytes. Borders of messages are not kept, empty messages are skipped, and `end()` ends the sending.
   *
   * - `destroy()` sends what was written before, ends the sending and closes the channel, as `end()` and `destroy()` of a socket do. If
   *   the peer does not read, that takes 5 s at most; then the rest is lost, and the peer's stream fails.
   * - `destroy(error)` closes the channel at once. The peer's stream fails.
   * - The readable side fails with code 'ECONNRESET', after everything that has arrived, if the peer is gone before it ended its sending:
   *   its process has ended, or it has closed the channel without an end. The end of what was read may be missing then. A write that the
   *   peer can no longer read fails with 'EPIPE'. The `cause` of both is the PEER_LOST of the channel.
   * - What a listener throws is an uncaught exception.
   * - It has what agents and servers call on a socket: `setTimeout`, `setKeepAlive`, `setNoDelay`, `ref` and `unref`.
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
   * it, so the backpressure is the channel's. The stream ends after the peer's end, and errors with PEER_LOST, after all messages, if the
   * peer disconnected before it had ended its sending. `cancel()` closes the channel.
   *
   * With {@link Channel.writable} the channel is a pair of streams: `readable.pipeThrough(channel)`, and `pipeline` of `node:stream`
   * takes a channel as a source and as a destination.
   *
   * @example
   * await channel.readable.pipeThrough(new TextDecoderStream()).pipeTo(sink)
   */
  get readable(): ReadableStream<In> {
    return this.#web().readable
  }

  /**
   * A web stream that sends a message for each chunk, made on first use. A write is done once its message is in the ring. `close()` ends
   * this side's sending, `abort()` closes the channel. Without `allowHalfOpen` the end of {@link Channel.readable} ends this side too, unless
   * a writer or a pipe holds the stream.
   */
  get writable(): WritableStream<Out> {
    return this.#web().writable
  }

  /**
   * The channel as a MessagePort of Node's, for comlink, birpc, capnweb and other libraries that use one. The port reads the channel:
   * nothing else may. Values travel as the channel's codec encodes them, or else as {@link structured} does, which is for trusted peers:
   * use `channel.with(json()).port()` if the peer may turn hostile.
   *
   * A listener of 'message' starts the port and keeps the process alive. Without one, messages stay in the ring, and the peer waits. A
   * message that cannot be decoded is the event 'messageerror'. 'close' follows the last message once the channel has ended. An error that a
   * listener throws is an uncaught exception.
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

/** A channel over what the binding has made. */
export function openChannel(raw: RawChannel, settings: ChannelSettings, address: string | null): AnyChannel {
  const channel = make(withOperations(raw), settings)
  tellOpen(channel, address)
  return channel
}

/** As {@link openChannel}, for one that has come by itself: where it cannot be had, that is a refusal like any other. */
export function openArrived(raw: RawChannel, settings: ChannelSettings, address: string): AnyChannel | Failure {
  try {
    return openChannel(raw, settings, address)
  } catch (error) {
    // The peer must be told now, and not when the garbage is collected.
    withOperations(raw).close()
    const { message, code } = error as RingfenceError
    return { code: code.replace('ERR_RINGFENCE_', ''), message, identity: raw.peer } as Failure
  }
}
