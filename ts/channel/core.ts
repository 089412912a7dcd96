// The shared state of a channel: the queue, the buffer, the tokens, and how it ends. A channel of values shares it with the channel that it
// was made from.

import { RingfenceError, fromFailure } from '../errors.js'
import { FAILED, type NativeChannel } from '../native.js'
import type { ChannelSettings } from '../endpoint/options.js'
import { soon } from '../runtime/deferred.js'
import { fairness } from '../runtime/fairness.js'
import { timers } from '../runtime/timers.js'
import type { Closed } from '../types.js'
import { Calls } from './calls.js'
import { PeerView } from './peer-view.js'
import { ReceiveBuffer } from './receive-buffer.js'
import { closedBy, closedFor, destroyedBy, lost, nameOf, repeat } from './resource.js'
import { SendQueue } from './send-queue.js'
import type { SourceCore } from './source.js'
import type { ChannelStats } from './stats.js'
import { Tokens } from './tokens.js'

const CLOSED: Closed = { reason: 'closed' }

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

export class ChannelCore implements SourceCore {
  readonly native: NativeChannel
  readonly queue: SendQueue
  readonly buffer: ReceiveBuffer
  readonly tokens: Tokens
  readonly view: PeerView
  #calls: Calls | null = null
  #readingCalls = false
  readonly allowHalfOpen: boolean
  readonly #onEnd: (closed: Closed) => void
  /** The end; null while the channel is open. */
  #closed: Closed | null = null
  /** The error of sends after this side has ended its sending. */
  #whyEnded = endedHere
  /** The error of calls after the channel has ended. */
  #whyOver = closedHere
  #ending: Promise<void> | null = null
  #closing: Promise<void> | null = null
  /** The peer ended the channel by closing it or exiting, so its earlier messages can still be read. */
  #outlives = false
  /** The membership that made this channel is closing it. */
  #departing = false
  /** Called once the messages that the peer left were read or dropped; never called if it left none. */
  whenRead: (() => void) | null = null

  /** @param onEnd - Called once, when the channel has ended. */
  constructor(native: NativeChannel, settings: ChannelSettings, onEnd: (closed: Closed) => void) {
    const { busyPollMicros, allowHalfOpen, attachments } = settings
    this.native = native
    this.allowHalfOpen = allowHalfOpen
    this.view = new PeerView(native)
    this.#onEnd = onEnd
    const failed = (error: RingfenceError) => this.#failed(error)
    this.queue = new SendQueue(native, busyPollMicros > 0, failed)
    this.buffer = new ReceiveBuffer(
      native,
      busyPollMicros > 0,
      failed,
      () => this.#foundEnd(),
      () => this.endWithPeer(),
      () => this.calls,
      attachments,
    )
    this.tokens = new Tokens(native)
    const woken = () => {
      fairness.woke()
      this.hear()
    }
    if (native.watch(woken) === FAILED) throw fromFailure(native.failure())
  }

  /** The error of a call after the end; `undefined` before it. */
  get over(): RingfenceError | undefined {
    return this.#closed === null ? undefined : this.#whyOver()
  }

