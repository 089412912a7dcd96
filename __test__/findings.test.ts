// `ringfence doctor PID|ADDRESS`: the conclusions from samples, without processes. slow.test.ts tests the sampling.

import test, { type ExecutionContext } from 'ava'

import { slow, type Activity, type Bounded } from './support/slow.js'

interface Ailment {
  check: string
  status: string
  processes: number[]
  found: string
  meaning: string
}

interface Stream {
  writer: number
  reader: number
  capacity: number
  sent: { used: number; usedBefore: number; waiting: number } | null
  flow: { messagesPerSecond: number; size: number } | null
  sleepsPerSecond: number | null
}

const { checkCores, checkRing, checkReader, checkWakeups, checkSizes, checkShm, checkMemory } = (await slow(
  'findings',
)) as {
  checkCores(processes: number[], both: [Activity, Activity], distance: string): Ailment
  checkRing(stream: Stream): Ailment
  checkReader(stream: Stream, activity?: Activity): Ailment
  checkWakeups(stream: Stream, activity?: Activity): Ailment
  checkSizes(stream: Stream): Ailment
  checkShm(pid: number, rings: number, shm: Bounded | null): Ailment
  checkMemory(pid: number, group: Bounded | null): Ailment
}

const quiet: Stream = { writer: 1, reader: 2, capacity: 1000, sent: null, flow: null, sleepsPerSecond: null }
const works: Activity = { isStopped: false, busy: 0.5, core: 0, isPinned: false, sleepsPerSecond: 0 }
const full = { ...quiet, sent: { used: 751, usedBefore: 800, waiting: 0 } }

/** Checks a finding: its check, status, processes and text, and a part of its meaning. */
function says(t: ExecutionContext, finding: Ailment, wanted: [string, string, number[], string], part: string) {
  const { check, status, processes, found, meaning } = finding
  t.deepEqual([check, status, processes, found], wanted)
  t.true(meaning.includes(part), `${meaning}\n${part}`)
}

test('cores: shared, near, far, unknown; processes that hardly ran have no finding', (t) => {
  const on = (core: number, more: Partial<Activity> = {}): Activity => ({ ...works, core, ...more })
  for (const [distance, status, part] of [
    ['same core', 'slow', 'take turns on one core'],
    ['near', 'good', 'share a cache'],
    ['far', 'slow', 'share no cache'],
    ['unknown', 'unknown', 'does not report'],
  ] as const)
    says(t, checkCores([1, 2], [on(3), on(4)], distance), ['cores', status, [1, 2], `cores 3 and 4: ${distance}`], part)
  for (const [one, other, status] of [
    [{ busy: 0.1 }, {}, 'slow'],
    [{ busy: 0.09 }, {}, 'unknown'],
    [{}, { busy: 0.09 }, 'unknown'],
    // It is pinned to this core.
    [{ busy: 0, isPinned: true }, { busy: 0, isPinned: true }, 'slow'],
    [{ busy: 0, isPinned: true }, { busy: 0 }, 'unknown'],
  ] as const) {
    const finding = checkCores([1, 2], [on(3, one), on(4, other)], 'far')
    says(t, finding, ['cores', status, [1, 2], 'cores 3 and 4: far'], status === 'slow' ? 'no cache' : 'hardly run')
  }
})

test('a ring is full if it was full in both samples, or if the sender waits for room', (t) => {
  says(t, checkRing(quiet), ['ring', 'unknown', [1, 2], '1.00 kB'], 'process 1 publishes no figures')
  const found = (fill: number, waiting: number) =>
    `${fill} % of 1.00 kB full; the sender waits for room for ${waiting} % of the time`
  for (const [used, usedBefore, waiting, fill, status] of [
    [751, 800, 0, 75, 'slow'],
    [800, 751, 0, 75, 'slow'],
    [750, 800, 0, 75, 'good'],
    [800, 700, 0, 70, 'good'],
    [0, 0, 0.1, 0, 'good'],
    [0, 0, 0.11, 0, 'slow'],
  ] as const) {
    const finding = checkRing({ ...quiet, sent: { used, usedBefore, waiting } })
    const part = status === 'slow' ? 'process 2 reads more slowly than process 1 sends' : 'there is room'
    says(t, finding, ['ring', status, [1, 2], found(fill, waiting * 100)], part)
  }
})

