// Finds the listening Unix sockets and their addresses in the kernel's tables.

import { readFileSync, readdirSync, readlinkSync } from 'node:fs'

import { RingfenceError, isResourceShortage } from '../errors.js'

/** Links of descriptors (`socket:[…]`) to the addresses at which their sockets listen. */
export type Listening = ReadonlyMap<string, string>

/** Number, references, protocol, flags, type, state, inode, and an optional name with any characters. */
const TABLE_LINE = /^[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +(\d+)(?: (.*))?$/s
/** The flag of a listening socket. */
const LISTENING_FLAG = 0x10000

/**
 * The named sockets that listen in this network namespace.
 *
 * @throws {@link RingfenceError} NO_SPACE if this process lacks descriptors or memory
 */
export function listeningSockets(): Listening {
  try {
    return parseListening(readFileSync('/proc/net/unix', 'utf8'))
  } catch (error) {
    throwIfResourceShortage(error)
    throw error
  }
}

/**
 * The listening sockets in the kernel's table. The kernel prints names verbatim, newlines included, and any user may choose a name that
 * contains a forged line. If two lines contradict each other about a socket, that socket is ignored.
 */
export function parseListening(table: string): Listening {
  const sockets = new Map<string, { flags: number; name: string }>()
  const contradictory = new Set<string>()
  /** The entries, each with the continuation lines of its name. */
  const rows: { flags: number; inode: string; name: string }[] = []
  for (const line of table.split('\n').slice(1, -1)) {
    const [, flags, inode, name = ''] = TABLE_LINE.exec(line) ?? []
    const last = rows.at(-1)
    if (flags !== undefined) rows.push({ flags: parseInt(flags, 16), inode: `socket:[${inode}]`, name })
    else if (last !== undefined) last.name += `\n${line}`
  }
  for (const { flags, inode, name } of rows) {
    const earlier = sockets.get(inode) ?? { flags, name }
    // The kernel may list a socket twice if others are opened or closed during the read.
    if (earlier.flags !== flags || earlier.name !== name) contradictory.add(inode)
    sockets.set(inode, earlier)
  }
  const listening = [...sockets].filter(
    ([inode, { flags, name }]) => (flags & LISTENING_FLAG) !== 0 && name !== '' && !contradictory.has(inode),
  )
  return new Map(listening.map(([inode, { name }]) => [inode, name]))
}

/**
 * The addresses at which a process listens. Returns none for a process in another network namespace, whose sockets the table does not list.
 *
 * @throws The error of /proc if the process has exited, or this user may not inspect it.
 */
export function addressesOf(pid: number, listening: Listening): string[] {
  if (readlinkSync(`/proc/${pid}/ns/net`) !== readlinkSync('/proc/self/ns/net')) return []
  const addresses = new Set<string>()
  for (const descriptor of readdirSync(`/proc/${pid}/fd`)) {
    // It may have been closed in the meantime.
    const link = nullIfGone(() => readlinkSync(`/proc/${pid}/fd/${descriptor}`))
    const address = link === null ? undefined : listening.get(link)
    if (address !== undefined) addresses.add(address)
  }
  return [...addresses]
}

/**
 * Returns null if the read fails because the process has exited, or this user may not inspect it.
 *
 * @throws {@link RingfenceError} NO_SPACE if this process lacks descriptors or memory
 */
export function nullIfGone<Result>(read: () => Result): Result | null {
  try {
    return read()
  } catch (error) {
    throwIfResourceShortage(error)
    return null
  }
}

/** Throws NO_SPACE for an error of this process's own limits, which says nothing about the inspected process. */
export function throwIfResourceShortage(error: unknown): void {
  const { code, message } = error as NodeJS.ErrnoException
  // Calls of `nullIfGone` may be nested.
  if (error instanceof RingfenceError) throw error
  if (isResourceShortage(code))
    throw new RingfenceError('NO_SPACE', `this process cannot read /proc: ${message}`, { cause: error })
}
