// Which Unix sockets listen, and where, as the kernel lists them.

import { readFileSync, readdirSync, readlinkSync } from 'node:fs'

import { RingfenceError, isShort } from '../errors.js'

/** Links of descriptors (`socket:[…]`) to the addresses at which their sockets listen. */
export type Listening = ReadonlyMap<string, string>

/** Number, references, protocol, flags, type, state and inode, and the name where there is one, whatever characters that has. */
const LINE = /^[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +(\d+)(?: (.*))?$/s
/** Among the flags: it listens. */
const LISTENS = 0x10000

/**
 * The sockets with a name that listen in this network namespace.
 *
 * @throws {@link RingfenceError} NO_SPACE: this process lacks what it takes to look.
 */
export function listeningSockets(): Listening {
  try {
    return listeningIn(readFileSync('/proc/net/unix', 'utf8'))
  } catch (error) {
    failIfShort(error)
    throw error
  }
}

/**
 * Those in the kernel's table. A name is printed as it is, new lines included, and any user may take a name that holds what looks like
 * a line: of a socket that two lines say different things of, none is believed.
 */
export function listeningIn(table: string): Listening {
  const told = new Map<string, { flags: number; name: string }>()
  const doubtful = new Set<string>()
  /** The lines, each with what follows of its name. */
  const whole: { flags: number; inode: string; name: string }[] = []
  for (const line of table.split('\n').slice(1, -1)) {
    const [, flags, inode, name = ''] = LINE.exec(line) ?? []
    const last = whole.at(-1)
    if (flags !== undefined) whole.push({ flags: parseInt(flags, 16), inode: `socket:[${inode}]`, name })
    else if (last !== undefined) last.name += `\n${line}`
  }
  for (const { flags, inode, name } of whole) {
    const before = told.get(inode) ?? { flags, name }
    // The kernel may list one twice, where others come and go while it is read.
    if (before.flags !== flags || before.name !== name) doubtful.add(inode)
    told.set(inode, before)
  }
  const listening = [...told].filter(
    ([inode, { flags, name }]) => (flags & LISTENS) !== 0 && name !== '' && !doubtful.has(inode),
  )
  return new Map(listening.map(([inode, { name }]) => [inode, name]))
}

/**
 * The addresses at which a process listens. Not those of another network namespace, of whose sockets the table says nothing.
 *
 * @throws what /proc answers where it is gone, or closed to this user.
 */
export function addressesOf(pid: number, listening: Listening): string[] {
  if (readlinkSync(`/proc/${pid}/ns/net`) !== readlinkSync('/proc/self/ns/net')) return []
  const addresses = new Set<string>()
  for (const descriptor of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const address = listening.get(readlinkSync(`/proc/${pid}/fd/${descriptor}`))
      if (address !== undefined) addresses.add(address)
    } catch (error) {
      // Else it was closed meanwhile.
      if (isShort((error as NodeJS.ErrnoException).code)) throw error
    }
  }
  return [...addresses]
}

/** What this process lacks to look at another one says nothing of that. */
export function failIfShort(error: unknown): void {
  const { code, message } = error as NodeJS.ErrnoException
  if (isShort(code))
    throw new RingfenceError('NO_SPACE', `this process cannot look into /proc: ${message}`, { cause: error })
}
