// The reading half that channels and subscriptions share.

import { WebStreams, type WebSink, type WebSource } from '../adapters/web.js'
import { checkReceiveEach, lingerOf, signalOf } from '../endpoint/options.js'
import { tryPromise } from '../runtime/deferred.js'
import * as internal from '../runtime/symbols.js'
import { batchLoop, loop, type Loop } from './loops.js'
import type { ReceiveBuffer } from './receive-buffer.js'
import { Resource, type ResourceEvents } from './resource.js'
import type { SourceCore } from './source-core.js'
import { registerSource } from './sources.js'
import type { Values } from './values.js'
import type { BatchOptions, Evidence, Identity, Message, Visit, WaitOptions } from '../types.js'

/** The web streams of a source, made on first use. */
export let webStreamsOf: <In>(source: Source<In>) => WebStreams<In, unknown>

/**
 * The reading half of {@link Channel} and {@link Subscription}.
 *
 * Everything that was sent is handed out first. After that, a clean end is an end: the peer has called `end` or `close`, and everything that
 * it had accepted has arrived. Otherwise each way to read fails with PEER_LOST: the peer's process or worker thread has ended without that,
 * or the peer has destroyed the source, or has closed it before everything was sent.
 *
 * A source has one reader at a time. While a call of `receive`, a loop, a stream or a port waits for a message, other ways to read fail with
 * INVALID_ARGUMENT. Only several calls of `receive` and `waitReadable` may wait together; they are served in order.
 */
export abstract class Source<In = Message> extends Resource<ResourceEvents> implements AsyncIterable<In> {
  readonly #core: SourceCore
  readonly #buffer: ReceiveBuffer
  /** Converts messages to values; null: the messages are bytes. */
  readonly #values: Values<unknown> | null
  #streams: WebStreams<In, unknown> | null = null

