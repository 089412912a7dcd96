// Describes this machine, and how quiet it is.

import fs from 'node:fs'
import os from 'node:os'

function read(file) {
  try {
    return fs.readFileSync(file, 'utf8').trim()
  } catch {
    return ''
  }
}

export function machine() {
  const info = read('/proc/cpuinfo')
  const field = (name) => info.match(new RegExp(`^${name}\\s*:\\s*(.*)$`, 'm'))?.[1] ?? ''
  const caches = [0, 1, 2, 3]
    .map((index) =>
      ['level', 'type', 'size'].map((name) => read(`/sys/devices/system/cpu/cpu0/cache/index${index}/${name}`)),
    )
    .filter(([, , size]) => size !== '')
    .map(([level, type, size]) => `L${level} ${type.toLowerCase()} ${size}`)
  return {
    cpu: `${field('model name')} (family ${field('cpu family')} model ${field('model')})`,
    cores: os.availableParallelism(),
    caches: caches.join(', '),
    memory_gib: os.totalmem() / 2 ** 30,
    kernel: os.release(),
    governor: read('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor') || 'none',
    hypervisor: info.includes('hypervisor'),
  }
}

/** Clock ticks since boot: of all processors, and of this process with its exited descendants. */
function ticks() {
  const [user, nice, system, idle, iowait, irq, softirq, steal] = read('/proc/stat')
    .split('\n')[0]
    .match(/\d+/g)
    .map(Number)
  const own = read('/proc/self/stat').split(') ').at(-1).split(' ').slice(11, 15).map(Number)
  const busy = user + nice + system + irq + softirq
  return { busy, steal, total: busy + idle + iowait + steal, own: own.reduce((sum, part) => sum + part) }
}

/** Watches the machine until the returned function is called: the share of stolen time, and the cores that other processes used. */
export function watch() {
  const before = ticks()
  return () => {
    const after = ticks()
    const spent = Object.fromEntries(Object.keys(after).map((name) => [name, after[name] - before[name]]))
    const elapsed = Math.max(1, spent.total)
    const others = Math.max(0, ((spent.busy - spent.own) / elapsed) * os.cpus().length)
    return { steal: spent.steal / elapsed, others }
  }
}

/** Above these limits a run was not quiet: shares of all time, of one core, and of the runs. */
const MOST = { steal: 0.01, others: 0.1, far: 0.1 }

/** The disturbances of a run; empty if it was quiet. `looks`: the distance of the cores before and after each run. */
export function disturbances({ steal, others }, looks) {
  const percent = (part) => `${(part * 100).toFixed(1)} %`
  const far = looks.filter(({ near }) => !near).length / Math.max(1, looks.length)
  return [
    steal > MOST.steal && `the hypervisor took ${percent(steal)} of the time (at most ${percent(MOST.steal)})`,
    others > MOST.others && `other processes used ${percent(others)} of a core (at most ${percent(MOST.others)})`,
    far > MOST.far && `the cores were far apart around ${percent(far)} of the runs (at most ${percent(MOST.far)})`,
  ].filter(Boolean)
}