test('a reader that is stopped, sleeps although the ring is full, or is always busy', (t) => {
  says(t, checkReader(full), ['reader', 'unknown', [2], 'another user’s, or gone'], 'does not show it')
  for (const [stream, activity, status, found, part] of [
    [full, { isStopped: true }, 'slow', 'stopped', 'SIGCONT'],
    [quiet, { isStopped: true }, 'slow', 'stopped', 'SIGCONT'],
    [full, { busy: 0.09 }, 'slow', 'works for 9 % of the time', 'it sleeps'],
    [full, { busy: 0.1 }, 'good', 'works for 10 % of the time', 'there to read'],
    [full, { busy: 0.7 }, 'good', 'works for 70 % of the time', 'there to read'],
    [full, { busy: 0.71 }, 'slow', 'works for 71 % of the time', 'works all the time'],
    [quiet, { busy: 0 }, 'good', 'works for 0 % of the time', 'there to read'],
    [quiet, { busy: 1 }, 'good', 'works for 100 % of the time', 'there to read'],
  ] as const)
    says(t, checkReader(stream, { ...works, ...activity }), ['reader', status, [2], found], part)
})

test('a reader that is woken for nearly each message, by its statistics or by the samples', (t) => {
  says(t, checkWakeups(quiet), ['wake-ups', 'unknown', [1, 2], 'not visible'], 'does not show the reader')
  const flow = (messagesPerSecond: number) => ({ messagesPerSecond, size: 100 })
  for (const [stream, seen, status, found] of [
    [{ flow: flow(1000), sleepsPerSecond: 501 }, 0, 'slow', 'the reader sleeps 501 times a second, for 1000 messages'],
    [{ flow: flow(1002), sleepsPerSecond: 501 }, 0, 'good', 'the reader sleeps 501 times a second, for 1002 messages'],
    [{ flow: flow(500), sleepsPerSecond: 500 }, 0, 'good', 'the reader sleeps 500 times a second, for 500 messages'],
    [{ sleepsPerSecond: 501 }, 0, 'slow', 'the reader sleeps 501 times a second'],
    [{}, 501, 'slow', 'the reader sleeps 501 times a second'],
    [{ sleepsPerSecond: 0 }, 501, 'good', 'the reader sleeps 0 times a second'],
  ] as const) {
    const finding = checkWakeups({ ...quiet, ...stream }, { ...works, sleepsPerSecond: seen })
    says(t, finding, ['wake-ups', status, [1, 2], found], status === 'slow' ? 'busyPollMicros' : 'few messages')
  }
})

test('messages that are small compared with their header, or large compared with the ring', (t) => {
  says(t, checkSizes(quiet), ['sizes', 'unknown', [1, 2], 'none seen'], 'RINGFENCE_OBSERVE=1')
  for (const [size, messagesPerSecond, status, part] of [
    [501, 1, 'slow', 'travels in fragments, and waits for the reader on the way; take a capacity of at least 4.01 kB'],
    [
      500,
      1,
      'slow',
      'holds fewer than eight: sender and reader wait for each other; take a capacity of at least 4.00 kB',
    ],
    [126, 1, 'slow', 'holds fewer than eight'],
    [125, 1, 'good', 'many fit'],
    [16, 501, 'slow', 'put several into one message'],
    [17, 501, 'good', 'many fit'],
    [16, 500, 'good', 'many fit'],
  ] as const) {
    const finding = checkSizes({ ...quiet, flow: { size, messagesPerSecond } })
    says(t, finding, ['sizes', status, [1, 2], `${size} B a message, ${messagesPerSecond} a second`], part)
  }
})

test('a /dev/shm without room for a second ring, and a memory cgroup that is nearly full', (t) => {
  says(t, checkShm(1, 0, null), ['shm', 'good', [1], 'no ring there'], 'memfds')
  says(t, checkShm(1, 10, null), ['shm', 'unknown', [1], '10 B of rings there'], 'no bound')
  const shm = (used: number) => checkShm(1, 100, { limit: 1000, used })
  says(t, shm(900), ['shm', 'good', [1], '100 B of 1.00 kB left; 100 B of rings there'], 'there is room')
  says(t, shm(901), ['shm', 'slow', [1], '99 B of 1.00 kB left; 100 B of rings there'], 'no second ring')
  says(t, checkMemory(1, null), ['memory', 'good', [1], 'no limit'], 'no memory cgroup')
  const memory = (used: number) => checkMemory(1, { limit: 1000, used, path: '/x' })
  says(t, memory(900), ['memory', 'good', [1], '900 B of 1.00 kB in /x'], 'there is room')
  says(t, memory(901), ['memory', 'slow', [1], '901 B of 1.00 kB in /x'], 'nearly full')
})
