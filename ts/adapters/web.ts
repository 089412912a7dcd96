// Channels, subscriptions, merges and publishers as web streams, with one chunk for each message.

import { isError, type RingfenceError } from '../errors.js'
import { builtin } from '../native.js'
import type { ReadableStreamDefaultController } from 'node:stream/web'

import { ignore } from '../runtime/deferred.js'
import { timers } from '../runtime/timers.js'
import type { Resource, Sink } from '../types.js'

/** The source of a readable stream. */
export interface WebSource<In> {
  /**
   * Waits for a message. Resolves with `false` after a clean end. Does not end this side.
   *
   * @param reader - Identifies the reader. Only one may wait at a time. `null` may wait alongside any reader.
   */
  waitReadable(reader: object | null): Promise<boolean>
  /** Takes a message if there is one now. Does not end this side. */
  tryReceive(): In | undefined
  /** Called once the end was reported and no writer holds the writable stream. */
  endReported?(): void
  close(): Promise<void>
}

/** The destination of a writable stream. `waitWritable` rejects with the reason once nothing can be sent. */
export type WebSink<Out> = Pick<Sink<Out> & Resource, 'closed' | 'send' | 'waitWritable' | 'end' | 'destroy'>

/** Milliseconds between checks whether a writer still holds the writable stream after the peer's end. */
const CHECK_INTERVAL = 50

/** The web streams of one object, made on first use. */
export class WebStreams<In, Out> {
  readonly #source: WebSource<In> | null
  readonly #sink: WebSink<Out> | null
  #readable: ReadableStream<In> | null = null
  #writable: WritableStream<Out> | null = null
  /** Whether no writer and no pipe holds the writable stream, and every chunk of it was sent. */
  #isFree = () => true
  /** The channel has ended. */
  #hasEnded = false
  /** The end of the readable stream was reported. */
  #isEndReported = false

  constructor(source: WebSource<In> | null, sink: WebSink<Out> | null) {
    this.#source = source
    this.#sink = sink
  }

  get readable(): ReadableStream<In> {
    return (this.#readable ??= this.#makeReadable(this.#source!))
  }

  get writable(): WritableStream<Out> {
    return (this.#writable ??= this.#makeWritable(this.#sink!))
  }

  /**
   * Ends this side after the peer, once no writer and no pipe holds the writable stream and all its chunks were sent. The stream does not
   * report that.
   */
  #endWhenFree(): void {
    this.#isEndReported = true
    if (!this.#endIfFree()) timers.setTimeout(() => this.#endWhenFree(), CHECK_INTERVAL).unref()
  }

  /** Returns whether there is nothing left to do. */
  #endIfFree(): boolean {
    if (this.#hasEnded) return true
    if (!this.#isFree()) return false
    this.#source!.endReported?.()
    return true
  }

  #makeReadable(source: WebSource<In>): ReadableStream<In> {
    let isClosed = false
    let isWatching = false
    const finish = (controller: ReadableStreamDefaultController<In>) => {
      if (isClosed) return
      isClosed = true
      controller.close()
      this.#endWhenFree()
    }
    // Reports the end, clean or not, to a reader that does not read.
    const watch = async (controller: ReadableStreamDefaultController<In>) => {
      if (isWatching) return
      isWatching = true
      try {
        if (!(await source.waitReadable(null))) finish(controller)
      } catch (error) {
        // Without memory for a message, the message is still there for the next read.
        if ((error as RingfenceError).code !== 'ERR_RINGFENCE_NO_SPACE') controller.error(error)
      } finally {
        isWatching = false
      }
    }
    return new builtin.webStreams.ReadableStream<In>(
      {
        start: (controller) => void watch(controller as ReadableStreamDefaultController<In>),
        async pull(controller) {
          while (await source.waitReadable(this)) {
            const message = source.tryReceive()
            if (message === undefined) continue
            controller.enqueue(message)
            void watch(controller as ReadableStreamDefaultController<In>)
            return
          }
          finish(controller as ReadableStreamDefaultController<In>)
        },
        cancel: () => {
          isClosed = true
          return source.close()
        },
      },
      // A message that was taken in advance would be lost if the reader leaves.
      { highWaterMark: 0 },
    ) as unknown as ReadableStream<In>
  }

  #makeWritable(sink: WebSink<Out>): WritableStream<Out> {
    let fail: (error: unknown) => void = ignore
    const writable = new builtin.webStreams.WritableStream<Out>({
      start(controller) {
        fail = (error) => controller.error(error)
        // Node calls abort() only after the write or close in progress, which a full ring would delay. The signal is immediate. (Node's
        // types lack it.)
        const { signal } = controller as typeof controller & { signal: AbortSignal }
        signal.addEventListener('abort', () => {
          sink.destroy(isError(signal.reason) ? signal.reason : undefined)
        })
      },
      write: async (chunk) => {
        try {
          await sink.send(chunk)
        } finally {
          // The timer does not keep the process running, and the program may have nothing left to do.
          if (this.#isEndReported) timers.setImmediate(() => this.#endIfFree())
        }
      },
      close: () => sink.end(),
      abort: (reason) => sink.destroy(isError(reason) ? reason : undefined),
    })
    this.#isFree = () => {
      if (writable.locked) return false
      const writer = writable.getWriter()
      // 0 while a chunk waits or is being sent, null once a chunk could not be sent.
      const isEmpty = writer.desiredSize === null || writer.desiredSize === 1
      writer.releaseLock()
      return isEmpty
    }
    // Errors the writable stream once nothing can be sent, even without a pending write.
    void sink.closed.then(() => {
      this.#hasEnded = true
      sink.waitWritable(0).catch(fail)
    })
    return writable as unknown as WritableStream<Out>
  }
}
