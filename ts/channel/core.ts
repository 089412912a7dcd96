// The state of a channel: the queue, the buffer, the tokens and the calls, and how it ends.

import { RingfenceError, fromFailure } from '../errors.js'
import { FAILED, type NativeChannel } from '../native.js'
import type { ChannelSettings } from '../endpoint/options.js'
import { soon } from '../runtime/deferred.js'
import { timers } from '../runtime/timers.js'
import type { Closed } from '../types.js'
import { Calls } from './calls.js'
import { loop, type Loop } from './loops.js'
import { nameOf, repeat } from './resource.js'
import { SendQueue } from './send-queue.js'
import { CLOSED, SourceCore } from './source-core.js'
import type { ChannelStats } from './stats.js'
import { Tokens } from './tokens.js'

const closedHere = () => new RingfenceError('CLOSED', 'the channel is closed')
const refusedHere = () =>
  new RingfenceError('CLOSED', 'the channel was closed: its peer no longer satisfies the policy')
const endedHere = () => new RingfenceError('CLOSED', 'this side has ended its sending')
const endedWithPeer = () =>
  new RingfenceError(
    'CLOSED',
    'this side has ended its sending because the peer has ended its own; set `allowHalfOpen: true` to continue sending',
  )

/** The state of a channel whose membership leaves. */
export interface Departure {
  /** Everything that was sent is in the ring. */
  readonly flushed: boolean
  finish(): void
}

export class ChannelCore extends SourceCore {
  declare readonly native: NativeChannel
  readonly queue: SendQueue
  readonly tokens: Tokens
  readonly allowHalfOpen: boolean
  #calls: Calls | null = null
  #readingCalls = false
  /** The error of sends after this side has ended its sending. */
  #whyEnded = endedHere
  #ending: Promise<void> | null = null
  #closing: Promise<void> | null = null
  /** The membership that made this channel is closing it. */
  #departing = false
  /** Called once the messages that the peer left were read or dropped; never called if it left none. */
  whenRead: (() => void) | null = null

  /** @param onEnd - Called once, when the channel has ended. */
  constructor(native: NativeChannel, settings: ChannelSettings, onEnd: (closed: Closed) => void) {
    super(native, settings, { closed: closedHere, refused: refusedHere }, onEnd)
    this.allowHalfOpen = settings.allowHalfOpen
    this.queue = new SendQueue(native, settings.busyPollMicros > 0, (error) => this.failed(error))
    this.tokens = new Tokens(native)
    this.watch(() => this.hear())
  }

  stats(): ChannelStats {
    // Puts messages into the ring that have room there, before the figures are read.
    this.queue.flush()
    const figures = this.native.stats()
    const { messages, bytes } = this.buffer.received
    return {
      messagesSent: figures[0]!,
      bytesSent: figures[1]!,
      messagesReceived: messages,
      bytesReceived: bytes,
      attachmentsSent: figures[6]!,
      attachmentsReceived: figures[7]!,
      callsInFlight: this.#calls?.inFlight ?? 0,
      lateReplies: this.#calls?.lateReplies ?? 0,
      ...this.tokens.stats(),
      ...this.queue.stats(),
      wakeupsSent: figures[2]!,
      sleeps: figures[3]!,
      ringUsed: figures[4]!,
      ringCapacity: figures[5]!,
    }
  }

  /** Sends that are still staged must go out before this side waits for an answer. */
  protected override flush(): void {
    this.queue.flush()
  }

  /** A loop that yields whenever a message is available. It takes no message, and finishes after a clean end. */
  arrivals(): Loop<unknown> {
    return loop<unknown>(
      () => {
        this.flush()
        return this.buffer.arrivedNow()
      },
      (reader) => this.buffer.wait(false, undefined, reader),
    )
  }

  // Calls.

  /** The calls of both sides, made on first use. */
  get calls(): Calls {
    if (this.#calls !== null) return this.#calls
    const { queue, view } = this
    const calls = new Calls({
      maxMessageSize: this.native.maxMessageSize,
      get peer() {
        return view.peer
      },
      send: (kind, id, remaining, body) => queue.sendFrame(kind, id, remaining, body),
      read: () => this.#readCalls(),
      readNow: () => this.buffer.readNow(),
      poll: () => {
        if (this.buffer.spins) this.#readCalls()
      },
      endWithPeer: () => this.endWithPeer(),
    })
    this.#calls = this.buffer.calls = calls
    if (this.closed !== null || this.buffer.hasCleanEnd) this.#endCalls()
    return calls
  }

  /** Reads call frames once everything that was sent in this turn of the program is in the ring. */
  #readCalls(): void {
    if (this.#readingCalls) return
    this.#readingCalls = true
    soon(this.#readCallsNow)
  }

  readonly #readCallsNow = (): void => {
    this.#readingCalls = false
    this.queue.flush()
    this.buffer.readCalls()
  }

  /** No more call frames will arrive, or none will be read. */
  #endCalls(): void {
    const calls = this.#calls
    if (calls === null) return
    const whyLost = this.whyLost()
    if (this.closed === null && whyLost === null) calls.peerEnded()
    else if (this.closed === null || this.outlives) calls.end(whyLost ?? (() => this.closedByPeer()), whyLost === null)
    else calls.end(this.whyOver, this.whyOver === closedHere)
  }

