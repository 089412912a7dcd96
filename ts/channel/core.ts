// The shared state of a channel: the queue, the buffer, the tokens, and how it ends. A channel of values shares it with the channel that it
// was made from.

import { RingfenceError, fromFailure } from '../errors.js'
import { FAILED, REASONS, REFUSED, type NativeChannel } from '../native.js'
import type { ChannelSettings } from '../endpoint/options.js'
import { timers } from '../runtime/timers.js'
import type { CloseReason } from '../types.js'
import { PeerView } from './peer-view.js'
import { ReceiveBuffer } from './receive-buffer.js'
import { SendQueue } from './send-queue.js'
import type { ChannelStats } from './stats.js'
import { Tokens } from './tokens.js'

const lost = (reason: CloseReason) =>
  new RingfenceError(
    'PEER_LOST',
    reason === 'exited'
      ? "the peer's process has ended, or executes another program now"
      : 'the peer has closed the channel',
  )

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

export class ChannelCore {
  readonly native: NativeChannel
  readonly queue: SendQueue
  readonly buffer: ReceiveBuffer
  readonly tokens: Tokens
  readonly view: PeerView
  readonly allowHalfOpen: boolean
  readonly closed: Promise<CloseReason>
  #resolveClosed!: (reason: CloseReason) => void
  readonly #onEnd: (reason: CloseReason) => void
  #reason: CloseReason | null = null
  /** The error of sends after this side has ended its sending. */
  #whyEnded = endedHere
  /** The error of calls after the channel has ended. */
  #whyOver = closedHere
  #ending: Promise<void> | null = null
  /** The peer ended the channel by closing it or exiting, so its earlier messages can still be read. */
  #outlives = false
  /** The final result of the binding's `isCut`: how the peer disconnected without having ended its sending; 0 if it did not. */
  #cut = 0
  /** The membership that made this channel is closing it. */
  #departing = false
  /** Called once the messages that the peer left were read or dropped; never called if it left none. */
  whenRead: (() => void) | null = null

  /** @param onEnd - Called once, when the channel has ended. */
  constructor(native: NativeChannel, settings: ChannelSettings, onEnd: (reason: CloseReason) => void) {
    const { busyPollMicros, allowHalfOpen } = settings
    this.native = native
    this.allowHalfOpen = allowHalfOpen
    this.view = new PeerView(native)
    this.#onEnd = onEnd
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
    const failed = (error: RingfenceError) => this.#failed(error)
    this.queue = new SendQueue(native, busyPollMicros > 0, failed)
    this.buffer = new ReceiveBuffer(
      native,
      busyPollMicros > 0,
      failed,
      () => this.#mayBeOver(),
      () => this.endWithPeer(),
    )
    this.tokens = new Tokens(native)
    if (native.watch(() => this.hear()) === FAILED) throw fromFailure(native.failure())
  }

