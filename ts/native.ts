// The native binding's functions and answers. What a caller sees is made of them in the other files.

// oxlint-disable-next-line import/default -- what a CommonJS module exports is the default
import loaded from './binding.cjs'
import { unsupported } from './runtime/unsupported.js'
import type {
  Answers,
  Failure,
  Joining,
  Options as NativeOptions,
  PrivateLine,
  Program as NativeProgram,
} from '../../binding/index.cjs'
import type { Delivery, Evidence, GoneReason, Identity } from './types.js'

/**
 * Modules of Node that few programs need, each loaded on first use: loading all of them takes half as long as loading the package.
 */
export const { builtin } = loaded

export type { Failure, Joining, NativeOptions, NativeProgram, PrivateLine }

/** What a later look at the peer has found. */
export interface Verified {
  identity: Identity
  evidence: Evidence[]
}

/** The functions of an open channel. Those that answer with a number say with a negative one that it is no size. */
export interface NativeChannel {
  readonly role: 'host' | 'guest'
  readonly peer: Identity
  readonly capacity: number
  readonly maxMessageSize: number
  readonly maxAtOnce: number
  /** Of the handshake. To be asked for once; the binding keeps nothing of it then. */
  evidence(): Evidence[]
  /** Bytes of whole records taken from `arena[from..to]`. */
  flush(arena: Uint8Array, from: number, to: number): number
  /** `WHOLE`, or how many bytes of the message are in the ring. */
  send(message: Uint8Array, written: number): number
  /** 1 or 0. */
  trySend(message: Uint8Array): number
  /**
   * Bytes of whole records put at `into[from..]`; 0, `ENDED`, or `LARGE - size`. `goesOn` of `FIRST` or `MORE`: a peer that
   * waits for room is not woken for a little of it, unless nothing is left; a caller that stops before that calls `wake`. With `MORE`
   * that is so once what was there at the last `FIRST` is through, though more may have come.
   */
  pull(into: Uint8Array, from: number, goesOn: number): number
  /** As `pull`, spinning as long as the channel's `busyPollMicros` says. */
  pullBusy(into: Uint8Array, from: number, goesOn: number): number
  /**
   * As `pull`, of messages from `least` to `most` bytes alone: another one answers `LARGE - size`. What came can be had again by
   * `pullAgain`, until `release`, which must be called, or the next pull; `alone` of 0: not so where one came alone.
   */
  pullHeld(into: Uint8Array, from: number, least: number, most: number, alone: number): number
  /** As `pullHeld`, spinning. */
  pullHeldBusy(into: Uint8Array, from: number, least: number, most: number, alone: number): number
  /** Puts once more what `pullHeld` has put somewhere, but for the first `passed` bytes, as much as fits. */
  pullAgain(into: Uint8Array, passed: number): number
  release(): void
  wake(): void
  /** `WHOLE`, `ENDED`, or how many bytes of the message are there. */
  gather(into: Uint8Array): number
  hasRoom(size: number): number
  /** Bytes of records of an arena that `flush` will surely take, where no message of them is longer than `longest`. */
  packedRoom(longest: number): number
  /** 1: armed, the line will ring; 0: there is room. */
  armWriter(size: number): number
  /** 1: armed, the line will ring; 0: there is something to read, or no more will come. */
  armReader(): number
  /** The first half of `armReader`: 1 where `barrier` must be called before the second, `lookParked`; else 0. */
  parkReader(): number
  /** Answers as `armReader`. */
  lookParked(): number
  disarm(): void
  /** Reads the line and tells why the channel has ended, as an index of `REASONS`; 0 while it has not. */
  listen(): number
  /**
   * Whether the peer is gone without having said that it sends no more: 0 no, 1 its process has ended, 2 it has closed the
   * channel, or left the address.
   */
  isCut(): number
  /** 0: no room; 1: fill memory of your own; else the reserved memory, which `own` of 1 forbids. */
  reserve(size: number, own: number): number | ArrayBuffer
  commit(length: number, scratch?: Uint8Array): number
  cancel(): void
  end(): number
  close(): void
  /** Closes all but the reading of what the peer has left, for which `pull` and `gather` go on. Then `close`. */
  outlive(): void
  /** Frees the address, and nothing else. */
  vacate(): void
  watch(callback: () => void): number
  keepAlive(alive: number): void
  /** 0: the callback is called later, once. */
  verify(callback: (failure: Failure | null, verified: Verified | null) => void): number
  /** The token as 64 bits. */
  sendToken(token: bigint): number
  /** The next token; 0: none now; `ENDED`. */
  token(): bigint | number
  /** The callback is called again and again while there is a token, or `ENDED` to be told. Keeps nothing alive. */
  watchTokens(callback: () => void): number
  unwatchTokens(): void
  /** What has come is let go of. */
  endTokens(): void
  strayTokens(): number
  droppedTokens(): number
  /** Messages and bytes sent; bells rung; sleeps; bytes of the ring that are used, and of the ring. Also once it is closed. */
  stats(): number[]
  failure(): Failure | null
}

