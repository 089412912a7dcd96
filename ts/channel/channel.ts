import type { Duplex } from 'node:stream'

import type { Codec, CodecOptions } from '../adapters/codec.js'
import { toDuplex } from '../adapters/duplex.js'
import { tellClosed, tellOpen } from '../runtime/diagnostics.js'
import { RingfenceError, fromFailure, invalid, show } from '../errors.js'
import { untilAborted } from '../runtime/deferred.js'
import { atExit } from '../runtime/exit.js'
import { ReceiveBuffer, type Visit } from './receive-buffer.js'
import { loop } from './loops.js'
import {
  FAILED,
  REASONS,
  REFUSED,
  withOperations,
  type Failure,
  type NativeChannel,
  type RawChannel,
} from '../native.js'
import { checkReceiveEach, lingerOf, readerSignal, type ChannelSettings } from '../endpoint/options.js'
import { PeerView } from './peer-view.js'
import { SendQueue, type Fill } from './send-queue.js'
import { registerSource } from './sources.js'
import type { ChannelStats } from './stats.js'
import { Tokens, toToken } from './tokens.js'
// oxlint-disable-next-line import/no-cycle -- it imports the type of this file alone
import { typedChannel, type TypedChannel } from './typed.js'
import { timers } from '../runtime/timers.js'
import type { BufferSource, CloseReason, Evidence, Identity, Reservation, WaitOptions } from '../types.js'

const lost = (reason: CloseReason) =>
  new RingfenceError(
    'PEER_LOST',
    reason === 'exited'
      ? "the peer's process has ended, or executes another program now"
      : 'the peer has closed the channel',
  )

/** Only `join`, `connect`, `member` and listeners make channels. */
const KEY = Symbol('ringfence')
let make: (native: NativeChannel, settings: ChannelSettings) => Channel

/** A channel is never evicted. */
const reasonOf = (answer: number) => (REASONS[answer] ?? null) as CloseReason | null

const closedHere = () => new RingfenceError('CLOSED', 'the channel is closed')
const exposed = () =>
  new RingfenceError(
    'OBJECT_EXPOSED',
    'another process tried to open the shared memory of one of the two sides: it was wiped, and the channel is closed',
  )
const refusedHere = () =>
  new RingfenceError('CLOSED', 'the channel was closed: its peer is no longer who the policy asks for')
const endedHere = () => new RingfenceError('CLOSED', 'this side has ended its sending')
const endedWithPeer = () =>
  new RingfenceError(
    'CLOSED',
    'the peer has ended its sending, and so has this side, as soon as that was told here: with the option ' +
      '`allowHalfOpen: true` it sends on',
  )

/** Has the host's address freed, where this process exits with the channel open. */
export let vacateAtExit: (channel: Channel, address: string) => void

/** What tells that the peer is gone without having ended its sending, once that was read; undefined where it has. */
export let cutOff: (channel: Channel) => RingfenceError | undefined

/** What another face of a channel tells of its end itself. */
export interface Quiet {
  /** As {@link Channel.waitReadable} and {@link Channel.tryReceive}, which end nothing here if the peer has ended. */
  waitReadable(): Promise<boolean>
  /** A loop over the moments at which there is a message to take. It takes none, and ends once no more will come. */
  arrivals(): AsyncIterator<unknown, undefined>
  tryReceive(): Buffer | null
  /** What a reader is told at the end where the peer is gone before it had ended its sending. */
  cutOff(): RingfenceError | undefined
  /** The end of the peer's sending was told. */
  told(): void
}

export let quietOf: (channel: Channel) => Quiet

/** Calls back once what the peer has left was read, or is let go of; not at all where it had left nothing. */
export let whenRead: (channel: Channel, callback: () => void) => void

/** Puts pending messages into the ring, and refuses new ones. Returns what marks the channel as closed. */
export let depart: (channel: Channel) => () => void

/**
 * Both directions between this process and its peer.
 *
 * `for await (const message of channel)` yields messages until no more will come; leaving the loop neither closes the
 * channel nor loses a message. `await using` closes it. An open channel keeps the process alive, as a socket does,
 * until {@link Channel.unref}.
 */
