// The state of a channel: the queue, the buffer, the tokens and the calls, and how it ends.

import { RingfenceError, fromFailure } from '../errors.js'
import { FAILED, type NativeChannel } from '../native.js'
import type { ChannelSettings } from '../endpoint/handshake.js'
import { RESOLVED, runInMicrotask } from '../runtime/deferred.js'
import { timers } from '../runtime/timers.js'
import type { Closed } from '../types.js'
import { Calls } from './calls.js'
import { loop, type Loop } from './loops.js'
import { peerName, errorFactory } from './resource.js'
import { SendQueue } from './send-queue.js'
import { CLOSED, SourceCore } from './source-core.js'
import type { ChannelStats } from './stats.js'
import { Tokens } from './tokens.js'

const closedError = () => new RingfenceError('CLOSED', 'the channel is closed')
const refusedError = () =>
  new RingfenceError('CLOSED', 'the channel was closed: its peer no longer satisfies the policy')
const endedError = () => new RingfenceError('CLOSED', 'this side has ended its sending')
const endedWithPeerError = () =>
  new RingfenceError(
    'CLOSED',
    'this side has ended its sending because the peer has ended its own; set `allowHalfOpen: true` to continue sending',
  )

/** The state of a channel whose membership leaves. */
export interface PreparedClose {
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
  #callReadScheduled = false
  /** The error of sends after this side has ended its sending. */
  #makeSendEndError = endedError
  #ending: Promise<void> | null = null
  #closing: Promise<void> | null = null
  /** The membership that made this channel is closing it. */
  #closedByMembership = false
  /** Called once the messages that the peer left were read or dropped; never called if it left none. */
  onLeftoversRead: (() => void) | null = null

