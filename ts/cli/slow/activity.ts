// Samples processes from /proc for a moment: the cores on which they run, how busy they are, and how often they sleep.

import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'

import { nullIfGone } from '../../runtime/sockets.js'

/** The activity of a process while it was sampled. */
export interface Activity {
  /** Whether SIGSTOP or a debugger keeps it from running. */
  isStopped: boolean
  /** The share of the time for which its threads ran or waited for a core, summed over the threads: 2 is two threads all the time. */
  busy: number
  /** The core on which it ran for longest; if it has not run, the core on which it was last seen. */
  core: number
  /** Whether its main thread may run on only one core. */
  isPinned: boolean
  /** Voluntary sleeps of its threads per second. */
  sleepsPerSecond: number
}

/** Milliseconds between two samples, and the number of samples after the first. */
const STEP = 60
const STEPS = 10

interface Thread {
  /** Nanoseconds on a core (`ran`) and waiting for one (`delayed`). */
  ran: number
  delayed: number
  core: number
  sleeps: number
  /** The state letter from /proc. */
  state: string
  isPinned: boolean
}

/** Samples processes for a little over half a second. Omits processes that have exited in the meantime. */
export async function sampleProcesses(pids: readonly number[]): Promise<Map<number, Activity>> {
  const startedAt = performance.now()
  const samples = new Map(pids.map((pid) => [pid, [threadsOf(pid)]]))
  for (let step = 0; step < STEPS; step += 1) {
    await pause(STEP)
    for (const [pid, threadSamples] of samples) threadSamples.push(threadsOf(pid))
  }
  const seconds = (performance.now() - startedAt) / 1000
  const activities = new Map<number, Activity>()
  for (const [pid, threadSamples] of samples) {
    const activity = activityOf(pid, threadSamples, seconds)
    if (activity !== null) activities.set(pid, activity)
  }
  return activities
}

function activityOf(pid: number, samples: Map<number, Thread>[], seconds: number): Activity | null {
  const main = samples.at(-1)!.get(pid)
  if (main === undefined) return null
  const cores = new Map<number, number>()
  let [busyTime, sleeps] = [0, 0]
  for (const [step, threads] of samples.entries()) {
    for (const [id, thread] of threads) {
      const before = samples[step - 1]?.get(id)
      if (before === undefined) continue
      busyTime += thread.ran - before.ran + thread.delayed - before.delayed
      sleeps += thread.sleeps - before.sleeps
      cores.set(thread.core, (cores.get(thread.core) ?? 0) + thread.ran - before.ran)
    }
  }
  const [longest] = [...cores].sort(([, a], [, b]) => b - a)
  return {
    isStopped: main.state === 'T' || main.state === 't',
    busy: busyTime / 1e9 / seconds,
    isPinned: main.isPinned,
    core: longest === undefined || longest[1] === 0 ? main.core : longest[0],
    sleepsPerSecond: sleeps / seconds,
  }
}

/** The threads of a process by thread id; none if the process has exited or this user may not inspect it. */
function threadsOf(pid: number): Map<number, Thread> {
  const threads = new Map<number, Thread>()
  const directory = `/proc/${pid}/task`
  for (const id of nullIfGone(() => readdirSync(directory)) ?? []) {
    const thread = nullIfGone(() => threadAt(`${directory}/${id}`))
    if (thread !== null) threads.set(Number(id), thread)
  }
  return threads
}

function threadAt(directory: string): Thread {
  const stat = readFileSync(`${directory}/stat`, 'latin1')
  // The words after the name. The name may contain anything and ends at the last parenthesis.
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
 * The times in nanoseconds if the kernel counts them; otherwise from ticks of ten milliseconds, without the waiting time.
 *
 * Decides by this process's own schedstat: for a thread that has just exited, a missing file must not select ticks, because the two counts
 * must not be mixed.
 */
function timesAt(directory: string, words: string[]): Pick<Thread, 'ran' | 'delayed'> {
  if (!existsSync('/proc/self/schedstat')) return { ran: (Number(words[11]) + Number(words[12])) * 10e6, delayed: 0 }
  const [ran, delayed] = readFileSync(`${directory}/schedstat`, 'latin1').split(' ').map(Number)
  return { ran: ran!, delayed: delayed! }
}
