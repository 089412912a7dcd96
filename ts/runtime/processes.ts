// Finds the processes of this host that have channels, from /proc. The memory maps alone show which process maps which object. No memory
// is opened, which would trip a tripwire, and no process is stopped or queried.

import { readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs'

import { observeAddress, pidOfObserveAddress } from './observe.js'
import { addressesOf, listeningSockets, nullIfGone, throwIfResourceShortage, type Listening } from './sockets.js'

/** A channel of a process, as other processes can see it. */
export interface SeenChannel {
  /** The address at which it met its peer. Known only while the two processes together listen at exactly one address; else null. */
  address: string | null
  /**
   * The process at the other end. null if it is not visible (/proc shows other users' processes only to root), or for a publisher without
   * subscribers.
   */
  peer: number | null
  /** The role of the process; null if unknown. */
  role: 'host' | 'guest' | 'publisher' | 'subscriber' | null
  /** Bytes of the ring that the process writes; 0 for a subscriber. */
  ringCapacity: number
  /** Bytes of the ring that the process reads; 0 for a publisher, or if unknown. */
  peerRingCapacity: number
}

/** A process that has channels. */
export interface SeenProcess {
  pid: number
  uid: number
  /** null if it cannot be read. */
  executable: string | null
  /** When the process started, in milliseconds since 1970. */
  since: number
  channels: SeenChannel[]
}

/** Bytes of an object in addition to the ring: the words that both sides read, and one page after the ring. */
const OVERHEAD = 8192

/** A mapping of an object of this package. */
interface MappedRing {
  inode: string
  capacity: number
  /** Whether the process maps the object writable. Only the owner does, also with the backing shm. */
  writes: boolean
  /** For a publisher's ring: the address that the publisher claims. */
  publishedAt: string | null
}

interface InspectedProcess {
  pid: number
  mapped: MappedRing[]
  /** Addresses at which the process listens. */
  addresses: string[]
}

/** The writer and the readers of each object, by inode. */
interface RingIndex {
  owners: Map<string, InspectedProcess>
  /** The index of each object that has an owner, in the order of the owners. */
  order: Map<string, number>
  readers: Map<string, InspectedProcess[]>
}

/**
 * A line of /proc/PID/maps: start, end, permissions, device and inode, name. A control object holds no ring; its name is different and does
 * not match. The name of a publisher's ring contains the address.
 */
const MAPS_LINE =
  /^([0-9a-f]+)-([0-9a-f]+) r([w-])\S+ \S+ (\S+ \d+) +(?:\/memfd:ringfence(?:-published:([^]+))?|\/dev\/shm\/ringfence\S*) \(deleted\)$/

/**
 * The processes of this host that have channels, as far as this user may see them.
 *
 * @throws {@link RingfenceError} NO_SPACE if this process lacks descriptors or memory
 */
export function seenProcesses(): SeenProcess[] {
  const listening = listeningSockets()
  const inspected = pids()
    .map((pid) => inspect(pid, listening))
    .filter((found) => found !== null)
  const owners = new Map<string, InspectedProcess>()
  const readers = new Map<string, InspectedProcess[]>()
  for (const process of inspected)
    for (const { inode, writes } of process.mapped) {
      if (writes) owners.set(inode, process)
      else readers.set(inode, [...(readers.get(inode) ?? []), process])
    }
  const order = new Map([...owners.keys()].map((inode, index) => [inode, index]))
  return inspected.flatMap((process) => {
    const description = describeProcess(process.pid)
    return description === null ? [] : [{ ...description, channels: channelsOf(process, { owners, order, readers }) }]
  })
}

function pids(): number[] {
  try {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
  } catch (error) {
    throwIfResourceShortage(error)
    throw error
  }
}

/** Returns null if the process has no channel, may not be inspected, or has exited. */
function inspect(pid: number, listening: Listening): InspectedProcess | null {
  return nullIfGone(() => {
    const mapped = parseMaps(readFileSync(`/proc/${pid}/maps`, 'latin1'))
    if (mapped.length === 0) return null
    // The address for statistics belongs to this package and not to the program.
    return { pid, mapped, addresses: addressesOf(pid, listening).filter((address) => address !== observeAddress(pid)) }
  })
}

/** The rings in a process's memory map. The pieces of one object are merged. */
function parseMaps(maps: string): MappedRing[] {
  const found = new Map<string, MappedRing>()
  // Any user may choose a file's name. The kernel escapes a newline in it and nothing else, so only a newline ends a line here.
  for (const line of maps.split('\n')) {
    const [, from, to, access, inode, name] = MAPS_LINE.exec(line) ?? []
    if (inode === undefined) continue
    const publishedAt = name === undefined ? null : Buffer.from(name, 'latin1').toString().replaceAll('\\012', '\n')
    // The ring that publishes a process's statistics is not a channel of the program.
    if (publishedAt !== null && pidOfObserveAddress(publishedAt) !== null) continue
    const mapped = found.get(inode) ?? { inode, capacity: -OVERHEAD, writes: false, publishedAt }
    mapped.capacity += parseInt(to!, 16) - parseInt(from!, 16)
    mapped.writes ||= access === 'w'
    found.set(inode, mapped)
  }
  return [...found.values()].filter(({ capacity }) => capacity > 0)
}

function describeProcess(pid: number): Omit<SeenProcess, 'channels'> | null {
  return nullIfGone(() => {
    const { uid } = statSync(`/proc/${pid}`)
    const since = startTime(pid)
    return { pid, uid, executable: nullIfGone(() => readlinkSync(`/proc/${pid}/exe`)), since }
  })
}

/** Clock ticks per second in /proc, on every processor that this package is built for. */
const TICKS = 100

function startTime(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
  // The name may contain anything and ends at the last parenthesis. After it, the start time is the 20th word.
  const ticks = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19])
  const boot = Number(/^btime (\d+)$/m.exec(readFileSync('/proc/stat', 'latin1'))![1])
  return (boot + ticks / TICKS) * 1000
}

