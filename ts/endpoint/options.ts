// Checks the types of what a caller passed. The core checks ranges that depend on the system.

import { isAbsolute } from 'node:path'

import { aborted, invalid, show } from '../errors.js'
import type { NativeOptions, NativeProgram } from '../native.js'
import type { ExecutableFile, Options, Policy, PublishOptions, SubscribeOptions, WaitOptions } from '../types.js'

/** What all calls together take. */
export type AllOptions = Options &
  Pick<PublishOptions, 'stall' | 'deliveries'> &
  Pick<SubscribeOptions, 'delivery' | 'from'>

const DELIVERIES: ReadonlySet<unknown> = new Set(['reliable', 'best-effort', 'latest'])
const BEGINNINGS: ReadonlySet<unknown> = new Set(['now', 'oldest', 'latest'])

const KNOWN = [
  'backing',
  'capacity',
  'maxMessageSize',
  'maxPeerCapacity',
  'policy',
  'mode',
  'group',
  'handshakeTimeout',
  'signal',
  'wait',
  'maxPeers',
  'maxPeersPerProcess',
  'maxPeersPerUser',
  'busyPollMicros',
  'allowHalfOpen',
  'harden',
  'realtimeSignal',
  'stall',
  'deliveries',
  'delivery',
  'from',
] as const satisfies (keyof AllOptions)[]

/** What a channel's JavaScript keeps of its options. */
export interface ChannelSettings {
  /** Microseconds that a wait may spin. */
  readonly busyPollMicros: number
  /** This side sends on where the peer has ended its sending. */
  readonly allowHalfOpen: boolean
}

/** The calls that take options. */
export type Call = 'join' | 'member' | 'listen' | 'connect' | 'spawn' | 'fromParent' | 'publish' | 'subscribe'

/** Options that not every call takes. If they were ignored elsewhere, a caller would rely on a limit or a mode that is not set. */
const TAKEN_BY: { [name in keyof AllOptions]?: readonly Call[] } = {
  backing: ['join', 'member', 'listen', 'connect', 'spawn', 'fromParent', 'publish'],
  capacity: ['join', 'member', 'listen', 'connect', 'spawn', 'fromParent', 'publish'],
  maxPeerCapacity: ['join', 'member', 'listen', 'connect', 'spawn', 'fromParent'],
  mode: ['join', 'member', 'listen', 'publish'],
  group: ['join', 'member', 'listen', 'publish'],
  wait: ['join', 'member', 'listen', 'connect', 'publish', 'subscribe'],
  allowHalfOpen: ['join', 'member', 'listen', 'connect', 'spawn', 'fromParent'],
  maxPeers: ['listen', 'publish'],
  maxPeersPerProcess: ['listen', 'publish'],
  maxPeersPerUser: ['listen', 'publish'],
  stall: ['publish'],
  deliveries: ['publish'],
  delivery: ['subscribe'],
  from: ['subscribe'],
}

const KNOWN_OF_POLICY = [
  'uid',
  'gid',
  'executable',
  'cgroup',
  'label',
  'namespace',
  'authorize',
] as const satisfies (keyof Policy)[]

/** The largest number that a uid or gid can be: the kernel keeps the next one for "none". */
const LARGEST_ID = 2 ** 32 - 2

/** Throws INVALID_ARGUMENT for what is no object, has other properties than these, or is an object of a class and has none of them. */
export function plainObject(what: string, value: unknown, known: readonly string[]): void {
  if (typeof value !== 'object' || value === null) throw invalid(`${what} must be an object, not ${show(value)}`)
  // A promise that was not awaited, a Map, an AbortSignal by itself: each would say nothing, and a policy that says nothing asks for little.
  if (!isPlain(value) && !known.some((key) => key in value))
    throw invalid(`${what} must be an object that has some of ${known.join(', ')}, not ${kindOf(value)}`)
  for (const key of Object.keys(value)) {
    // A misspelt option that is ignored would be a check that is never made.
    if (!known.includes(key)) throw invalid(`${what} has no property ${JSON.stringify(key)}: ${known.join(', ')}`)
  }
}

/** By what is behind it, since an object of another realm (node:vm) has another class. */
function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

function kindOf(value: object): string {
  const { name } = (value as { constructor?: { name?: unknown } }).constructor ?? {}
  return typeof name === 'string' && name !== '' ? `one of class ${name}` : show(value)
}

