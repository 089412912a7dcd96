// The native binding's functions and return values. The other files build the public API on them.

// oxlint-disable-next-line import/default -- what a CommonJS module exports is the default
import loaded from './binding.cjs'
import { unsupported } from './runtime/unsupported.js'
import type {
  Answers,
  Bundle as NativeBundle,
  Failure,
  Joining,
  Options as NativeOptions,
  OwnDescriptor as NativeDescriptor,
  PrivateLine,
  Program as NativeProgram,
  SealedDraft as NativeDraft,
  SealedMemory as NativeSealed,
} from '../../binding/index.cjs'
import type { Delivery, Evidence, GoneReason, Identity } from './endpoint/peer.js'

/**
 * Node modules that few programs need, each loaded on first use. Loading all of them takes half as long as loading the package.
 */
export const { builtin } = loaded

export type {
  Failure,
  NativeBundle,
  Joining,
  NativeDescriptor,
  NativeDraft,
  NativeOptions,
  NativeProgram,
  NativeSealed,
  PrivateLine,
}

/** The result of `verify`. */
export interface Verified {
  identity: Identity
  evidence: Evidence[]
}

/** The functions of everything that the binding opens. If a function returns a number, a negative one is a status and not a size. */
export interface NativeEndpoint {
  watch(callback: () => void): number
  keepAlive(alive: number): void
  /** Closes it. Does not report when this is done. */
  close(): void
  failure(): Failure | null
}

/** The functions of a resource with a ring. */
interface NativeRing extends NativeEndpoint {
  readonly capacity: number
  readonly maxMessageSize: number
  disarm(): void
  /** Reads the line. Returns why the resource has ended, as an index of `REASONS`; 0 while it is open. */
  listen(): number
  /** The figures, in the order that the class of the resource reads them. Also works after `close`. */
  stats(): number[]
}

/** The functions of a resource with one peer. */
export interface NativePeer extends NativeRing {
  readonly peer: Identity
  /** The evidence of the handshake. Call it once only: the binding then drops its copy. */
  evidence(): Evidence[]
  /** Returns 0 if the callback will be called, later and once. */
  verify(callback: (failure: Failure | null, verified: Verified | null) => void): number
  /**
   * Whether the peer is lost, which means that it is gone and had not ended its sending. 1: its process has ended, or executes another
   * program. 2: it has destroyed the channel.
   */
  isLost(): number
  /** Closes the resource, except that `pull` and `gather` still read the peer's unread messages. `close` must follow. */
  outlive(): void
}

/** The sending functions that channels and publishers share. */
export interface NativeSender extends NativeRing {
  readonly maxAtOnce: number
  /** Returns the number of bytes taken from `arena[from..to]`, in whole records. */
  flush(arena: Uint8Array, from: number, to: number): number
  /** Returns `WHOLE`, or the number of bytes of the message that are in the ring. `tag` is 0 or `CALL`. */
  send(message: Uint8Array, written: number, tag?: number): number
  /** Returns 1 if the message was sent, and 0 if there was no room. */
  trySend(message: Uint8Array): number
  /** Starts a message with attachments; returns the same values as `send`. 0: neither was sent yet. `send` continues the message. */
  sendAttached(message: Uint8Array, bundle: NativeBundle): number
  /** Like `armWriter`, for a message of `size` bytes with these attachments. */
  armAttached(size: number, bundle: NativeBundle): number
  hasRoom(size: number): number
  /** Bytes of records that `flush` is guaranteed to take, if no message among them is longer than `longest`. */
  packedRoom(longest: number): number
  /** Returns 1 if armed: the line wakes this side later. Returns 0 if there is room. */
  armWriter(size: number): number
  /** Returns 0 if there is no room; 1 if the caller must fill its own memory, as always if `own` is 1; else the reserved memory. */
  reserve(size: number, own: number): number | ArrayBuffer
  commit(length: number, scratch?: Uint8Array): number
  cancel(): void
  end(): number
  /** Frees the address and leaves the peers as they are. */
  vacate(): void
}

