// Which processes of this host have channels, as /proc shows it. No memory is opened, and no process is stopped or asked: who maps which
// object can be read without either, and sets off no tripwire.

import { readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs'

import { isShort } from '../errors.js'
import { observedAt, observedPid } from './observe.js'
import { addressesOf, failIfShort, listeningSockets, type Listening } from './sockets.js'

/** A channel of a process, as others see it. */
export interface SeenChannel {
  /** Where it met its peer, where that can be told: as long as one of the two keeps one address alone. */
  address: string | null
  /** The process that has the other end; null if it cannot be seen (/proc shows other users' to root alone), or for a publisher without subscribers. */
  peer: number | null
  /** The process's part; of a publisher's ring the writer, or one that reads it. */
  role: 'host' | 'guest' | 'publisher' | 'subscriber' | null
  /** Bytes of the ring that the process writes; 0 for a subscriber. */
  ringCapacity: number
  /** Bytes of the ring that it reads; 0 for a publisher, and where it cannot be told. */
  peerRingCapacity: number
}

/** A process that has channels. */
export interface SeenProcess {
  pid: number
  uid: number
  /** null where it cannot be read. */
  executable: string | null
  /** When the process began, in milliseconds since 1970. */
  since: number
  channels: SeenChannel[]
}

/** Bytes beside the ring: the words that both look at, and one page behind it. */
const BESIDE = 8192

/** A mapping of an object of this package. */
interface Mapped {
  inode: string
  capacity: number
  /** The owner alone writes. With the backing shm as well, as far as its mapping goes. */
  writes: boolean
  /** Of a publisher's ring: the address, in the publisher's own words. */
  publishedAt: string | null
}

interface Looked {
  pid: number
  mapped: Mapped[]
  /** Addresses at which it listens. */
  addresses: string[]
}

/** Who writes and who reads each object, by its number. */
interface Host {
  owners: Map<string, Looked>
  /** Of all that have an owner, in their owners' order. */
  places: Map<string, number>
  readers: Map<string, Looked[]>
}

/**
 * A line of a process's map: from, to, rights, the device and the inode, the name. A control object, which holds no ring, has a name of
 * its own, and a publisher's ring the address in its name.
 */
const LINE =
  /^([0-9a-f]+)-([0-9a-f]+) r([w-])\S+ \S+ (\S+ \d+) +(?:\/memfd:ringfence(?:-published:([^]+))?|\/dev\/shm\/ringfence\S*) \(deleted\)$/

/**
 * The processes of this host that have channels, as far as this user may see.
 *
 * @throws {@link RingfenceError} NO_SPACE: this process lacks what it takes to look at them.
 */
export function seenProcesses(): SeenProcess[] {
  const listening = listeningSockets()
  const looked = pids()
    .map((pid) => look(pid, listening))
    .filter((found) => found !== null)
  const owners = new Map<string, Looked>()
  const readers = new Map<string, Looked[]>()
  for (const process of looked)
    for (const { inode, writes } of process.mapped) {
      if (writes) owners.set(inode, process)
      else readers.set(inode, [...(readers.get(inode) ?? []), process])
    }
  const places = new Map([...owners.keys()].map((inode, place) => [inode, place]))
  return looked.flatMap((process) => {
    const about = aboutProcess(process.pid)
    return about === null ? [] : [{ ...about, channels: channelsOf(process, { owners, places, readers }) }]
  })
}

function pids(): number[] {
  try {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
  } catch (error) {
    failIfShort(error)
    throw error
  }
}

/** null: it has no channel, or may not be looked at, or is gone. */
function look(pid: number, listening: Listening): Looked | null {
  try {
    const mapped = mappedBy(readFileSync(`/proc/${pid}/maps`, 'latin1'))
    if (mapped.length === 0) return null
    // The program meets no peer at the address of its figures.
    return { pid, mapped, addresses: addressesOf(pid, listening).filter((address) => address !== observedAt(pid)) }
  } catch (error) {
    failIfShort(error)
    return null
  }
}

/** The rings in a process's map. One that is mapped in several pieces is one. */
function mappedBy(maps: string): Mapped[] {
  const found = new Map<string, Mapped>()
  // The kernel escapes a new line in a file's name, which any user may choose, and nothing else: only a new line ends a line.
  for (const line of maps.split('\n')) {
    const [, from, to, right, inode, name] = LINE.exec(line) ?? []
    if (inode === undefined) continue
    const publishedAt = name === undefined ? null : Buffer.from(name, 'latin1').toString().replaceAll('\\012', '\n')
    // The figures that a process tells of itself are no channel of the program.
    if (publishedAt !== null && observedPid(publishedAt) !== null) continue
    const mapped = found.get(inode) ?? { inode, capacity: -BESIDE, writes: false, publishedAt }
    mapped.capacity += parseInt(to!, 16) - parseInt(from!, 16)
    mapped.writes ||= right === 'w'
    found.set(inode, mapped)
  }
  return [...found.values()].filter(({ capacity }) => capacity > 0)
}

function aboutProcess(pid: number): Omit<SeenProcess, 'channels'> | null {
  try {
    const { uid } = statSync(`/proc/${pid}`)
    const since = beganAt(pid)
    let executable: string | null = null
    try {
      executable = readlinkSync(`/proc/${pid}/exe`)
    } catch (error) {
      // Else it is closed to this user.
      if (isShort((error as NodeJS.ErrnoException).code)) throw error
    }
    return { pid, uid, executable, since }
  } catch (error) {
    failIfShort(error)
    return null
  }
}

/** Ticks of a second, as /proc has them on every processor that this package is built for. */
const TICKS = 100

function beganAt(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
  // The name, which may hold anything, ends at the last bracket; from there on the begin is the 20th word.
  const ticks = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19])
  const boot = Number(/^btime (\d+)$/m.exec(readFileSync('/proc/stat', 'latin1'))![1])
  return (boot + ticks / TICKS) * 1000
}

