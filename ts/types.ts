import type { ChildProcess, SpawnOptions } from 'node:child_process'

import type { Attachable, Attachment } from './channel/attachments.js'
import type { Delivery, Identity } from './endpoint/peer.js'
import type { RingfenceError } from './errors.js'

export type { Delivery, Evidence, Identity } from './endpoint/peer.js'

/** Options of a call that waits. */
export interface WaitOptions {
  /** Aborts the call, which rejects with an AbortError; its `cause` is the reason. An abort after the call has resolved does nothing. */
  signal?: AbortSignal | undefined
}

/** Options of `batches`. */
export interface BatchOptions extends WaitOptions {
  /**
   * Messages of one batch at most.
   *
   * @defaultValue 1,024
   */
  max?: number | undefined
}

/** Options of `call`. */
export interface CallOptions extends WaitOptions {
  /**
   * Milliseconds until the call rejects with TIMEOUT. The remaining time travels with the request: the handler sees it as
   * {@link CallContext.deadline}, and its signal is aborted then.
   *
   * @defaultValue no limit
   */
  timeout?: number | undefined
}

/** Options of `serve`. */
export interface ServeOptions {
  /**
   * Handlers that run at a time at most. Further requests wait until a handler has returned. `Infinity` sets no limit.
   *
   * @defaultValue 100
   */
  concurrency?: number | undefined
}

/** The second argument of a handler of `serve`: it describes the request. */
export interface CallContext {
  /**
   * Aborted once no caller waits for the reply. The reason is a {@link RingfenceError}: ABORT_ERR if the caller has aborted the call or has
   * reported that its deadline has passed, TIMEOUT if the deadline has passed here first, PEER_LOST or CLOSED if the channel has ended.
   */
  readonly signal: AbortSignal
  /** The time by which the caller needs the reply, in milliseconds as of `Date.now()`. `undefined`: the caller has set no deadline. */
  readonly deadline: number | undefined
  /** The caller. */
  readonly peer: Identity
}

/** An executable by its content. */
export interface ExecutableFile {
  /** Requires this file as well: an absolute path, compared by device and inode, or `'same'`. Without it, any file passes. */
  path?: string | undefined
  /**
   * SHA-256 of the file, 64 hexadecimal digits as `sha256sum` prints them. The file is read through /proc/PID/exe, which requires
   * permission to read it. The hash covers only the file, not the libraries that the process has loaded.
   */
  sha256: string
}

/**
 * The requirements on the peer. All checks must pass, and a check that cannot be made refuses the peer.
 *
 * A policy is merged with the defaults `{ uid: 'same', namespace: 'same', executable: 'same' }`. Only `'any'` drops one of these checks.
 *
 * @example
 * ```ts
 * // Any program of user 1001. The executable of another user's process is not visible, so this check must be dropped.
 * await connect('/run/orders.sock', { policy: { uid: 1001, executable: 'any' } })
 * ```
 */