/** A channel as the binding makes it: one function does it all, since each function takes a KiB of memory. */
export interface RawChannel {
  readonly role: 'host' | 'guest'
  readonly peer: Identity
  readonly capacity: number
  readonly maxMessageSize: number
  readonly maxAtOnce: number
  operate(operation: number, a?: unknown, b?: unknown, c?: unknown, d?: unknown, e?: unknown): unknown
}

/** By what messages are sent: a channel, and a publisher. */
export type NativeSender = Pick<
  NativeChannel,
  | 'capacity'
  | 'maxMessageSize'
  | 'maxAtOnce'
  | 'flush'
  | 'send'
  | 'trySend'
  | 'hasRoom'
  | 'packedRoom'
  | 'armWriter'
  | 'reserve'
  | 'commit'
  | 'cancel'
  | 'failure'
>

/** By what messages are read: a channel, and a subscription. */
export interface NativeReader
  extends
    Pick<
      NativeChannel,
      'pull' | 'pullBusy' | 'wake' | 'gather' | 'armReader' | 'parkReader' | 'lookParked' | 'failure'
    >,
    Partial<Pick<NativeChannel, 'pullHeld' | 'pullHeldBusy' | 'pullAgain' | 'release'>> {
  /** Where a message is not to be fetched before it is handed out: 1 where there is one, else as `pull`. */
  hasMessage?(): number
}

/** A publisher's subscriber. */
export interface NativeSubscriber {
  readonly number: number
  readonly peer: Identity
  readonly delivery: Delivery
  lag(): number
  evidence(): Evidence[]
  /** 0: the callback is called later, once. */
  verify(callback: (failure: Failure | null, identity: Identity | null) => void): number
  disconnect(): void
  failure(): Failure | null
}

export interface NativePublisher extends NativeSender {
  /** A subscriber; which one is gone, and why, as an index of `REASONS`; why a newcomer was refused. 0: none now; `FAILED`: the end. */
  next(): NativeSubscriber | { gone: number; reason: number } | Failure | number
  disarm(): void
  /** Takes what the subscribers have said. As `reason`. */
  listen(): number
  /** Why it has ended, as an index of `REASONS`. */
  reason(): number
  sequence(): bigint
  /** Messages and bytes published; evicted; bytes of the ring that are used, and of the ring. Also once it is closed. */
  stats(): number[]
  end(): number
  /** 0: the callback is called later, once. */
  seal(callback: () => void): number
  /** Frees the address, and lets the subscribers be: the process ends. */
  vacate(): void
  watch(callback: () => void): number
  /** The callback is called where a subscriber has made room. Keeps nothing alive. */
  watchRoom(callback: () => void): number
  keepAlive(alive: number): void
  close(): void
}

export interface NativeSubscription extends NativeReader {
  readonly peer: Identity
  readonly delivery: Delivery
  readonly capacity: number
  readonly maxMessageSize: number
  hasMessage(): number
  disarm(): void
  listen(): number
  /** `unread`: of the messages that were fetched last, those that were not handed out. */
  sequence(unread: number): bigint
  lost(unread: number): bigint
  /** The lag, in bytes; sleeps. Also once it is closed. */
  stats(): number[]
  watch(callback: () => void): number
  /** The line is watched no more. */
  outlive(): void
  keepAlive(alive: number): void
  verify(callback: (failure: Failure | null, verified: Verified | null) => void): number
  evidence(): Evidence[]
  close(): void
}

/** The functions of everything that stands at an address. */
export interface NativeEndpoint {
  /** 1: newcomers wait; 0: they are taken in. */
  pause(paused: number): void
  watch(callback: () => void): number
  keepAlive(alive: number): void
  /** Ends it, and does not tell when that is done. */
  close(): void
  failure(): Failure | null
}

export interface NativeListener extends NativeEndpoint {
  /** A channel, or why a peer was refused; 0 where there is no event, `FAILED` once it has ended. */
  accept(): RawChannel | Failure | number
}

