// The processor time of a process, and the core on which it runs.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import process from 'node:process'
import v8 from 'node:v8'
import vm from 'node:vm'

/** Pins this thread. `/proc/thread-self` is read synchronously, and so on this thread. */
export function pinThread(cpu) {
  try {
    const tid = fs.readlinkSync('/proc/thread-self').split('/').at(-1)
    execFileSync('taskset', ['-cp', String(cpu), tid], { stdio: 'ignore' })
  } catch {
    // Without taskset the scheduler decides, which the results report.
  }
}

/** Returns the context switches of all threads of a process, voluntary or not. */
export function switches(pid) {
  let total = 0
  for (const task of fs.readdirSync(`/proc/${pid}/task`)) {
    const status = fs.readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8')
    for (const [, count] of status.matchAll(/ctxt_switches:\s+(\d+)/g)) total += Number(count)
  }
  return total
}

export function usage() {
  const found = process.resourceUsage()
  const { involuntaryContextSwitches: preempted, voluntaryContextSwitches: sleeps } = found
  return { cpu: (found.userCPUTime + found.systemCPUTime) * 1000, preempted, sleeps }
}

export const since = (before) => {
  const after = usage()
  return Object.fromEntries(Object.entries(after).map(([name, value]) => [name, value - before[name]]))
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

/** Collects garbage, so that external memory of the engine is released. */
export function collect() {
  v8.setFlagsFromString('--expose-gc')
  vm.runInNewContext('gc')()
}
