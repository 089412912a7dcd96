// The options of every call: which call takes which, their valid values, and what is passed to the binding. The core checks ranges that
// depend on the system.

import { isAbsolute } from 'node:path'

import { checkCodec, type Codec } from '../adapters/codec.js'
import { aborted, invalid, show } from '../errors.js'
import type { NativeOptions, NativeProgram } from '../native.js'
import { nearestName } from '../runtime/nearest.js'
import type {
  ChildOptions,
  Confined,
  ConnectOptions,
  Delivery,
  ExecutableFile,
  JoinOptions,
  LineOptions,
  ListenOptions,
  MemberOptions,
  Options,
  Policy,
  PublishOptions,
  SubscribeOptions,
  WaitOptions,
  BatchOptions,
  CallOptions,
  ServeOptions,
  AttachmentOptions,
} from '../types.js'

/** Options of a call whose messages may be values. */
type WithCodec<Base> = Base & { codec?: Codec<unknown> | undefined }

/** The calls that take options, and their types. */
interface OptionsOf {
  join: WithCodec<JoinOptions>
  member: WithCodec<MemberOptions>
  listen: WithCodec<ListenOptions>
  connect: WithCodec<ConnectOptions>
  spawn: WithCodec<ChildOptions>
  fromParent: WithCodec<LineOptions>
  publish: WithCodec<PublishOptions>
  subscribe: WithCodec<SubscribeOptions>
}

export type Call = keyof OptionsOf

type OptionName = { [C in Call]: keyof OptionsOf[C] }[Call]

/** The calls whose type has an option. */
type CallsWith<Name> = { [C in Call]: Name extends keyof OptionsOf[C] ? C : never }[Call]

/** `native` checks the value and returns what the binding gets under the same name. `local` checks a value that is used only here. */
type Declared<Name> = { readonly calls: readonly CallsWith<Name>[] } & (Name extends keyof NativeOptions
  ? { native(name: string, value: unknown): NativeOptions[Name] }
  : { local(name: string, value: unknown): unknown })

type Table = { readonly [Name in OptionName]: Declared<Name> }

/** Options that the type of a call has and that the table does not list for that call. */
type MissingCalls<T extends Table> = {
  [Name in OptionName]: [Exclude<CallsWith<Name>, T[Name]['calls'][number]>] extends [never] ? never : Name
}[OptionName]

/** Compiles only if the table agrees with the types of the calls. */
function declare<const T extends Table>(table: T & Record<MissingCalls<T>, 'is taken by more calls'>): T {
  return table
}

const CHANNEL_CALLS = ['join', 'member', 'listen', 'connect', 'spawn', 'fromParent'] as const
const ALL_CALLS = [...CHANNEL_CALLS, 'publish', 'subscribe'] as const
const HOST_CALLS = ['join', 'member', 'listen', 'publish'] as const
const SERVICE_CALLS = ['listen', 'publish'] as const

/** The largest uid or gid. The kernel reserves the next number for "none". */
const MAX_ID = 2 ** 32 - 2

const DELIVERIES = ['reliable', 'best-effort', 'latest'] as const satisfies Delivery[]

const count = (name: string, value: unknown) => integer(name, value, 1, Number.MAX_SAFE_INTEGER)
const flag = (name: string, value: unknown) => must(typeof value === 'boolean', name, 'true or false', value as boolean)