export interface NativeMembership extends NativeEndpoint {
  /** At first. */
  readonly role: 'host' | 'guest'
  /** A channel, another role, or why a peer was refused; 0 where nothing has changed, `FAILED` once the place is lost. */
  next(): RawChannel | 'host' | 'guest' | Failure | number
  /** 1: the callback is called later, once; 0: it is done. */
  leave(callback: () => void): number
  /** Leaves, and waits a moment until that is done. */
  vacate(): void
}

/**
 * What everything that takes its time is begun with: options, what is told of the outcome, the policy's callback; and what is told of each
 * guest that the host of a `join` refuses.
 */
export type Given<Raw> = [
  options: NativeOptions,
  done: (failure: Failure | null, made: Raw | null) => void,
  ask?: (id: number, identity: Identity) => void,
  refused?: (failure: Failure) => void,
]

/** What the binding makes at an address, by the name of the function that a user calls. */
export interface Endpoints {
  join: RawChannel
  connect: RawChannel
  listen: NativeListener
  member: NativeMembership
  publish: NativePublisher
  subscribe: NativeSubscription
}

interface Binding {
  begin<Name extends keyof Endpoints>(endpoint: Name, address: string, ...given: Given<Endpoints[Name]>): Joining
  privateLine(): PrivateLine
  adopt(line: PrivateLine, ...given: Given<RawChannel>): Joining
  fromParent(...given: Given<RawChannel>): Joining
  operations(): string[]
  answers(): Answers
  harden(): Failure | null
  /** Memory barriers for all channels that were parked, in one system call: null, or why that cannot be had. */
  barrier(): Failure | null
  ignoreSigusr1(): Failure | null
  doctor(): { kernel: string; findings: Finding[] }
}

/** One thing that `doctor` looked at. */
export interface Finding {
  /** Its name for programs. */
  name: string
  /** Its name for people. */
  title: string
  /** Whether the promises that rest on it hold. */
  status: 'good' | 'limited' | 'missing'
  /** What was found. */
  found: string
  /** What that means for the promises. */
  meaning: string
}

/** Where the binding could not be loaded, each call of it throws UNSUPPORTED, which says why. */
export const native: Binding = 'binding' in loaded ? (loaded.binding as unknown as Binding) : unsupported(loaded.error)

// Where the binding could not be loaded there is no channel that could answer.
const answers = 'binding' in loaded ? native.answers() : ({ reasons: [] as string[] } as unknown as Answers)

/** `failure()` knows more. */
export const FAILED = answers.failed
/** A message is through. */
export const WHOLE = answers.whole
/** No more will come, and everything was read. */
export const ENDED = answers.ended
/** Another message is next than the one that memory was made for. */
export const OTHER = answers.other
/** A message that does not fit: its size is `LARGE - answer`. */
export const LARGE = answers.large

/** What `pull` is told of what comes after it. */
export const MORE = answers.more
export const FIRST = answers.first

/** Bytes of a record's header, and its flags for a whole message. */
export const HEADER = answers.header
export const FLAGS = answers.flags

/** Why a channel has ended, as `listen` and `end` tell it by number; the first is that it has not. */
export const REASONS = answers.reasons as readonly (GoneReason | undefined)[]
/** The end that this side has made, since a later look has refused the peer. */
export const REFUSED = answers.refused

class Operations {
  readonly role: 'host' | 'guest'
  readonly peer: Identity
  readonly capacity: number
  readonly maxMessageSize: number
  readonly maxAtOnce: number
  readonly operate: RawChannel['operate']

  constructor(raw: RawChannel) {
    this.role = raw.role
    this.peer = raw.peer
    this.capacity = raw.capacity
    this.maxMessageSize = raw.maxMessageSize
    this.maxAtOnce = raw.maxAtOnce
    this.operate = raw.operate
  }
}

type Operation = (this: Operations, a?: unknown, b?: unknown, c?: unknown, d?: unknown, e?: unknown) => unknown

function named(operation: number): Operation {
  return function (a, b, c, d, e) {
    return this.operate(operation, a, b, c, d, e)
  }
}

let known = false

/** A function for each operation, of which all channels have the same. */
export function withOperations(raw: RawChannel): NativeChannel {
  if (!known) {
    for (const [operation, name] of native.operations().entries())
      Object.defineProperty(Operations.prototype, name, { value: named(operation) })
    known = true
  }
  return new Operations(raw) as unknown as NativeChannel
}