/** What a call that waits is given: its signal, if it was not aborted before. */
export function readerSignal(options: WaitOptions | undefined): AbortSignal | undefined {
  if (options === undefined) return undefined
  plainObject('options', options, ['signal'])
  const { signal } = options
  if (signal === undefined) return undefined
  if (!(signal instanceof AbortSignal)) throw invalid('signal must be an AbortSignal')
  if (signal.aborted) throw aborted(signal)
  return signal
}

/** Checks what `receiveEach` is given. */
export function checkReceiveEach(visit: unknown, max: unknown): void {
  if (typeof visit !== 'function') throw invalid(`receiveEach takes a function, not ${show(visit)}`)
  if (max !== undefined && (typeof max !== 'number' || !(max >= 0)))
    throw invalid(`max must be a number of messages, not ${show(max)}`)
}

/** What `close` is given: milliseconds for sends that are still pending. */
export function lingerOf(options: { linger?: number }): number {
  plainObject('options', options, ['linger'])
  const { linger = 0 } = options
  if (typeof linger !== 'number' || !(linger >= 0)) {
    throw invalid(`linger must be a number of milliseconds, not ${show(linger)}`)
  }
  return linger
}

function integer(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most) {
    throw invalid(`${name} must be a whole number from ${least} to ${most}, not ${show(value)}`)
  }
  return value
}

function text(name: string, value: unknown): string {
  if (typeof value !== 'string' || value === '' || value.includes('\0')) {
    throw invalid(`${name} must be a string that is not empty and has no NUL, not ${show(value)}`)
  }
  return value
}

/** An absolute path: a relative one would name another program, or none, in another working directory. */
function absolute(name: string, value: unknown): string {
  const path = text(name, value)
  if (!isAbsolute(path)) throw invalid(`${name} must be an absolute path, not ${show(path)}`)
  return path
}

function list<T>(value: T | T[]): T[] {
  return Array.isArray(value) ? value : [value]
}

function ids(name: string, value: unknown): number[] {
  const all = list(value)
  if (all.length === 0) throw invalid(`${name} must name at least one`)
  return all.map((id) => integer(name, id, 0, LARGEST_ID))
}

function program(value: string | ExecutableFile): NativeProgram {
  if (typeof value !== 'object')
    return value === 'same' ? { same: true } : { same: false, path: absolute('executable', value) }
  plainObject('executable', value, ['path', 'sha256'])
  const { path, sha256 } = value
  if (typeof sha256 !== 'string' || !/^[0-9a-f]{64}$/i.test(sha256)) {
    throw invalid(`sha256 of an executable must be 64 hexadecimal digits, not ${show(sha256)}`)
  }
  if (path === undefined) return { same: false, sha256 }
  return path === 'same'
    ? { same: true, sha256 }
    : { same: false, path: absolute('path of an executable', path), sha256 }
}

function checkPolicy(policy: Policy): NonNullable<NativeOptions['policy']> {
  plainObject('policy', policy, KNOWN_OF_POLICY)
  const { uid, gid, executable, cgroup, label, namespace, authorize } = policy
  const programs = executable === undefined ? undefined : list(executable).map(program)
  if (programs?.length === 0) throw invalid('executable must name at least one')
  if (authorize !== undefined && typeof authorize !== 'function') {
    throw invalid(`authorize must be a function, not ${show(authorize)}`)
  }
  if (namespace !== undefined && namespace !== 'same' && namespace !== 'any') {
    throw invalid(`namespace must be 'same' or 'any', not ${show(namespace)}`)
  }
  return {
    uids: uid === undefined || uid === 'same' ? undefined : ids('uid', uid),
    gids: gid === undefined ? undefined : ids('gid', gid),
    executables: programs,
    cgroup: cgroup === undefined ? undefined : text('cgroup', cgroup),
    label: label === undefined ? undefined : text('label', label),
    namespace,
  }
}