  static {
    webStreamsOf = (source) => (source.#streams ??= source.#makeStreams())
    registerSource((value) =>
      #core in value
        ? { buffer: value.#buffer, values: value.#values, end: () => value.#core.endOfSource() }
        : undefined,
    )
  }

  /**
   * @param from - The address; or the source of which the new one is a view.
   * @internal
   */
  // oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
  protected constructor(from: string | null | Source<any>, core: SourceCore, values: Values<unknown> | null) {
    super(from)
    this.#core = core
    this.#buffer = core.buffer
    this.#values = values
  }

  /** The peer's identity at the last check, in the handshake or by `verify`. */
  get peer(): Identity {
    return this.#core.peerView.peer
  }

  /** Every check of the handshake, in order, and the checks of the last `verify`. */
  get evidence(): readonly Evidence[] {
    return this.#core.peerView.evidence
  }

  /**
   * Checks the peer again now, against the policy of the handshake. `authorize` is not called again. `peer` and `evidence` then show the
   * results of this check.
   *
   * @example
   * ```js
   * const { pid, uid } = await channel.verify()
   * ```
   *
   * @returns The peer's identity. Rejects with PEER_REFUSED if the policy no longer holds, or the check cannot be made: the end is then
   * 'refused', and unread messages are discarded. PEER_LOST if the peer has exited, or executes another program; CLOSED after this side's
   * close; RING_CORRUPT; NO_SPACE if there is no thread for the check; HANDSHAKE_TIMEOUT if the peer's executable cannot be read within
   * `handshakeTimeout`. NO_SPACE and HANDSHAKE_TIMEOUT say nothing about the peer, and nothing is closed.
   *
   * A rejection that `closed` reports as well needs no handler. PEER_REFUSED, NO_SPACE and HANDSHAKE_TIMEOUT, which only this call
   * reports, need one as usual.
   */
  verify(options?: WaitOptions): Promise<Identity> {
    return this.#core.peerView.verify(
      () => this.#core.endError,
      () => this.#core.checkLine(),
      options,
    )
  }

  /**
   * Receives the next message.
   *
   * @example
   * ```js
   * let message
   * while ((message = await channel.receive()) !== undefined) console.log(message.toString())
   * ```
   *
   * @returns `undefined` after a clean end. Rejects with PEER_LOST, after everything that was sent, if the peer did not end cleanly; CLOSED
   * after this side's close; EVICTED if the publisher has evicted this subscriber; RING_CORRUPT; OBJECT_EXPOSED, after which unread
   * messages are lost; MALFORMED, with the `bytes`, for a message that the codec cannot decode (the next call returns the next message);
   * AbortError if the signal is aborted, which loses no message.
   */
  async receive(options?: WaitOptions): Promise<In | undefined> {
    const signal = signalOf(options)
    let message = this.#core.receiveNow()
    if (message === undefined) message = await this.#buffer.wait(true, signal).promise
    return this.#decode(message)
  }

  /**
   * Receives the next message if there is one now.
   *
   * @example
   * ```js
   * const message = channel.tryReceive()
   * if (message !== undefined) console.log(message.toString())
   * ```
   *
   * @returns `undefined` if there is none, or after a clean end.
   * @throws {@link RingfenceError} as `receive` rejects; INVALID_ARGUMENT while a reader waits for the message
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
   * The bytes are valid during the visit, and must not be transferred: the memory holds other messages as well. Attachments of visited
   * messages are closed. A source of values passes the visitor each value, which it may keep.
   *
   * @param visit - If it throws, the error is passed on: the current message counts as visited, and the others stay unread.
   * @param max - The maximum number of messages, however long that takes. By default, visits stop after about 2 ms, and the other messages
   * stay unread: {@link Source.waitReadable} then resolves once the event loop has turned. `Infinity` visits all available messages.
   * @returns The number of visited messages.
   * @throws {@link RingfenceError} as `receive` rejects. After MALFORMED the next call continues behind that message. NO_SPACE if there is
   * no memory for the next message, which the next call tries again; INVALID_ARGUMENT while a reader waits for the message, or if a visitor
   * has transferred the memory, which loses the other messages in it.
   */
  receiveEach(visit: Visit<In>, max?: number): number {
    checkReceiveEach(visit, max)
    const visitor = this.#values === null ? (visit as Visit) : this.#values.visitor(visit as (value: unknown) => void)
    return this.#buffer.receiveEach(visitor, max)
  }

  /**
   * Waits until a message is available.
   *
   * @returns `false` after a clean end. Rejects as `receive`.
   */
  async waitReadable(options?: WaitOptions): Promise<boolean> {
    const readable = await this.#core.waitReadable(signalOf(options))
    if (!readable) this.#core.endWithPeer()
    return readable
  }

  /**
   * Whether everything was read up to a clean end, or this side has closed the source. Stays `false` after any other end, which
   * {@link Source.tryReceive} throws, as with a Node stream that has failed. Without `allowHalfOpen`, the first access that finds a clean
   * end ends this side's sending, as the `undefined` of {@link Source.receive} does.
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
        poll: () => this.#core.nextNow(),
        pollMore: () => (buffer.due === null ? buffer.takeNow(null) : null),
        takeRun: this.#values === null ? (into, max) => buffer.takeRun(into as unknown[] as Buffer[], max) : undefined,
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
   * A web stream with one chunk for each message, made on first use. A message is taken when the stream's reader asks for it, so the
   * backpressure is that of the ring. The stream ends and fails as `receive` does. `cancel()` closes this side.
   *
   * With {@link Channel.writable} a channel is a pair of streams for `pipeThrough`. `pipeline` of `node:stream` takes the channel as a
   * source, and its `writable` as a destination.
   *
   * @example
   * await channel.readable.pipeThrough(new TextDecoderStream()).pipeTo(sink)
   */
  get readable(): ReadableStream<In> {
    return webStreamsOf(this).readable
  }

  #makeStreams(): WebStreams<In, unknown> {
    const source: WebSource<In> = {
      waitReadable: (reader) => this.#core.waitReadable(undefined, reader),
      tryReceive: () => this.#decode(this.#buffer.takeNow(null)),
      endReported: () => this.#core.endWithPeer(),
      close: () => this.close(),
    }
    return new WebStreams(source, 'send' in this ? (this as unknown as WebSink<never>) : null)
  }

  /**
   * Closes the source and drops unread messages. A channel first waits up to `linger` milliseconds (1,000 by default) for room in the ring: the
   * peer can read the messages and the end that get there. If that is too short, the remaining sends reject with CLOSED, and the peer finds a
   * lost peer. Reads that wait here end normally.
   *
   * @example
   * ```js
   * await channel.close({ linger: 5000 })
   * ```
   *
   * @returns A promise that resolves once everything is released. A second call returns the same promise.
   */
  close(options: { linger?: number | undefined } = {}): Promise<void> {
    return tryPromise(() => this.#core.close(lingerOf(options)))
  }

  /**
   * Closes the source at once, and drops the messages that are not in the ring. The peer of a channel finds a lost peer. With an error, reads
   * that wait here reject, and `closed` has the reason 'failed' with this error, or with one of which it is the `cause`.
   *
   * @example
   * ```js
   * channel.destroy(new Error('the request is invalid'))
   * ```
   */
  destroy(error?: Error): void {
    this.#core.destroy(error)
  }

  /** @internal */
  protected [internal.keepAlive](alive: boolean): void {
    this.#core.keepAlive(alive)
  }
}
