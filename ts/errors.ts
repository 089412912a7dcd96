import { types } from 'node:util'

import type { Failure } from '../../binding/index.cjs'
import type { Identity } from './endpoint/peer.js'

/** The part of a {@link RingfenceError}'s code behind `ERR_RINGFENCE_`. */
export type ErrorName =
  | 'INVALID_ARGUMENT'
  | 'ADDRESS_INVALID'
  | 'ADDRESS_OCCUPIED'
  | 'PEER_REFUSED'
  | 'PEER_LOST'
  | 'HANDSHAKE_TIMEOUT'
  | 'TIMEOUT'
  | 'CHILD_EXITED'
  | 'PROTOCOL'
  | 'OBJECT_EXPOSED'
  | 'OBJECT_UNSOUND'
  | 'RING_CORRUPT'
  | 'MESSAGE_TOO_LARGE'
  | 'MALFORMED'
  | 'NO_SPACE'
  | 'CLOSED'
  | 'UNSUPPORTED'
  | 'EVICTED'

/** The code of a {@link RingfenceError}. An abort by a signal has the same code as in Node. */
export type ErrorCode = `ERR_RINGFENCE_${ErrorName}` | 'ABORT_ERR'

type DetailName = 'check' | 'wanted' | 'found' | 'identity' | 'exitCode' | 'signalCode' | 'stderr' | 'bytes'

type Writable<Type> = { -readonly [Name in keyof Type]: Type[Name] }

/** The properties of a {@link RingfenceError} beyond its code and sentence. */
export interface ErrorDetails extends Writable<Pick<RingfenceError, DetailName>> {
  /** The error or reason behind it. */
  cause?: unknown
}

/**
 * Brands a class of errors. A program may load both builds of this package, and each has its own class: an error of either is an instance of
 * both.
 */
function brand(Class: abstract new (...given: never[]) => Error, name: string): void {
  const symbol = Symbol.for(`ringfence.${name}`)
  Object.defineProperty(Class.prototype, symbol, { value: true })
  Object.defineProperty(Class, Symbol.hasInstance, {
    value(this: unknown, value: unknown) {
      if (this !== Class) return Function.prototype[Symbol.hasInstance].call(this, value)
      return types.isNativeError(value) && symbol in value
    },
  })
}

/**
 * The error that every call throws or rejects with. It has a code for programs and a message for people. An abort by a signal has the
 * `name` 'AbortError', the `code` 'ABORT_ERR' and the signal's reason as `cause`, as in Node.
 */
export class RingfenceError extends Error {
  static {
    RingfenceError.prototype.name = 'RingfenceError'
    brand(RingfenceError, 'RingfenceError')
  }

  /** `ERR_RINGFENCE_` and the kind of error, or `ABORT_ERR`. */
  readonly code: ErrorCode
  /** For PEER_REFUSED and OBJECT_UNSOUND: the check that failed. */
  declare readonly check?: string | undefined
  /** The value that the check required. */
  declare readonly wanted?: string | undefined
  /** The value that the check found. */
  declare readonly found?: string | undefined
  /** The refused peer, as far as it is known. */
  declare readonly identity?: Identity | undefined
  /** For CHILD_EXITED: the exit code; null if a signal ended the child, or if a tracer conceals how it exited. */
  declare readonly exitCode?: number | null | undefined
  /** For CHILD_EXITED: the signal that ended the child; null if it exited, or if a tracer conceals how. */
  declare readonly signalCode?: string | null | undefined
  /** For CHILD_EXITED: the last 4 KiB of standard error, if it is piped. */
  declare readonly stderr?: string | undefined
  /** For MALFORMED: the message. Not enumerable, so that logging the error does not print it. */
  declare readonly bytes?: Buffer | undefined

  constructor(name: ErrorName | 'ABORT_ERR', message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.code = name === 'ABORT_ERR' ? name : `ERR_RINGFENCE_${name}`
    // Programs recognize their own aborts by this name.
    if (name === 'ABORT_ERR') Object.defineProperty(this, 'name', { value: 'AbortError' })
    for (const key of ['check', 'wanted', 'found', 'identity', 'exitCode', 'signalCode', 'stderr'] as const) {
      if (details[key] !== undefined) Object.defineProperty(this, key, { value: details[key], enumerable: true })
    }
    if (details.bytes !== undefined) Object.defineProperty(this, 'bytes', { value: details.bytes })
  }
}

/** The error of a call whose handler, in the peer, threw. It has the name, the message and the code of the handler's error, and no stack. */
export class RemoteError extends Error {
  static {
    brand(RemoteError, 'RemoteError')
  }

  /** The code of the handler's error, if it had one. */
  declare readonly code?: string

  /** @internal */
  constructor({ name, message, code }: { name: string; message: string; code: string }) {
    super(message)
    Object.defineProperty(this, 'name', { value: name, configurable: true, writable: true })
    if (code !== '') Object.defineProperty(this, 'code', { value: code, enumerable: true })
  }
}

