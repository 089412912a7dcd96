// The rules that decide why a channel is slow. All thresholds are defined here, with their reasons.

import { formatBytes } from '../text.js'
import type { Activity } from './activity.js'
import type { Bounded, Distance } from './machine.js'

/** The subject of a check. */
export type Subject = 'cores' | 'ring' | 'reader' | 'wake-ups' | 'sizes' | 'shm' | 'memory'

/** The result of one check of a pair. */
export interface Ailment {
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
const FULL = 0.75
/** A sender that waits for a smaller share of its time is not slowed down noticeably. */
const HELD_UP = 0.1
/** Below the first share of its time, a reader does not work on its messages. Above the second, it works all the time. */
const [IDLE, BUSY] = [0.1, 0.7]
/** Below this number per second, the cost per message does not matter. */
const MANY = 500
/** A reader that sleeps more often than this per message is woken for nearly every message. */
const FOR_EACH = 0.5
/** Bytes of the header before each message. */
const HEADER = 8

/** Checks the cores on which two processes run. */
export function judgeCores(processes: number[], both: [Activity, Activity], distance: Distance): Ailment {
  const about = { check: 'cores' as const, processes }
  const found = `cores ${both[0].core} and ${both[1].core}: ${distance}`
  if (both.some(({ isPinned, busy }) => !isPinned && busy < IDLE)) {
    const meaning = 'they have hardly run, and may run elsewhere the next time'
    return { ...about, status: 'unknown', found, meaning }
  }
  switch (distance) {
    case 'same core': {
      const meaning =
        'the two take turns on one core: each message waits for a switch, or for the other to sleep; give each its own (taskset, CPUAffinity=)'
      return { ...about, status: 'slow', found, meaning }
    }
    case 'far': {
      const meaning =
        'they share no cache: each message travels between chips, which takes two to five times as long; pin both to cores below one cache (lscpu -e, taskset)'
      return { ...about, status: 'slow', found, meaning }
    }
    case 'near':
      return { ...about, status: 'good', found, meaning: 'they share a cache' }
    case 'unknown':
      return { ...about, status: 'unknown', found, meaning: 'the kernel does not tell which cores share a cache' }
  }
}

/** Checks how full the ring is, and which side is the cause. */
export function judgeRing({ writer, reader, capacity, sent }: Stream): Ailment {
  const about = { check: 'ring' as const, processes: [writer, reader] }
  if (sent === null) {
    const meaning = `process ${writer} tells no figures: start it with RINGFENCE_OBSERVE=1; if it was, it is stopped or busy`
    return { ...about, status: 'unknown', found: formatBytes(capacity), meaning }
  }
  // A best-effort subscriber may lag by more than the ring holds.
  const fill = Math.min(sent.used, sent.usedBefore, capacity) / capacity
  const held = `the sender waits for room for ${percent(sent.waiting)} of the time`
  const found = `${percent(fill)} of ${formatBytes(capacity)} full; ${held}`
  if (isFull({ capacity, sent })) {
    const meaning = `process ${reader} reads more slowly than process ${writer} sends: a larger ring (capacity) helps against bursts alone`
    return { ...about, status: 'slow', found, meaning }
  }
  return { ...about, status: 'good', found, meaning: 'there is room' }
}

function isFull({ capacity, sent }: Pick<Stream, 'capacity' | 'sent'>): boolean {
  if (sent === null) return false
  return Math.min(sent.used, sent.usedBefore) > FULL * capacity || sent.waiting > HELD_UP
}

/** Checks whether the reader is running and working. */
export function judgeReader(stream: Stream, activity: Activity | undefined): Ailment {
  const { reader } = stream
  const about = { check: 'reader' as const, processes: [reader] }
  if (activity === undefined) {
    return { ...about, status: 'unknown', found: 'another user’s, or gone', meaning: '/proc does not show it' }
  }
  const found = activity.isStopped ? 'stopped' : `works for ${percent(activity.busy)} of the time`
  if (activity.isStopped) {
    const meaning = 'a signal (SIGSTOP) or a debugger keeps it from running: it reads nothing until SIGCONT'
    return { ...about, status: 'slow', found, meaning }
  }
  if (isFull(stream) && activity.busy < IDLE) {
    const meaning = 'it sleeps, though there is much to read: it waits for something else before it reads on'
    return { ...about, status: 'slow', found, meaning }
  }
  if (isFull(stream) && activity.busy > BUSY) {
    const meaning = 'it works all the time: what it does with each message is what takes the time'
    return { ...about, status: 'slow', found, meaning }
  }
  return { ...about, status: 'good', found, meaning: 'it is there to read' }
}

/** Checks how often the reader must be woken. */
export function judgeWakeUps(stream: Stream, activity: Activity | undefined): Ailment {
  const { writer, reader, flow } = stream
  const about = { check: 'wake-ups' as const, processes: [writer, reader] }
  const sleeps = stream.sleepsPerSecond ?? activity?.sleepsPerSecond
  if (sleeps === undefined) {
    return { ...about, status: 'unknown', found: 'not to be seen', meaning: '/proc does not show the reader' }
  }
  const of = flow === null ? '' : `, for ${flow.messagesPerSecond.toFixed(0)} messages`
  const found = `the reader sleeps ${sleeps.toFixed(0)} times a second${of}`
  const isOften = sleeps > MANY && (flow === null || sleeps > FOR_EACH * flow.messagesPerSecond)
  if (isOften) {
    const meaning =
      'it is woken for nearly each message, which costs both some microseconds: send several at a time, or have the reader wait a while before it sleeps (busyPollMicros)'
    return { ...about, status: 'slow', found, meaning }
  }
  return { ...about, status: 'good', found, meaning: 'few messages wake it' }
}

/** Compares the size of messages with that of their headers and of the ring. */
export function judgeSizes({ writer, reader, capacity, flow }: Stream): Ailment {
  const about = { check: 'sizes' as const, processes: [writer, reader] }
  if (flow === null) {
    const meaning = 'no message went through, or neither process lets itself be observed (RINGFENCE_OBSERVE=1)'
    return { ...about, status: 'unknown', found: 'none seen', meaning }
  }
  const { size, messagesPerSecond } = flow
  const found = `${formatBytes(Math.round(size))} a message, ${messagesPerSecond.toFixed(0)} a second`
  if (size > capacity / 2) {
    const meaning = `more than half the ring: each travels in fragments, and waits for the reader on the way; take a capacity of at least ${formatBytes(8 * size)}`
    return { ...about, status: 'slow', found, meaning }
  }
  if (size > capacity / 8) {
    const meaning = `the ring holds fewer than eight: sender and reader wait for each other; take a capacity of at least ${formatBytes(8 * size)}`
    return { ...about, status: 'slow', found, meaning }
  }
  if (size <= 2 * HEADER && messagesPerSecond > MANY) {
    const meaning = `each has a header of ${HEADER} bytes, and is handed out by itself: put several into one message`
    return { ...about, status: 'slow', found, meaning }
  }
  return { ...about, status: 'good', found, meaning: 'many fit into the ring' }
}

/** Checks the free space of /dev/shm for a process that has rings there. */
export function judgeShm(pid: number, rings: number, shm: Bounded | null): Ailment {
  const about = { check: 'shm' as const, processes: [pid] }
  if (rings === 0) {
    return { ...about, status: 'good', found: 'no ring there', meaning: 'its rings are memfds' }
  }
  if (shm === null) {
    const found = `${formatBytes(rings)} of rings there`
    return { ...about, status: 'unknown', found, meaning: 'it has no bound of its own, or /proc does not show it' }
  }
  const left = shm.limit - shm.used
  const found = `${formatBytes(left)} of ${formatBytes(shm.limit)} left; ${formatBytes(rings)} of rings there`
  if (left < rings) {
    const meaning =
      'no second ring of that size fits: the next channel is NO_SPACE; raise its size (mount -o remount,size=; docker --shm-size)'
    return { ...about, status: 'slow', found, meaning }
  }
  return { ...about, status: 'good', found, meaning: 'there is room' }
}

/** Above this share of the limit, the kernel reclaims memory and writes to disk while a message is copied. */
const NEAR_LIMIT = 0.9

/** Checks the limit of the memory cgroup. */
export function judgeMemory(pid: number, group: (Bounded & { path: string }) | null): Ailment {
  const about = { check: 'memory' as const, processes: [pid] }
  if (group === null) {
    return { ...about, status: 'good', found: 'no limit', meaning: 'no memory cgroup that can be seen limits it' }
  }
  const { used, limit, path } = group
  const found = `${formatBytes(used)} of ${formatBytes(limit)} in ${path}`
  if (used > NEAR_LIMIT * limit) {
    const meaning =
      'its memory cgroup is nearly full: the kernel takes memory back while it runs, and may kill it; raise the limit (memory.max, MemoryMax=)'
    return { ...about, status: 'slow', found, meaning }
  }
  return { ...about, status: 'good', found, meaning: 'there is room' }
}

const percent = (share: number): string => `${(share * 100).toFixed(0)} %`
