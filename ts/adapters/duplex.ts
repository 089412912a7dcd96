import { Duplex } from 'node:stream'

import { closeAttachments } from '../channel/attachments.js'
import type { ChannelCore } from '../channel/core.js'
import type { RingfenceError } from '../errors.js'
import { inThisContext } from '../runtime/context.js'
import { ignore, settledWithin } from '../runtime/deferred.js'
import { throwUncaught } from '../runtime/emit.js'
import { flushAtExit, watchExit } from '../runtime/exit.js'
import { fairness } from '../runtime/fairness.js'
import { LONGEST_TIMER, timers } from '../runtime/timers.js'
import type { Message } from '../types.js'

/** Milliseconds that a destroyed stream or closed port may take to send earlier writes to a peer that does not read. */
export const LINGER = 5000

/** A larger chunk is sent in pieces, so that the peer reads the first while the next is written. */
const MAX_PIECE = 256 * 1024

/** The errors of waiting that do not say that the channel has ended. */
const NOT_THE_END: ReadonlySet<string> = new Set(['ERR_RINGFENCE_INVALID_ARGUMENT', 'ERR_RINGFENCE_NO_SPACE'])

/** Returns the channel as a byte stream. */
export function toDuplex(core: ChannelCore): Duplex {
  return new ChannelStream(core)
}

type Callback = (error?: Error | null) => void

/**
 * A channel as a stream. Node calls the program's listeners from `push` and from a write's callback. An exception in one of them must be an
 * uncaught exception, as with a socket. It must neither fail the channel nor reject a promise.
 */
class ChannelStream extends Duplex {
  readonly #wasOpen: boolean
  readonly #core: ChannelCore
  readonly #piece: number
  #reading = false
  /** Settles once the data that did not fit is in the ring, or failed. */
  #sending: Promise<void> | null = null
  /** The callback of the write that waits for that. Null once it was called. */
  #writeCallback: Callback | null = null
  /** The bytes of that write. */
  #pendingBytes = 0
  /** Bytes that `_write` was called with, before and now. */
  #bytesPassed = 0
  #bytesRead = 0
  /** The error to destroy the stream with, once all earlier data was read. */
  #failure: Error | undefined
  /** Another reader has the channel, and keeps it when this stream fails. */
  #hasOtherReader = false
  readonly #process = watchExit()
  /** Runs while nothing is read or written. */
  #idleTimer: NodeJS.Timeout | null = null