export class Channel implements AsyncIterable<Buffer>, AsyncDisposable {
  /** The role of this process at the rendezvous. Both sides have the same rights afterwards. */
  readonly role: 'host' | 'guest'
  /** Bytes of the ring that this side writes. */
  readonly capacity: number
  /** Bytes of the longest message that this side may send, as the peer said. */
  readonly maxMessageSize: number
  /**
   * Resolves when the channel has ended, whichever side ended it, and has released everything, the address included. What the
   * peer had sent before can still be read: its memory stays mapped until that is read, or {@link Channel.close} is called.
   * Never rejects.
   */
  readonly closed: Promise<CloseReason>

  readonly #native: NativeChannel
  readonly #sendQueue: SendQueue
  readonly #receiveBuffer: ReceiveBuffer
  readonly #tokens: Tokens
  readonly #view: PeerView
  #resolveClosed!: (reason: CloseReason) => void
  #reason: CloseReason | null = null
  readonly #allowHalfOpen: boolean
  /** What a send gets once this side has ended its sending. */
  #whyEnded = endedHere
  /** What a call gets once the channel has ended. */
  #whyOver = closedHere
  #ending: Promise<void> | null = null
  /** The peer has ended it, by its close or its exit: what it had sent before can still be read. */
  #outlives = false
  /** How the peer was gone without having ended its sending, as the binding's `isCut` says. */
  #cut = 0
  /** The membership that made it closes it. */
  #departing = false
  #whenRead: (() => void) | null = null

