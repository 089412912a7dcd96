// What processes do for a moment, as /proc shows it: which cores they run on, how busy they are, and how often they wake.

import { readFileSync, readdirSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'

import { failIfShort } from '../../sockets.js'

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
  const state = stateOf(pid)
  if (main === undefined || state === null) return null
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
    isStopped: state === 'T' || state === 't',
    busy: wanted / 1e9 / seconds,
    isPinned: /^Cpus_allowed_list:\s*\d+$/m.test(statusOf(pid)),
    core: longest === undefined || longest[1] === 0 ? main.core : longest[0],
    sleepsPerSecond: sleeps / seconds,
  }
}

/** The threads of a process by their numbers; none where it is gone, or closed to this user. */
function threadsOf(pid: number): Map<number, Thread> {
  const threads = new Map<number, Thread>()
  try {
    for (const id of readdirSync(`/proc/${pid}/task`)) {
      const thread = threadAt(`/proc/${pid}/task/${id}`)
      if (thread !== null) threads.set(Number(id), thread)
    }
  } catch (error) {
    failIfShort(error)
    // It is gone.
  }
  return threads
}

function threadAt(directory: string): Thread | null {
  try {
    const stat = wordsOf(readFileSync(`${directory}/stat`, 'latin1'))
    const status = readFileSync(`${directory}/status`, 'latin1')
    return {
      ...timesAt(directory, stat),
      core: Number(stat[36]),
      sleeps: Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(status)?.[1] ?? 0),
    }
  } catch (error) {
    failIfShort(error)
    return null
  }
}

/** In nanoseconds where the kernel counts them, else in ticks of ten milliseconds, without the wait. */
function timesAt(directory: string, stat: string[]): Pick<Thread, 'ran' | 'delayed'> {
  try {
    const [ran, delayed] = readFileSync(`${directory}/schedstat`, 'latin1').split(' ').map(Number)
    return { ran: ran!, delayed: delayed! }
  } catch {
    return { ran: (Number(stat[11]) + Number(stat[12])) * 10e6, delayed: 0 }
  }
}

function stateOf(pid: number): string | null {
  try {
    return wordsOf(readFileSync(`/proc/${pid}/stat`, 'latin1'))[0]!
  } catch {
    return null
  }
}

function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, 'latin1')
  } catch {
    return ''
  }
}

/** The words behind the name, which may hold anything, and ends at the last bracket. */
function wordsOf(stat: string): string[] {
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')
}
