import { Duplex } from 'node:stream'

/** A chunk larger than this is sent in pieces, so that the peer reads the first while the next is written. */
const PIECE = 256 * 1024

/** What a stream needs of a channel. `channel.ts` imports this file, so this file cannot import it. */
interface MessageChannel {
  readonly allowHalfOpen: boolean
  readonly maxMessageSize: number
  readonly bufferedAmount: number
  /** What is waited for before more is read; null: nothing. */
  readonly due: Promise<void> | null
  send(message: Uint8Array): Promise<void>
  tryReceive(): Buffer | null
  readable(): Promise<boolean>
  /** `withPeer`: since the peer has ended its sending, and not since the program has said so. */
  end(withPeer: boolean): Promise<void>
  close(): Promise<void>
  /** What the readable side is destroyed with where the peer is gone before it had ended its sending. */
  cutOff(): Error | undefined
}

/** The channel as a stream of bytes. */
export function toDuplex(channel: MessageChannel): Duplex {
  return new ChannelStream(channel)
}

type Done = (error?: Error | null) => void

class ChannelStream extends Duplex {
  readonly #channel: MessageChannel
  #reading = false
  /** What the stream is destroyed with once everything that came before has been read. */
  #failure: Error | undefined

  constructor(channel: MessageChannel) {
    super({ allowHalfOpen: channel.allowHalfOpen })
    this.#channel = channel
  }

  override read(size?: number): unknown {
    const chunk: unknown = super.read(size)
    if (this.#failure !== undefined) this.#failOnceRead(this.#failure)
    return chunk
  }

  override _read(): void {
    if (!this.#reading) void this.#fetch()
  }

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, done: Done): void {
    this.#send(chunk).then(() => done(), done)
  }

  override _final(done: Done): void {
    this.#channel.end(this.readableEnded && !this.allowHalfOpen).then(() => done(), done)
  }

  override _destroy(error: Error | null, done: Done): void {
    this.#leave(error).then(
      () => done(error),
      (other: Error) => done(error ?? other),
    )
  }

  /**
   * A stream that was read to its end ends its own side too, also where it is destroyed before it has come to that: a loop over it
   * destroys it. The peer would take it for cut off.
   */
  async #leave(error: Error | null): Promise<void> {
    const { allowHalfOpen, bufferedAmount } = this.#channel
    if (error === null && this.readableEnded && !allowHalfOpen && bufferedAmount === 0) await this.#channel.end(true)
    await this.#channel.close()
  }

  async #send(chunk: Uint8Array): Promise<void> {
    const piece = Math.min(PIECE, this.#channel.maxMessageSize)
    for (let at = 0; at < chunk.length; at += piece) await this.#channel.send(chunk.subarray(at, at + piece))
  }

  /** Pushes messages until the stream has enough. */
  async #fetch(): Promise<void> {
    this.#reading = true
    try {
      for (;;) {
        // The stream asks for more from microtasks, in which no other event is handled.
        const { due } = this.#channel
        if (due !== null) {
          await due
          if (this.destroyed) return
        }
        const message = this.#channel.tryReceive()
        // An empty chunk would say that nothing is there.
        if (message !== null && message.length > 0 && !this.push(message)) return
        if (message !== null || (await this.#channel.readable())) continue
        this.#end()
        return
      }
    } catch (error) {
      this.destroy(error as Error)
    } finally {
      this.#reading = false
    }
  }

  #end(): void {
    const failure = this.#channel.cutOff()
    if (failure === undefined) {
      this.push(null)
      return
    }
    this.#failure = failure
    this.#failOnceRead(failure)
  }

  /** A destroyed stream drops what it has buffered, so it is destroyed only once that was read. */
  #failOnceRead(failure: Error): void {
    // A read that is running must return first.
    if (this.readableLength === 0) process.nextTick(() => this.destroy(failure))
  }
}
