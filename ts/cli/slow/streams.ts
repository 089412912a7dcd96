// Which messages go from whom to whom, and what the processes themselves tell of them.

import type { Observed, Snapshot } from '../../observe.js'
import type { SeenChannel, SeenProcess } from '../../processes.js'
import type { Stream } from './findings.js'

/** Two processes and their channel. */
export interface Pair {
  pid: number
  peer: number
  address: string | null
  streams: Stream[]
}

/** The figures of processes, by their numbers: two that each has told, with some time between them. */
export type Told = Map<number, { before: Snapshot; now: Snapshot }>

/** The figures of one side of a channel. */
interface Figures {
  before: Observed
  now: Observed
  seconds: number
}

/** The channels of a process, or those at an address. Other users' processes are no part of them. */
export function pairsOf(target: number | string, processes: SeenProcess[], told: Told): Pair[] {
  const pairs: Pair[] = []
  const taken = new Set<Observed>()
  const seen = new Set(processes.map(({ pid }) => pid))
  for (const { pid, channels } of processes) {
    for (const channel of channels) {
      const { peer } = channel
      if (peer === null) continue
      // Each channel is found twice, once at each side.
      if (typeof target === 'number' ? pid !== target : seen.has(peer) && !comesFirst(pid, peer, channel)) continue
      if (isObservation(pid, channel, told)) continue
      const own = figuresOf(pid, peer, told, channel.role === 'publisher' ? 'all' : taken)
      const theirs = figuresOf(peer, pid, told, channel.role === 'subscriber' ? 'all' : taken)
      // A pair has let go of its address; the processes themselves know where they met.
      const address = channel.address ?? own?.now.address ?? theirs?.now.address ?? null
      if (typeof target === 'string' && address !== target) continue
      pairs.push({ pid, peer, address, streams: streamsOf(pid, peer, channel, [own, theirs]) })
    }
  }
  return pairs
}

/** A ring that a process publishes its figures in, of which it tells none. */
function isObservation(pid: number, { role, peer, ringCapacity, peerRingCapacity }: SeenChannel, told: Told): boolean {
  if (role !== 'publisher' && role !== 'subscriber') return false
  const [publisher, capacity] = role === 'publisher' ? [pid, ringCapacity] : [peer!, peerRingCapacity]
  const channels = told.get(publisher)?.now.channels
  return channels?.every((one) => one.role !== 'publisher' || one.ringCapacity !== capacity) ?? false
}

function comesFirst(pid: number, peer: number, { role }: SeenChannel): boolean {
  if (role === null) return pid < peer
  return role === 'host' || role === 'publisher'
}

/** What a process tells of its channel with another, if not taken already. A publisher tells of all its subscribers at once. */
function figuresOf(pid: number, peer: number, told: Told, taken: Set<Observed> | 'all'): Figures | null {
  const both = told.get(pid)
  if (both === undefined) return null
  const { before, now } = both
  const isIt = (one: Observed) => (taken === 'all' ? one.role === 'publisher' : one.peer === peer && !taken.has(one))
  const found = now.channels.find(isIt)
  const earlier = before.channels.find(({ id }) => id === found?.id)
  if (found === undefined || earlier === undefined) return null
  if (taken !== 'all') taken.add(found)
  return { before: earlier, now: found, seconds: (now.at - before.at) / 1000 }
}

function streamsOf(
  pid: number,
  peer: number,
  { ringCapacity, peerRingCapacity }: SeenChannel,
  [own, theirs]: [Figures | null, Figures | null],
): Stream[] {
  const streams: Stream[] = []
  const add = (writer: number, reader: number, capacity: number, sides: [Figures | null, Figures | null]) => {
    if (capacity > 0) streams.push({ writer, reader, capacity, ...toldOf(sides) })
  }
  add(pid, peer, ringCapacity, [own, theirs])
  add(peer, pid, peerRingCapacity, [theirs, own])
  return streams
}

function toldOf([sending, reading]: [Figures | null, Figures | null]): Omit<Stream, 'writer' | 'reader' | 'capacity'> {
  const waited = sending === null ? 0 : grown(sending, 'waitedMicros') / 1e6
  return {
    sent: sending && {
      used: sending.now.ringUsed ?? 0,
      usedBefore: sending.before.ringUsed ?? 0,
      waiting: waited / sending.seconds,
    },
    flow:
      flowOf(sending, ['messagesSent', 'published'], ['bytesSent', 'bytesPublished']) ??
      flowOf(reading, ['messagesReceived'], ['bytesReceived']),
    sleepsPerSecond: reading && grown(reading, 'sleeps') / reading.seconds,
  }
}

type Figure = 'messagesSent' | 'published' | 'bytesSent' | 'bytesPublished' | 'messagesReceived' | 'bytesReceived'

/** Where nothing went through meanwhile, as large as all were that went before. */
function flowOf(side: Figures | null, messages: Figure[], bytes: Figure[]): Stream['flow'] {
  if (side === null) return null
  const sum = (of: Observed, figures: Figure[]) => figures.reduce((all, figure) => all + Number(of[figure] ?? 0), 0)
  const count = sum(side.now, messages)
  if (count === 0) return null
  const recent = count - sum(side.before, messages)
  const size = recent > 0 ? (sum(side.now, bytes) - sum(side.before, bytes)) / recent : sum(side.now, bytes) / count
  return { messagesPerSecond: recent / side.seconds, size }
}

function grown({ before, now }: Figures, figure: 'waitedMicros' | 'sleeps'): number {
  return Number(now[figure] ?? 0) - Number(before[figure] ?? 0)
}