/** The reading functions that channels and subscriptions share. */
export interface NativeReader {
  /**
   * Copies whole records to `into[from..]` and returns the number of bytes; or 0, `ENDED` or `TOO_LARGE - size`; or `CALL_NEXT` if a call frame
   * is next.
   *
   * If `round` is `FIRST` or `MORE`, the caller promises to read until nothing is left. A peer that waits for room is then not woken for
   * a little room. A caller that stops earlier calls `wake`. `FIRST` starts a round of the messages that are in the ring now. `MORE`
   * wakes the peer and returns 0 at the end of that round, even if more messages have arrived.
   */
  pull(into: Uint8Array, from: number, round: number): number
  /** Like `pull`, but if nothing is there, spins for up to the channel's `busyPollMicros` first. */
  pullBusy(into: Uint8Array, from: number, round: number): number
  /** Of a subscription. */
  readonly delivery?: Delivery
  /** Returns 1 if there is a message, else as `pull`. Of a subscription. */
  hasMessage?(): number
  /**
   * Like `pull`, but only for messages of `minLength` to `maxLength` bytes. For any other message it returns `TOO_LARGE - size`.
   *
   * `pullAgain` returns the same records again until `release` or the next pull. The caller must call `release`. If `retainSingle` is 0, a
   * single message is not retained.
   */
  pullRetained?(into: Uint8Array, from: number, minLength: number, maxLength: number, retainSingle: number): number
  /** Like `pullRetained`, but spins like `pullBusy`. */
  pullRetainedBusy?(into: Uint8Array, from: number, minLength: number, maxLength: number, retainSingle: number): number
  /** Like `pull`, but only for call frames of `minLength` to `maxLength` bytes. Returns `MISMATCH` if a message is next. */
  pullCalls?(into: Uint8Array, from: number, minLength: number, maxLength: number): number
  /** Like `pullCalls`, but spins like `pullBusy`. */
  pullCallsBusy?(into: Uint8Array, from: number, minLength: number, maxLength: number): number
  /** Copies the records of the last `pullRetained` again, without the first `skipped` bytes, as far as they fit. */
  pullAgain?(into: Uint8Array, skipped: number): number
  release?(): void
  wake(): void
  /** Returns `WHOLE` or `ATTACHED`, `ENDED`, or the number of bytes of the message received so far. */
  gather(into: Uint8Array): number
  /** Returns the attachments of the message that was gathered last, once. */
  attachments(): (NativeSealed | NativeDescriptor)[]
  /** Returns 1 if armed: the line wakes this side later. Returns 0 if there is something to read, or nothing more will arrive. */
  armReader(): number
  /** The first half of `armReader`. Returns 1 if `barrier` must be called before the second half, `checkParked`; else 0. */
  parkReader(): number
  /** The second half of `armReader`; returns the same values. */
  checkParked(): number
  failure(): Failure | null
}

export interface NativeChannel extends NativePeer, NativeSender, NativeReader {
  readonly role: 'host' | 'guest'
  /** Sends a token of 64 bits. */
  sendToken(token: bigint): number
  /** Returns the next token; 0 if there is none now; `ENDED` if no more will arrive. */
  token(): bigint | number
  /** Calls the callback repeatedly while `token` would return a token or `ENDED`. Does not keep the event loop alive. */
  watchTokens(callback: () => void): number
  unwatchTokens(): void
  /** Stops receiving tokens, and drops those that were not read. */
  endTokens(): void
  strayTokens(): number
  droppedTokens(): number
}

/** A channel as the binding makes it. A single function performs all operations, since each function takes 1 KiB of memory. */
export interface RawChannel extends Pick<NativeChannel, 'role' | 'peer' | 'capacity' | 'maxMessageSize' | 'maxAtOnce'> {
  operate(operation: number, a?: unknown, b?: unknown, c?: unknown, d?: unknown, e?: unknown): unknown
}

/** A publisher's subscriber. */
export interface NativeSubscriber extends Pick<NativePeer, 'peer' | 'evidence' | 'failure'> {
  readonly number: number
  readonly delivery: Delivery
  lag(): number
  /** Returns 0 if the callback will be called, later and once. */
  verify(callback: (failure: Failure | null, identity: Identity | null) => void): number
  disconnect(): void
}

export interface NativePublisher extends NativeSender {
  /**
   * Returns the next event: a new subscriber; the number of a subscriber that disconnected, with an index of `REASONS`; or the reason why
   * a client was refused. Returns 0 if there is none now, and `FAILED` once the publisher has ended.
   */
  next(): NativeSubscriber | { gone: number; reason: number } | Failure | number
  /** Why the publisher has ended, as an index of `REASONS`. */
  reason(): number
  sequence(): bigint
  /** Returns 0 if the callback will be called, later and once. */
  seal(callback: () => void): number
  /** Calls the callback when a subscriber has made room. Does not keep the event loop alive. */
  watchRoom(callback: () => void): number
}

export interface NativeSubscription extends NativePeer, NativeReader {
  readonly delivery: Delivery
  hasMessage(): number
  /** @param unread - Messages of the last fetch that were not handed out yet. */
  sequence(unread: number): bigint
  lost(unread: number): bigint
  /** `abrupt`: 1 to close without a clean end. */
  close(abrupt?: number): void
}

/** The functions that listeners and memberships share. */
export interface NativeAcceptor extends NativeEndpoint {
  /** 1 lets new clients wait, 0 accepts them. */
  pause(paused: number): void
}

export interface NativeListener extends NativeAcceptor {
  /** Returns a channel, or why a peer was refused; 0 if there is no event, `FAILED` once the listener has ended. */
  accept(): RawChannel | Failure | number
}