/** A channel is a ring of each of two processes that the other one reads. A publisher's ring has any number of readers. */
function channelsOf(process: Looked, { owners, places, readers }: Host): SeenChannel[] {
  const readersOf = (inode: string) => readers.get(inode) ?? []
  const placeOf = ({ inode }: Mapped) => places.get(inode) ?? 0
  /** Rings of others that this one reads, which are taken one by one: in their owners' order, as those pair them. */
  const others = process.mapped.filter(({ writes }) => !writes).sort((one, other) => placeOf(one) - placeOf(other))
  const channels: SeenChannel[] = []
  for (const { inode, capacity: ringCapacity, publishedAt } of process.mapped.filter(({ writes }) => writes)) {
    const theirs = readersOf(inode)
    if (publishedAt !== null) {
      const of = {
        address: ifBound(publishedAt, process),
        role: 'publisher' as const,
        ringCapacity,
        peerRingCapacity: 0,
      }
      for (const pid of theirs.length > 0 ? theirs.map((reader) => reader.pid) : [null])
        channels.push({ ...of, peer: pid })
      continue
    }
    const [peer] = theirs
    const at = others.findIndex((other) => other.publishedAt === null && owners.get(other.inode) === peer)
    const [other] = at < 0 ? [] : others.splice(at, 1)
    const address = peer === undefined ? null : addressFor(process, peer)
    const role = address === null ? null : process.addresses.includes(address) ? 'host' : 'guest'
    channels.push({ address, peer: peer?.pid ?? null, role, ringCapacity, peerRingCapacity: other?.capacity ?? 0 })
  }
  for (const { inode, capacity, publishedAt } of others) {
    const owner = owners.get(inode)
    const isPublished = publishedAt !== null
    channels.push({
      address: owner === undefined ? null : isPublished ? ifBound(publishedAt, owner) : addressFor(owner, process),
      peer: owner?.pid ?? null,
      // Else it is what a peer has left that is gone, or whose own ring this process does not write any longer.
      role: isPublished ? 'subscriber' : null,
      ringCapacity: 0,
      peerRingCapacity: capacity,
    })
  }
  return channels
}

/** An address in a publisher's own words, if the kernel says that it listens there. */
function ifBound(address: string, { addresses }: Looked): string | null {
  return addresses.includes(address) ? address : null
}

/** The address of two: that of the one that listens, if it is one alone. */
function addressFor(one: Looked, other: Looked): string | null {
  const [first, ...more] = [...new Set([...one.addresses, ...other.addresses])]
  return first === undefined || more.length > 0 ? null : first
}
