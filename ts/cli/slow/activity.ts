// What processes do for a moment, as /proc shows it: which cores they run on, how busy they are, and how often they wake.

import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'

import { failIfShort } from '../../runtime/sockets.js'

/** What a process did while it was looked at. */
export interface Activity {
  /** SIGSTOP or a debugger keeps it from running. */
  isStopped: boolean
  /** For how much of the time its threads ran, or waited for a core: 2 is two threads all the time. */
  busy: number
  /** The core on which it ran for longest, or where it has not run, on which it was seen last. */
  core: number
  /** Its main thread may run on no other core. */
  isPinned: boolean
  /** How often its threads went to sleep by themselves, in a second. */
  sleepsPerSecond: number
}

/** How often the cores are looked at, and how many times. */
const STEP = 60
const STEPS = 10

interface Thread {
  /** Nanoseconds on a core, and in wait for one. */
  ran: number
  delayed: number
  core: number
  sleeps: number
  /** A letter, as /proc has it. */
  state: string
  isPinned: boolean
}

/** Looks at processes for a bit more than half a second. One that has gone meanwhile is left out. */
export async function watchProcesses(pids: readonly number[]): Promise<Map<number, Activity>> {
  const begun = performance.now()
  const looks = new Map(pids.map((pid) => [pid, [threadsOf(pid)]]))
  for (let step = 0; step < STEPS; step += 1) {
    await pause(STEP)
    for (const [pid, all] of looks) all.push(threadsOf(pid))
  }
  const seconds = (performance.now() - begun) / 1000
  const found = new Map<number, Activity>()
  for (const [pid, all] of looks) {
    const activity = activityOf(pid, all, seconds)
    if (activity !== null) found.set(pid, activity)
  }
  return found
}

function activityOf(pid: number, looks: Map<number, Thread>[], seconds: number): Activity | null {
  const main = looks.at(-1)!.get(pid)
  if (main === undefined) return null
  const cores = new Map<number, number>()
  let [wanted, sleeps] = [0, 0]
  for (const [step, threads] of looks.entries()) {
    for (const [id, thread] of threads) {
      const before = looks[step - 1]?.get(id)
      if (before === undefined) continue
      wanted += thread.ran - before.ran + thread.delayed - before.delayed
      sleeps += thread.sleeps - before.sleeps
      cores.set(thread.core, (cores.get(thread.core) ?? 0) + thread.ran - before.ran)
    }
  }
  const [longest] = [...cores].sort(([, one], [, other]) => other - one)
  return {
    isStopped: main.state === 'T' || main.state === 't',
    busy: wanted / 1e9 / seconds,
    isPinned: main.isPinned,
    core: longest === undefined || longest[1] === 0 ? main.core : longest[0],
    sleepsPerSecond: sleeps / seconds,
  }
}

/** The threads of a process by their numbers; none where it is gone, or closed to this user. */
function threadsOf(pid: number): Map<number, Thread> {
  const threads = new Map<number, Thread>()
  const directory = `/proc/${pid}/task`
  for (const id of unlessGone(() => readdirSync(directory)) ?? []) {
    const thread = unlessGone(() => threadAt(`${directory}/${id}`))
    if (thread !== null) threads.set(Number(id), thread)
  }
  return threads
}

/** @throws {@link RingfenceError} NO_SPACE: this process lacks what it takes to look. */
function unlessGone<Found>(look: () => Found): Found | null {
  try {
    return look()
  } catch (error) {
    failIfShort(error)
    return null
  }
}

function threadAt(directory: string): Thread {
  const stat = readFileSync(`${directory}/stat`, 'latin1')
  // The words behind the name, which may hold anything, and ends at the last bracket.
  const words = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const status = readFileSync(`${directory}/status`, 'latin1')
  return {
    ...timesAt(directory, words),
    core: Number(words[36]),
    sleeps: Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(status)?.[1] ?? 0),
    state: words[0]!,
    isPinned: /^Cpus_allowed_list:\s*\d+$/m.test(status),
  }
}

/**
 * In nanoseconds where the kernel counts them, else in ticks of ten milliseconds, without the wait. That it does is not seen by a thread that
 * has just gone: of the two counts one is no time after the other.
 */
function timesAt(directory: string, words: string[]): Pick<Thread, 'ran' | 'delayed'> {
  if (!existsSync('/proc/self/schedstat')) return { ran: (Number(words[11]) + Number(words[12])) * 10e6, delayed: 0 }
  const [ran, delayed] = readFileSync(`${directory}/schedstat`, 'latin1').split(' ').map(Number)
  return { ran: ran!, delayed: delayed! }
}
