// Codecs: the conversion of values to bytes and back.

import { isAscii, isUtf8 } from 'node:buffer'
import { types } from 'node:util'
import v8 from 'node:v8'

import {
  closeAttachments,
  mayContainSealed,
  collectSealed,
  restoreSealed,
  toJson,
  type Attachable,
  type Attachment,
} from '../channel/attachments.js'
import { RingfenceError, invalid, messageOf, show } from '../errors.js'
import type { Message, SendOptions } from '../types.js'

/**
 * Encodes values as messages and decodes them. One codec serves any number of channels. msgpackr, cbor-x and similar codecs can be used
 * directly.
 *
 * Errors from `decode` are reported as MALFORMED, and errors from `encode` as INVALID_ARGUMENT, unless it throws a {@link RingfenceError}.
 * Neither ends the channel.
 */
export interface Codec<T> {
  /** Returns the value as a message. The result is copied before the next call. */
  encode(value: T): Uint8Array | string
  /** Returns the value of a message. The codec may keep the bytes. */
  decode(bytes: Buffer): T
}

/** The codecs of this package, which keep no reference to the bytes that they decode. */
const BORROWING_CODECS = new WeakSet<object>()

/** Whether a codec may decode from memory that is reused. */
export function borrows(codec: object): boolean {
  return BORROWING_CODECS.has(codec)
}

/**
 * Encodes with JSON.stringify and decodes with JSON.parse. Safe with any peer: invalid UTF-8, invalid JSON and trailing data are MALFORMED.
 * `T` is the type that the program expects, and is not checked.
 *
 * @example
 * ```js
 * const channel = await join('/run/me/meet', { codec: json() })
 * await channel.send({ price: 101 })
 * ```
 */
export function json<T = unknown>(): Codec<T> {
  return JSON_CODEC as Codec<T>
}

const JSON_CODEC: Codec<unknown> = {
  // Returns undefined for values that JSON cannot represent. The caller checks for that.
  encode: toJson,
  decode: (bytes) => JSON.parse(toText(bytes as Buffer & Slices)) as unknown,
}
BORROWING_CODECS.add(JSON_CODEC)

/** The functions behind `toString`, without its argument checks. */
interface Slices {
  latin1Slice(): string
  utf8Slice(): string
}

/** Decodes UTF-8 strictly. Node would insert replacement characters, so different messages could decode to the same text. */
function toText(bytes: Buffer & Slices): string {
  if (isAscii(bytes)) return bytes.latin1Slice()
  if (!isUtf8(bytes)) throw new SyntaxError('the bytes are no UTF-8')
  return bytes.utf8Slice()
}

/**
 * Encodes as a structured clone, in the engine's own format (`v8.serialize`): Map, Set, Date, RegExp, Error, bigints, typed arrays,
 * references within the value. Both sides must run the same kind of engine, and the receiver's must not be older.
 *
 * A {@link SealedBuffer} in the value travels as an attachment, if `send` or a port's `postMessage` sends the value. It may be in an object, an
 * array, a Map, a Set or the cause of an error. Further attachments of the message are closed.
 *
 * **Only for trusted peers.** The bytes of a hostile peer are refused or decoded; they crash nothing and corrupt nothing, which is fuzzed.
 * But the engine's decoder is not hardened: a small message may take much time and memory to decode. Use {@link json} if the peer may turn
 * hostile.
 *
 * @example
 * ```js
 * const channel = await join('/run/me/meet', { codec: structured() })
 * await channel.send(new Map([['price', 101n]]))
 * ```
 */
export function structured<T = unknown>(): Codec<T> {
  return STRUCTURED_CODEC as Codec<T>
}

const STRUCTURED_CODEC: Codec<unknown> = {
  encode: serialize,
  decode: (bytes) => (hasDeserializer ? deserialize(bytes) : (v8.deserialize(Buffer.from(bytes)) as unknown)),
}
BORROWING_CODECS.add(STRUCTURED_CODEC)