/** The declarations of all options. */
const OPTIONS = declare({
  timeout: { calls: ALL_CALLS, local: milliseconds },
  handshakeTimeout: { calls: ALL_CALLS, native: milliseconds },
  signal: { calls: ALL_CALLS, local: abortSignal },
  wait: { calls: ['join', 'member', 'listen', 'connect', 'publish', 'subscribe'], native: flag },
  backing: {
    calls: [...CHANNEL_CALLS, 'publish'],
    native: (name, value) => oneOf(name, value, ['memfd', 'shm']),
  },
  capacity: { calls: [...CHANNEL_CALLS, 'publish'], native: count },
  maxMessageSize: { calls: ALL_CALLS, native: (name, value) => integer(name, value, 1, 2 ** 31) },
  maxPeerCapacity: {
    calls: CHANNEL_CALLS,
    native: (name, value) => integer(name, value, 4096, Number.MAX_SAFE_INTEGER),
  },
  attachments: { calls: ALL_CALLS, native: (_, value) => checkAttachments(value as AttachmentOptions) },
  policy: { calls: ALL_CALLS, native: (_, value) => checkPolicy(value as Policy) },
  mode: { calls: HOST_CALLS, native: (name, value) => integer(name, value, 0, 0o777) },
  group: {
    calls: HOST_CALLS,
    native: (name, value) => (typeof value === 'number' ? integer(name, value, 0, MAX_ID) : text(name, value)),
  },
  busyPollMicros: { calls: ALL_CALLS, native: (name, value) => integer(name, value, 0, 60_000_000) },
  allowHalfOpen: { calls: CHANNEL_CALLS, local: flag },
  codec: { calls: ALL_CALLS, local: (_, value) => checkCodec(value) },
  harden: { calls: ALL_CALLS, native: flag },
  realtimeSignal: { calls: ALL_CALLS, native: (name, value) => integer(name, value, 32, 64) },
  maxPeers: { calls: SERVICE_CALLS, native: count },
  maxPeersPerProcess: { calls: SERVICE_CALLS, native: count },
  maxPeersPerUser: { calls: SERVICE_CALLS, native: count },
  stall: { calls: ['publish'], native: duration },
  deliveries: {
    calls: ['publish'],
    native: (name, value) => {
      const list: readonly Delivery[] = Array.isArray(value) ? withoutHoles(value) : []
      const isValid = list.length > 0 && list.every((delivery) => DELIVERIES.includes(delivery))
      return must(isValid, name, `a list of one or more of ${alternatives(DELIVERIES)}`, value as Delivery[])
    },
  },
  delivery: { calls: ['subscribe'], native: (name, value) => oneOf(name, value, DELIVERIES) },
  spawn: { calls: ['spawn'], local: object },
  onSpawn: { calls: ['spawn'], local: callback },
  line: { calls: ['spawn'], local: (name, value) => oneOf(name, value, ['descriptor', 'stdin']) },
  admit: { calls: ['spawn'], local: (name, value) => oneOf(name, value, ['child', 'descendant']) },
  from: { calls: ['subscribe'], native: (name, value) => oneOf(name, value, ['now', 'oldest', 'latest']) },
})

/** The options of each call. */
export const OPTION_NAMES = Object.fromEntries(
  ALL_CALLS.map((call) => [call, namesOf(OPTIONS).filter((name) => callsOf(name).includes(call))]),
) as Record<Call, OptionName[]>

function callsOf(name: OptionName): readonly Call[] {
  return OPTIONS[name].calls
}

function namesOf<T extends object>(table: T): (keyof T)[] {
  return Object.keys(table) as (keyof T)[]
}

/** The options of `child_process.spawn` that are none of {@link spawn}: they belong into its option `spawn`. */
const CHILD_PROCESS_OPTIONS = new Set(
  'argv0 cwd detached env gid killSignal serialization shell stdio uid windowsHide windowsVerbatimArguments'.split(' '),
)

/** Throws INVALID_ARGUMENT for an option that the call does not take, and for a value that the option cannot have. */
export function checkOptions(call: Call, options: Options): NativeOptions {
  const known = OPTION_NAMES[call]
  checkObject('options', options, known, (name) => {
    const validFor = Object.hasOwn(OPTIONS, name) ? `: it is for ${callsOf(name as OptionName).join(', ')}` : ''
    const isChildProcessOption = call === 'spawn' && CHILD_PROCESS_OPTIONS.has(name)
    const advice = isChildProcessOption ? `; write spawn: { ${name}: … } for the option of child_process.spawn` : ''
    return `${call} takes no option ${name}${validFor}${advice}`
  })
  // Bun and Deno export libuv's functions without their behaviour, which only the runtime's name reveals: Bun terminates the process when
  // they are called, and Deno's poll handle calls back only once.
  const useLibuv = process.versions.bun === undefined && process.versions.deno === undefined
  const checked: Partial<Record<OptionName, unknown>> & NativeOptions = { useLibuv }
  for (const name of known) {
    const value: unknown = (options as Record<string, unknown>)[name]
    if (value === undefined) continue
    const option = OPTIONS[name]
    if ('native' in option) checked[name] = option.native(name, value) as never
    else option.local(name, value)
  }
  return checked
}

/** Throws INVALID_ARGUMENT for a value that is not an object, has other properties, or is an instance of a class and has none of them. */
export function plainObject(what: string, value: unknown, known: readonly string[]): void {
  checkObject(what, value, known, (name) => `${what} has no property ${JSON.stringify(name)}`)
}

function checkObject(
  what: string,
  value: unknown,
  known: readonly string[],
  describe: (name: string) => string,
): asserts value is object {
  object(what, value)
  // A promise that was not awaited, a Map or an AbortSignal is a mistake: it would set no option.
  if (!isPlain(value) && !known.some((key) => key in value))
    throw invalid(`${what} must be an object that has some of ${known.join(', ')}, not ${kindOf(value)}`)
  for (const [name, entry] of Object.entries(value)) {
    // Ignoring a misspelt option could drop a check.
    if (entry === undefined || known.includes(name)) continue
    const suggestion = nearestName(name, known)
    throw invalid(suggestion === undefined ? describe(name) : `${describe(name)}; the nearest one is ${suggestion}`)
  }
}

