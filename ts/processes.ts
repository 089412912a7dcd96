// Which processes of this host have channels, as /proc shows it. No memory is opened, and no process is stopped or asked: who maps which
// object can be read without either, and sets off no tripwire.

import { readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs'

import { isShort } from './errors.js'
import { observedAt } from './observe.js'
import { addressesOf, failIfShort, listeningSockets, type Listening } from './sockets.js'

/** A channel of a process, as others see it. */
export interface SeenChannel {
  /** Where it met its peer, where that can be told: as long as one of the two keeps one address alone. */
  address: string | null
  /** The process that has the other end; null where that is another user's, which /proc does not show. */
  peer: number | null
  /** Its part: of a publisher's ring the writer, or one that reads it. */
  role: 'host' | 'guest' | 'publisher' | 'subscriber' | null
  /** Bytes of the ring that the process writes; 0 for a subscriber. */
  ringCapacity: number
  /** Bytes of the ring that it reads; 0 for a publisher, and where it cannot be told. */
  peerRingCapacity: number
}

/** A process that has channels, or a ring that nobody reads yet. */
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
 * A line of a process's map: from, to, rights, the device and the inode, the name. A control object, which holds no ring, has a name of its
 * own.
 */
const LINE =
  /^([0-9a-f]+)-([0-9a-f]+) r([w-])\S+ \S+ (\S+ \d+) +(?:\/memfd:ringfence|\/dev\/shm\/ringfence\S*) \(deleted\)$/

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
    // Where it tells its figures no channel of the program's is met.
    return { pid, mapped, addresses: addressesOf(pid, listening).filter((address) => address !== observedAt(pid)) }
  } catch (error) {
    failIfShort(error)
    return null
  }
}

/** The objects in a process's map. One that is mapped in several pieces is one. */
function mappedBy(maps: string): Mapped[] {
  const found = new Map<string, { size: number; writes: boolean }>()
  // Of a file's name, which any user may choose, the kernel writes all but a new line as it is: what else begins a line is no end of one.
  for (const line of maps.split('\n')) {
    const [, from, to, right, inode] = LINE.exec(line) ?? []
    if (inode === undefined) continue
    const before = found.get(inode) ?? { size: 0, writes: false }
    const size = before.size + parseInt(to!, 16) - parseInt(from!, 16)
    found.set(inode, { size, writes: before.writes || right === 'w' })
  }
  return [...found].map(([inode, { size, writes }]) => ({ inode, capacity: Math.max(0, size - BESIDE), writes }))
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

/**
 * A channel is a ring of each of two that the other one reads. What is left over, or has several readers, is a publisher's. Where two
 * have a channel, and one reads the other's publisher as well, alone, it cannot be told which ring is which: what both are told is the same.
 */
function channelsOf(process: Looked, { owners, places, readers }: Host): SeenChannel[] {
  const readersOf = (inode: string) => readers.get(inode) ?? []
  const placeOf = ({ inode }: Mapped) => places.get(inode) ?? 0
  const rings = process.mapped.filter(({ capacity }) => capacity > 0)
  /** Rings of others that this one reads, which are taken one by one: in their owners' order, as those pair them. */
  const others = rings.filter(({ writes }) => !writes).sort((one, other) => placeOf(one) - placeOf(other))
  const channels: SeenChannel[] = []
  for (const { inode, capacity } of rings.filter(({ writes }) => writes)) {
    const theirs = readersOf(inode)
    const [peer, ...more] = theirs
    const isPaired = (other: Mapped) => owners.get(other.inode) === peer && readersOf(other.inode).length === 1
    const at = more.length > 0 ? -1 : others.findIndex(isPaired)
    if (peer !== undefined && at < 0) {
      for (const reader of theirs)
        channels.push({
          address: addressFor(process, reader),
          peer: reader.pid,
          role: 'publisher',
          ringCapacity: capacity,
          peerRingCapacity: 0,
        })
      continue
    }
    const [other] = at < 0 ? [] : others.splice(at, 1)
    const address = peer === undefined ? null : addressFor(process, peer)
    const role = address === null ? null : process.addresses.includes(address) ? 'host' : 'guest'
    channels.push({
      address,
      peer: peer?.pid ?? null,
      role,
      ringCapacity: capacity,
      peerRingCapacity: other?.capacity ?? 0,
    })
  }
  for (const { inode, capacity } of others) {
    const owner = owners.get(inode)
    channels.push({
      address: owner === undefined ? null : addressFor(owner, process),
      peer: owner?.pid ?? null,
      // What one alone reads of a process that cannot be seen may also be what a peer has left that is gone.
      role: owner === undefined && readersOf(inode).length === 1 ? null : 'subscriber',
      ringCapacity: 0,
      peerRingCapacity: capacity,
    })
  }
  return channels
}

/** The address of two: that of the one that listens, if it is one alone. */
function addressFor(one: Looked, other: Looked): string | null {
  const [first, ...more] = [...new Set([...one.addresses, ...other.addresses])]
  return first === undefined || more.length > 0 ? null : first
}
