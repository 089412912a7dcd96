// The frames of calls, as docs/internals/protocol.md describes them: a head of 16 bytes, and a body.

import { isUtf8 } from 'node:buffer'

import { RingfenceError, messageOf } from '../errors.js'

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
const LONGEST = 2 ** 32 - 1
/** Bytes of the longest name and of the longest code of an error, and of its longest message. */
const LONGEST_NAME = 128
const LONGEST_TEXT = 8 * 1024

/** The smallest `maxMessageSize` with which calls work: the longest frame without a request or a reply. */
export const LEAST = HEAD + 12

/** A received frame. */
export interface Frame {
  readonly kind: number
  readonly id: number
  /** For a request: the remaining milliseconds; 0 without a deadline. */
  readonly remaining: number
  /** In the receiver's own memory. */
  readonly body: Buffer
}

/** Makes a frame with room for a body of this length. */
export function makeFrame(kind: number, id: number, length: number): Buffer {
  const frame = Buffer.allocUnsafe(HEAD + length)
  frame.writeUInt32LE(kind, 0)
  frame.writeUInt32LE(0, 4)
  setId(frame, id)
  return frame
}

/** Sets the number of a call that is about to be sent. */
export function setId(frame: Buffer, id: number): void {
  frame.writeUInt32LE(id % 2 ** 32, 8)
  frame.writeUInt32LE(Math.floor(id / 2 ** 32), 12)
}

/** Sets the remaining time of a request that is about to be sent. */
export function setRemaining(frame: Buffer, milliseconds: number): void {
  frame.writeUInt32LE(Math.min(Math.max(Math.ceil(milliseconds), 1), LONGEST), 4)
}

/** Reads a frame. The body is copied unless the memory `isOwn`. @throws {@link RingfenceError} RING_CORRUPT */
export function readFrame(bytes: Buffer, isOwn: boolean): Frame {
  if (bytes.length < HEAD) throw corrupt(`a call frame of ${bytes.length} bytes`)
  const kind = bytes.readUInt32LE(0)
  const remaining = bytes.readUInt32LE(4)
  const id = bytes.readUInt32LE(8) + 2 ** 32 * bytes.readUInt32LE(12)
  const isEmpty = bytes.length === HEAD
  const isSound =
    kind === REQUEST ||
    (remaining === 0 && (kind === REPLY || kind === ERROR || (isEmpty && (kind === CANCEL || kind === CANCELLED))))
  if (!isSound || id > Number.MAX_SAFE_INTEGER)
    throw corrupt(`a call frame of kind ${kind} and ${bytes.length} bytes, for call ${id}`)
  const body = bytes.subarray(HEAD)
  return { kind, id, remaining, body: isOwn ? body : Buffer.concat([body]) }
}

/** The parts of a handler's error that the caller gets. */
export interface ErrorParts {
  readonly name: string
  readonly message: string
  /** Empty if it has none. */
  readonly code: string
}

/** Makes the frame of a handler's error, of at most `limit` bytes. Texts that are too long are cut. */
export function makeError(id: number, thrown: unknown, limit: number): Buffer {
  let left = limit - LEAST
  const texts = [partOf(thrown, 'name') || 'Error', partOf(thrown, 'code'), messageOf(thrown)].map((text, index) => {
    const bytes = cut(text, Math.min(left, index === 2 ? LONGEST_TEXT : LONGEST_NAME))
    left -= bytes.length
    return bytes
  })
  const [name, code, message] = texts as [Buffer, Buffer, Buffer]
  const frame = makeFrame(ERROR, id, 12 + name.length + code.length + message.length)
  let at = HEAD
  for (const text of [name, message, code]) {
    frame.writeUInt32LE(text.length, at)
    at += 4 + text.copy(frame, at + 4)
  }
  return frame
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
function partOf(thrown: unknown, key: 'name' | 'code'): string {
  try {
    const part = (thrown as { name?: unknown; code?: unknown } | null | undefined)?.[key]
    return typeof part === 'string' || typeof part === 'number' ? String(part) : ''
  } catch {
    return ''
  }
}

/** The first bytes of a text in UTF-8, in whole characters. */
function cut(text: string, most: number): Buffer {
  const bytes = Buffer.from(text)
  if (bytes.length <= most) return bytes
  let end = most
  // Bytes 10xxxxxx continue a character.
  while (end > 0 && (bytes[end]! & 0xc0) === 0x80) end -= 1
  return bytes.subarray(0, end)
}

export function corrupt(what: string): RingfenceError {
  return new RingfenceError('RING_CORRUPT', `the peer violated the protocol of calls: ${what}`)
}

const malformedError = () => corrupt('an error that is no error')
