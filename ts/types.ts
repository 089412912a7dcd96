// oxlint-disable-next-line import/no-cycle -- a type alone
import type { RingfenceError } from './errors.js'

/** Options of a call that waits. */
export interface WaitOptions {
  /** Aborts the call, which rejects with an AbortError; its `cause` is the reason. An abort after the call has resolved does nothing. */
  signal?: AbortSignal | undefined
}

/** What the kernel attested of a peer when it was looked at. */
export interface Identity {
  /** Process id, in this process's pid namespace; 0 for a process that has none there, which `namespace: 'any'` lets in. */
  pid: number
  /** Effective user id. */
  uid: number
  /** Effective group id. */
  gid: number
  /**
   * Supplementary groups that it had at first and still has. Left out where the kernel does not tell them (before Linux 4.13),
   * or where those that it has now cannot be seen (`hidepid`).
   */
  groups?: number[]
  /** The cgroup (version 2), as /proc/PID/cgroup names it. */
  cgroup?: string
  /** The security label, where a security module gives one. */
  label?: string
  /**
   * The executable, where it can be read. What counts is device and inode, in decimal as
   * `fs.statSync(path, { bigint: true })` has them; the path is for people. `sha256` is there
   * where the policy asked for it.
   */
  executable?: { path: string; device: string; inode: string; sha256?: string }
}

/** One check made on the way to a channel. */
export interface Evidence {
  /**
   * The step of the handshake: rendezvous, credentials, executable, hello, object, offer, final, ready; or
   * verify, for a later look.
   */
  step: string
  /** What was looked at. */
  check: string
  /** What it had to be. */
  wanted: string
  /** What it was. */
  found: string
  /** Whether it had to be so and is, or was only noted, since the policy or the kernel leaves it open. */
  outcome: 'passed' | 'not-asked'
}

/** An executable by its content. */
export interface ExecutableFile {
  /** The file as well: its absolute path, compared by device and inode ('same': this process's own). Left out: any file. */
  path?: string
  /**
   * 64 hexadecimal digits, as sha256sum prints them: what is read through /proc/PID/exe, which takes permission to read
   * the file. It says what the file holds, and nothing of what was loaded beside it.
   */
  sha256: string
}

/**
 * Who the peer must be. Without one: `{ uid: 'same', namespace: 'same', executable: 'same' }`. One that is given replaces that
 * whole: a uid or a namespace left out means 'same', anything else left out is not looked at, and the evidence says so. All
 * checks must hold, and one that cannot be made is a refusal.
 */
export interface Policy {
  /** The peer's effective uid. */
  uid?: 'same' | number | number[]
  /** One of these must be its effective gid or among its supplementary groups. */
  gid?: number | number[]
  /**
   * What it executes: the file, by its absolute path and compared by device and inode ('same': this process's own), or its
   * content. Of another
   * user's process, and of a hardened one, it can be seen by CAP_SYS_PTRACE alone: ask for uid, gid, cgroup or label.
   */
  executable?: 'same' | string | ExecutableFile | ('same' | string | ExecutableFile)[]
  /** Its very cgroup (version 2), as /proc/PID/cgroup names it. */
  cgroup?: string
  /** Its security label when it connected or listened. */
  label?: string
  /**
   * 'same' (the default): it lives in this process's pid namespace, and in its user namespace as far as that can be seen; else
   * PEER_REFUSED, `namespace`. 'any': it may live in another, as in another container. Then the kernel's word for its process
   * number proves nothing: any process of its user in its pid namespace can speak for it. Of a peer whose namespace cannot be
   * seen from here, the executable, the cgroup and supplementary groups cannot be looked at.
   */
  namespace?: 'same' | 'any'
  /**
   * Asked last, about a peer that has passed everything else, before anything is shared with it, on both sides. What it
   * throws or rejects with, and what is no boolean, refuses the peer; the error has it as its `cause`. It has the
   * handshake's deadline (HANDSHAKE_TIMEOUT), and others are served meanwhile. `verify` does not ask it again.
   */
  authorize?(identity: Identity): boolean | Promise<boolean>
}

/** Bytes of any kind: an ArrayBuffer, or a view of one. What a Buffer, a typed array or a DataView does not show is not sent. */
export type BufferSource = ArrayBufferView | ArrayBuffer

/**
 * What a process wants of a channel: everything that a call takes. Each call has a type of its own ({@link JoinOptions},
 * {@link MemberOptions}, {@link ListenOptions}, {@link ConnectOptions}, {@link LineOptions}); what a call does not take is
 * INVALID_ARGUMENT.
 */