export interface Policy {
  /**
   * The peer's effective uid. `'same'`: this process's own.
   *
   * @defaultValue 'same'
   */
  uid?: 'same' | 'any' | number | readonly number[] | undefined
  /**
   * One of these must be the peer's effective gid or one of its supplementary groups.
   *
   * @defaultValue not checked
   */
  gid?: number | readonly number[] | undefined
  /**
   * The program that the peer executes: `'same'` as this process, the absolute path of a file (compared by device and inode), or a
   * content. The executable of another user's process, or of a hardened process, is visible only with CAP_SYS_PTRACE. For such peers,
   * write `executable: 'any'` and require a uid, gid, cgroup or label.
   *
   * @defaultValue 'same'
   */
  executable?: 'same' | 'any' | string | ExecutableFile | readonly ('same' | string | ExecutableFile)[] | undefined
  /**
   * The peer's cgroup (version 2), exactly as /proc/PID/cgroup names it.
   *
   * @defaultValue not checked
   */
  cgroup?: string | undefined
  /**
   * The peer's security label at the time when it connected or listened.
   *
   * @defaultValue not checked
   */
  label?: string | undefined
  /**
   * `'same'`: the peer lives in this process's pid namespace, and in its user namespace as far as that is visible. `'any'`: the peer
   * may live in another one, such as another container. Its process id then proves nothing: any process of its user in its pid namespace
   * can answer in its place. The executable, cgroup and supplementary groups of a peer in a namespace that is not visible from here
   * cannot be checked.
   *
   * @defaultValue 'same'; 'any' for `spawn` with `admit: 'descendant'`
   */
  namespace?: 'same' | 'any' | undefined
  /**
   * Operations that the kernel must deny the peer. This process reads the restrictions of each of the peer's threads in /proc, before
   * anything is shared and at each later check.
   *
   * @defaultValue not checked
   */
  confined?: Confined | undefined
  /**
   * Decides last, about a peer that has passed all other checks, before anything is shared with it. Both sides call it. An exception, a
   * rejection, or a result that is not a boolean refuses the peer; the error has the exception as its `cause`. The callback must answer
   * before the handshake's deadline, or the handshake fails with HANDSHAKE_TIMEOUT. Other peers are served in the meantime. `verify`
   * does not call it again.
   */
  authorize?: ((identity: Identity) => boolean | Promise<boolean>) | undefined
}

/**
 * The confinement that the kernel must report of a peer. The checks are named `confined.noNewPrivs` and so on. The policy's other checks
 * apply as well: a peer in a pid namespace of its own needs `namespace: 'any'`, the default with `admit: 'descendant'`, and one that runs
 * another program needs it in `executable`.
 *
 * @example
 * ```ts
 * const policy = { namespace: 'any', executable: 'any', confined: { noNewPrivs: true, seccomp: true, noCapabilities: true } }
 * ```
 */
export interface Confined {
  /** No program that the peer executes gives it more privileges (`no_new_privs`). */
  noNewPrivs?: true | undefined
  /** A filter decides about the peer's system calls. Its content is not checked. */
  seccomp?: true | undefined
  /**
   * The peer has no capability that counts in this process's user namespace. Capabilities in a user namespace below it do not count.
   * Require `noNewPrivs`, too: otherwise a setuid program can give the peer capabilities.
   */
  noCapabilities?: true | undefined
  /** The peer lives in a user namespace below this process's. */
  userNamespace?: 'other' | undefined
  /** The peer lives in another network namespace. Require `noCapabilities`, too: otherwise the peer can enter another one. */
  networkNamespace?: 'other' | undefined
}

/** A received message. Its memory is no SharedArrayBuffer, so it can be passed to web streams and other APIs of the web. */
export type Message = Buffer & {
  readonly buffer: ArrayBuffer
  /**
   * The attachments, in the order of the sender. Present only if there are some. They belong to the program, which should close them; the
   * garbage collector closes those that it forgets.
   */
  readonly attachments?: readonly Attachment[] | undefined
}

/** Options of {@link Channel.send}. */
export interface SendOptions extends WaitOptions {
  /**
   * Attachments, at most 253. Descriptors are duplicated before the call returns: the program keeps its own, and may close them at once.
   */
  attachments?: readonly Attachable[] | undefined
}

/** The attachments that a side accepts, and holds unread. The sender waits beyond these limits. */
export interface AttachmentOptions {
  /**
   * Accept {@link SealedBuffer}s.
   *
   * @defaultValue false
   */
  sealed?: boolean | undefined
  /**
   * Accept open descriptors of any kind. Accept none from a peer that might pass a descriptor to trick this process: reading one may block,
   * and a directory leads to its parents (`openat("..")`).
   *
   * @defaultValue false
   */
  descriptors?: boolean | undefined
  /**
   * Bytes of unread sealed buffers.
   *
   * @defaultValue 1073741824 (1 GiB)
   */
  maxBytes?: number | undefined
  /**
   * Number of unread attachments, at most 1024.
   *
   * @defaultValue 64
   */
  maxCount?: number | undefined
}

/** The types that can be sent: text, or bytes of any kind. Only the bytes within a view are sent. */
export type MessageInput = string | ArrayBufferView | ArrayBuffer