/** Judges by the prototype chain, since an object of another realm (node:vm) has another `Object`. */
function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

function kindOf(value: object): string {
  const { name } = (value as { constructor?: { name?: unknown } }).constructor ?? {}
  return typeof name === 'string' && name !== '' ? `one of class ${name}` : show(value)
}

const WAIT_OPTIONS = ['signal']
/** The options of `send`. The attachments are checked when they are collected. */
export const SEND_OPTIONS = ['signal', 'attachments']

/** Checks the names of the options, and returns the signal of a call that waits. Throws an AbortError if it is already aborted. */
export function signalOf(options: WaitOptions | undefined, known = WAIT_OPTIONS): AbortSignal | undefined {
  if (options === undefined) return undefined
  plainObject('options', options, known)
  const { signal } = options
  if (signal === undefined) return undefined
  abortSignal('signal', signal)
  if (signal.aborted) throw aborted(signal)
  return signal
}

/** Checks the options of `call`. */
export function callOptions(options: CallOptions = {}): CallOptions {
  const signal = signalOf(options, ['timeout', 'signal'])
  const { timeout } = options
  if (timeout !== undefined) milliseconds('timeout', timeout)
  return { timeout, signal }
}

/** Checks the arguments of `serve`, and returns the number of handlers that may run at a time. */
export function concurrencyOf(handler: unknown, options: ServeOptions = {}): number {
  callback('handler', handler)
  plainObject('options', options, ['concurrency'])
  const { concurrency = 100 } = options
  return concurrency === Infinity ? concurrency : integer('concurrency', concurrency, 1, 2 ** 32)
}

/** Checks the arguments of `receiveEach`. */
export function checkReceiveEach(visit: unknown, max: unknown): void {
  if (typeof visit !== 'function') throw invalid(`receiveEach takes a function, not ${show(visit)}`)
  const isValid = max === undefined || max === Infinity || (Number.isInteger(max) && (max as number) >= 0)
  must(isValid, 'max', 'a whole number of 0 or more, or Infinity', max)
}

/** Checks the options of `batches`, and fills in the default. */
export function checkBatches(options: BatchOptions = {}): BatchOptions & { max: number } {
  const signal = signalOf(options, ['signal', 'max'])
  const { max = 1024 } = options
  return { signal, max: integer('max', max, 1, 2 ** 32) }
}

/** Milliseconds for which `close` waits for pending sends. */
export function lingerOf(options: { linger?: number | undefined }): number {
  plainObject('options', options, ['linger'])
  const { linger = 1000 } = options
  return duration('linger', linger)
}

/** Returns the value if it is valid. @throws {@link RingfenceError} INVALID_ARGUMENT */
function must<Value>(isValid: boolean, name: string, expected: string, value: Value): Value {
  if (!isValid) throw invalid(`${name} must be ${expected}, not ${show(value)}`)
  return value
}

function integer(name: string, value: unknown, min: number, max: number): number {
  const isValid = Number.isInteger(value) && (value as number) >= min && (value as number) <= max
  return must(isValid, name, `a whole number from ${min} to ${max}`, value as number)
}

function text(name: string, value: unknown): string {
  const isValid = typeof value === 'string' && value !== '' && !value.includes('\0')
  return must(isValid, name, 'a string that is not empty and has no NUL', value as string)
}

/** Requires an absolute path. A relative one would name another program, or none, in another working directory. */
function absolute(name: string, value: unknown): string {
  const path = text(name, value)
  return must(isAbsolute(path), name, 'an absolute path', path)
}

export function abortSignal(name: string, value: unknown): void {
  // Like Node, accepts those of another realm (node:vm, Jest) and of libraries (jsdom).
  const signal = (value ?? {}) as Partial<AbortSignal>
  const isSignal =
    typeof signal.aborted === 'boolean' &&
    typeof signal.addEventListener === 'function' &&
    typeof signal.removeEventListener === 'function'
  must(isSignal, name, 'an AbortSignal', value)
}

function object(name: string, value: unknown): asserts value is object {
  must(typeof value === 'object' && value !== null, name, 'an object', value)
}

function callback(name: string, value: unknown): void {
  must(typeof value === 'function', name, 'a function', value)
}

/** Milliseconds, which may be 0 or infinite. */
function duration(name: string, value: unknown): number {
  const isValid = typeof value === 'number' && value >= 0
  return must(isValid, name, 'a number of milliseconds of 0 or more, or Infinity', value as number)
}

function milliseconds(name: string, value: unknown): number {
  const isValid = typeof value === 'number' && value > 0 && value <= 2 ** 31
  const expected = `a number of milliseconds above 0 and at most ${2 ** 31}`
  return must(isValid, name, name === 'timeout' ? `${expected}, or left out for no limit` : expected, value as number)
}

