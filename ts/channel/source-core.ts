// The state of a channel or a subscription: how it is read, and how it ends. The views of one channel share it.

import { fromFailure, type RingfenceError } from '../errors.js'
import type { ChannelSettings } from '../endpoint/options.js'
import { FAILED, type NativePeer, type NativeReader } from '../native.js'
import type { Closed } from '../types.js'
import { PeerView } from './peer-view.js'
import { ReceiveBuffer, type Reading } from './receive-buffer.js'
import { closedBy, closedFor, destroyedBy, lost, repeat } from './resource.js'

export const CLOSED: Closed = { reason: 'closed' }

/** The errors of calls after the end of a channel or a subscription. */
interface Reasons {
  /** This side has closed it. */
  closed(): RingfenceError
  /** `verify` has refused the peer. */
  refused(): RingfenceError
}

export abstract class SourceCore implements Reading {
  readonly native: NativePeer
  readonly buffer: ReceiveBuffer
  readonly view: PeerView
  /** The end; null while the source is open. */
  protected closed: Closed | null = null
  /** The error of calls after the end. */
  protected whyOver: () => RingfenceError
  /** The peer ended the source by closing it or exiting, so its earlier messages can still be read. */
  protected outlives = false
  protected readonly reasons: Reasons
  readonly #onEnd: (closed: Closed) => void

  /** @param onEnd - Called once, when the source has ended. */
  protected constructor(
    native: NativePeer & NativeReader,
    { busyPollMicros, attachments }: ChannelSettings,
    reasons: Reasons,
    onEnd: (closed: Closed) => void,
  ) {
    this.native = native
    this.view = new PeerView(native)
    this.buffer = new ReceiveBuffer(native, busyPollMicros > 0, this, attachments)
    this.reasons = reasons
    this.whyOver = reasons.closed
    this.#onEnd = onEnd
  }

  /** Calls `woken` whenever the line is readable. */
  protected watch(woken: () => void): void {
    if (this.native.watch(woken) === FAILED) throw fromFailure(this.native.failure())
  }

  /** The error of a call after the end; `undefined` before it. */
  get over(): RingfenceError | undefined {
    return this.closed === null ? undefined : this.whyOver()
  }

  /** Sends what is staged. It must go out before this side waits for an answer. */
  protected flush(): void {}

  /** Returns a message if there is one, `undefined` if the caller must wait for it, `null` if no more will arrive. */
  receiveNow(): Buffer | null | undefined {
    this.flush()
    return this.buffer.receiveNow()
  }

  /** Does the same as {@link receiveNow}, for a loop: it ends if this side has closed the source. */
  nextNow(): Buffer | null | undefined {
    this.flush()
    return this.buffer.nextNow()
  }

  /** For a caller that reports the end itself. */
  async waitReadable(signal?: AbortSignal, reader?: object | null): Promise<boolean> {
    this.flush()
    const readable = this.buffer.isReadableNow()
    return readable ?? (await this.buffer.wait(false, signal, reader).promise) !== null
  }

  keepAlive(alive: boolean): void {
    this.native.keepAlive(alive ? 1 : 0)
    this.buffer.keepAlive(alive)
  }

  /** Called when a caller has seen a clean end. */
  endWithPeer(): void {}

  abstract close(linger: number): Promise<void>

  /** Ends the source at once. A channel's peer gets no end. */
  destroy(error?: Error): void {
    if (this.hasEnded()) this.dropLeft()
    else {
      const closed = destroyedBy(error)
      this.finish(closed, closed.error === undefined ? this.reasons.closed : repeat(closed.error))
    }
  }

  /** Whether the source has ended. Asks the core as well: a reader may have found a lost peer, and not the event loop. */
  protected hasEnded(): boolean {
    if (this.closed === null && this.native.isLost() !== 0) this.hear()
    return this.closed !== null
  }

  /** Drops the messages that the peer left: this side will not read them. */
  protected dropLeft(): void {
    this.buffer.dropLeft(this.reasons.closed)
  }