/** Throws INVALID_ARGUMENT for what is not as {@link Options} says, or is no option of this call. */
export function checkOptions(call: Call, options: AllOptions): NativeOptions {
  plainObject('options', options, KNOWN)
  for (const [name, calls] of Object.entries(TAKEN_BY)) {
    if (options[name as keyof AllOptions] !== undefined && !calls.includes(call))
      throw invalid(`${call} takes no option ${name}: it is for ${calls.join(', ')}`)
  }
  const {
    backing,
    capacity,
    maxMessageSize,
    maxPeerCapacity,
    policy,
    mode,
    group,
    handshakeTimeout,
    signal,
    wait,
    maxPeers,
    maxPeersPerProcess,
    maxPeersPerUser,
    busyPollMicros,
    allowHalfOpen,
    harden,
    realtimeSignal,
    stall,
    deliveries,
    delivery,
    from,
  } = options
  if (stall !== undefined && (typeof stall !== 'number' || !(stall >= 0)))
    throw invalid(`stall must be a number of milliseconds, not ${show(stall)}`)
  if (deliveries !== undefined && !isListOf(deliveries, DELIVERIES))
    throw invalid(`deliveries must be a list of 'reliable', 'best-effort' and 'latest', not ${show(deliveries)}`)
  if (delivery !== undefined && !DELIVERIES.has(delivery))
    throw invalid(`delivery must be 'reliable', 'best-effort' or 'latest', not ${show(delivery)}`)
  if (from !== undefined && !BEGINNINGS.has(from))
    throw invalid(`from must be 'now', 'oldest' or 'latest', not ${show(from)}`)
  if (backing !== undefined && backing !== 'memfd' && backing !== 'shm') {
    throw invalid(`backing must be 'memfd' or 'shm', not ${show(backing)}`)
  }
  if (wait !== undefined && typeof wait !== 'boolean') throw invalid(`wait must be true or false, not ${show(wait)}`)
  for (const [name, flag] of Object.entries({ harden, allowHalfOpen })) {
    if (flag !== undefined && typeof flag !== 'boolean')
      throw invalid(`${name} must be true or false, not ${show(flag)}`)
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw invalid(`signal must be an AbortSignal, not ${show(signal)}`)
  }
  const size = (name: string, value: number | undefined, most: number) =>
    value === undefined ? undefined : integer(name, value, 1, most)
  return {
    backing,
    capacity: size('capacity', capacity, Number.MAX_SAFE_INTEGER),
    maxMessageSize: size('maxMessageSize', maxMessageSize, 2 ** 31),
    maxPeerCapacity: size('maxPeerCapacity', maxPeerCapacity, Number.MAX_SAFE_INTEGER),
    policy: policy === undefined ? undefined : checkPolicy(policy),
    mode: mode === undefined ? undefined : integer('mode', mode, 0, 0o777),
    group: typeof group === 'number' ? integer('group', group, 0, LARGEST_ID) : undefined,
    groupName: group === undefined || typeof group === 'number' ? undefined : text('group', group),
    handshakeTimeout: checkHandshakeTimeout(handshakeTimeout),
    wait,
    maxPeers: size('maxPeers', maxPeers, Number.MAX_SAFE_INTEGER),
    maxPeersPerProcess: size('maxPeersPerProcess', maxPeersPerProcess, Number.MAX_SAFE_INTEGER),
    maxPeersPerUser: size('maxPeersPerUser', maxPeersPerUser, Number.MAX_SAFE_INTEGER),
    busyPollMicros: busyPollMicros === undefined ? undefined : integer('busyPollMicros', busyPollMicros, 0, 60_000_000),
    harden,
    realtimeSignal: realtimeSignal === undefined ? undefined : integer('realtimeSignal', realtimeSignal, 1, 64),
    stall,
    deliveries,
    delivery,
    from,
    useLibuv: usesLibuv(),
  }
}

/** Of options that were checked. */
export function channelSettings({ busyPollMicros = 0, allowHalfOpen = false }: Options): ChannelSettings {
  return { busyPollMicros, allowHalfOpen }
}

/** Whether it is a list of some of these, of one at least. */
function isListOf(value: unknown, known: ReadonlySet<unknown>): boolean {
  return Array.isArray(value) && value.length > 0 && value.every((one) => known.has(one))
}

function checkHandshakeTimeout(handshakeTimeout: unknown): number | undefined {
  if (handshakeTimeout === undefined) return undefined
  if (typeof handshakeTimeout !== 'number' || !(handshakeTimeout > 0) || handshakeTimeout > 2 ** 31) {
    throw invalid(`handshakeTimeout must be a number of milliseconds above 0, not ${show(handshakeTimeout)}`)
  }
  return handshakeTimeout
}

/**
 * Two runtimes export libuv's functions without their behaviour, and only the runtime's own name tells: Bun ends the process when
 * they are called, and Deno's poll handle calls back once and never again.
 */
function usesLibuv(): boolean {
  return process.versions.bun === undefined && process.versions.deno === undefined
}