/** Converts a failure of the binding to an error. `thrown` is the JavaScript exception that caused it, if any. */
export function fromFailure(failure: Failure | null, thrown?: unknown): RingfenceError {
  if (failure === null) return new RingfenceError('UNSUPPORTED', 'the native binding failed without a reason')
  const { code, message, cause, check, wanted, found, identity } = failure
  const name = code === 'ABORTED' ? 'ABORT_ERR' : (code as ErrorName)
  const advice = name === 'PEER_REFUSED' ? ADVICE.get(check ?? '') : undefined
  const text = advice === undefined ? message : `${message}; ${advice}`
  return new RingfenceError(name, text.replace(OPTIONS_OF_CORE, toCamelCase), {
    cause: thrown ?? (cause === undefined ? undefined : new Error(cause)),
    check,
    wanted,
    found,
    identity,
  })
}

/** Returns the answer of the binding. @throws {@link RingfenceError} if that is a failure */
export function ok<Answer extends object | null>(answer: Answer | Failure): Answer {
  if (answer !== null && 'code' in answer && 'message' in answer) throw fromFailure(answer as Failure)
  return answer as Answer
}

/** The options that the messages of the core name, as Rust spells them. A path may have such a part, and is not changed. */
const OPTIONS_OF_CORE =
  /(?<![\w/.-])(?:from_parent|handshake_timeout|max_message_size|max_peer_capacity|max_peers(?:_per_(?:process|user))?|realtime_signal)(?![\w/-]|\.\w)/g

function toCamelCase(name: string): string {
  return name.replace(/_[a-z]/g, ([, letter]) => letter!.toUpperCase())
}

/** Advice for each check: how to change the policy so that it accepts the peer. */
const ADVICE = new Map(
  Object.entries({
    uid: "to accept this user, name the uid in the policy's `uid`, or write uid: 'any'",
    namespace: "to accept a peer in another namespace, write namespace: 'any' in the policy",
    executable:
      "to accept this program, name its path in the policy's `executable`, or write executable: 'any', which a peer of another user or a hardened one needs",
    gid: "to accept this group, name it in the policy's `gid`, or leave `gid` out",
    cgroup: "to accept this cgroup, name it in the policy's `cgroup`, or leave `cgroup` out",
    label: "to accept this label, name it in the policy's `label`, or leave `label` out",
  }),
)

/** The first argument of constructors that only this package may call. */
export const KEY = Symbol('ringfence')

/** Describes a value in an error message. Accepts any value, since messages are mostly about invalid ones. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'object' && value !== null) return isArray(value) ? 'an array' : 'an object'
  return String(value)
}

/** `Array.isArray` throws for a revoked proxy. */
function isArray(value: object): boolean {
  try {
    return Array.isArray(value)
  } catch {
    return false
  }
}

/**
 * The message of an exception that a callback threw. A callback may throw any value, and reading it may throw again. An error of another
 * realm (node:vm, Jest) is no instance of this realm's Error.
 */
export function messageOf(thrown: unknown): string {
  try {
    const message = (thrown as { message?: unknown } | null | undefined)?.message
    return typeof message === 'string' ? message : show(thrown)
  } catch {
    return 'a value that cannot be shown'
  }
}

/** Whether the value is an error, of any realm. */
export function isError(value: unknown): value is Error {
  return types.isNativeError(value) || value instanceof Error
}

/** Describes an object of another build or version of this package. */
export const OF_OTHER_COPY =
  'of another copy of ringfence: a program that imports and requires it has two, and must use one of them'

/**
 * Like {@link show}, for a value that should be a channel or a subscription. It recognizes one of another copy of this package, which
 * `show` would only call an object.
 */
export function showSource(value: unknown): string {
  const object = value as { constructor?: { name?: unknown }; evidence?: unknown } | null | undefined
  const name = object?.constructor?.name
  const isForeign = (name === 'Channel' || name === 'Subscription') && Array.isArray(object?.evidence)
  return isForeign ? `a ${name} ${OF_OTHER_COPY}` : show(value)
}

/** Makes a call that fails for lack of threads, descriptors or memory. @throws {@link RingfenceError} NO_SPACE, with the reason as the cause */
export function orThrowNoSpace<Made>(what: (reason: string) => string, call: () => Made): Made {
  try {
    return call()
  } catch (error) {
    if (error instanceof RingfenceError) throw error
    throw new RingfenceError('NO_SPACE', what((error as Error).message), { cause: error })
  }
}

/** Whether the error code of a system call means that this process lacks descriptors or memory. */
export function isResourceShortage(code: unknown): boolean {
  return code === 'EMFILE' || code === 'ENFILE' || code === 'ENOMEM'
}

export function invalid(message: string): RingfenceError {
  return new RingfenceError('INVALID_ARGUMENT', message)
}

export function aborted(signal: AbortSignal): RingfenceError {
  return new RingfenceError('ABORT_ERR', 'The operation was aborted', { cause: signal.reason })
}
