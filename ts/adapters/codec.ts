// Values as messages: how one becomes bytes, and bytes one again.

import { isAscii, isUtf8 } from 'node:buffer'
import v8 from 'node:v8'

import { RingfenceError, invalid, messageOf, show } from '../errors.js'

/**
 * How a value travels. One codec serves any number of channels. msgpackr, cbor-x and others fit in as they are.
 *
 * What `decode` throws is told as MALFORMED, and what `encode` throws as INVALID_ARGUMENT; neither ends the channel.
 */
export interface Codec<T> {
  /** The value as a message. What it returns is copied before it is called again. */
  encode(value: T): Uint8Array | string
  /** Returns the value of a message. The bytes are the codec's own to keep. */
  decode(bytes: Buffer): T
}

/** Codecs of this package: they keep nothing of the bytes that they are shown. */
const KEEPS_NOTHING = new WeakSet<object>()

/** Whether a codec may be shown memory that is used again. */
export function borrows(codec: object): boolean {
  return KEEPS_NOTHING.has(codec)
}

/**
 * Values as JSON.stringify writes and JSON.parse reads them. Safe with any peer: what is no UTF-8, or no JSON, or has something behind it,
 * is MALFORMED. `T` is what the program expects, and is not checked.
 */
export function json<T = unknown>(): Codec<T> {
  return JSON_CODEC as Codec<T>
}

const JSON_CODEC: Codec<unknown> = {
  // Undefined where JSON has no word for the value, which the caller looks for.
  encode: (value) => JSON.stringify(value),
  decode: (bytes) => JSON.parse(toText(bytes as Buffer & Slices)) as unknown,
}
KEEPS_NOTHING.add(JSON_CODEC)

/** What `toString` calls, after it has looked at its arguments. */
interface Slices {
  latin1Slice(): string
  utf8Slice(): string
}

/** Node would put marks of replacement where the bytes are no UTF-8, and so make two messages one. */
function toText(bytes: Buffer & Slices): string {
  if (isAscii(bytes)) return bytes.latin1Slice()
  if (!isUtf8(bytes)) throw new SyntaxError('the bytes are no UTF-8')
  return bytes.utf8Slice()
}

/**
 * Values as the structured clone has them, in the engine's own format (`v8.serialize`): Map, Set, Date, RegExp, Error, bigints, typed
 * arrays, references within the value. Both sides must run the same kind of engine, and the receiver no older one.
 *
 * **For peers that are trusted.** The bytes of a hostile peer are refused or decoded; they crash nothing and corrupt nothing, which is
 * fuzzed. But the engine's decoder was not made against an enemy: a small message may take long to decode, and much memory. Use
 * {@link json} where the peer may turn hostile.
 */
export function structured<T = unknown>(): Codec<T> {
  return STRUCTURED_CODEC as Codec<T>
}

const STRUCTURED_CODEC: Codec<unknown> = {
  encode: serialize,
  decode: (bytes) => (hasDeserializer ? deserialize(bytes) : (v8.deserialize(Buffer.from(bytes)) as unknown)),
}
KEEPS_NOTHING.add(STRUCTURED_CODEC)

/** The first byte of what V8 writes, and the oldest format with all kinds that V8 writes today: that of Node 20 is 15. */
const MARK = 0xff
const OLDEST = 13

// Bun has an engine, and a format, of its own.
const hasDeserializer = process.versions.bun === undefined && typeof v8.DefaultDeserializer === 'function'

/**
 * Calls `v8.serialize`, which throws if it cannot clone something. A WebAssembly.Module is the exception: the engine writes nothing for it,
 * and so bytes that are no value.
 */
function serialize(value: unknown): Buffer {
  const bytes = v8.serialize(value)
  left = PARTS
  if (hasModule(value)) throw new TypeError('a WebAssembly.Module does not leave its process')
  return bytes
}

/**
 * Parts of a value that are searched for a module: to search a large value takes as long as to serialize it. The receiver rejects a
 * module beyond these as MALFORMED, since the counts in the bytes do not match then; it does not notice one that is an error's cause.
 */