  constructor(core: ChannelCore) {
    super({ allowHalfOpen: core.allowHalfOpen })
    this.#core = core
    this.#wasOpen = !core.buffer.isClosed
    this.#piece = Math.min(MAX_PIECE, core.native.maxMessageSize, core.native.maxAtOnce)
    // Most programs read at once, and then reading finds the end.
    timers.setImmediate(() => void this.#watch())
  }

  // The members of a socket that agents and servers use.

  get readyState(): 'open' | 'readOnly' | 'writeOnly' | 'closed' {
    if (this.readable) return this.writable ? 'open' : 'readOnly'
    return this.writable ? 'writeOnly' : 'closed'
  }

  get bytesRead(): number {
    return this.#bytesRead
  }

  /** With the bytes that wait in the stream, as with a socket. */
  get bytesWritten(): number {
    return this.#bytesPassed + this.writableLength - (this.#writeCallback === null ? 0 : this.#pendingBytes)
  }

  /** Destroys the stream once all its writes are in the ring. */
  destroySoon(): void {
    this.end(() => this.destroy())
  }

  /** Emits 'timeout' whenever nothing was read or written for this long, as a socket does. 0: never. */
  setTimeout(milliseconds: number, callback?: () => void): this {
    if (this.#idleTimer !== null) timers.clearTimeout(this.#idleTimer)
    this.#idleTimer = null
    if (callback !== undefined) this.removeListener('timeout', callback)
    if (milliseconds > 0 && !this.destroyed) {
      this.#idleTimer = timers.setTimeout(() => this.emit('timeout'), Math.min(milliseconds, LONGEST_TIMER)).unref()
      if (callback !== undefined) this.once('timeout', callback)
    }
    return this
  }

  /** Does nothing: a write goes into the ring at once. */
  setNoDelay(): this {
    return this
  }

  /** Does nothing: the kernel reports at once that the peer is gone. */
  setKeepAlive(): this {
    return this
  }

  ref(): this {
    this.#core.keepAlive(true)
    return this
  }

  unref(): this {
    this.#core.keepAlive(false)
    return this
  }

  override read(size?: number): unknown {
    try {
      return super.read(size)
    } finally {
      if (this.#failure !== undefined) this.#failOnceRead(this.#failure)
    }
  }

  override _read(): void {
    if (!this.#reading) this.#fetch()
  }

  /** In the async context of the stream, as with a socket, and not of the caller of `resume`. */
  readonly #fetch = inThisContext(() => void this.#fetchAll())

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, done: Callback): void {
    this.#write([chunk], done)
  }

  override _writev(chunks: { chunk: Uint8Array }[], done: Callback): void {
    this.#write(
      chunks.map(({ chunk }) => chunk),
      done,
    )
  }

  override _final(done: Callback): void {
    callbackWith(this.#end(), done)
  }

  /** Sends pending writes before the stream is destroyed. Node would drop them. */
  override destroy(error?: Error | null, callback?: (error: Error | null) => void): this {
    if (!this.destroyed && (error === undefined || error === null)) this.#passOnWrites()
    // Node's types lack the callback.
    return (super.destroy as (error?: Error | null, callback?: (error: Error | null) => void) => this)(error, callback)
  }

  override _destroy(error: Error | null, done: Callback): void {
    this.setTimeout(0)
    this.#closeChannel(error).then(
      () => timers.nextTick(done, error),
      (closeError: Error) => timers.nextTick(done, error ?? closeError),
    )
  }

  /** Makes the stream pass on all writes that it holds. It does so once the write before them is done. */
  #passOnWrites(): void {
    while (this.writableCorked > 0) this.uncork()
    const done = this.#writeCallback
    if (done === null || this.writableLength === this.#pendingBytes) return
    this.#writeCallback = null
    throwUncaught(done)
  }

  /** Closes the channel. Without an error, the peer first reads all data that was written, and then the end. */
  async #closeChannel(error: Error | null): Promise<void> {
    if (error === null) await settledWithin(LINGER, this.#endAfterWrites().catch(ignore))
    if (!this.#hasOtherReader) this.#core.destroy(error ?? undefined)
  }

  async #endAfterWrites(): Promise<void> {
    await this.#sending
    await this.#end()
  }

  /** Ends this side's sending. If the peer has ended its own first, the error of later sends says so. */
  #end(): Promise<void> {
    return this.#core.end(this.readableEnded && !this.#core.allowHalfOpen)
  }

  #write(chunks: readonly Uint8Array[], done: Callback): void {
    const pieces = toPieces(chunks, this.#piece)
    this.#bytesPassed += this.writableLength
    this.#idleTimer?.refresh()
    let next = 0
    if (this.#sending === null) {
      try {
        for (; next < pieces.length && this.#core.queue.trySend(pieces[next]!); next += 1) fairness.spend()
      } catch (error) {
        done(toSocketError(error as Error, 'write'))
        return
      }
      if (next === pieces.length && (fairness.due === null || this.#process.isExiting)) {
        done()
        return
      }
    }
    this.#sendLater(pieces, next, done)
  }

  /** Sends pieces that have no room now, or that must wait until the event loop has turned. */
  #sendLater(pieces: readonly Uint8Array[], next: number, done: Callback): void {
    const sending = this.#sendAll(pieces, next, this.#sending ?? fairness.due)
    this.#writeCallback = done
    this.#pendingBytes = this.writableLength
    const finish = (error?: Error | null) => {
      // A stream that is being destroyed has already called it.
      if (this.#writeCallback !== done) return
      this.#writeCallback = null
      done(error && toSocketError(error, 'write'))
    }
    let cancelExitFlush = ignore
    // The event loop does not turn again at the exit, and Node keeps later writes until this one is done.
    if (next === pieces.length) cancelExitFlush = flushAtExit(finish)
    else this.#sending = sending
    const clear = () => {
      cancelExitFlush()
      if (this.#sending === sending) this.#sending = null
    }
    sending.then(clear, clear)
    callbackWith(sending, finish)
  }

  async #sendAll(pieces: readonly Uint8Array[], next: number, previous: Promise<void> | null): Promise<void> {
    await previous
    for (let at = next; at < pieces.length; at += 1) {
      await this.#core.queue.send(pieces[at]!)
      this.#idleTimer?.refresh()
    }
  }

  /**
   * Reads the end, clean or not, of a stream that the program does not read. A socket also reports it to a program that only writes. Messages
   * stay in the channel.
   */
  async #watch(): Promise<void> {
    if (this.#reading || this.destroyed) return
    try {
      if (await this.#core.waitReadable(undefined, null)) return
    } catch (error) {
      // A merge reads the channel, or there is a message but no memory for it: the stream may still be written to.
      if (NOT_THE_END.has((error as RingfenceError).code)) return
      // Reading fails as well, and reports it.
    }
    // Without a listener, the program does not use the stream yet, and an error would end the process.
    if (this.listenerCount('error') > 0) this.read(0)
  }

  /** Pushes messages until the stream has enough. */
  async #fetchAll(): Promise<void> {
    this.#reading = true
    try {
      while (!this.destroyed) {
        // The stream asks for more from microtasks, during which no other event is handled.
        const { due } = this.#core.buffer
        if (due !== null) {
          await due
          continue
        }
        const message = this.#core.buffer.takeNow(this)
        // A stream of bytes has no place for them.
        if (message !== null) closeAttachments(message as Message)
        // An empty chunk would mean that no data is available.
        if (message !== null && message.length > 0) {
          const wantsMore = this.#tryPush(message)
          if (wantsMore === false) return
          // The exception must be raised before the next chunk. A program that catches it continues to read.
          if (wantsMore === undefined) await new Promise<void>((resolve) => void timers.setImmediate(resolve))
        }
        if (message !== null || (await this.#core.waitReadable(undefined, this))) continue
        this.#pushEnd()
        return
      }
    } catch (error) {
      // This side's close ends the reading as it ends a loop. A stream that was made after the close fails.
      if (this.#core.buffer.isClosed && this.#wasOpen) this.#pushEnd()
      else this.#fail(error as NodeJS.ErrnoException)
    } finally {
      this.#reading = false
    }
  }

  /** Pushes a chunk. Returns whether the stream wants more; undefined if a listener has thrown. */
  #tryPush(chunk: Buffer | null): boolean | undefined {
    // Node would emit 'end' for the end of reading that destroying the stream causes, and what was read would seem complete.
    if (this.destroyed) return false
    let wantsMore: boolean | undefined
    this.#bytesRead += chunk?.length ?? 0
    this.#idleTimer?.refresh()
    throwUncaught(() => {
      wantsMore = this.push(chunk)
    })
    return wantsMore
  }

  #pushEnd(): void {
    this.#tryPush(null)
    // A stream that was paused reports its end if all data was read, as a socket does.
    this.read(0)
  }

  #fail(error: NodeJS.ErrnoException): void {
    if (error.code !== 'ERR_RINGFENCE_PEER_LOST') {
      if (!this.destroyed) this.#hasOtherReader = error.code === 'ERR_RINGFENCE_INVALID_ARGUMENT'
      this.destroy(error)
      return
    }
    this.#failure = toSocketError(error, 'read')
    this.#failOnceRead(this.#failure)
  }

  /** Destroys the stream once its buffered data was read: a destroyed stream drops it. */
  #failOnceRead(failure: Error): void {
    // A read in progress must return first.
    if (this.readableLength === 0) timers.nextTick(() => this.destroy(failure))
  }
}

/** Converts PEER_LOST to the error code of a socket, which agents and servers know. Other errors are unchanged. */
function toSocketError(error: Error, syscall: 'read' | 'write'): Error {
  if ((error as NodeJS.ErrnoException).code !== 'ERR_RINGFENCE_PEER_LOST') return error
  const code = syscall === 'read' ? 'ECONNRESET' : 'EPIPE'
  return Object.assign(new Error(`${syscall} ${code}: ${error.message}`, { cause: error }), { code, syscall })
}

/** Calls back outside the promise, so that an error of a listener does not reject it. */
function callbackWith(promise: Promise<void>, done: Callback): void {
  promise.then(
    () => timers.nextTick(done),
    (error: Error) => timers.nextTick(done, error),
  )
}

/** Returns the chunks as messages of at most `maxLength` bytes: short chunks are joined, and long ones are split. */
function toPieces(chunks: readonly Uint8Array[], maxLength: number): Uint8Array[] {
  const pieces: Uint8Array[] = []
  let short: Uint8Array[] = []
  let size = 0
  const flushShort = () => {
    if (size > 0) pieces.push(short.length === 1 ? short[0]! : Buffer.concat(short, size))
    short = []
    size = 0
  }
  for (const chunk of chunks) {
    if (size + chunk.length > maxLength) flushShort()
    if (chunk.length > maxLength) {
      for (let at = 0; at < chunk.length; at += maxLength) pieces.push(chunk.subarray(at, at + maxLength))
    } else {
      short.push(chunk)
      size += chunk.length
    }
  }
  flushShort()
  return pieces
}