export function oneOf<const T extends string>(name: string, value: unknown, allowed: readonly T[]): T {
  return must(allowed.includes(value as T), name, alternatives(allowed), value as T)
}

/** `'a', 'b' or 'c'` */
function alternatives(names: readonly string[]): string {
  const quoted = names.map((name) => `'${name}'`)
  return `${quoted.slice(0, -1).join(', ')} or ${quoted.at(-1)}`
}

function toArray<T>(value: T | readonly T[]): readonly T[] {
  return Array.isArray(value) ? withoutHoles(value) : [value as T]
}

/** `map` and `every` skip the holes of a sparse array, which would then reach the binding. */
function withoutHoles<T>(list: readonly T[]): T[] {
  return Array.from(list)
}

function ids(name: string, value: unknown): number[] {
  const all = toArray(value)
  if (all.length === 0) throw invalid(`${name} must name at least one, or be left out for the default`)
  return all.map((id) => integer(name, id, 0, MAX_ID))
}

function toProgram(value: string | ExecutableFile): NativeProgram {
  if (typeof value !== 'object')
    return value === 'same' ? { same: true } : { same: false, path: absolute('executable', value) }
  plainObject('executable', value, ['path', 'sha256'])
  const { path, sha256 } = value
  const isHash = typeof sha256 === 'string' && /^[0-9a-f]{64}$/i.test(sha256)
  must(isHash, 'sha256 of an executable', '64 hexadecimal digits', sha256)
  if (path === undefined) return { same: false, sha256 }
  return path === 'same'
    ? { same: true, sha256 }
    : { same: false, path: absolute('path of an executable', path), sha256 }
}

/** The property names of a policy. */
export const POLICY_PROPERTIES = namesOf({
  uid: true,
  gid: true,
  executable: true,
  cgroup: true,
  label: true,
  namespace: true,
  confined: true,
  authorize: true,
} satisfies Record<keyof Policy, true>)

/** The checks of each property of {@link AttachmentOptions}. */
const ATTACHMENT_CHECKS = {
  sealed: flag,
  descriptors: flag,
  maxBytes: count,
  maxCount: (name, value) => integer(name, value, 1, 1024),
} satisfies Record<keyof AttachmentOptions, (name: string, value: unknown) => unknown>

function checkAttachments(options: AttachmentOptions): AttachmentOptions {
  const names = namesOf(ATTACHMENT_CHECKS)
  plainObject('attachments', options, names)
  const set = names.filter((name) => options[name] !== undefined)
  return Object.fromEntries(set.map((name) => [name, ATTACHMENT_CHECKS[name](`attachments.${name}`, options[name])]))
}

/** The required value of each property of {@link Confined}. */
const REQUIRED = {
  noNewPrivs: true,
  seccomp: true,
  noCapabilities: true,
  userNamespace: 'other',
  networkNamespace: 'other',
} as const satisfies Required<Confined>

/** Returns the names of the checks. Any value but the required one is a mistake, since it could be meant to drop the check. */
function confinement(confined: Confined): string[] {
  const known = namesOf(REQUIRED)
  plainObject('confined', confined, known)
  const required = known.filter((name) => confined[name] !== undefined)
  if (required.length === 0) throw invalid(`confined must have at least one of ${known.join(', ')}`)
  return required.map((name) => {
    must(confined[name] === REQUIRED[name], `confined.${name}`, `${show(REQUIRED[name])} or left out`, confined[name])
    return `confined.${name}`
  })
}

/** Checks a policy. A missing property has its default; only `'any'` drops a check that is made by default. */
function checkPolicy(policy: Policy): NonNullable<NativeOptions['policy']> {
  plainObject('policy', policy, POLICY_PROPERTIES)
  const { uid, gid, executable, cgroup, label, namespace, confined, authorize } = policy
  const executables = executable === undefined || executable === 'any' ? undefined : toArray(executable).map(toProgram)
  if (executables?.length === 0) throw invalid("executable must name at least one; 'any' drops the check")
  if (authorize !== undefined) callback('authorize', authorize)
  return {
    anyUid: uid === 'any' ? true : undefined,
    sameUid: uid === 'same' ? true : undefined,
    uids: uid === undefined || uid === 'same' || uid === 'any' ? undefined : ids('uid', uid),
    gids: gid === undefined ? undefined : ids('gid', gid),
    executables,
    anyExecutable: executable === 'any' ? true : undefined,
    cgroup: cgroup === undefined ? undefined : text('cgroup', cgroup),
    label: label === undefined ? undefined : text('label', label),
    namespace: namespace === undefined ? undefined : oneOf('namespace', namespace, ['same', 'any']),
    confined: confined === undefined ? undefined : confinement(confined),
  }
}