  stats(): ChannelStats {
    // Puts messages into the ring that have room there, before the figures are read.
    if (!this.queue.isEmpty) this.queue.pump()
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
      waits: this.queue.waits,
      waitedMicros: this.queue.waitedMicros,
      wakeupsSent: figures[2]!,
      sleeps: figures[3]!,
      ringUsed: figures[4]!,
      ringCapacity: figures[5]!,
      queuedBytes: this.queue.bufferedAmount,
    }
  }

  // Reading. Sends that are still staged must go out before this side waits for an answer.

  /** Returns a message if there is one, `undefined` if the caller must wait for it, `null` if no more will arrive. */
  receiveNow(): Buffer | null | undefined {
    if (!this.queue.isEmpty) this.queue.pump()
    return this.buffer.receiveNow()
  }

  /** Does the same as {@link receiveNow}, for a loop: it ends if this side has closed the channel. */
  nextNow(): Buffer | null | undefined {
    if (!this.queue.isEmpty) this.queue.pump()
    return this.buffer.nextNow()
  }

  /** For a caller that reports the end itself. */
  async waitReadable(signal?: AbortSignal, reader?: object | null): Promise<boolean> {
    this.queue.pump()
    const readable = this.buffer.isReadableNow()
    return readable ?? (await this.buffer.wait(false, signal, reader).promise) !== null
  }

  /** Does the check of {@link waitReadable} without waiting, for a loop. */
  arrivedNow(): true | null | undefined {
    if (!this.queue.isEmpty) this.queue.pump()
    const arrived = this.buffer.arrivedNow()
    return arrived === false ? null : arrived
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
    if (this.#closed !== null || this.buffer.hasCleanEnd) this.#endCalls()
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
    if (!this.queue.isEmpty) this.queue.pump()
    this.buffer.readCalls()
  }

  /** No more call frames will arrive, or none will be read. */
  #endCalls(): void {
    const calls = this.#calls
    if (calls === null) return
    const whyLost = this.#whyLost()
    if (this.#closed === null && whyLost === null) calls.peerEnded()
    else if (this.#closed === null || this.#outlives) calls.end(whyLost ?? this.#closedByPeer, whyLost === null)
    else calls.end(this.#whyOver, this.#whyOver === closedHere)
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
        if (this.#closed === null) this.#settle(this.native.end(), this.#whyEnded)
      })
    }
    return this.#ending
  }

  /** Called when a caller has seen the end of the peer's messages. If the peer is lost, there is no direction left to end. */
  endWithPeer(): void {
    if (this.allowHalfOpen || this.#whyLost() !== null) return
    if (this.#closed === null) void this.#endSending(endedWithPeer)
    else if (this.#ending === null && this.#outlives) this.queue.shut(endedWithPeer, true)
  }

  close(linger: number): Promise<void> {
    return (this.#closing ??= this.#close(linger))
  }

  async #close(linger: number): Promise<void> {
    this.#noticeLoss()
    if (this.#closed === null) {
      const lingering = this.queue.linger(linger, closedHere)
      if (lingering !== null) await lingering
    }
    if (this.#closed === null) {
      // Without this end, the peer finds a lost peer.
      if (this.queue.isEmpty) this.native.end()
      this.#finish(CLOSED, closedHere)
    } else this.#dropLeft()
  }

  /** Closes the channel at once, without an end for the peer. */
  destroy(error?: Error): void {
    this.#noticeLoss()
    if (this.#closed !== null) this.#dropLeft()
    else {
      const closed = destroyedBy(error)
      this.#finish(closed, closed.error === undefined ? closedHere : repeat(closed.error))
    }
  }

  /** Ends the channel as lost if the core knows that already. A reader may have found that, and not the event loop. */
  #noticeLoss(): void {
    if (this.#closed === null && this.native.isLost() !== 0) this.hear()
  }

  /** Drops the messages that the peer left: this side will not read them. */
  #dropLeft(): void {
    this.buffer.dropLeft(closedHere)
  }

  /** Flushes, and prepares for a close by the binding from another thread. `finish` marks the channel closed. */
  async depart(linger: number): Promise<Departure> {
    if (this.#closed === null) await this.queue.linger(linger, closedHere)
    if (this.#closed !== null) return { flushed: true, finish() {} }
    this.#departing = true
    return { flushed: this.queue.isEmpty, finish: () => this.#finish(CLOSED, closedHere) }
  }

  keepAlive(alive: boolean): void {
    this.native.keepAlive(alive ? 1 : 0)
    this.buffer.keepAlive(alive)
    this.tokens.keepAlive(alive)
  }

  sendToken(word: bigint): void {
    if (this.#closed !== null) throw this.#whyOver()
    if (this.native.sendToken(word) !== FAILED) {
      this.tokens.sent()
      return
    }
    const error = fromFailure(this.native.failure())
    // A peer that cannot receive tokens still has the channel. Any other call that is not supported ends it.
    if (error.code !== 'ERR_RINGFENCE_UNSUPPORTED') this.#failed(error)
    throw error
  }

  /** The error of a lost peer; null if the peer is not lost. A reader may find that before the event loop is notified. */
  #whyLost(): (() => RingfenceError) | null {
    if (this.#closed !== null) return this.#closed.reason === 'lost' ? repeat(this.#closed.error!) : null
    const how = this.native.isLost()
    return how === 0 ? null : () => lost(this.view.peer, how)
  }

  /** The error of calls if the peer has closed the channel after it had ended its sending. */
  readonly #closedByPeer = () =>
    new RingfenceError('PEER_LOST', `${nameOf(this.view.peer)} has closed the channel; open a new channel to continue`)

  /** Releases the ring: the messages that the peer left were read or dropped. */
  #letGo(): void {
    this.native.close()
    this.#endCalls()
    const notify = this.whenRead
    this.whenRead = null
    // The reader of the last message must get it first.
    if (notify !== null) timers.queueMicrotask(notify)
  }

  /** Called when the line is readable. */
  hear(): void {
    if (this.#closed !== null) return
    // The error of a send must not depend on which side's end was noticed first.
    this.#settle(this.native.listen(), this.#whyEnded === endedWithPeer ? endedWithPeer : undefined)
    if (this.#closed === null) this.#wake()
  }

  /** Re-checks everything that waits: the peer has woken this side. */
  #wake(): void {
    this.native.disarm()
    this.queue.awake()
    this.buffer.awake()
  }

  /**
   * Ends the channel if the core's answer says so. The core may notice the peer's end on its own thread before the event loop is notified.
   * The messages that the peer left are still read then.
   *
   * @param unsendable - The error of later sends; by default that of the reason.
   */
  #settle(answer: number, unsendable?: () => RingfenceError): void {
    const closed = closedBy(answer, this.native, this.view.peer)
    if (closed === null) return
    const { reason, error } = closed
    if (this.#departing) this.#finish(CLOSED, closedHere)
    else if (reason === 'refused') this.#finish(closed, refusedHere)
    else if (reason === 'exposed') this.#finish(closed, repeat(error!))
    else this.#finish(closed, unsendable ?? (error === undefined ? this.#closedByPeer : repeat(error)), true)
  }

  /** Called when everything was fetched and the peer sends no more. Returns the error of later reads if the peer is lost. */
  #foundEnd(): (() => RingfenceError) | null {
    this.#endCalls()
    const whyLost = this.#whyLost()
    // The reader that has found the end must return first.
    if (whyLost !== null) timers.queueMicrotask(() => this.hear())
    else if (this.#ending !== null) timers.queueMicrotask(() => this.#checkEnd())
    return whyLost
  }

  /** Checks whether both sides have ended. */
  #checkEnd(): void {
    if (this.#closed !== null) return
    this.#settle(this.native.listen(), this.#whyEnded)
    // The line was read, so a wakeup for a waiting send would not come again.
    if (this.#closed === null) this.#wake()
  }

  /** Returns the end of the source of a merge. The event loop may not be notified yet, or the peer may have ended only its sending. */
  endOfSource(): Closed {
    this.hear()
    const closed = this.#closed ?? CLOSED
    // The merge reports the end.
    this.endWithPeer()
    return closed
  }

  /** Handles a failed call into the core. An error that ends the channel there ends it here as well. */
  #failed(error: RingfenceError): void {
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') {
      // The channel may have ended already, if the peer left these frames.
      this.#calls?.end(repeat(error), false)
      this.#finish({ reason: 'corrupt', error }, repeat(error))
    } else if (error.code === 'ERR_RINGFENCE_OBJECT_EXPOSED') {
      const closed = closedFor('exposed', this.view.peer)
      this.#finish(closed, repeat(closed.error!))
    } else if (error.code === 'ERR_RINGFENCE_PEER_LOST' || error.code === 'ERR_RINGFENCE_CLOSED') {
      // A call noticed the end before the event loop was notified.
      this.hear()
    } else if (error.code === 'ERR_RINGFENCE_UNSUPPORTED') this.#finish({ reason: 'failed', error }, () => error)
  }

  /**
   * @param unsendable - The error of later calls.
   * @param outlives - The messages that the peer left can still be read.
   */
  #finish(closed: Closed, unsendable: () => RingfenceError, outlives = false): void {
    if (this.#closed !== null) return
    this.#closed = closed
    this.#outlives = outlives
    if (outlives) this.native.outlive()
    else this.native.close()
    this.queue.shut(unsendable, true)
    this.#whyOver = unsendable
    const { reason } = closed
    if (outlives) this.buffer.outlive(() => this.#letGo())
    else if (unsendable === closedHere) this.buffer.close(unsendable)
    else if (reason === 'refused' || reason === 'failed') this.buffer.fail(unsendable)
    else this.buffer.stop(unsendable)
    if (unsendable === closedHere || reason === 'refused' || reason === 'failed') this.tokens.close()
    else this.tokens.stop()
    if (!this.buffer.readsOn) this.#endCalls()
    this.#onEnd(closed)
  }
}