const PARTS = 128
/** Of these, in the search that is under way. */
let left = 0

function hasModule(value: unknown): boolean {
  left -= 1
  if (typeof value !== 'object' || value === null || left < 0 || ArrayBuffer.isView(value)) return false
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length && left > 0; index += 1) if (hasModule(value[index])) return true
    return false
  }
  let isEmpty = true
  for (const key in value) {
    // The engine writes own properties only.
    if (!Object.hasOwn(value, key)) continue
    isEmpty = false
    if (hasModule((value as Record<string, unknown>)[key])) return true
    if (left <= 0) return false
  }
  if (!isEmpty) return false
  if (value instanceof Map) return hasModule([...value.keys()]) || hasModule([...value.values()])
  if (value instanceof Set) return hasModule([...value])
  if (value instanceof Error) return hasModule(value.cause)
  return (value as { [Symbol.toStringTag]?: unknown })[Symbol.toStringTag] === 'WebAssembly.Module'
}

function deserialize(bytes: Buffer): unknown {
  // Older formats are read by code that no peer needs: one would have the reader take the whole message for one object's.
  if (bytes[0] !== MARK || bytes[1] === undefined || bytes[1] < OLDEST || bytes[1] >= 0x80)
    throw new SyntaxError('the bytes do not begin as those of v8.serialize do')
  const deserializer = new OwnDeserializer(bytes)
  deserializer.readHeader()
  const value: unknown = deserializer.readValue()
  const end = deserializer.readRawBytes(0).byteOffset - bytes.byteOffset
  if (end !== bytes.length) throw new SyntaxError(`${bytes.length - end} bytes follow the value`)
  return value
}

/** Typed arrays that show the message's memory are made the receiver's own. */
class OwnDeserializer extends (hasDeserializer
  ? v8.DefaultDeserializer
  : (Object as unknown as typeof v8.DefaultDeserializer)) {
  _readHostObject(): unknown {
    const view = (HOST_OBJECT as (this: unknown) => unknown).call(this)
    if (!ArrayBuffer.isView(view)) throw new SyntaxError('an object that only its own process knows')
    if (Buffer.isBuffer(view)) {
      const own = Buffer.allocUnsafeSlow(view.length)
      own.set(view)
      return own
    }
    const { buffer, byteOffset, byteLength } = view
    const own = buffer.slice(byteOffset, byteOffset + byteLength)
    return new (view.constructor as new (memory: ArrayBufferLike) => unknown)(own)
  }
}

const HOST_OBJECT: unknown = hasDeserializer
  ? (v8.DefaultDeserializer.prototype as unknown as { _readHostObject: unknown })._readHostObject
  : undefined

/** @throws {@link RingfenceError} INVALID_ARGUMENT where the value is no message, with what the codec threw as the cause. */
export function encodeWith<T>(codec: Codec<T>, value: T): Uint8Array | string {
  let message: unknown
  try {
    message = codec.encode(value)
  } catch (error) {
    throw new RingfenceError('INVALID_ARGUMENT', `the value cannot be encoded: ${messageOf(error)}`, { cause: error })
  }
  if (typeof message === 'string' || ArrayBuffer.isView(message)) return message as Uint8Array | string
  throw encodesToNothing(value, message)
}

/** What is told of a value of which the codec has made no message. */
export function encodesToNothing(value: unknown, made: unknown): RingfenceError {
  const cause = new TypeError(`a message is bytes or a string, and not ${show(made)}`)
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

/** What is told of bytes that are no value. They are copied: a decoder may have been shown memory that is used again. */
export function malformed(bytes: Buffer, cause: unknown): RingfenceError {
  const what = `the peer has sent ${bytes.length} bytes that cannot be decoded: ${messageOf(cause)}`
  return new RingfenceError('MALFORMED', what, { cause, bytes: Buffer.concat([bytes]) })
}

export function checkCodec(codec: unknown): void {
  const { encode, decode } = (codec ?? {}) as Partial<Codec<unknown>>
  if (typeof encode !== 'function' || typeof decode !== 'function')
    throw invalid(`a codec has the functions encode and decode, unlike ${show(codec)}`)
}