/** The first byte that V8 writes, and the oldest format with all kinds that V8 writes today. The format of Node 20 is 15. */
const FORMAT_MARK = 0xff
const MIN_FORMAT = 13

// Bun has a different engine with its own format.
const hasDeserializer = process.versions.bun === undefined && typeof v8.DefaultDeserializer === 'function'

/**
 * Calls `v8.serialize`, which throws if it cannot clone something. A WebAssembly.Module is the exception: the engine writes nothing for it,
 * so the bytes cannot be decoded.
 */
function serialize(value: unknown): Buffer {
  const { message, attachments } = serializeAttached(value)
  if (attachments !== undefined)
    throw new TypeError('a SealedBuffer is sent only by `send` and `postMessage`, with structured() as the codec')
  return message
}

function serializeAttached(value: unknown): { message: Buffer; attachments: Attachable[] | undefined } {
  const { result: serialized, sealed } = collectSealed(() => v8.serialize(value))
  partsLeft = MAX_PARTS
  if (hasModule(value)) throw new TypeError('a WebAssembly.Module does not leave its process')
  return { message: serialized, attachments: sealed.length === 0 ? undefined : sealed }
}

/**
 * The number of parts of a value that are searched for a module: searching a large value takes as long as serializing it. The receiver
 * rejects a module beyond these parts as MALFORMED, since the counts in the bytes do not match then. It does not notice a module that is an
 * error's cause.
 */
const MAX_PARTS = 128
/** The parts that the current search may still visit. */
let partsLeft = 0

function hasModule(value: unknown): boolean {
  partsLeft -= 1
  if (typeof value !== 'object' || value === null || partsLeft < 0 || ArrayBuffer.isView(value)) return false
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length && partsLeft > 0; index += 1) if (hasModule(value[index])) return true
    return false
  }
  let isEmpty = true
  for (const key in value) {
    // The engine writes only own properties.
    if (!Object.hasOwn(value, key)) continue
    isEmpty = false
    if (hasModule((value as Record<string, unknown>)[key])) return true
    if (partsLeft <= 0) return false
  }
  if (!isEmpty) return false
  if (types.isMap(value)) return hasModule([...value.keys()]) || hasModule([...value.values()])
  if (types.isSet(value)) return hasModule([...value])
  if (types.isNativeError(value)) return hasModule(value.cause)
  return (value as { [Symbol.toStringTag]?: unknown })[Symbol.toStringTag] === 'WebAssembly.Module'
}

function deserialize(bytes: Buffer): unknown {
  // Older formats use code that no peer needs. With one of them, the reader would take the whole message as part of one object.
  if (bytes[0] !== FORMAT_MARK || bytes[1] === undefined || bytes[1] < MIN_FORMAT || bytes[1] >= 0x80)
    throw new SyntaxError('the bytes do not begin as those of v8.serialize do')
  const deserializer = new CopyingDeserializer(bytes)
  deserializer.readHeader()
  const value: unknown = deserializer.readValue()
  const end = deserializer.readRawBytes(0).byteOffset - bytes.byteOffset
  if (end !== bytes.length) throw new SyntaxError(`${bytes.length - end} bytes follow the value`)
  return value
}

/** Copies typed arrays, which would otherwise share the message's memory. */
class CopyingDeserializer extends (hasDeserializer
  ? v8.DefaultDeserializer
  : (Object as unknown as typeof v8.DefaultDeserializer)) {
  _readHostObject(): unknown {
    const view = (readHostObject as (this: unknown) => unknown).call(this)
    if (!ArrayBuffer.isView(view)) throw new SyntaxError('an object that only its own process knows')
    if (Buffer.isBuffer(view)) {
      const copy = Buffer.allocUnsafeSlow(view.length)
      copy.set(view)
      return copy
    }
    const { buffer, byteOffset, byteLength } = view
    const copy = buffer.slice(byteOffset, byteOffset + byteLength)
    return new (view.constructor as new (memory: ArrayBufferLike) => unknown)(copy)
  }
}

