// Facts about a peer: plain data, which the binding and the public API share.

/** The properties of a peer that the kernel attested at the last check. */
export interface Identity {
  /** Process id in this process's pid namespace. 0 for a process that is not visible there, which only `namespace: 'any'` accepts. */
  readonly pid: number
  /** Effective user id. */
  readonly uid: number
  /** Effective group id. */
  readonly gid: number
  /**
   * Supplementary groups that the peer had when it connected and still has. Absent if the kernel does not report them (before Linux
   * 4.13), or if its current ones are not visible (`hidepid`).
   */
  readonly groups?: readonly number[] | undefined
  /** The cgroup (version 2), as /proc/PID/cgroup names it. */
  readonly cgroup?: string | undefined
  /** The security label, if a security module assigns one. */
  readonly label?: string | undefined
  /**
   * The executable, if it can be read. Device and inode identify it, in decimal as `fs.statSync(path, { bigint: true })` has them; the
   * path is for display. `sha256` is present if the policy requires a content.
   */
  readonly executable?:
    | { readonly path: string; readonly device: string; readonly inode: string; readonly sha256?: string | undefined }
    | undefined
}

/** One check of the peer, made on the way to a channel or by `verify`. */
export interface Evidence {
  /** The step of the handshake (rendezvous, credentials, executable, hello, object, offer, final or ready), or verify. */
  readonly step: string
  /** The property that was checked. */
  readonly check: string
  /** The value that the check required; `not asked for` if the policy does not check the property. */
  readonly wanted?: string | undefined
  /** The value that the check found. */
  readonly found?: string | undefined
  /**
   * `'not-asked'`: only recorded, because the policy does not check it. `'not-visible'`: a child cannot see this property of its parent
   * from its namespaces; the inherited line proves the parent, and the child's policy does not name the check.
   */
  readonly outcome: 'passed' | 'not-asked' | 'not-visible'
}

/**
 * The way in which messages reach a subscriber.
 *
 * - 'reliable': every message, in order; otherwise the subscription ends with the reason.
 * - 'best-effort': messages that the publisher overwrote before they were read are skipped and counted.
 * - 'latest': only the newest unread message.
 */
export type Delivery = 'reliable' | 'best-effort' | 'latest'

/** The binding's reason why a channel, a subscription or a subscriber has ended. */
export type GoneReason = 'closed' | 'lost' | 'corrupt' | 'exposed' | 'refused' | 'evicted'
