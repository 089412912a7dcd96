// Attachments of messages: immutable memory, and open descriptors.

import { constants } from 'node:buffer'
import type { Socket as DatagramSocket } from 'node:dgram'
import { constants as modes } from 'node:fs'
import type { Server, Socket } from 'node:net'
import { types } from 'node:util'

import { KEY, OF_OTHER_COPY, RingfenceError, fromFailure, invalid, ok, show } from '../errors.js'
import { native, type NativeBundle, type NativeDescriptor, type NativeDraft, type NativeSealed } from '../native.js'
import { allocate, allocateEmpty } from './memory.js'
import { toBytes } from './arena.js'

const EMPTY = new Uint8Array(0)

/** See the send queue: 1 disables external memory, as in Electron. */
const NO_EXTERNAL = process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'] === '1'

let wrapSealed: (memory: NativeSealed) => SealedBuffer
let wrapDescriptor: (descriptor: NativeDescriptor) => ReceivedDescriptor
/** Returns the memory of a sealed buffer of this copy of the package; undefined for any other value. */
let memoryOf: (value: object) => NativeSealed | undefined

/**
 * Memory that never changes, and that can be passed to other processes without a copy. Passing one costs the same for 1 KiB and 1 GiB.
 *
 * It is a memfd with the four seals that make it immutable, also for its creator. `close` and `using` release it, and otherwise the garbage
 * collector does.
 *
 * @example
 * ```js
 * const frame = await SealedBuffer.create(1 << 24, (bytes) => camera.read(bytes))
 * await channel.send('frame 1', { attachments: [frame] })
 * frame.close()
 * ```
 */