export interface Options {
  /** What the shared memory is made of ('memfd'). Both sides must choose the same. */
  backing?: 'memfd' | 'shm'
  /** Bytes of the ring that this side writes (4 MiB); rounded up to a power of two of at least 4096. */
  capacity?: number
  /** Bytes of the longest message that this side will receive (64 MiB); at most 2 GiB. */
  maxMessageSize?: number
  /**
   * Bytes of the largest ring that the peer may bring (1 GiB), at least 4096. This side maps that ring, so the peer's choice
   * takes address space here. A peer whose ring is larger is refused before anything is shared: PROTOCOL, which names both.
   */
  maxPeerCapacity?: number
  /** Who the peer must be. */
  policy?: Policy
  /** Permission bits of a named socket (0o600), whatever the umask. */
  mode?: number
  /** Group of a named socket: its name or number. */
  group?: number | string
  /**
   * Milliseconds that one handshake may take with a partner that has come (5,000). `leave` of a membership waits as long for
   * its partner's answer.
   */
  handshakeTimeout?: number
  /**
   * Ends the waiting for a channel or for a place, which are no longer tied to it once they are there. Closes a listener.
   */
  signal?: AbortSignal
  /**
   * Where the place is taken, or a service is full, wait for it instead of failing with ADDRESS_OCCUPIED. Where no service
   * listens, or the service ends in the middle of a handshake, wait for the service to come (false). A peer that hangs up each
   * time, for as long as `handshakeTimeout` says, is PEER_LOST all the same.
   */
  wait?: boolean
  /**
   * `listen`: channels that may be open at a time (no limit). Further agents get ADDRESS_OCCUPIED until one of those
   * connected leaves.
   */
  maxPeers?: number
  /**
   * `listen`: of these, channels with one process (seven eighths of `maxPeers`, rounded up: all where that is below 8; no limit
   * without it). So no agent can take all seats: its next one gets ADDRESS_OCCUPIED.
   */
  maxPeersPerProcess?: number
  /**
   * `listen`: of these, channels with the processes of one user, this process's own included. By default all for this
   * process's own user, and for another user three quarters of `maxPeers`, rounded up: all where that is below 4, or where the
   * policy lets in one user alone; no limit without it. The next one gets ADDRESS_OCCUPIED.
   */
  maxPeersPerUser?: number
  /** Microseconds that a wait may spin on this thread before it sleeps (0). */
  busyPollMicros?: number
  /**
   * What becomes of this side's sending once a read here has found that the peer has ended its own: by null, by false, by the end of a
   * loop, by a stream's 'end', by {@link Channel.readableEnded}. Left out or false: this side ends too, after what it has sent before, and
   * a later send is CLOSED. True: this side sends on, until {@link Channel.end}. As in node:net.
   */
  allowHalfOpen?: boolean
  /**
   * Close this process to others of its user (see {@link harden}) within the handshake: after both sides have looked at
   * each other's executable, and before the shared memory is made (false). It stays so, whatever becomes of the
   * handshake. SIGUSR1 is ignored from the call on.
   */
  harden?: boolean
  /**
   * The realtime signal by which the kernel tells that a process tries to open this side's memory, and by which the peer's
   * tokens come (the first from 50 on that this process does not use); 34 to 64 with most C libraries. No other part of the
   * process gets it. One that this process uses itself, or ignores, is INVALID_ARGUMENT.
   */
  realtimeSignal?: number
}

/** What {@link listen} takes. */
export interface ListenOptions extends Options {}

/** What {@link join} takes: two processes share the address, so there is no number of peers to limit. */
export interface JoinOptions extends Omit<Options, 'maxPeers' | 'maxPeersPerProcess' | 'maxPeersPerUser'> {}

/** What {@link member} takes: the same as {@link join}. */
export interface MemberOptions extends JoinOptions {}

/** What {@link connect} takes: the socket's file is the service's. */
export interface ConnectOptions extends Omit<JoinOptions, 'mode' | 'group'> {}

/** What {@link spawn} and {@link fromParent} take: a private line has no address to wait at. */
export interface LineOptions extends Omit<ConnectOptions, 'wait'> {}

/**
 * How messages reach a subscriber. 'reliable': every message, in order, or the end says why not. 'best-effort': what the publisher
 * overwrites before it was read is passed over, and counted. 'latest': only the newest message that was not seen.
 */
export type Delivery = 'reliable' | 'best-effort' | 'latest'

/** What {@link publish} takes. A subscriber has no ring of its own, so there is none to limit; nothing is received. */
export interface PublishOptions extends Omit<ListenOptions, 'maxPeerCapacity' | 'allowHalfOpen'> {
  /**
   * Milliseconds for which one reliable subscriber may hold the publisher up, in all, until it has caught up (5,000); then it is
   * evicted. It has caught up once it has read everything that was published when it last held the publisher up. Infinity: never.
   */
  stall?: number
  /** What subscribers may ask for (all three). */
  deliveries?: Delivery[]
}

/** What {@link subscribe} takes. */
export interface SubscribeOptions extends Omit<
  ConnectOptions,
  'backing' | 'capacity' | 'maxPeerCapacity' | 'allowHalfOpen'
> {
  /** How messages come ('reliable'). */
  delivery?: Delivery
  /** Where to begin: with what is published from now on ('now', the default), with what the ring still holds, or with the last message. */
  from?: 'now' | 'oldest' | 'latest'
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

/**
 * Why a channel has ended: it was closed by either side (or by itself, when both had ended and everything was read), the peer's
 * process exited without closing it, its ring was corrupt, or a process tried to open the shared memory of either side, which
 * was then wiped.
 */
export type CloseReason = 'closed' | 'exited' | 'corrupt' | 'exposed'

/** Why a subscriber has gone: as a channel's end, or since it held its publisher up for too long. */
export type GoneReason = CloseReason | 'evicted'

/** Room in the ring for one message. `using` cancels one that was not committed. */
export interface Reservation extends Disposable {
  /** The memory to fill. Not to be used after commit or cancel. */
  readonly bytes: Uint8Array
  /**
   * Sends the first `length` bytes (all).
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT if that is more than was reserved, or the reservation is not open
   * any more; as `send` rejects, where the channel has ended meanwhile.
   */
  commit(length?: number): void
  /** Sends nothing. Never throws, also where the channel has ended meanwhile. */
  cancel(): void
}