export interface NativeMembership extends NativeAcceptor {
  /** The initial role. */
  readonly role: 'host' | 'guest'
  /** Returns a channel, the new role, or why a peer was refused; 0 if there is no event, `FAILED` once the membership is lost. */
  next(): RawChannel | 'host' | 'guest' | Failure | number
  /**
   * Returns 1 if the callback will be called, later and once; 0 if the address was already left. `flushed`: 1 if everything that was sent is
   * in the ring, so that the partner gets a clean end.
   */
  leave(callback: () => void, flushed: number): number
  /** Leaves the address, and waits briefly until this is done. */
  vacate(): void
}

/**
 * The arguments of every call that runs a handshake: the options, the callback for the outcome, the policy's callback, and a callback for
 * each guest that the host of a `join` refuses.
 */
export type HandshakeArgs<Native> = [
  options: NativeOptions,
  done: (failure: Failure | null, made: Native | null) => void,
  ask?: (id: number, identity: Identity) => void,
  refused?: (failure: Failure) => void,
]

/** The object that the binding makes at an address, for each public function. */
export interface Endpoints {
  join: RawChannel
  connect: RawChannel
  listen: NativeListener
  member: NativeMembership
  publish: NativePublisher
  subscribe: NativeSubscription
}

interface Binding {
  begin<Name extends keyof Endpoints>(
    endpoint: Name,
    address: string,
    ...given: HandshakeArgs<Endpoints[Name]>
  ): Joining
  privateLine(): PrivateLine | Failure
  adopt(line: PrivateLine, ...given: HandshakeArgs<RawChannel>): Joining
  fromParent(...given: HandshakeArgs<RawChannel>): Joining
  /** Duplicates the descriptors. */
  bundle(attachments: (NativeSealed | number)[]): NativeBundle | Failure
  sealedCopy(bytes: Uint8Array): NativeSealed | Failure
  /** Makes memory on a thread. */
  sealedDraft(size: number, done: (failure: Failure | null, draft: NativeDraft | null) => void): Failure | null
  operations(): string[]
  answers(): Answers
  harden(): Failure | null
  /** Runs the memory barrier for all parked channels in one system call. Returns null, or why the call failed. */
  barrier(): Failure | null
  ignoreSigusr1(): Failure | null
  doctor(): { kernel: string; findings: Finding[] }
}

/** One check of `doctor`. */
export interface Finding {
  /** The name for programs. */
  name: string
  /** The name for people. */
  title: string
  /** Whether the guarantees that depend on it hold. */
  status: 'good' | 'limited' | 'missing'
  /** The state that was found. */
  found: string
  /** The consequence for the guarantees. */
  meaning: string
}

/** If the binding could not be loaded, each call throws UNSUPPORTED with the reason. */
export const native: Binding = 'binding' in loaded ? (loaded.binding as unknown as Binding) : unsupported(loaded.error)

// If the binding could not be loaded, there are no channels and these values are never compared.
const answers = 'binding' in loaded ? native.answers() : ({ reasons: [] as string[] } as unknown as Answers)

/** The call failed; `failure()` returns the reason. */
export const FAILED = answers.failed
/** The whole message was sent or received. */
export const WHOLE = answers.whole
/** Everything was read, and nothing more will arrive. */
export const ENDED = answers.ended
/** The next message is not the one that the memory was allocated for, or no call frame. */
export const MISMATCH = answers.mismatch
/** The next message is a call frame. */
export const CALL_NEXT = answers.callNext
/** The whole message was received, and it has attachments. */
export const ATTACHED = answers.attached
/** A message does not fit. Its size is `TOO_LARGE - answer`. */
export const TOO_LARGE = answers.tooLarge

/** Values of `round`: whether the caller of `pull` continues or starts a round. */
export const MORE = answers.more
export const FIRST = answers.first

/** The size of a record's header in bytes, and the header's flags for a whole message. */
export const HEADER = answers.header

/** Bytes of a record with a payload of this length. */
export const recordSize = (length: number): number => HEADER + ((length + 7) & ~7)

export const FLAGS = answers.flags
/** The further flag of a call frame. */
export const CALL = answers.call

/** Why a channel has ended, by the number that `listen` and `end` return. The first entry means that it is open. */
export const REASONS = answers.reasons as readonly (GoneReason | undefined)[]

class Operations {
  declare readonly operate: RawChannel['operate']
}

type Operation = (this: Operations, a?: unknown, b?: unknown, c?: unknown, d?: unknown, e?: unknown) => unknown

function methodFor(operation: number): Operation {
  return function (a, b, c, d, e) {
    return this.operate(operation, a, b, c, d, e)
  }
}

let isDefined = false

/** Wraps a channel so that it has a method for each operation. All channels share the methods. */
export function withOperations(raw: RawChannel): NativeChannel {
  if (!isDefined) {
    for (const [operation, name] of native.operations().entries())
      Object.defineProperty(Operations.prototype, name, { value: methodFor(operation) })
    isDefined = true
  }
  return Object.assign(new Operations(), raw) as unknown as NativeChannel
}