export class SealedBuffer implements Disposable {
  static {
    wrapSealed = (memory) => new SealedBuffer(KEY, memory)
    memoryOf = (value) => (#memory in value ? value.#memory : undefined)
  }

  /** Number of bytes. */
  declare readonly byteLength: number
  readonly #memory: NativeSealed
  #bytes: Uint8Array | null = null
  #isClosed = false

  private constructor(key: symbol, memory: NativeSealed) {
    if (key !== KEY) throw invalid('sealed buffers are made by SealedBuffer.create and SealedBuffer.from')
    this.#memory = memory
    const { byteLength } = memory
    // A serializer reads it as well, and has no other way to meet an object of a class.
    const get = () => (shared.collected === null ? byteLength : placeholderOf(shared.collected, this))
    Object.defineProperty(this, 'byteLength', { enumerable: true, get })
  }

  /**
   * Makes a buffer of `size` bytes, which are 0 until `write` sets them.
   *
   * @example
   * ```js
   * const frame = await SealedBuffer.create(4, (bytes) => {
   *   bytes.set([1, 2, 3, 4])
   * })
   * ```
   *
   * @param write - Gets the memory once, and may be async. Its array is detached once it has succeeded. Nothing may still write to it
   * then, such as a file operation that was not awaited. If it throws or rejects, `create` rejects with the error, and the memory is freed
   * with its array.
   * @returns Rejects with NO_SPACE if there are not enough memory or descriptors; INVALID_ARGUMENT for a wrong argument, for a size above
   * `buffer.constants.MAX_LENGTH`, and if something that `write` has started still uses the memory.
   */
  static async create(size: number, write: (bytes: Uint8Array) => void | Promise<void>): Promise<SealedBuffer> {
    if (!Number.isInteger(size) || size < 0 || size > constants.MAX_LENGTH)
      throw invalid(`size must be a whole number from 0 to ${constants.MAX_LENGTH}, not ${show(size)}`)
    if (typeof write !== 'function') throw invalid(`write must be a function, not ${show(write)}`)
    const draft = await newDraft(size)
    const memory = draft.bytes(NO_EXTERNAL)
    let bytes: Uint8Array
    let buffer: ArrayBuffer
    try {
      bytes = memory === null ? (allocateEmpty(size, 'a sealed buffer') as Uint8Array) : new Uint8Array(memory)
      buffer = bytes.buffer as ArrayBuffer
      await write(bytes)
      if (bytes.length !== size) throw invalid('the memory to be filled was transferred elsewhere: transfer a copy')
    } catch (error) {
      draft.abandon()
      throw error
    }
    return wrapSealed(ok<NativeSealed>(draft.seal(buffer, memory === null ? bytes : EMPTY)))
  }

  /**
   * Makes a buffer with a copy of these bytes.
   *
   * @example
   * ```js
   * const frame = SealedBuffer.from(new Uint8Array([1, 2, 3, 4]))
   * ```
   *
   * @throws {@link RingfenceError} NO_SPACE if there are not enough memory or descriptors; INVALID_ARGUMENT for another value.
   */
  static from(bytes: ArrayBufferView | ArrayBuffer): SealedBuffer {
    return wrapSealed(ok<NativeSealed>(native.sealedCopy(toBytes(bytes, 'SealedBuffer.from takes bytes'))))
  }

  /**
   * The bytes, as private memory of this process: writes change neither the buffer nor what other processes see. The memory is mapped by the
   * first call, later calls return the same array, and it stays valid after `close`. If the engine forbids memory of its own
   * (Electron), it is a copy.
   *
   * @example
   * ```js
   * const message = await channel.receive()
   * for (const frame of message?.attachments ?? [])
   *   if (frame instanceof SealedBuffer) console.log(frame.bytes().length)
   * ```
   *
   * @throws {@link RingfenceError} CLOSED after `close`; NO_SPACE if there is no memory; UNSUPPORTED if the buffer is larger than
   * `buffer.constants.MAX_LENGTH`.
   */
  bytes(): Uint8Array {
    if (this.#isClosed) throw new RingfenceError('CLOSED', 'the sealed buffer is closed: call `bytes` before `close`')
    return (this.#bytes ??= this.#map())
  }

  #map(): Uint8Array {
    const { byteLength } = this
    if (byteLength > constants.MAX_LENGTH) {
      const what = `the sealed buffer has ${byteLength} bytes, and this engine's arrays have at most ${constants.MAX_LENGTH}`
      throw new RingfenceError('UNSUPPORTED', what)
    }
    if (byteLength === 0) return new Uint8Array(0)
    const memory = ok<ArrayBuffer | null>(this.#memory.bytes(NO_EXTERNAL))
    if (memory !== null) return new Uint8Array(memory)
    const { buffer, byteOffset } = allocate(byteLength, 'a sealed buffer')
    const copy = new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength)
    ok<null>(this.#memory.copy(copy))
    return copy
  }

  /** Closes the descriptor. Sends that wait keep their own. */
  close(): void {
    this.#isClosed = true
    this.#bytes = null
    this.#memory.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/**
 * The sealed buffers that the current serialization has met; null outside of one. The copies of this package in a process share it: a buffer
 * of another copy must be an error, and not become an object with a length.
 */
const shared = ((globalThis as { [key: symbol]: unknown })[Symbol.for('ringfence.sealed')] ??= {
  collected: null,
}) as { collected: SealedBuffer[] | null }

/** Stands for a sealed buffer in serialized values, with its number: what its `byteLength` is there. */
const PLACEHOLDER = '\0ringfence.sealed:'

function placeholderOf(list: SealedBuffer[], sealed: SealedBuffer): string {
  const number = list.indexOf(sealed)
  return PLACEHOLDER + (number < 0 ? list.push(sealed) - 1 : number)
}

/** Runs a serializer, and returns the sealed buffers that it has met. {@link restoreSealed} puts them back into the value. */
export function collectSealed<Made>(serialize: () => Made): { result: Made; sealed: SealedBuffer[] } {
  const sealed: SealedBuffer[] = []
  const outer = shared.collected
  shared.collected = sealed
  try {
    return { result: serialize(), sealed }
  } finally {
    shared.collected = outer
  }
}

/** Like `JSON.stringify`, but throws for a sealed buffer, whose bytes the text would lack. */
export function toJson(value: unknown): string {
  const { result, sealed } = collectSealed(() => JSON.stringify(value))
  if (sealed.length === 0) return result
  // A `toJSON` of the program may have read a length alone.
  return JSON.stringify(value, (_, part: unknown) => {
    if (sealed.includes(part as SealedBuffer))
      throw new TypeError(
        'JSON has no SealedBuffer: send it in the option `attachments`, or in a value with structured() as the codec',
      )
    return part
  })
}

const NOT_ATTACHED = 'the value has a SealedBuffer that was not attached'
/** A publisher withholds attachments. No other honest peer sends such a message. */
const WITHHELD = `${NOT_ATTACHED}, or that this subscriber does not accept (option attachments) or held too many of`

/** {@link PLACEHOLDER} as V8 writes it in a string of one-byte and of two-byte characters. */
const ONE_BYTE_PLACEHOLDER = Buffer.from(PLACEHOLDER, 'latin1')
const TWO_BYTE_PLACEHOLDER = Buffer.from(PLACEHOLDER, 'utf16le')

/** Whether serialized bytes may name a sealed buffer. */
export function mayContainSealed(bytes: Buffer): boolean {
  return bytes.includes(ONE_BYTE_PLACEHOLDER) || bytes.includes(TWO_BYTE_PLACEHOLDER)
}

/**
 * Puts the attachments into a deserialized value, in place. `used`: gets those that are in the value.
 *
 * @throws SyntaxError if the value names an attachment that is not there
 */
export function restoreSealed(value: unknown, attachments: readonly Attachment[], used: Set<Attachment>): unknown {
  const seen = new Set<object>()
  const pending: object[] = []
  const restored = (part: unknown): unknown => {
    if (typeof part !== 'object' || part === null || ArrayBuffer.isView(part) || seen.has(part)) return part
    const { byteLength } = part as { byteLength?: unknown }
    if (typeof byteLength === 'string' && byteLength.startsWith(PLACEHOLDER)) {
      const sealed = attachments[Number(byteLength.slice(PLACEHOLDER.length))]
      if (!(sealed instanceof SealedBuffer)) throw new SyntaxError(attachments.length === 0 ? WITHHELD : NOT_ATTACHED)
      used.add(sealed)
      return sealed
    }
    seen.add(part)
    pending.push(part)
    return part
  }
  const restoredValue = restored(value)
  for (let part = pending.pop(); part !== undefined; part = pending.pop()) {
    // The engine may make them in another realm than this file's (node:vm, Jest).
    if (types.isMap(part)) {
      const entries = [...part]
      part.clear()
      for (const [key, each] of entries) part.set(restored(key), restored(each))
    } else if (types.isSet(part)) {
      const entries = [...part]
      part.clear()
      for (const each of entries) part.add(restored(each))
    }
    const properties = part as Record<string, unknown>
    for (const name of Object.keys(properties)) {
      const before = properties[name]
      const after = restored(before)
      if (after !== before) properties[name] = after
    }
    if (types.isNativeError(part) && 'cause' in part) part.cause = restored(part.cause)
  }
  return restoredValue
}

function newDraft(size: number): Promise<NativeDraft> {
  return new Promise((resolve, reject) => {
    const failure = native.sealedDraft(size, (failed, draft) => {
      if (draft === null) reject(fromFailure(failed))
      else resolve(draft)
    })
    if (failure !== null) reject(fromFailure(failure))
  })
}

const KINDS = new Map<number, ReceivedDescriptor['kind']>([
  [modes.S_IFREG, 'file'],
  [modes.S_IFDIR, 'directory'],
  [modes.S_IFIFO, 'pipe'],
  [modes.S_IFSOCK, 'socket'],
  [modes.S_IFCHR, 'device'],
  [modes.S_IFBLK, 'device'],
])

/**
 * An open descriptor that the peer has passed. Check its `kind`, and trust its content no more than the peer.
 *
 * `close` and `using` close it, and otherwise the garbage collector does. Call {@link ReceivedDescriptor.take} before you pass it to
 * something that closes it, such as a `net.Socket`.
 */
export class ReceivedDescriptor implements Disposable {
  static {
    wrapDescriptor = (descriptor) => new ReceivedDescriptor(KEY, descriptor)
  }

  /** The kind of object that is open. 'other' is any other kind, such as an epoll, a pidfd or an eventfd. */
  readonly kind: 'file' | 'directory' | 'pipe' | 'socket' | 'device' | 'other'
  readonly #descriptor: NativeDescriptor

  private constructor(key: symbol, descriptor: NativeDescriptor) {
    if (key !== KEY) throw invalid('descriptors are received as attachments of messages')
    this.#descriptor = descriptor
    this.kind = KINDS.get(descriptor.fileType) ?? 'other'
  }

  /** Its number, for as long as it is open here; -1 after `close` and `take`. */
  get fd(): number {
    return this.#descriptor.number
  }

  /**
   * Returns its number. From here on the caller owns it, and `close` does nothing.
   *
   * @example
   * ```js
   * for (const received of message.attachments ?? [])
   *   if (received instanceof ReceivedDescriptor) new net.Socket({ fd: received.take() }).pipe(process.stdout)
   * ```
   *
   * @throws {@link RingfenceError} CLOSED after `close` and after an earlier `take`
   */
  take(): number {
    const number = this.#descriptor.take()
    if (number < 0) throw new RingfenceError('CLOSED', 'the descriptor is closed, or was taken')
    return number
  }

  /** Closes the descriptor, unless it was taken. A thread does that, since the filesystem of a file may not answer. */
  close(): void {
    this.#descriptor.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/** An attachment of a received message. */
export type Attachment = SealedBuffer | ReceivedDescriptor

/**
 * An attachment to send: a {@link SealedBuffer}, an object with the number of an open descriptor (also `fs.FileHandle` and
 * {@link ReceivedDescriptor}), or an open socket or server.
 */
export type Attachable = SealedBuffer | { readonly fd: number } | Socket | Server | DatagramSocket

/** Returns received attachments as the program gets them. */
export function toAttachments(received: readonly (NativeSealed | NativeDescriptor)[]): Attachment[] {
  return received.map((each) => ('byteLength' in each ? wrapSealed(each) : wrapDescriptor(each)))
}

/** Closes received attachments that the program will not get. */
export function closeAttachments({ attachments }: { readonly attachments?: readonly Attachment[] | undefined }): void {
  if (attachments !== undefined) for (const attachment of attachments) attachment.close()
}

/** The most attachments of one message. */
const MAX_ATTACHMENTS = 253

/**
 * Collects the attachments of a message to send. null: there are none.
 *
 * @throws {@link RingfenceError} INVALID_ARGUMENT for other values; MESSAGE_TOO_LARGE for too many; NO_SPACE if there are no descriptors
 */
export function makeBundle(attachments: readonly Attachable[]): NativeBundle | null {
  if (!Array.isArray(attachments)) throw invalid(`attachments must be an array, not ${show(attachments)}`)
  if (attachments.length === 0) return null
  if (attachments.length > MAX_ATTACHMENTS) {
    const what = `the message has ${attachments.length} attachments, and ${MAX_ATTACHMENTS} are possible`
    throw new RingfenceError('MESSAGE_TOO_LARGE', what)
  }
  return ok<NativeBundle>(native.bundle(Array.from(attachments, toNative)))
}

function toNative(value: unknown): NativeSealed | number {
  if (typeof value !== 'object' || value === null)
    throw invalid(`an attachment must be a SealedBuffer or an object with a descriptor \`fd\`, not ${show(value)}`)
  const memory = memoryOf(value)
  if (memory !== undefined) return memory
  if ((value as { encrypted?: unknown }).encrypted === true)
    throw invalid('a TLS connection cannot be passed: its keys stay in this process')
  const fd = fdOf(value)
  if (typeof fd === 'number' && Number.isInteger(fd) && fd >= 0 && fd < 2 ** 31) return fd
  const { name } = value.constructor ?? {}
  if (name === 'SealedBuffer')
    throw invalid(`an attachment must be a SealedBuffer of this copy of ringfence, not one ${OF_OTHER_COPY}`)
  throw invalid(`an attachment must be a SealedBuffer or have an open descriptor \`fd\`, unlike ${name ?? show(value)}`)
}

interface Handle {
  readonly fd?: unknown
}

/** A datagram socket has its handle in its state, and a deprecated property `_handle`. */
function fdOf(value: object): unknown {
  const { fd } = value as Handle
  if (fd !== undefined) return fd
  const state = Object.getOwnPropertySymbols(value).find(({ description }) => description === 'state symbol')
  if (state !== undefined) return (value as Record<symbol, { handle?: Handle | null } | undefined>)[state]?.handle?.fd
  return (value as { _handle?: Handle | null })._handle?.fd
}