  /** The error of a lost peer; null if the peer is not lost. A reader may find that before the event loop is notified. */
  protected whyLost(): (() => RingfenceError) | null {
    if (this.closed !== null) return this.closed.error === undefined ? null : repeat(this.closed.error)
    const how = this.native.isLost()
    return how === 0 ? null : () => lost(this.view.peer, how)
  }

  /**
   * Asks the core whether it has ended. Called when the line is readable.
   *
   * @param unsendable - The error of later sends; by default that of the reason.
   */
  hear(unsendable?: () => RingfenceError): void {
    if (this.closed !== null) return
    this.settle(this.native.listen(), unsendable)
    if (this.closed === null) this.wake()
  }

  /** Re-checks everything that waits: the peer has woken this side. */
  protected wake(): void {
    this.native.disarm()
    this.buffer.awake()
  }

  /** The error of calls after the peer has closed the source. */
  protected abstract closedByPeer(): RingfenceError

  /**
   * Ends the source if the core's answer says so. The core may notice the peer's end on its own thread before the event loop is notified.
   * The messages that the peer left are still read then.
   */
  protected settle(answer: number, unsendable?: () => RingfenceError): void {
    const closed = closedBy(answer, this.native, this.view.peer)
    if (closed === null) return
    const { reason, error } = closed
    if (reason === 'refused') this.finish(closed, this.reasons.refused)
    else if (reason !== 'closed' && reason !== 'lost') this.finish(closed, repeat(error!))
    else this.finish(closed, unsendable ?? (error === undefined ? () => this.closedByPeer() : repeat(error)), true)
  }

  abstract foundEnd(): (() => RingfenceError) | null

  /** Returns the end of the source of a merge. The event loop may not be notified yet, or the peer may have ended only its sending. */
  endOfSource(): Closed {
    this.hear()
    const closed = this.closed ?? CLOSED
    // The merge reports the end.
    this.endWithPeer()
    // A publisher may have evicted its subscriber after it had ended it.
    const error = closed.reason === 'closed' ? this.buffer.endError : null
    return error?.code === 'ERR_RINGFENCE_EVICTED' ? { reason: 'evicted', error } : closed
  }

  /** Handles a failed call into the core. An error that ends the source there ends it here as well. */
  failed(error: RingfenceError): void {
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') this.finish({ reason: 'corrupt', error }, repeat(error))
    else if (error.code === 'ERR_RINGFENCE_UNSUPPORTED') this.finish({ reason: 'failed', error }, () => error)
    else if (error.code === 'ERR_RINGFENCE_OBJECT_EXPOSED') {
      const closed = closedFor('exposed', this.view.peer)
      this.finish(closed, repeat(closed.error!))
    } else if (NOTICED.has(error.code)) this.hear()
  }

  /**
   * @param whyOver - The error of later calls.
   * @param outlives - The messages that the peer left can still be read.
   */
  protected finish(closed: Closed, whyOver: () => RingfenceError, outlives = false): void {
    if (this.closed !== null) return
    this.closed = closed
    this.outlives = outlives
    this.whyOver = whyOver
    if (outlives) this.native.outlive()
    else this.native.close()
    this.shut(whyOver)
    const drops = closed.reason === 'refused' || closed.reason === 'failed'
    if (outlives) this.buffer.outlive(() => this.letGo())
    else if (whyOver === this.reasons.closed) this.buffer.close(whyOver)
    else if (drops) this.buffer.fail(whyOver)
    else this.buffer.stop(whyOver)
    this.finished(drops || whyOver === this.reasons.closed)
    this.#onEnd(closed)
  }

  /** Rejects pending sends: the source has ended. */
  protected shut(_why: () => RingfenceError): void {}

  /** Called after the end. `drops`: what was not read is dropped. */
  protected finished(_drops: boolean): void {}

  /** Releases the ring: the messages that the peer left were read or dropped. */
  protected letGo(): void {
    this.native.close()
  }
}

/** The errors of a call that noticed the end before the event loop was notified. */
const NOTICED: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_PEER_LOST',
  'ERR_RINGFENCE_CLOSED',
  'ERR_RINGFENCE_EVICTED',
])
