// A codec between the program and a queue or buffer of messages, with the errors of both directions.

import {
  borrows,
  checkCodec,
  decodeMessage,
  encodeMessage,
  notAMessage,
  encodeWith,
  malformed,
  type Codec,
} from '../adapters/codec.js'
import { tryPromise } from '../runtime/deferred.js'
import type { Message, SendOptions, Visit } from '../types.js'
import type { SendQueue } from './send-queue.js'

/** Encodes and decodes messages with a codec. */
export class Values<T> {
  readonly codec: Codec<T>
  readonly #borrows: boolean

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if it is no codec */
  constructor(codec: Codec<T>) {
    checkCodec(codec)
    this.codec = codec
    this.#borrows = borrows(codec)
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if the value cannot be encoded, or encodes to nothing */
  encode(value: T): Uint8Array | string {
    // The receiver would take undefined for the end, however the codec encodes it.
    if (value === undefined) throw notAMessage(value, undefined)
    return encodeWith(this.codec, value)
  }

  /** Encodes and sends a value. */
  send(queue: SendQueue, value: T, options?: SendOptions): Promise<void> {
    return tryPromise(() => {
      if (value === undefined) throw notAMessage(value, undefined)
      const encoded = encodeMessage(this.codec, value, options)
      return queue.send(encoded.message, encoded.options)
    })
  }

  /** @throws {@link RingfenceError} MALFORMED */
  decode(bytes: Buffer): T {
    const value = decodeMessage(this.codec, bytes as Message)
    // undefined would be taken for the end.
    if (value === undefined) throw malformed(bytes, new TypeError('the codec returned undefined'))
    return value
  }

  /** Decodes a message in reused memory. Codecs that may keep the bytes get a copy. */
  decodeVisited(bytes: Uint8Array, offset: number, length: number): T {
    const view = Buffer.from(bytes.buffer, bytes.byteOffset + offset, length)
    const bytesToKeep = this.#borrows ? view : Buffer.concat([view])
    const { attachments } = bytes as Message
    if (attachments !== undefined) {
      Object.assign(bytesToKeep, { attachments })
      // They are this message's now.
      delete (bytes as { attachments?: unknown }).attachments
    }
    return this.decode(bytesToKeep)
  }

  /** Returns a visitor of messages that calls a visitor of values. */
  visitor(visit: (value: T) => void): Visit {
    return (bytes, offset, length) => visit(this.decodeVisited(bytes, offset, length))
  }
}
