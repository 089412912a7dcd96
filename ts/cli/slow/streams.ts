// Matches the streams of messages between processes with the statistics that the processes publish.

import type { Observed, Snapshot } from '../../runtime/observe.js'
import type { SeenChannel, SeenProcess } from '../../runtime/processes.js'
import type { Stream } from './findings.js'

/** Two processes and their channel. */
export interface Pair {
  pid: number
  peer: number
  address: string | null
  streams: Stream[]
}

/** Two snapshots of each process, taken some time apart, by process id. */
export type Snapshots = Map<number, { before: Snapshot; now: Snapshot }>

/** The statistics of one side of a channel. */
interface Figures {
  before: Observed
  now: Observed
  seconds: number
}

/** The channels of a process, or those at an address, without the processes of other users. */
export function pairsOf(target: number | string, processes: SeenProcess[], snapshots: Snapshots): Pair[] {
  const pairs: Pair[] = []
  const used = new Set<Observed>()
  const visible = new Set(processes.map(({ pid }) => pid))
  for (const { pid, channels } of processes) {
    for (const channel of channels) {
      const { peer } = channel
      if (peer === null) continue
      // Each channel is listed twice, once for each side.
      if (typeof target === 'number' ? pid !== target : visible.has(peer) && !isListedFirst(pid, peer, channel))
        continue
      const { role, ringCapacity, peerRingCapacity } = channel
      const own =
        role === 'publisher' ? publisherOf(pid, ringCapacity, snapshots) : figuresOf(pid, peer, snapshots, used)
      const other =
        role === 'subscriber' ? publisherOf(peer, peerRingCapacity, snapshots) : figuresOf(peer, pid, snapshots, used)
      // /proc does not show the address if the two listen at several. The processes' own statistics do.
      const address = channel.address ?? own?.now.address ?? other?.now.address ?? null
      if (typeof target === 'string' && address !== target) continue
      pairs.push({ pid, peer, address, streams: streamsOf(pid, peer, channel, [own, other]) })
    }
  }
  return pairs
}

function isListedFirst(pid: number, peer: number, { role }: SeenChannel): boolean {
  if (role === null) return pid < peer
  return role === 'host' || role === 'publisher'
}

/** A process's statistics of a channel with another process. Each entry is used for only one channel. */
function figuresOf(pid: number, peer: number, snapshots: Snapshots, used: Set<Observed>): Figures | null {
  const figures = compare(snapshots.get(pid), (entry) => entry.peer === peer && !used.has(entry))
  if (figures !== null) used.add(figures.now)
  return figures
}

/** A process's statistics of its publisher whose ring has this size. All subscribers share them. */
function publisherOf(pid: number, capacity: number, snapshots: Snapshots): Figures | null {
  return compare(snapshots.get(pid), (entry) => entry.role === 'publisher' && entry.ringCapacity === capacity)
}

function compare(
  pair: { before: Snapshot; now: Snapshot } | undefined,
  matches: (entry: Observed) => boolean,
): Figures | null {
  if (pair === undefined) return null
  const { before, now } = pair
  const found = now.channels.find(matches)
  const earlier = before.channels.find(({ id }) => id === found?.id)
  if (found === undefined || earlier === undefined) return null
  return { before: earlier, now: found, seconds: (now.at - before.at) / 1000 }
}

function streamsOf(
  pid: number,
  peer: number,
  { ringCapacity, peerRingCapacity }: SeenChannel,
  [own, other]: [Figures | null, Figures | null],
): Stream[] {
  const streams: Stream[] = []
  const add = (writer: number, reader: number, capacity: number, sides: [Figures | null, Figures | null]) => {
    if (capacity > 0) streams.push({ writer, reader, capacity, ...statisticsOf(reader, sides) })
  }
  add(pid, peer, ringCapacity, [own, other])
  add(peer, pid, peerRingCapacity, [other, own])
  return streams
}

function statisticsOf(
  reader: number,
  [sending, reading]: [Figures | null, Figures | null],
): Omit<Stream, 'writer' | 'reader' | 'capacity'> {
  return {
    sent: sending && sentTo(reader, sending, reading),
    flow: flowOf(sending, 'messagesSent', 'bytesSent') ?? flowOf(reading, 'messagesReceived', 'bytesReceived'),
    sleepsPerSecond: reading && increase(reading, 'sleeps') / reading.seconds,
  }
}

/** The bytes that one reader has not read, and the share of the time for which the sender waits for that reader. */
function sentTo(reader: number, sending: Figures, reading: Figures | null): Stream['sent'] {
  const waiting = increase(sending, 'waitedMicros') / 1e6 / sending.seconds
  const usedIn = ({ ringUsed, behind }: Observed, lag: number | undefined) =>
    behind === undefined ? (ringUsed ?? 0) : (behind.find(([pid]) => pid === reader)?.[1] ?? lag ?? 0)
  const used = usedIn(sending.now, reading?.now.lag)
  const usedBefore = usedIn(sending.before, reading?.before.lag)
  if (sending.now.behind === undefined) return { used, usedBefore, waiting }
  // A publisher waits for its slowest subscriber, and for those that are about as slow.
  const most = Math.max(...[sending.now, sending.before].map(({ behind }) => behind?.[0]?.[1] ?? 0))
  const isWaitedFor = Math.max(used, usedBefore) >= most / 2 && most > 0
  return { used, usedBefore, waiting: isWaitedFor ? waiting : 0 }
}

type Figure = 'messagesSent' | 'bytesSent' | 'messagesReceived' | 'bytesReceived'

/** The rate and the size of messages. If none was sent between the snapshots, the size is the average of all earlier messages. */
function flowOf(side: Figures | null, messages: Figure, bytes: Figure): Stream['flow'] {
  const count = Number(side?.now[messages] ?? 0)
  if (side === null || count === 0) return null
  const recent = count - Number(side.before[messages] ?? 0)
  const all = Number(side.now[bytes] ?? 0)
  const size = recent > 0 ? (all - Number(side.before[bytes] ?? 0)) / recent : all / count
  return { messagesPerSecond: recent / side.seconds, size }
}

function increase({ before, now }: Figures, figure: 'waitedMicros' | 'sleeps'): number {
  return Number(now[figure] ?? 0) - Number(before[figure] ?? 0)
}