/** Called for each message, with bytes that are valid during the call only; for each value if the messages are values. */
export type Visit<In = Message> = [In] extends [Message]
  ? (bytes: Uint8Array, offset: number, length: number) => void
  : (value: In) => void

/**
 * The options that calls have in common. Each call has its own type ({@link JoinOptions}, {@link MemberOptions},
 * {@link ListenOptions}, {@link ConnectOptions}, {@link LineOptions}, {@link ChildOptions}, {@link PublishOptions},
 * {@link SubscribeOptions}). An option that a call does not take is INVALID_ARGUMENT, and the error names the one that it misspells.
 */
export interface Options {
  /**
   * Milliseconds for the whole call, waiting included; above 0 and at most 2^31. After that the call rejects with TIMEOUT and leaves
   * nothing behind.
   *
   * @defaultValue no limit
   */
  timeout?: number | undefined
  /**
   * Milliseconds for one handshake, counted from when the peer has connected. `close` of a membership waits up to the same time for its
   * partner's answer.
   *
   * @defaultValue 5000
   */
  handshakeTimeout?: number | undefined
  /**
   * Aborts the call: it rejects with an AbortError (`code` 'ABORT_ERR', `cause` the signal's reason) and leaves nothing behind. An abort
   * after the call has resolved does nothing, except that it closes a listener or a publisher.
   */
  signal?: AbortSignal | undefined
  /**
   * `connect` and `subscribe`: wait until the address is served and has room. `join`, `member`, `listen` and `publish`: wait until the
   * address is free. Without it the call fails with ADDRESS_OCCUPIED or PEER_LOST. In either case the call fails with PEER_LOST if the
   * peer disconnects on every attempt for `handshakeTimeout`.
   *
   * @defaultValue false
   */
  wait?: boolean | undefined
  /**
   * The kind of shared memory. Both sides must choose the same.
   *
   * @defaultValue 'memfd'
   */
  backing?: 'memfd' | 'shm' | undefined
  /**
   * Bytes of the ring that this side writes. Rounded up to a power of two of at least 4096.
   *
   * @defaultValue 4194304 (4 MiB)
   */
  capacity?: number | undefined
  /**
   * Bytes of the longest message that this side receives; at most 2 GiB.
   *
   * @defaultValue 67108864 (64 MiB)
   */
  maxMessageSize?: number | undefined
  /**
   * Bytes of the largest ring that the peer may have, at least 4096. This side maps that ring. A peer with a larger ring is refused
   * with PROTOCOL before anything is shared, and the error names both sizes.
   *
   * @defaultValue 1073741824 (1 GiB)
   */
  maxPeerCapacity?: number | undefined
  /**
   * The attachments that this side accepts. A peer that sends others gets INVALID_ARGUMENT.
   *
   * @defaultValue none
   */
  attachments?: AttachmentOptions | undefined
  /**
   * The requirements on the peer, merged with the defaults.
   *
   * @defaultValue the same user, namespace and executable
   */
  policy?: Policy | undefined
  /**
   * Permission bits of a named socket. The umask does not change them.
   *
   * @defaultValue 0o600
   */
  mode?: number | undefined
  /** Group of a named socket, by name or number. */
  group?: number | string | undefined
  /**
   * Microseconds that a wait may spin on this thread before it sleeps, at most 60,000,000. After waits that spun for nothing, most waits sleep
   * at once, and one in 64 tries again.
   *
   * @defaultValue 0
   */
  busyPollMicros?: number | undefined
  /**
   * Whether this side may still send after it has read the peer's last message, as in node:net. If false, this side then ends as well,
   * after flushing what it has already sent, and a later `send` rejects with CLOSED. If true, it may send until {@link Channel.end}.
   *
   * @defaultValue false
   */
  allowHalfOpen?: boolean | undefined
  /**
   * Makes this process inaccessible to other processes of its user (see {@link harden}) during the handshake: after both sides have
   * checked each other's executable, and before the shared memory is created. The process stays hardened even if the handshake fails.
   * SIGUSR1 is ignored from the call on.
   *
   * @defaultValue false
   */
  harden?: boolean | undefined
  /**
   * Number of the realtime signal that reports attempts to open this side's memory and carries the peer's tokens; 34 to 64 with most
   * C libraries. No other part of the process may use it. A signal that this process handles or ignores is INVALID_ARGUMENT.
   *
   * @defaultValue the first from 50 on that is unused
   */
  realtimeSignal?: number | undefined
}