  /** The error of a call after the end; `undefined` before it. */
  get over(): RingfenceError | undefined {
    return this.#reason === null ? undefined : this.#whyOver()
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
        if (this.#reason === null) this.#settle(this.native.end(), this.#whyEnded)
      })
    }
    return this.#ending
  }

  /** Called when a caller has seen the end of the peer's messages. If the peer cut the channel off, there is no direction left to end. */
  endWithPeer(): void {
    if (this.allowHalfOpen || this.#isCutNow() !== 0) return
    if (this.#reason === null) void this.#endSending(endedWithPeer)
    else if (this.#ending === null && this.#outlives) this.queue.shut(endedWithPeer, true)
  }

  async close(linger: number): Promise<void> {
    if (this.#reason === null) {
      const lingering = this.queue.linger(linger, closedHere, this.closed)
      if (lingering !== null) await lingering
    }
    // The messages that the peer left will not be read.
    if (this.#reason === null) this.#finish('closed', closedHere)
    else if (this.buffer.outlives) this.buffer.close(closedHere)
  }

  /** Prepares for a close by the binding from another thread. Returns a function that marks the channel closed. */
  depart(): () => void {
    if (this.#reason !== null) return () => {}
    this.queue.pump()
    this.queue.refuse(closedHere, true)
    this.#departing = true
    return () => this.#finish('closed', closedHere)
  }

  keepAlive(alive: boolean): void {
    this.native.keepAlive(alive ? 1 : 0)
    this.buffer.keepAlive(alive)
    this.tokens.keepAlive(alive)
  }

  sendToken(word: bigint): void {
    if (this.#reason !== null) throw this.#whyOver()
    if (this.native.sendToken(word) !== FAILED) {
      this.tokens.sent()
      return
    }
    const error = fromFailure(this.native.failure())
    // A peer that cannot receive tokens still has the channel. Any other call that is not supported ends it.
    if (error.code !== 'ERR_RINGFENCE_UNSUPPORTED') this.#failed(error)
    throw error
  }

  cutOff(): RingfenceError | undefined {
    const cut = this.#isCutNow()
    if (cut === 0) return undefined
    const what = cut === 1 ? 'has ended, or executes another program now,' : 'has closed the channel'
    return new RingfenceError('PEER_LOST', `the peer ${what} before it had ended its sending: the end may be missing`)
  }

  /** A reader may find the end before the event loop is notified. */
  #isCutNow(): number {
    return this.#reason === null ? this.native.isCut() : this.#cut
  }

  /** Releases the ring: the messages that the peer left were read or dropped. */
  #letGo(): void {
    this.native.close()
    const notify = this.whenRead
    this.whenRead = null
    // The reader of the last message must get it first.
    if (notify !== null) timers.queueMicrotask(notify)
  }

  /** Called when the line is readable. */
  hear(): void {
    if (this.#reason !== null) return
    // The error of a send must not depend on which side's end was noticed first.
    this.#settle(this.native.listen(), this.#whyEnded === endedWithPeer ? endedWithPeer : undefined)
    if (this.#reason === null) this.#wake()
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
    const reason = reasonOf(answer)
    if (reason === null) return
    if (this.#departing) this.#finish(reason, closedHere)
    else if (answer === REFUSED) this.#finish(reason, refusedHere)
    else if (reason === 'exposed') this.#finish(reason, exposed)
    else {
      this.#cut = this.native.isCut()
      this.#finish(reason, unsendable ?? (() => lost(reason)), true)
    }
  }

  #mayBeOver(): void {
    // The reader that has found the end must return first.
    if (this.#ending !== null) timers.queueMicrotask(() => this.#checkEnd())
  }

  /** Checks whether both sides have ended. */
  #checkEnd(): void {
    if (this.#reason !== null) return
    this.#settle(this.native.listen(), this.#whyEnded)
    // The line was read, so a wakeup for a waiting send would not come again.
    if (this.#reason === null) this.#wake()
  }

  /** Returns why the source of a merge has ended. The event loop may not be notified yet, or the peer may have ended only its sending. */
  reasonOfEnd(): CloseReason {
    this.hear()
    const reason = this.#reason ?? 'closed'
    // The merge reports the end.
    this.endWithPeer()
    return reason
  }

  /** Handles a failed call into the core. An error that ends the channel there ends it here as well. */
  #failed(error: RingfenceError): void {
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') {
      this.#finish('corrupt', () => new RingfenceError('RING_CORRUPT', error.message, { cause: error }))
    } else if (error.code === 'ERR_RINGFENCE_OBJECT_EXPOSED') {
      this.#finish('exposed', exposed)
    } else if (error.code === 'ERR_RINGFENCE_PEER_LOST' || error.code === 'ERR_RINGFENCE_CLOSED') {
      // A call noticed the end before the event loop was notified.
      this.hear()
    } else if (error.code === 'ERR_RINGFENCE_UNSUPPORTED') {
      this.#finish('closed', () => error)
    }
  }

  /** @param outlives - The messages that the peer left can still be read. */
  #finish(reason: CloseReason, unsendable: () => RingfenceError, outlives = false): void {
    if (this.#reason !== null) return
    this.#reason = reason
    this.#outlives = outlives
    if (outlives) this.native.outlive()
    else this.native.close()
    this.queue.shut(unsendable, true)
    this.#whyOver = unsendable
    if (unsendable === closedHere || unsendable === refusedHere) {
      this.buffer.close(unsendable)
      this.tokens.close()
    } else {
      if (outlives) this.buffer.outlive(() => this.#letGo())
      else this.buffer.stop(unsendable)
      this.tokens.stop()
    }
    this.#resolveClosed(reason)
    this.#onEnd(reason)
  }
}
