// The rules that decide why a channel is slow. All thresholds are defined here, with their reasons.

import { formatBytes } from '../text.js'
import type { Activity } from './activity.js'
import type { Bounded, Distance } from './machine.js'

/** The subject of a check. */
export type Subject = 'cores' | 'ring' | 'reader' | 'wake-ups' | 'sizes' | 'shm' | 'memory'

/** The result of one check of a pair. */
export interface PairFinding {
  check: Subject
  /** `slow`: it costs time, or soon will. `unknown`: it could not be checked. */
  status: 'good' | 'slow' | 'unknown'
  /** The processes concerned: one process, or the sender and the reader. */
  processes: number[]
  found: string
  /** The consequence, and what to do. */
  meaning: string
}

/** Messages from one process to another. */
export interface Stream {
  writer: number
  reader: number
  /** Bytes of the ring. */
  capacity: number
  /**
   * The writer's statistics, if it is observable: bytes that this reader has not read, now and before, and the share of the time for which
   * the writer waited for this reader.
   */
  sent: { used: number; usedBefore: number; waiting: number } | null
  /** Messages per second, and bytes per message, from either side. null if neither is observable, or nothing was ever sent. */
  flow: { messagesPerSecond: number; size: number } | null
  /** Sleeps of the reader on this channel per second; null if the reader is not observable. */
  sleepsPerSecond: number | null
}

/** A ring filled above this share counts as full: the next message may not fit. */
const FULL_SHARE = 0.75
/** A sender that waits for a smaller share of its time is not slowed down noticeably. */
const WAITING_SHARE = 0.1
/** Below the first share of its time, a reader does not work on its messages. Above the second, it works all the time. */
const [IDLE, BUSY] = [0.1, 0.7]
/** Below this number per second, the cost per message does not matter. */
const MANY_PER_SECOND = 500
/** A reader that sleeps more often than this per message is woken for nearly every message. */
const SLEEPS_PER_MESSAGE = 0.5
/** Bytes of the header before each message. */
const HEADER = 8

/** A verdict on one subject: its status, its meaning, and the state that was found, if that is not the usual text. */
type Verdict = (status: PairFinding['status'], meaning: string, found?: string) => PairFinding

function verdictOn(check: Subject, processes: number[], usual: string): Verdict {
  return (status, meaning, found = usual) => ({ check, processes, status, found, meaning })
}

const DISTANCES: Record<Distance, [status: PairFinding['status'], meaning: string]> = {
  'same core': [
    'slow',
    'the two take turns on one core: each message waits for a switch, or for the other to sleep; give each its own (taskset, CPUAffinity=)',
  ],
  far: [
    'slow',
    'they share no cache: each message travels between chips, which takes two to five times as long; pin both to cores below one cache (lscpu -e, taskset)',
  ],
  near: ['good', 'they share a cache'],
  unknown: ['unknown', 'the kernel does not report which cores share a cache'],
}

/** Checks the cores on which two processes run. */
export function checkCores(processes: number[], both: [Activity, Activity], distance: Distance): PairFinding {
  const verdict = verdictOn('cores', processes, `cores ${both[0].core} and ${both[1].core}: ${distance}`)
  if (both.some(({ isPinned, busy }) => !isPinned && busy < IDLE))
    return verdict('unknown', 'they have hardly run, and may run elsewhere the next time')
  return verdict(...DISTANCES[distance])
}

/** Checks how full the ring is, and which side is the cause. */
export function checkRing({ writer, reader, capacity, sent }: Stream): PairFinding {
  const verdict = verdictOn('ring', [writer, reader], formatBytes(capacity))
  if (sent === null)
    return verdict(
      'unknown',
      `process ${writer} publishes no figures: start it with RINGFENCE_OBSERVE=1; if it was, it is stopped or busy`,
    )
  // A best-effort subscriber may lag by more than the ring holds.
  const fill = Math.min(sent.used, sent.usedBefore, capacity) / capacity
  const waiting = `the sender waits for room for ${percent(sent.waiting)} of the time`
  const found = `${percent(fill)} of ${formatBytes(capacity)} full; ${waiting}`
  if (!isFull({ capacity, sent })) return verdict('good', 'there is room', found)
  const meaning = `process ${reader} reads more slowly than process ${writer} sends: a larger ring (capacity) helps against bursts alone`
  return verdict('slow', meaning, found)
}

function isFull({ capacity, sent }: Pick<Stream, 'capacity' | 'sent'>): boolean {
  if (sent === null) return false
  return Math.min(sent.used, sent.usedBefore) > FULL_SHARE * capacity || sent.waiting > WAITING_SHARE
}