/** A channel consists of two rings: each process writes one and the other reads it. A publisher's ring has any number of readers. */
function channelsOf(process: InspectedProcess, { owners, order, readers }: RingIndex): SeenChannel[] {
  const readersOf = (inode: string) => readers.get(inode) ?? []
  const orderOf = ({ inode }: MappedRing) => order.get(inode) ?? 0
  /** Other processes' rings that this one reads. Each is paired once, in the order of the owners, so that both sides pair them alike. */
  const foreignRings = process.mapped
    .filter(({ writes }) => !writes)
    .sort((one, other) => orderOf(one) - orderOf(other))
  const channels: SeenChannel[] = []
  for (const { inode, capacity: ringCapacity, publishedAt } of process.mapped.filter(({ writes }) => writes)) {
    const ringReaders = readersOf(inode)
    if (publishedAt !== null) {
      const publisher = {
        address: ifBound(publishedAt, process),
        role: 'publisher' as const,
        ringCapacity,
        peerRingCapacity: 0,
      }
      for (const pid of ringReaders.length > 0 ? ringReaders.map((reader) => reader.pid) : [null])
        channels.push({ ...publisher, peer: pid })
      continue
    }
    const [peer] = ringReaders
    const at = foreignRings.findIndex((other) => other.publishedAt === null && owners.get(other.inode) === peer)
    const [other] = at < 0 ? [] : foreignRings.splice(at, 1)
    const address = peer === undefined ? null : addressFor(process, peer)
    const role = address === null ? null : process.addresses.includes(address) ? 'host' : 'guest'
    channels.push({ address, peer: peer?.pid ?? null, role, ringCapacity, peerRingCapacity: other?.capacity ?? 0 })
  }
  for (const { inode, capacity, publishedAt } of foreignRings) {
    const owner = owners.get(inode)
    const isPublished = publishedAt !== null
    channels.push({
      address: owner === undefined ? null : isPublished ? ifBound(publishedAt, owner) : addressFor(owner, process),
      peer: owner?.pid ?? null,
      // Otherwise the ring is left over from a peer that has exited, or this process no longer maps its own ring of the channel.
      role: isPublished ? 'subscriber' : null,
      ringCapacity: 0,
      peerRingCapacity: capacity,
    })
  }
  return channels
}

/** The address that a publisher claims, if the kernel confirms that it listens there. */
function ifBound(address: string, { addresses }: InspectedProcess): string | null {
  return addresses.includes(address) ? address : null
}

/** The address at which one of two processes listens, if there is exactly one. */
function addressFor(one: InspectedProcess, other: InspectedProcess): string | null {
  const [first, ...more] = [...new Set([...one.addresses, ...other.addresses])]
  return first === undefined || more.length > 0 ? null : first
}