/** Options of {@link join}. */
export interface JoinOptions extends Options {}

/** Options of {@link member}. */
export interface MemberOptions extends Options {}

/** Options of {@link connect}. The socket's file belongs to the service. */
export interface ConnectOptions extends Omit<Options, 'mode' | 'group'> {}

/** Options of {@link fromParent}. A private line has no address to wait for. */
export interface LineOptions extends Omit<ConnectOptions, 'wait'> {}

/** The process that may open the channel of {@link spawn}. */
export type Admit = 'child' | 'descendant'

/** Options of {@link spawn}. */
export interface ChildOptions extends LineOptions {
  /** Options of `child_process.spawn`. */
  spawn?: SpawnOptions | undefined
  /**
   * The process that may open the channel: only the one that was started, or any one process that has inherited the line from it.
   * 'descendant' is for launchers that fork (`sh -c`, `bwrap`, `unshare`, `timeout`). The first process that answers is the peer, and
   * every other one is refused. `policy.namespace` is then 'any' by default; the other checks apply to the process that answers.
   *
   * @defaultValue 'child'
   */
  admit?: Admit | undefined
  /**
   * The child's end of the line: descriptor 3 (the first one after those of `spawn.stdio`), or its standard input, for launchers that
   * close all other descriptors. The environment variable RINGFENCE_LINE has the number, so a launcher that clears the environment can
   * set it: `bwrap --clearenv --setenv RINGFENCE_LINE 3`.
   *
   * @defaultValue 'descriptor'
   */
  line?: 'descriptor' | 'stdin' | undefined
  /** Called right after the start, before the handshake. If it throws, the child is killed and the call rejects with the exception. */
  onSpawn?: ((child: ChildProcess) => void) | undefined
}

/** Options of {@link listen}. */
export interface ListenOptions extends Options {
  /**
   * Channels that may be open at a time. Further clients get ADDRESS_OCCUPIED until one disconnects.
   *
   * @defaultValue no limit
   */
  maxPeers?: number | undefined
  /**
   * Channels that one process may have open at a time. Further ones get ADDRESS_OCCUPIED.
   *
   * @defaultValue seven eighths of `maxPeers`, rounded up; all if `maxPeers` is below 8
   */
  maxPeersPerProcess?: number | undefined
  /**
   * Channels that all processes of one user may have open at a time. This also applies to this process's own user. Further ones get
   * ADDRESS_OCCUPIED.
   *
   * @defaultValue three quarters of `maxPeers`, rounded up, for another user; all for this process's own user, if `maxPeers` is below 4,
   * or if the policy accepts only one user
   */
  maxPeersPerUser?: number | undefined
}

/** Options of {@link publish}. A subscriber has no ring of its own, and a publisher receives nothing. */
export interface PublishOptions extends Omit<ListenOptions, 'backing' | 'maxPeerCapacity' | 'allowHalfOpen'> {
  /**
   * The kind of shared memory.
   *
   * @defaultValue 'memfd'
   */
  backing?: 'memfd' | undefined
  /**
   * Milliseconds in total for which one reliable subscriber may delay the publisher before it is evicted. The count starts anew once the
   * subscriber has caught up: it has read everything that was published when it last delayed the publisher. Infinity: never evicted.
   * After {@link Publisher.end}, the publisher closes after this time at the latest. Its subscribers can still read the remaining messages.
   *
   * @defaultValue 5000
   */
  stall?: number | undefined
  /**
   * The deliveries that subscribers may choose.
   *
   * @defaultValue all three
   */
  deliveries?: readonly Delivery[] | undefined
}