  static {
    depart = (channel) => channel.#depart()
    cutOff = (channel) => channel.#cutOff()

    quietOf = (channel) => ({
      waitReadable: () => channel.#waitReadable(),
      arrivals: () =>
        loop<unknown>(
          () => channel.#arrivedNow(),
          () => channel.#receiveBuffer.wait(false),
        ),
      tryReceive: () => channel.#receiveBuffer.takeNow(),
      cutOff: () => channel.#cutOff(),
      told: () => channel.#endWithPeer(),
    })
    make = (native, settings) => new Channel(KEY, native, settings)
    whenRead = (channel, callback) => {
      channel.#whenRead = callback
    }
    vacateAtExit = (channel, address) => {
      void channel.closed.then(atExit(address, () => channel.#native.vacate()))
    }
    registerSource((value) =>
      #receiveBuffer in value
        ? {
            buffer: value.#receiveBuffer,
            reason: () => value.#reasonOfEnd(),
          }
        : undefined,
    )
  }

  private constructor(key: symbol, native: NativeChannel, settings: ChannelSettings) {
    if (key !== KEY) throw invalid('channels are made by join, connect, listen and member')
    const { busyPollMicros, allowHalfOpen } = settings
    this.#native = native
    this.#allowHalfOpen = allowHalfOpen
    this.role = native.role
    this.#view = new PeerView(native)
    this.capacity = native.capacity
    this.maxMessageSize = native.maxMessageSize
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
    const failed = (error: RingfenceError) => this.#failed(error)
    this.#sendQueue = new SendQueue(native, busyPollMicros > 0, failed)
    this.#receiveBuffer = new ReceiveBuffer(
      native,
      busyPollMicros > 0,
      failed,
      () => this.#mayBeOver(),
      () => this.#endWithPeer(),
    )
    this.#tokens = new Tokens(native)
    if (native.watch(() => this.#hear()) === FAILED) throw fromFailure(native.failure())
  }

  /** The peer's identity at the last look: when the channel was made, or by {@link Channel.verify}. */
  get peer(): Identity {
    return this.#view.peer
  }

  /** Every check that was made on the way, in order, and those of the last {@link Channel.verify}. */
  get evidence(): readonly Evidence[] {
    return this.#view.evidence
  }

  /**
   * Looks at the peer again, now, and compares with the policy that the channel was made with (`authorize` is not asked
   * again). {@link Channel.peer} and {@link Channel.evidence} are then those of this look.
   *
   * @returns Who the peer is. Rejects with PEER_REFUSED where the policy does not hold any more, or this cannot be told:
   * then the channel is closed at once, and what it held is discarded. PEER_LOST where the peer has gone, or executes
   * another program; CLOSED after this side's close; RING_CORRUPT; NO_SPACE where there is no thread for it; HANDSHAKE_TIMEOUT where
   * the peer's executable cannot be read within `handshakeTimeout`: these two say nothing of the peer, and the channel stays open.
   *
   * A rejection because the channel has ended is never an unhandled one, as with {@link Channel.send}. PEER_REFUSED, NO_SPACE and
   * HANDSHAKE_TIMEOUT, which only this call tells of, are unhandled as usual, where the promise has no handler.
   */
  verify(options?: WaitOptions): Promise<Identity> {
    return this.#view.verify(
      () => (this.#reason === null ? undefined : this.#whyOver()),
      () => this.#hear(),
      options,
    )
  }

  /**
   * Sends a message, in fragments if it must. Copies before it returns. Strings are sent as UTF-8; of a view, the bytes that it
   * shows.
   *
   * @returns A promise that resolves once the message is in the ring, where it survives this process: wait for it
   * to not outrun the peer. It rejects with MESSAGE_TOO_LARGE above {@link Channel.maxMessageSize}; PEER_LOST once
   * the peer has gone; CLOSED after `end` or `close`; RING_CORRUPT; OBJECT_EXPOSED; INVALID_ARGUMENT for what is no message, and
   * while a reservation is open. A message whose promise `close` has rejected is not in the ring, and never will be.
   *
   * An abort of `options.signal` removes a message of which no part is in the ring yet; after that it does nothing.
   *
   * A rejection because the channel has ended is never an unhandled one: a program need not wait for each promise, since
   * {@link Channel.closed} tells of the end. What is wrong with the call itself (INVALID_ARGUMENT, MESSAGE_TOO_LARGE, CLOSED
   * after this side's `end` on an open channel) is unhandled as usual, where the promise has no handler.
   */
  send(message: BufferSource | string, options?: WaitOptions): Promise<void> {
    return this.#sendQueue.send(message, options)
  }

  /**
   * Puts a message into the ring now.
   *
   * @returns Whether there was room.
   * @throws {@link RingfenceError} as `send` rejects, but MESSAGE_TOO_LARGE above half the capacity already.
   */
  trySend(message: BufferSource | string): boolean {
    return this.#sendQueue.trySend(message)
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
    return this.#sendQueue.fill(size, write)
  }

  /**
   * Room in the ring itself for a message, to be filled in place and committed. One at a time.
   *
   * @returns null where there is no room now.
   * @throws {@link RingfenceError} as `trySend`
   */
  reserve(size: number): Reservation | null {
    return this.#sendQueue.reserve(size)
  }

  /** Bytes of messages that were sent and are not in the ring yet; 0 once the channel has ended. */
  get bufferedAmount(): number {
    return this.#sendQueue.bufferedAmount
  }

  /**
   * What has gone through so far, and how full the ring is. The visits of a `receiveEach` count when it returns. The last figures stay after
   * the end.
   */
  stats(): ChannelStats {
    // What a caller has sent, and that found room, is in the ring by then.
    if (!this.#sendQueue.isEmpty) this.#sendQueue.pump()
    const figures = this.#native.stats()
    const received = this.#receiveBuffer.received
    return {
      messagesSent: figures[0]!,
      bytesSent: figures[1]!,
      messagesReceived: received.messages,
      bytesReceived: received.bytes,
      waits: this.#sendQueue.waits,
      waitedMicros: this.#sendQueue.waitedMicros,
      wakeupsSent: figures[2]!,
      sleeps: figures[3]!,
      ringUsed: figures[4]!,
      ringCapacity: figures[5]!,
      queuedBytes: this.bufferedAmount,
    }
  }

  /** Resolves when `trySend` or `reserve` of `size` bytes can succeed. Rejects as `trySend` throws. */
  waitWritable(size = 1, options?: WaitOptions): Promise<void> {
    return this.#sendQueue.waitWritable(size, options)
  }

  /**
   * The next message.
   *
   * @returns null: no more will come, and everything was read.
   * Rejects with CLOSED after this side's close; RING_CORRUPT; OBJECT_EXPOSED, where what was not read is lost; AbortError by the signal, which loses nothing.
   */
  async receive(options?: WaitOptions): Promise<Buffer | null> {
    const signal = readerSignal(options)
    const message = this.#receiveNow()
    return message === undefined ? this.#receiveBuffer.wait(true, signal).promise : message
  }

  /**
   * The next message, if there is one now.
   *
   * @throws {@link RingfenceError} CLOSED after this side's close; RING_CORRUPT
   */
  tryReceive(): Buffer | null {
    return this.#receiveBuffer.tryReceive()
  }

  /**
   * Visits the messages that are there now, in their order. What comes meanwhile is left to the next call, so that a loop of
   * `waitReadable` and `receiveEach` lets the event loop turn, however fast the peer sends.
   *
   * The bytes are valid during the visit, and must not be transferred elsewhere: the memory holds other messages as well.
   *
   * @param visit - What it throws is passed on; the message has been visited then, and the rest stays.
   * @param max - At most so many, however long that takes. Left out, visits end after about 2 ms, and the rest stays:
   * {@link Channel.waitReadable} resolves then once the event loop has turned. `Infinity` visits all that is there.
   * @returns How many were visited.
   * @throws {@link RingfenceError} CLOSED after this side's close; RING_CORRUPT; NO_SPACE where there is no memory for the next
   * message, which stays and is tried again by the next call; INVALID_ARGUMENT where a visitor has transferred the memory
   * elsewhere all the same: what it took along is lost.
   */
  receiveEach(visit: Visit, max?: number): number {
    checkReceiveEach(visit, max)
    return this.#receiveBuffer.receiveEach(visit, max)
  }

  /**
   * Waits until there is something to read.
   *
   * @returns false: no more will come, and everything was read. Rejects as `receive`.
   */
  async waitReadable(options?: WaitOptions): Promise<boolean> {
    const readable = await this.#waitReadable(readerSignal(options))
    if (!readable) this.#endWithPeer()
    return readable
  }

  /** As {@link Channel.waitReadable}, for a caller that tells of the end itself. */
  async #waitReadable(signal?: AbortSignal): Promise<boolean> {
    this.#sendQueue.pump()
    const readable = this.#receiveBuffer.isReadableNow()
    return readable ?? (await this.#receiveBuffer.wait(false, signal).promise) !== null
  }

  /** As {@link Channel.#waitReadable} finds it, for a loop. */
  #arrivedNow(): true | null | undefined {
    if (!this.#sendQueue.isEmpty) this.#sendQueue.pump()
    const arrived = this.#receiveBuffer.arrivedNow()
    return arrived === false ? null : arrived
  }

  /**
   * Whether no more will come and everything was read. Without `allowHalfOpen`, the call that finds this ends this side's
   * sending, as the null of {@link Channel.receive} does.
   */
  get readableEnded(): boolean {
    return this.#receiveBuffer.isEnded
  }

  [Symbol.asyncIterator](): AsyncIterator<Buffer, undefined> {
    return loop(
      () => this.#nextNow(),
      () => this.#receiveBuffer.wait(true),
    )
  }

  /** As {@link Channel.receive} finds it, for a loop. */
  #nextNow(): Buffer | null | undefined {
    if (!this.#sendQueue.isEmpty) this.#sendQueue.pump()
    return this.#receiveBuffer.nextNow()
  }

  /**
   * This channel with values for messages, as the codec makes and reads them: {@link json}, {@link structured}, or one of your own. A channel
   * may have several, and be used by itself beside them; what reads first gets the message.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for what is no codec
   */
  with<T>(codec: Codec<T>, options: CodecOptions = {}): TypedChannel<T> {
    return typedChannel(this, codec, options, () => this.#nextNow())
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
    const word = toToken(token)
    if (this.#reason !== null) throw this.#whyOver()
    if (this.#native.sendToken(word) !== FAILED) return
    const error = fromFailure(this.#native.failure())
    // A peer that never takes a token has the channel still, where any other call that cannot be had ends it.
    if (error.code !== 'ERR_RINGFENCE_UNSUPPORTED') this.#failed(error)
    throw error
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
    return { [Symbol.asyncIterator]: () => this.#tokens.iterate() }
  }

  /**
   * How many signals of this channel's number (`realtimeSignal`) this process has been sent, since it began, that were no token
   * of any of its channels: another process has made them up, or has sent them to a channel that had ended.
   */
  get strayTokens(): number {
    return this.#native.strayTokens()
  }

  /** How many tokens of this channel were dropped, since 65,536 waited already. */
  get droppedTokens(): number {
    return this.#native.droppedTokens()
  }

  /**
   * Sends no more; the other direction goes on. Resolves once everything that was sent before is in the ring, or the
   * channel has ended. Once both sides have ended, and everything was read here to the null behind it, the channel closes by itself;
   * a side that does not read on calls {@link Channel.close}.
   *
   * @param options - An abort ends the waiting. It does not undo the end.
   */
  end(options?: WaitOptions): Promise<void> {
    return untilAborted(options, () => this.#endSending(endedHere))
  }

  #endSending(why: () => RingfenceError): Promise<void> {
    if (this.#ending === null) {
      this.#whyEnded = why
      this.#sendQueue.refuse(why, why === endedWithPeer)
      this.#ending = this.#sendQueue.empty().then(() => {
        this.#sendQueue.shut(why, false)
        if (this.#reason === null) this.#settle(this.#native.end(), this.#whyEnded)
      })
    }
    return this.#ending
  }

  /**
   * A caller was told that no more will come. One that the peer has cut off has no direction left to end; its own end is told soon,
   * if it was not already.
   */
  #endWithPeer(): void {
    if (this.#allowHalfOpen || this.#isCutNow() !== 0) return
    if (this.#reason === null) void this.#endSending(endedWithPeer)
    else if (this.#ending === null && this.#outlives) this.#sendQueue.shut(endedWithPeer, true)
  }

  /** What the peer had left is read, or nobody is to read it. */
  #letGo(): void {
    this.#native.close()
    const tell = this.#whenRead
    this.#whenRead = null
    // The reader that takes the last message must have it first.
    if (tell !== null) timers.queueMicrotask(tell)
  }

  /** A reader may come to the end before the event loop has heard of it. */
  #isCutNow(): number {
    return this.#reason === null ? this.#native.isCut() : this.#cut
  }

  /**
   * Closes the channel. What is in the ring stays readable to the peer. Sends that are still pending have `linger`
   * milliseconds (0), then they reject with CLOSED.
   *
   * @returns A promise that resolves once everything is released.
   */
  async close(options: { linger?: number } = {}): Promise<void> {
    const linger = lingerOf(options)
    if (this.#reason === null) {
      const lingering = this.#sendQueue.linger(linger, closedHere, this.closed)
      if (lingering !== null) await lingering
    }
    // What a peer has left that has gone by then, nobody is to read.
    if (this.#reason === null) this.#finish('closed', closedHere)
    else if (this.#receiveBuffer.outlives) this.#receiveBuffer.close(closedHere)
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
    this.#receiveBuffer.mustBeFree()
    const receiveBuffer = this.#receiveBuffer
    return toDuplex({
      allowHalfOpen: this.#allowHalfOpen,
      maxMessageSize: this.maxMessageSize,
      maxAtOnce: this.#native.maxAtOnce,
      get due() {
        return receiveBuffer.due
      },
      trySend: (message) => this.trySend(message),
      send: (message) => this.send(message),
      tryReceive: () => receiveBuffer.takeNow(),
      waitReadable: () => this.#waitReadable(),
      end: (withPeer) => this.#endSending(withPeer ? endedWithPeer : endedHere),
      close: () => this.close(),
      cutOff: () => this.#cutOff(),
      ref: () => this.ref(),
      unref: () => this.unref(),
    })
  }

  #cutOff(): RingfenceError | undefined {
    const cut = this.#isCutNow()
    if (cut === 0) return undefined
    const what = cut === 1 ? 'has ended, or executes another program now,' : 'has closed the channel'
    return new RingfenceError('PEER_LOST', `the peer ${what} before it had ended its sending: the end may be missing`)
  }

  /** An open channel keeps the process alive (which it does from the start). */
  ref(): this {
    this.#native.keepAlive(1)
    this.#receiveBuffer.keepAlive(true)
    this.#tokens.keepAlive(true)
    return this
  }

  /** An open channel does not keep the process alive. */
  unref(): this {
    this.#native.keepAlive(0)
    this.#receiveBuffer.keepAlive(false)
    this.#tokens.keepAlive(false)
    return this
  }

  /** What was sent before must be on its way before an answer is waited for. */
  #receiveNow(): Buffer | null | undefined {
    if (!this.#sendQueue.isEmpty) this.#sendQueue.pump()
    return this.#receiveBuffer.receiveNow()
  }

  /** The line is readable. */
  #hear(): void {
    if (this.#reason !== null) return
    // What a send is told does not hang on which of the two ends was heard of first.
    this.#settle(this.#native.listen(), this.#whyEnded === endedWithPeer ? endedWithPeer : undefined)
    if (this.#reason === null) this.#wake()
  }

  /** The peer has rung: all that waits looks again. */
  #wake(): void {
    this.#native.disarm()
    this.#sendQueue.awake()
    this.#receiveBuffer.awake()
  }

  /**
   * The core has told whether it has ended the channel. It may have been told of the peer's end by a thread of its own, before the event
   * loop was: what the peer has left is read then, as ever.
   *
   * @param unsendable - What a send gets then; undefined: the reason.
   */
  #settle(answer: number, unsendable?: () => RingfenceError): void {
    const reason = reasonOf(answer)
    if (reason === null) return
    if (this.#departing) this.#finish(reason, closedHere)
    else if (answer === REFUSED) this.#finish(reason, refusedHere)
    else if (reason === 'exposed') this.#finish(reason, exposed)
    else {
      this.#cut = this.#native.isCut()
      this.#finish(reason, unsendable ?? (() => lost(reason)), true)
    }
  }

  /** The binding closes it in a moment, from another thread: what was sent before is in the ring by then. */
  #depart(): () => void {
    if (this.#reason !== null) return () => {}
    this.#sendQueue.pump()
    this.#sendQueue.refuse(closedHere, true)
    this.#departing = true
    return () => this.#finish('closed', closedHere)
  }

  #mayBeOver(): void {
    // The reader that has found the end must return first.
    if (this.#ending !== null) timers.queueMicrotask(() => this.#lookForEnd())
  }

  /** Both sides may have ended. */
  #lookForEnd(): void {
    if (this.#reason !== null) return
    this.#settle(this.#native.listen(), this.#whyEnded)
    // The line was read: a bell that was meant for a waiting send is not rung twice.
    if (this.#reason === null) this.#wake()
  }

  /** Why a reader has come to the end. The event loop may not have heard of it yet; a peer may have ended its sending alone. */
  #reasonOfEnd(): CloseReason {
    this.#hear()
    const reason = this.#reason ?? 'closed'
    // A merge tells of it.
    this.#endWithPeer()
    return reason
  }

  /** A call into the core has failed: what ends the channel, ends it here. */
  #failed(error: RingfenceError): void {
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') {
      this.#finish('corrupt', () => new RingfenceError('RING_CORRUPT', error.message, { cause: error }))
    } else if (error.code === 'ERR_RINGFENCE_OBJECT_EXPOSED') {
      this.#finish('exposed', exposed)
    } else if (error.code === 'ERR_RINGFENCE_PEER_LOST' || error.code === 'ERR_RINGFENCE_CLOSED') {
      // Noticed by a call before the event loop was notified.
      this.#hear()
    } else if (error.code === 'ERR_RINGFENCE_UNSUPPORTED') {
      this.#finish('closed', () => error)
    }
  }

  /** `outlives`: what the peer has left can still be read. */
  #finish(reason: CloseReason, unsendable: () => RingfenceError, outlives = false): void {
    if (this.#reason !== null) return
    this.#reason = reason
    this.#outlives = outlives
    if (outlives) this.#native.outlive()
    else this.#native.close()
    this.#sendQueue.shut(unsendable, true)
    this.#whyOver = unsendable
    if (unsendable === closedHere || unsendable === refusedHere) {
      this.#receiveBuffer.close(unsendable)
      this.#tokens.close()
    } else {
      if (outlives) this.#receiveBuffer.outlive(() => this.#letGo())
      else this.#receiveBuffer.stop(unsendable)
      this.#tokens.stop()
    }
    this.#resolveClosed(reason)
    tellClosed(this, reason)
  }
}

/** A channel over what the binding has made. */
export function openChannel(raw: RawChannel, settings: ChannelSettings, address: string | null): Channel {
  const channel = make(withOperations(raw), settings)
  tellOpen(channel, address)
  return channel
}

/** As {@link openChannel}, for one that has come by itself: where it cannot be had, that is a refusal like any other. */
export function openArrived(raw: RawChannel, settings: ChannelSettings, address: string): Channel | Failure {
  try {
    return openChannel(raw, settings, address)
  } catch (error) {
    // The peer must be told now, and not when the garbage is collected.
    withOperations(raw).close()
    const { message, code } = error as RingfenceError
    return { code: code.replace('ERR_RINGFENCE_', ''), message, identity: raw.peer } as Failure
  }
}