  /** @param onEnd - Called once, when the channel has ended. */
  constructor(native: NativeChannel, settings: ChannelSettings, onEnd: (closed: Closed) => void) {
    super(native, settings, { closed: closedError, refused: refusedError }, onEnd)
    this.allowHalfOpen = settings.allowHalfOpen
    this.queue = new SendQueue(native, settings.busyPollMicros > 0, (error) => this.failed(error))
    this.tokens = new Tokens(native)
    this.watch(() => this.checkLine())
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
      (reader) => {
        this.flush()
        return this.buffer.loopReadableNow(reader)
      },
      (reader) => this.buffer.wait(false, undefined, reader),
    )
  }

  // Calls.

  /** The calls of both sides, made on first use. */
  get calls(): Calls {
    if (this.#calls !== null) return this.#calls
    const { queue, peerView } = this
    const calls = new Calls({
      maxMessageSize: this.native.maxMessageSize,
      get peer() {
        return peerView.peer
      },
      send: (kind, id, remaining, body) => queue.sendFrame(kind, id, remaining, body),
      read: () => this.#scheduleCallRead(),
      readNow: () => this.buffer.readNow(),
      poll: () => {
        if (this.buffer.spins) this.#scheduleCallRead()
      },
      endWithPeer: () => this.endWithPeer(),
    })
    this.#calls = this.buffer.calls = calls
    if (this.closed !== null || this.buffer.hasCleanEnd) this.#endCalls()
    return calls
  }

  /** Reads call frames once everything that was sent in this turn of the program is in the ring. */
  #scheduleCallRead(): void {
    if (this.#callReadScheduled) return
    this.#callReadScheduled = true
    runInMicrotask(this.#readCalls)
  }

  readonly #readCalls = (): void => {
    this.#callReadScheduled = false
    this.queue.flush()
    this.buffer.readCalls()
  }

  /** No more call frames will arrive, or none will be read. */
  #endCalls(): void {
    const calls = this.#calls
    if (calls === null) return
    const makeLostError = this.lostErrorFactory()
    if (this.closed === null && makeLostError === null) calls.peerEnded()
    else if (this.closed === null || this.mayHaveLeftovers)
      calls.end(makeLostError ?? (() => this.closedByPeer()), makeLostError === null)
    else calls.end(this.makeEndError, this.makeEndError === closedError)
  }

  // The end of the channel.

  /** Ends this side's sending. `afterPeer`: because the peer has ended its own. */
  end(afterPeer = false): Promise<void> {
    if (this.#ending === null) {
      if (afterPeer) this.#makeSendEndError = endedWithPeerError
      // The callback may be called at once, and finds that the end was called.
      this.#ending = RESOLVED
      this.#ending = this.queue.end(this.#makeSendEndError, afterPeer, () => {
        if (this.closed === null) this.settle(this.native.end(), this.#makeSendEndError)
      })
    }
    return this.#ending
  }

  /** Called when a caller has seen the end of the peer's messages. If the peer is lost, there is no direction left to end. */
  override endWithPeer(): void {
    if (this.allowHalfOpen || this.lostErrorFactory() !== null) return
    if (this.closed === null) void this.end(true)
    else if (this.#ending === null && this.mayHaveLeftovers) this.queue.stop(endedWithPeerError, true)
  }

  close(linger: number): Promise<void> {
    return (this.#closing ??= this.#close(linger))
  }

  async #close(linger: number): Promise<void> {
    if (!this.hasEnded()) {
      const flushed = this.queue.linger(linger, closedError)
      if (flushed !== null) await flushed
    }
    if (this.closed === null) {
      // Without this end, the peer finds a lost peer.
      if (this.queue.isEmpty) this.native.end()
      this.finish(CLOSED, closedError)
    } else this.dropLeftovers()
  }

  /** Flushes, and prepares for a close by the binding from another thread. `finish` marks the channel closed. */
  async prepareClose(linger: number): Promise<PreparedClose> {
    if (this.closed === null) await this.queue.linger(linger, closedError)
    if (this.closed !== null) return { flushed: true, finish() {} }
    this.#closedByMembership = true
    return { flushed: this.queue.isEmpty, finish: () => this.finish(CLOSED, closedError) }
  }

  override keepAlive(alive: boolean): void {
    super.keepAlive(alive)
    this.tokens.keepAlive(alive)
  }

  sendToken(token: bigint): void {
    if (this.closed !== null) throw this.makeEndError()
    if (this.native.sendToken(token) !== FAILED) {
      this.tokens.countSent()
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
      `${peerName(this.peerView.peer)} has closed the channel; open a new channel to continue`,
    )
  }

  protected override releaseRing(): void {
    super.releaseRing()
    this.#endCalls()
    const notify = this.onLeftoversRead
    this.onLeftoversRead = null
    // The reader of the last message must get it first.
    if (notify !== null) timers.queueMicrotask(notify)
  }

  // The error of a send must not depend on which side's end was noticed first.
  override checkLine(sendError = this.#makeSendEndError === endedWithPeerError ? endedWithPeerError : undefined): void {
    super.checkLine(sendError)
  }

  protected override handleWakeup(): void {
    this.native.disarm()
    this.queue.handleWakeup()
    this.buffer.handleWakeup()
  }

  protected override settle(answer: number, sendError?: () => RingfenceError): void {
    if (this.#closedByMembership && answer !== 0) this.finish(CLOSED, closedError)
    else super.settle(answer, sendError)
  }

  handleEnd(): (() => RingfenceError) | null {
    this.#endCalls()
    const makeLostError = this.lostErrorFactory()
    // The reader that has found the end must return first.
    if (makeLostError !== null) timers.queueMicrotask(() => this.checkLine())
    // Both sides may have ended.
    else if (this.#ending !== null) timers.queueMicrotask(() => this.checkLine(this.#makeSendEndError))
    return makeLostError
  }

  override failed(error: RingfenceError): void {
    // The channel may have ended already, if the peer left these frames.
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') this.#calls?.end(errorFactory(error), false)
    super.failed(error)
  }

  protected override rejectSends(reason: () => RingfenceError): void {
    this.queue.stop(reason, true)
  }

  protected override onFinished(dropsUnread: boolean): void {
    if (dropsUnread) this.tokens.close()
    else this.tokens.stop()
    if (!this.buffer.willReadCalls) this.#endCalls()
  }
}