/** Checks whether the reader is running and working. */
export function checkReader(stream: Stream, activity: Activity | undefined): PairFinding {
  const verdict = verdictOn('reader', [stream.reader], `works for ${percent(activity?.busy ?? 0)} of the time`)
  if (activity === undefined) return verdict('unknown', '/proc does not show it', 'another user’s, or gone')
  if (activity.isStopped)
    return verdict(
      'slow',
      'a signal (SIGSTOP) or a debugger keeps it from running: it reads nothing until SIGCONT',
      'stopped',
    )
  if (isFull(stream) && activity.busy < IDLE)
    return verdict('slow', 'it sleeps, though there is much to read: it waits for something else before it reads on')
  if (isFull(stream) && activity.busy > BUSY)
    return verdict('slow', 'it works all the time: what it does with each message is what takes the time')
  return verdict('good', 'it is there to read')
}

/** Checks how often the reader must be woken. */
export function checkWakeups({ writer, reader, flow, sleepsPerSecond }: Stream, activity?: Activity): PairFinding {
  const sleeps = sleepsPerSecond ?? activity?.sleepsPerSecond
  const rate = flow === null ? '' : `, for ${flow.messagesPerSecond.toFixed(0)} messages`
  const verdict = verdictOn(
    'wake-ups',
    [writer, reader],
    `the reader sleeps ${sleeps?.toFixed(0)} times a second${rate}`,
  )
  if (sleeps === undefined) return verdict('unknown', '/proc does not show the reader', 'not visible')
  const isOften = sleeps > MANY_PER_SECOND && (flow === null || sleeps > SLEEPS_PER_MESSAGE * flow.messagesPerSecond)
  if (!isOften) return verdict('good', 'few messages wake it')
  return verdict(
    'slow',
    'it is woken for nearly each message, which costs both some microseconds: send several at a time, or have the reader wait a while before it sleeps (busyPollMicros)',
  )
}

/** Compares the size of messages with that of their headers and of the ring. */
export function checkSizes({ writer, reader, capacity, flow }: Stream): PairFinding {
  const verdict = verdictOn('sizes', [writer, reader], 'none seen')
  if (flow === null)
    return verdict(
      'unknown',
      'no message went through, or neither process lets itself be observed (RINGFENCE_OBSERVE=1)',
    )
  const { size, messagesPerSecond } = flow
  const found = `${formatBytes(Math.round(size))} a message, ${messagesPerSecond.toFixed(0)} a second`
  const advice = `take a capacity of at least ${formatBytes(8 * size)}`
  if (size > capacity / 2) {
    const meaning = `more than half the ring: each travels in fragments, and waits for the reader on the way; ${advice}`
    return verdict('slow', meaning, found)
  }
  if (size > capacity / 8) {
    const meaning = `the ring holds fewer than eight: sender and reader wait for each other; ${advice}`
    return verdict('slow', meaning, found)
  }
  if (size <= 2 * HEADER && messagesPerSecond > MANY_PER_SECOND) {
    const meaning = `each has a header of ${HEADER} bytes, and is handed out by itself: put several into one message`
    return verdict('slow', meaning, found)
  }
  return verdict('good', 'many fit into the ring', found)
}

/** Checks the free space of /dev/shm for a process that has rings there. */
export function checkShm(pid: number, rings: number, shm: Bounded | null): PairFinding {
  const ringsText = `${formatBytes(rings)} of rings there`
  const verdict = verdictOn('shm', [pid], ringsText)
  if (rings === 0) return verdict('good', 'its rings are memfds', 'no ring there')
  if (shm === null) return verdict('unknown', 'it has no bound of its own, or /proc does not show it')
  const left = shm.limit - shm.used
  const found = `${formatBytes(left)} of ${formatBytes(shm.limit)} left; ${ringsText}`
  if (left >= rings) return verdict('good', 'there is room', found)
  return verdict(
    'slow',
    'no second ring of that size fits: the next channel is NO_SPACE; raise its size (mount -o remount,size=; docker --shm-size)',
    found,
  )
}

/** Above this share of the limit, the kernel reclaims memory and writes to disk while a message is copied. */
const NEAR_LIMIT = 0.9

/** Checks the limit of the memory cgroup. */
export function checkMemory(pid: number, group: (Bounded & { path: string }) | null): PairFinding {
  const verdict = verdictOn('memory', [pid], 'no limit')
  if (group === null) return verdict('good', 'no memory cgroup that can be seen limits it')
  const { used, limit, path } = group
  const found = `${formatBytes(used)} of ${formatBytes(limit)} in ${path}`
  if (used <= NEAR_LIMIT * limit) return verdict('good', 'there is room', found)
  return verdict(
    'slow',
    'its memory cgroup is nearly full: the kernel takes memory back while it runs, and may kill it; raise the limit (memory.max, MemoryMax=)',
    found,
  )
}

const percent = (share: number): string => `${(share * 100).toFixed(0)} %`