/** Options of {@link subscribe}. */
export interface SubscribeOptions extends Omit<
  ConnectOptions,
  'backing' | 'capacity' | 'maxPeerCapacity' | 'allowHalfOpen'
> {
  /**
   * The way in which messages reach this subscriber.
   *
   * @defaultValue 'reliable'
   */
  delivery?: Delivery | undefined
  /**
   * The first message: the next one that is published, the oldest one that the ring still holds, or the latest one.
   *
   * @defaultValue 'now'
   */
  from?: 'now' | 'oldest' | 'latest' | undefined
}

/**
 * An object that stays open until this side closes it, or until it ends for another reason. An open resource keeps the process alive until
 * {@link Resource.unref}. `await using` closes it.
 */
export interface Resource extends AsyncDisposable {
  /** The address at which it was opened; null for a line between parent and child, and for a merge. */
  readonly address: string | null
  /** Resolves once the resource has ended, with the reason. Never rejects. */
  readonly closed: Promise<Closed>
  /**
   * Flushes what was sent, ends cleanly and releases everything. Resolves once that is done.
   *
   * @param options.linger - Milliseconds for which what was sent may be flushed, 1,000 by default.
   */
  close(options?: { linger?: number | undefined }): Promise<void>
  /**
   * Drops everything that is not in the ring yet, and releases everything. With an error, `closed` has the reason 'failed' and this error.
   */
  destroy(error?: Error): void
  /** Keeps the process alive while it is open, which is the default. */
  ref(): this
  /** Lets the process exit while it is open. */
  unref(): this
}

/** The reading half of a channel, a subscription and a merge. */
export interface Source<T> extends AsyncIterable<T> {
  receive(options?: WaitOptions): Promise<T | undefined>
  tryReceive(): T | undefined
  /** A merge passes the parts of `T` the other way round: see {@link MergeVisit}. */
  receiveEach(
    visit: T extends readonly [{ readonly peer: Identity }, infer In] ? Visit<In> : Visit<T>,
    max?: number,
  ): number
  batches(options?: BatchOptions): AsyncIterable<T[]>
  waitReadable(options?: WaitOptions): Promise<boolean>
  readonly readableEnded: boolean
  readonly readable: ReadableStream<T>
}

/** The writing half of a channel and a publisher. */
export interface Sink<T> {
  send(message: T, options?: SendOptions): Promise<void>
  trySend(message: T): boolean
  reserve(size: number): Reservation | undefined
  fill(size: number, write: (bytes: Uint8Array, offset: number, length: number) => number): boolean
  waitWritable(size?: number, options?: WaitOptions): Promise<void>
  readonly bufferedAmount: number
  end(options?: WaitOptions): Promise<void>
  readonly writable: WritableStream<T>
}

/** The end of a resource. */
export interface Closed {
  /**
   * - 'closed': this side or the peer ended or closed it.
   * - 'lost': the peer's process died, or the peer destroyed the channel or closed it before everything was flushed.
   * - 'evicted': a publisher dropped this subscriber because it was too slow.
   * - 'corrupt': the peer violated the protocol of the shared memory.
   * - 'exposed': another process opened the shared memory, which was wiped.
   * - 'refused': `verify` found that the peer no longer satisfies the policy.
   * - 'failed': a local error.
   */
  readonly reason: 'closed' | 'lost' | 'evicted' | 'corrupt' | 'exposed' | 'refused' | 'failed'
  /** The error behind the reason; absent if that is 'closed'. */
  readonly error?: RingfenceError | undefined
}

/** Room in the ring for one message. `using` cancels a reservation that was not committed. */
export interface Reservation extends Disposable {
  /** The memory to fill. Do not use it after `commit` or `cancel`. */
  readonly bytes: Uint8Array
  /**
   * Sends the first `length` bytes (all).
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if `length` is larger than the reservation, or the reservation is no longer open; if
   * the channel has ended in the meantime, as `send` rejects.
   */
  commit(length?: number): void
  /** Sends nothing. Never throws, even if the channel has ended in the meantime. */
  cancel(): void
}