const readHostObject: unknown = hasDeserializer
  ? (v8.DefaultDeserializer.prototype as unknown as { _readHostObject: unknown })._readHostObject
  : undefined

/**
 * Encodes a value whose message may have attachments, and adds them to the options of its `send`.
 *
 * @throws {@link RingfenceError} as {@link encodeWith}
 */
export function encodeMessage<T>(
  codec: Codec<T>,
  value: T,
  options?: SendOptions,
): { message: Uint8Array | string; options: SendOptions | undefined } {
  if ((codec as object) !== STRUCTURED_CODEC) return { message: encodeWith(codec, value), options }
  const { message, attachments } = wrapEncodeError(() => serializeAttached(value))
  if (attachments === undefined) return { message, options }
  // Their numbers in the value are their places in the list.
  return { message, options: { ...options, attachments: [...attachments, ...(options?.attachments ?? [])] } }
}

function wrapEncodeError<Result>(encode: () => Result): Result {
  try {
    return encode()
  } catch (error) {
    if (error instanceof RingfenceError) throw error
    throw new RingfenceError('INVALID_ARGUMENT', `the value cannot be encoded: ${messageOf(error)}`, { cause: error })
  }
}

/** @throws {@link RingfenceError} INVALID_ARGUMENT with the codec's error as the cause; the codec's error if it is a RingfenceError */
export function encodeWith<T>(codec: Codec<T>, value: T): Uint8Array | string {
  const message: unknown = wrapEncodeError(() => codec.encode(value))
  if (typeof message === 'string' || ArrayBuffer.isView(message)) return message as Uint8Array | string
  throw notAMessage(value, message)
}

/** Returns the error for a value that the codec has not turned into a message. */
export function notAMessage(value: unknown, result: unknown): RingfenceError {
  const cause = new TypeError(`a message is bytes or a string, and not ${show(result)}`)
  return new RingfenceError('INVALID_ARGUMENT', `the value encodes to nothing that can be sent: ${show(value)}`, {
    cause,
  })
}

/** @throws {@link RingfenceError} MALFORMED, with the bytes */
export function decodeWith<T>(codec: Codec<T>, bytes: Buffer): T {
  try {
    return codec.decode(bytes)
  } catch (error) {
    throw malformed(bytes, error)
  }
}

const NO_ATTACHMENTS: readonly Attachment[] = []

/**
 * Decodes a message that may have attachments. Those that do not become part of the value are closed.
 *
 * @throws {@link RingfenceError} MALFORMED, with the bytes
 */
export function decodeMessage<T>(codec: Codec<T>, message: Message): T {
  const { attachments = NO_ATTACHMENTS } = message
  const isStructured = (codec as object) === STRUCTURED_CODEC
  if (attachments.length === 0 && !(isStructured && mayContainSealed(message))) return decodeWith(codec, message)
  const used = new Set<Attachment>()
  try {
    const value = decodeWith(codec, message)
    return isStructured ? (restoreSealed(value, attachments, used) as T) : value
  } catch (error) {
    used.clear()
    // The value names an attachment that is not there.
    throw error instanceof SyntaxError ? malformed(message, error) : error
  } finally {
    closeAttachments({ attachments: attachments.filter((each) => !used.has(each)) })
  }
}

/** Returns the error for bytes that cannot be decoded. It has a copy of them, since the decoder may have read reused memory. */
export function malformed(bytes: Buffer, cause: unknown): RingfenceError {
  const message = `the peer has sent ${bytes.length} bytes that cannot be decoded: ${messageOf(cause)}; do both sides use the same codec?`
  return new RingfenceError('MALFORMED', message, { cause, bytes: Buffer.concat([bytes]) })
}

export function checkCodec(codec: unknown): void {
  const { encode, decode } = (codec ?? {}) as Partial<Codec<unknown>>
  if (typeof encode !== 'function' || typeof decode !== 'function')
    throw invalid(
      `a codec has the functions encode and decode, unlike ${show(codec)}` +
        (typeof codec === 'function' ? ': call it if it makes a codec, as in json()' : ''),
    )
}
