// The state of a channel or a subscription: how it is read, and how it ends. The views of one channel share it.

import { fromFailure, type RingfenceError } from '../errors.js'
import type { ChannelSettings } from '../endpoint/handshake.js'
import { FAILED, type NativePeer, type NativeReader } from '../native.js'
import type { Closed } from '../types.js'
import { PeerView } from './peer-view.js'
import { ReceiveBuffer, type BufferOwner } from './receive-buffer.js'
import { closedFromStatus, closedFor, closedByDestroy, lostError, errorFactory } from './resource.js'

export const CLOSED: Closed = { reason: 'closed' }

/** The errors of calls after the end of a channel or a subscription. */
interface EndErrors {
  /** This side has closed it. */
  closed(): RingfenceError
  /** `verify` has refused the peer. */
  refused(): RingfenceError
}

export abstract class SourceCore implements BufferOwner {
  readonly native: NativePeer
  readonly buffer: ReceiveBuffer
  readonly peerView: PeerView
  /** The end; null while the source is open. */
  protected closed: Closed | null = null
  /** The error of calls after the end. */
  protected makeEndError: () => RingfenceError
  /** The peer ended the source by closing it or exiting, so its earlier messages can still be read. */
  protected mayHaveLeftovers = false
  protected readonly endErrors: EndErrors
  readonly #onEnd: (closed: Closed) => void

  /** @param onEnd - Called once, when the source has ended. */
  protected constructor(
    native: NativePeer & NativeReader,
    { busyPollMicros, attachments }: ChannelSettings,
    endErrors: EndErrors,
    onEnd: (closed: Closed) => void,
  ) {
    this.native = native
    this.peerView = new PeerView(native)
    this.buffer = new ReceiveBuffer(native, busyPollMicros > 0, this, attachments)
    this.endErrors = endErrors
    this.makeEndError = endErrors.closed
    this.#onEnd = onEnd
  }

  /** Calls `onReadable` whenever the line is readable. */
  protected watch(onReadable: () => void): void {
    if (this.native.watch(onReadable) === FAILED) throw fromFailure(this.native.failure())
  }

  /** The error of a call after the end; `undefined` before it. */
  get endError(): RingfenceError | undefined {
    return this.closed === null ? undefined : this.makeEndError()
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
    const readable = this.buffer.isReadableNow(reader)
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
    if (this.hasEnded()) this.dropLeftovers()
    else {
      const closed = closedByDestroy(error)
      this.finish(closed, closed.error === undefined ? this.endErrors.closed : errorFactory(closed.error))
    }
  }

  /** Whether the source has ended. Asks the core as well: a reader may have found a lost peer, and not the event loop. */
  protected hasEnded(): boolean {
    if (this.closed === null && this.native.isLost() !== 0) this.checkLine()
    return this.closed !== null
  }

  /** Drops the messages that the peer left: this side will not read them. */
  protected dropLeftovers(): void {
    this.buffer.dropLeftovers(this.endErrors.closed)
  }

  /** The error of a lost peer; null if the peer is not lost. A reader may find that before the event loop is notified. */
  protected lostErrorFactory(): (() => RingfenceError) | null {
    if (this.closed !== null) return this.closed.error === undefined ? null : errorFactory(this.closed.error)
    const cause = this.native.isLost()
    return cause === 0 ? null : () => lostError(this.peerView.peer, cause)
  }

  /**
   * Asks the core whether it has ended. Called when the line is readable.
   *
   * @param sendError - The error of later sends; by default that of the reason.
   */
  checkLine(sendError?: () => RingfenceError): void {
    if (this.closed !== null) return
    this.settle(this.native.listen(), sendError)
    if (this.closed === null) this.handleWakeup()
  }

  /** Re-checks everything that waits: the peer has woken this side. */
  protected handleWakeup(): void {
    this.native.disarm()
    this.buffer.handleWakeup()
  }

  /** The error of calls after the peer has closed the source. */
  protected abstract closedByPeer(): RingfenceError

  /**
   * Ends the source if the core's answer says so. The core may notice the peer's end on its own thread before the event loop is notified.
   * The messages that the peer left are still read then.
   */
  protected settle(status: number, sendError?: () => RingfenceError): void {
    const closed = closedFromStatus(status, this.native, this.peerView.peer)
    if (closed === null) return
    const { reason, error } = closed
    if (reason === 'refused') this.finish(closed, this.endErrors.refused)
    else if (reason !== 'closed' && reason !== 'lost') this.finish(closed, errorFactory(error!))
    else this.finish(closed, sendError ?? (error === undefined ? () => this.closedByPeer() : errorFactory(error)), true)
  }

  abstract handleEnd(): (() => RingfenceError) | null

  /** Returns the end of the source of a merge. The event loop may not be notified yet, or the peer may have ended only its sending. */
  endOfSource(): Closed {
    this.checkLine()
    const closed = this.closed ?? CLOSED
    // The merge reports the end.
    this.endWithPeer()
    // A publisher may have evicted its subscriber after it had ended it.
    const error = closed.reason === 'closed' ? this.buffer.readError : null
    return error?.code === 'ERR_RINGFENCE_EVICTED' ? { reason: 'evicted', error } : closed
  }

  /** Handles a failed call into the core. An error that ends the source there ends it here as well. */
  failed(error: RingfenceError): void {
    if (error.code === 'ERR_RINGFENCE_RING_CORRUPT') this.finish({ reason: 'corrupt', error }, errorFactory(error))
    else if (error.code === 'ERR_RINGFENCE_UNSUPPORTED') this.finish({ reason: 'failed', error }, () => error)
    else if (error.code === 'ERR_RINGFENCE_OBJECT_EXPOSED') {
      const closed = closedFor('exposed', this.peerView.peer)
      this.finish(closed, errorFactory(closed.error!))
    } else if (END_CODES.has(error.code)) this.checkLine()
  }

  /**
   * @param makeEndError - The error of later calls.
   * @param mayHaveLeftovers - The messages that the peer left can still be read.
   */
  protected finish(closed: Closed, makeEndError: () => RingfenceError, mayHaveLeftovers = false): void {
    if (this.closed !== null) return
    this.closed = closed
    this.mayHaveLeftovers = mayHaveLeftovers
    this.makeEndError = makeEndError
    if (mayHaveLeftovers) this.native.outlive()
    else this.native.close()
    this.rejectSends(makeEndError)
    const dropsUnread = closed.reason === 'refused' || closed.reason === 'failed'
    if (mayHaveLeftovers) this.buffer.keepLeftovers(() => this.releaseRing())
    else if (makeEndError === this.endErrors.closed) this.buffer.close(makeEndError)
    else if (dropsUnread) this.buffer.fail(makeEndError)
    else this.buffer.stop(makeEndError)
    this.onFinished(dropsUnread || makeEndError === this.endErrors.closed)
    this.#onEnd(closed)
  }

  /** Rejects pending sends: the source has ended. */
  protected rejectSends(_reason: () => RingfenceError): void {}

  /** Called after the end. `dropsUnread`: what was not read is dropped. */
  protected onFinished(_dropsUnread: boolean): void {}

  /** Releases the ring: the messages that the peer left were read or dropped. */
  protected releaseRing(): void {
    this.native.close()
  }
}

/** The errors of a call that noticed the end before the event loop was notified. */
const END_CODES: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_PEER_LOST',
  'ERR_RINGFENCE_CLOSED',
  'ERR_RINGFENCE_EVICTED',
])
