// The frames of calls, as docs/internals/protocol.md describes them: a head of 16 bytes, and a body.

import { isUtf8 } from 'node:buffer'

import { RingfenceError, messageOf } from '../errors.js'
import { BufferView } from './memory.js'

/** The caller asks. The body is the request. */
export const REQUEST = 1
/** The server answers. The body is the reply. */
export const REPLY = 2
/** The server answers with an error. The body is the error. */
export const ERROR = 3
/** The caller gives a call up, and asks for an answer at once. */
export const CANCEL = 4
/** The server answers a call that was given up. */
export const CANCELLED = 5

/** Bytes of a frame's head. */
export const HEAD = 16

/** The longest remaining time that a request carries, in milliseconds. */
const MAX_REMAINING = 2 ** 32 - 1
/** Bytes of the longest name and of the longest code of an error, and of its longest message. */
const MAX_NAME = 128
const MAX_MESSAGE_TEXT = 8 * 1024

/** The smallest `maxMessageSize` with which calls work: the longest frame without a request or a reply. */
export const MIN_MESSAGE_SIZE = HEAD + 12

/** A received frame. */
export interface Frame {
  readonly kind: number
  readonly id: number
  /** For a request: the remaining milliseconds; 0 without a deadline. */
  readonly remaining: number
  /** In the receiver's own memory. */
  readonly body: Buffer
}

/** Writes the head of a frame at the start of `words`, from word `at` on. */
export function writeHead(words: Uint32Array, at: number, kind: number, id: number, remaining: number): void {
  words[at] = kind
  words[at + 1] = remaining
  words[at + 2] = id
  words[at + 3] = Math.floor(id / 2 ** 32)
}

/** Makes a whole frame. */
export function makeFrame(kind: number, id: number, remaining: number, body: Uint8Array): Uint8Array {
  const frame = new Uint8Array(HEAD + body.length)
  writeHead(new Uint32Array(frame.buffer, 0, HEAD / 4), 0, kind, id, remaining)
  frame.set(body, HEAD)
  return frame
}

/** Converts the milliseconds until the deadline of a request to what its frame carries. */
export function toRemaining(milliseconds: number): number {
  return milliseconds === Infinity ? 0 : Math.min(Math.max(Math.ceil(milliseconds), 1), MAX_REMAINING)
}

/** Reads the frame of `length` bytes at `at`. Its memory must be the receiver's own. @throws {@link RingfenceError} RING_CORRUPT */
export function readFrame(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): Frame {
  if (length < HEAD) throw protocolError(`a call frame of ${length} bytes`)
  const word = at >>> 2
  const kind = words[word]!
  const remaining = words[word + 1]!
  const id = words[word + 2]! + 2 ** 32 * words[word + 3]!
  const isEmpty = length === HEAD
  const isValid =
    kind === REQUEST ||
    (remaining === 0 && (kind === REPLY || kind === ERROR || (isEmpty && (kind === CANCEL || kind === CANCELLED))))
  if (!isValid || id > Number.MAX_SAFE_INTEGER)
    throw protocolError(`a call frame of kind ${kind} and ${length} bytes, for call ${id}`)
  return { kind, id, remaining, body: new BufferView(memory, at + HEAD, length - HEAD) }
}

/** The parts of a handler's error that the caller gets. */
export interface ErrorParts {
  readonly name: string
  readonly message: string
  /** Empty if it has none. */
  readonly code: string
}

/** Makes the body of a handler's error, whose frame has at most `limit` bytes. Texts that are too long are cut. */
export function makeError(thrown: unknown, limit: number): Buffer {
  let room = limit - MIN_MESSAGE_SIZE
  const texts = [propertyText(thrown, 'name') || 'Error', propertyText(thrown, 'code'), messageOf(thrown)].map(
    (text, index) => {
      const bytes = truncate(text, Math.min(room, index === 2 ? MAX_MESSAGE_TEXT : MAX_NAME))
      room -= bytes.length
      return bytes
    },
  )
  const [name, code, message] = texts as [Buffer, Buffer, Buffer]
  const body = Buffer.allocUnsafe(12 + name.length + code.length + message.length)
  let at = 0
  for (const text of [name, message, code]) {
    body.writeUInt32LE(text.length, at)
    at += 4 + text.copy(body, at + 4)
  }
  return body
}

/** Reads the body of an error frame. @throws {@link RingfenceError} RING_CORRUPT */
export function readError(body: Buffer): ErrorParts {
  let at = 0
  const text = () => {
    if (body.length - at < 4) throw malformedError()
    const end = at + 4 + body.readUInt32LE(at)
    const bytes = body.subarray(at + 4, end)
    if (end > body.length || !isUtf8(bytes)) throw malformedError()
    at = end
    return bytes.toString()
  }
  const parts = { name: text(), message: text(), code: text() }
  if (at !== body.length) throw malformedError()
  return parts
}

/** A property of a handler's error as text. A handler may throw any value, and reading it may throw again. */
function propertyText(thrown: unknown, key: 'name' | 'code'): string {
  try {
    const value = (thrown as { name?: unknown; code?: unknown } | null | undefined)?.[key]
    return typeof value === 'string' || typeof value === 'number' ? String(value) : ''
  } catch {
    return ''
  }
}

/** The first bytes of a text in UTF-8, in whole characters. */
function truncate(text: string, maxBytes: number): Buffer {
  const bytes = Buffer.from(text)
  if (bytes.length <= maxBytes) return bytes
  let end = maxBytes
  // Bytes 10xxxxxx continue a character.
  while (end > 0 && (bytes[end]! & 0xc0) === 0x80) end -= 1
  return bytes.subarray(0, end)
}

export function protocolError(what: string): RingfenceError {
  return new RingfenceError('RING_CORRUPT', `the peer violated the protocol of calls: ${what}`)
}

const malformedError = () => protocolError('a malformed error')