  // The end of the channel.

  /** Ends this side's sending. */
  end(): Promise<void> {
    return this.#endSending(endedHere)
  }

  /** Ends this side's sending because the peer has ended its own. */
  endAfterPeer(): Promise<void> {
    return this.#endSending(endedWithPeer)
  }

  #endSending(why: () => RingfenceError): Promise<void> {
    if (this.#ending === null) {
      this.#whyEnded = why
      this.queue.refuse(why, why === endedWithPeer)
      this.#ending = this.queue.empty().then(() => {
        this.queue.shut(why, false)
        if (this.closed === null) this.settle(this.native.end(), this.#whyEnded)
      })
    }
    return this.#ending
  }

  /** Called when a caller has seen the end of the peer's messages. If the peer is lost, there is no direction left to end. */
  override endWithPeer(): void {
    if (this.allowHalfOpen || this.whyLost() !== null) return
    if (this.closed === null) void this.#endSending(endedWithPeer)
    else if (this.#ending === null && this.outlives) this.queue.shut(endedWithPeer, true)
  }

  close(linger: number): Promise<void> {
    return (this.#closing ??= this.#close(linger))
  }

  async #close(linger: number): Promise<void> {
    if (!this.hasEnded()) {
      const lingering = this.queue.linger(linger, closedHere)
      if (lingering !== null) await lingering
    }
    if (this.closed === null) {
      // Without this end, the peer finds a lost peer.
      if (this.queue.isEmpty) this.native.end()
      this.finish(CLOSED, closedHere)
    } else this.dropLeft()
  }

  /** Flushes, and prepares for a close by the binding from another thread. `finish` marks the channel closed. */
  async depart(linger: number): Promise<Departure> {
    if (this.closed === null) await this.queue.linger(linger, closedHere)
    if (this.closed !== null) return { flushed: true, finish() {} }
    this.#departing = true
    return { flushed: this.queue.isEmpty, finish: () => this.finish(CLOSED, closedHere) }
  }

  override keepAlive(alive: boolean): void {
    super.keepAlive(alive)
    this.tokens.keepAlive(alive)
  }

  sendToken(word: bigint): void {
    if (this.closed !== null) throw this.whyOver()
    if (this.native.sendToken(word) !== FAILED) {
      this.tokens.sent()
      return
    }
    const error = fromFailure(this.native.failure())
    // A peer that cannot receive tokens still has the channel. Any other call that is not supported ends it.
    if (error.code !== 'ERR_RINGFENCE_UNSUPPORTED') this.failed(error)
    throw error
  }

  /** The error of calls if the peer has closed the channel after it had ended its sending. */
  protected closedByPeer(): RingfenceError {
    return new RingfenceError(
      'PEER_LOST',
      `${nameOf(this.view.peer)} has closed the channel; open a new channel to continue`,
    )
  }

  protected override letGo(): void {
    super.letGo()
    this.#endCalls()
    const notify = this.whenRead
    this.whenRead = null
    // The reader of the last message must get it first.
    if (notify !== null) timers.queueMicrotask(notify)
  }

  // The error of a send must not depend on which side's end was noticed first.
  override hear(unsendable = this.#whyEnded === endedWithPeer ? endedWithPeer : undefined): void {
    super.hear(unsendable)
  }

  protected override wake(): void {
    this.native.disarm()
    this.queue.awake()
    this.buffer.awake()
  }

  protected override settle(answer: number, unsendable?: () => RingfenceError): void {
    if (this.#departing && answer !== 0) this.finish(CLOSED, closedHere)
    else super.settle(answer, unsendable)
  }

  foundEnd(): (() => RingfenceError) | null {
    this.#endCalls()
    const whyLost = this.whyLost()
    // The reader that has found the end must return first.
    if (whyLost !== null) timers.queueMicrotask(() => this.hear())
    // Both sides may have ended.
    else if (this.#ending !== null) timers.queueMicrotask(() => this.hear(this.#whyEnded))
    return whyLost
  }

  override failed(error: RingfenceError): void {
    // The channel may have ended already, if the peer left these frames.
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') this.#calls?.end(repeat(error), false)
    super.failed(error)
  }

  protected override shut(why: () => RingfenceError): void {
    this.queue.shut(why, true)
  }

  protected override finished(drops: boolean): void {
    if (drops) this.tokens.close()
    else this.tokens.stop()
    if (!this.buffer.readsOn) this.#endCalls()
  }
}
