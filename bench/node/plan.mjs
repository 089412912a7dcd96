// Which runs, in which order, and what they add up to. The shape of the results is that of ../rust.

import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { contenders } from './contenders/index.mjs'
import { Probe } from './placement.mjs'

const MEASURES = ['one', 'rtt-polled', 'rtt-parked']

export const defaults = {
  only: [],
  measures: MEASURES,
  sizes: [64, 1024, 16_384, 65_536, 1 << 20, 16 << 20],
  seconds: 0.5,
  runs: 5,
  capacity: 4 << 20,
  cpus: [0, 1],
  node: process.execPath,
}

function machine() {
  const read = (file) => {
    try {
      return fs.readFileSync(file, 'utf8').trim()
    } catch {
      return ''
    }
  }
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
    hypervisor: info.includes('hypervisor'),
    node: process.version,
  }
}

export function listing() {
  return contenders.map(({ id, version, note, unavailable }) => ({
    id,
    version,
    note,
    unavailable: unavailable ?? null,
  }))
}

function runJob(job) {
  return new Promise((resolve, reject) => {
    const side = fileURLToPath(new URL('./side.mjs', import.meta.url))
    const contender = contenders.find(({ id }) => id === job.contender)
    const arguments_ = [side, 'a', JSON.stringify(job)]
    // A group of its own, so that nothing of a run that is cut short stays on a core.
    const options = { stdio: ['ignore', 'pipe', 'pipe'], detached: true }
    // Threads are pinned one by one; a whole process is pinned as it starts.
    const child =
      job.pinned && !contender.threads
        ? spawn('taskset', ['-c', String(job.cpus[0]), job.node, ...arguments_], options)
        : spawn(job.node, arguments_, options)
    const end = () => {
      try {
        process.kill(-child.pid, 'SIGKILL')
      } catch {
        // Gone already, as it should be.
      }
    }
    process.once('exit', end)
    let out = ''
    let err = ''
    child.stdout.on('data', (data) => (out += data))
    child.stderr.on('data', (data) => (err += data))
    const patience = setTimeout(end, 30_000 + 30_000 * job.seconds)
    child.on('error', reject)
    child.on('close', (code, signal) => {
      clearTimeout(patience)
      end()
      process.removeListener('exit', end)
      // Sockets stay behind as files where their owner did not live to remove them.
      for (const ending of ['sock', 'zmq', 'redis'])
        fs.rmSync(path.join(os.tmpdir(), `${job.tag}.${ending}`), { force: true })
      if (signal === 'SIGKILL') reject(new Error('took too long'))
      else if (code !== 0)
        reject(
          new Error(
            err.split('\n').find((line) => line.includes('Error')) ??
              err.trim().split('\n').at(-1) ??
              `ended with ${code}`,
          ),
        )
      else resolve(JSON.parse(out.trim().split('\n').at(-1)))
    })
  })
}

export function spread(values) {
  const sorted = [...values].sort((a, b) => a - b)
  const half = sorted.length >> 1
  const median = sorted.length % 2 === 0 ? (sorted[half - 1] + sorted[half]) / 2 : sorted[half]
  return { median, min: sorted[0], max: sorted.at(-1) }
}

function summarise(runs) {
  const of = (pick) => spread(runs.map(pick))
  const summary = {
    runs: runs.length,
    messages_per_second: of((run) => run.messages_per_second),
    bytes_per_second: of((run) => run.bytes_per_second),
    cpu_ns_per_message: of((run) => run.cpu_ns_per_message),
    preempted: of((run) => run.preempted),
  }
  if (runs[0].round_trip) {
    summary.p50_ns = of((run) => run.round_trip.p50_ns)
    summary.p99_ns = of((run) => run.round_trip.p99_ns)
    summary.p999_ns = of((run) => run.round_trip.p999_ns)
  }
  if (runs[0].idle_wakeups_per_second !== null)
    summary.idle_wakeups_per_second = of((run) => run.idle_wakeups_per_second)
  return summary
}

/** A run whose cores moved meanwhile belongs to neither placement. */
const placementOf = ({ before, after }) => (before.near !== after.near ? 'moved' : before.near ? 'near' : 'far')

/** Near runs and far runs are summed up apart: a median over both describes neither. */
export function byPlacement(runs) {
  const groups = {}
  for (const run of runs) (groups[placementOf(run)] ??= []).push(run)
  return Object.fromEntries(Object.entries(groups).map(([name, group]) => [name, summarise(group)]))
}

export async function runPlan(options = {}, say = () => {}, progress = () => {}) {
  const plan = { ...defaults, ...options }
  const unknown = plan.only.find((id) => !contenders.some((contender) => contender.id === id))
  if (unknown !== undefined) throw new Error(`no contender ${unknown}`)
  if (plan.sizes.some((size) => !(size > 0) || size % 8 !== 0)) throw new Error('sizes are multiples of 8')
  const chosen = contenders.filter(({ id }) => plan.only.length === 0 || plan.only.includes(id))
  const pinned = spawnSync('taskset', ['--version']).error === undefined
  const started = Math.floor(Date.now() / 1000)
  // An interrupt goes through the exit handlers, which end what is running.
  const interrupted = () => process.exit(130)
  process.once('SIGINT', interrupted)
  const probe = new Probe(plan.cpus)
  // The first one is spoilt by the compiler.
  await probe.measure()
  const cells = []
  let serial = 0
  try {
    for (const measure of plan.measures) {
      for (const size of measure === 'one' ? plan.sizes : [64]) {
        const row = chosen.map((contender) => ({
          contender: contender.id,
          measure,
          size,
          by_placement: {},
          runs: [],
          skipped: contender.unavailable ?? contender.takes(measure, size) ?? undefined,
          failures: [],
        }))
        // Contenders alternate: what the machine does to one run it does to its neighbours.
        for (let run = 0; run < plan.runs; run++) {
          for (const cell of row) {
            if (cell.skipped !== undefined || cell.failures.length > 1) continue
            progress(`${cell.contender} ${measure} ${size} run ${run + 1}`)
            const before = await probe.measure()
            try {
              const outcome = await runJob({
                contender: cell.contender,
                measure,
                size,
                seconds: plan.seconds,
                cpus: plan.cpus,
                capacity: plan.capacity,
                node: plan.node,
                pinned,
                tag: `rfbench-${process.pid}-n${++serial}`,
              })
              cell.runs.push({ before, after: await probe.measure(), ...outcome })
            } catch (error) {
              cell.failures.push(error.message)
            }
          }
        }
        for (const cell of row) {
          cell.by_placement = byPlacement(cell.runs)
          if (cell.failures.length === 0) delete cell.failures
          cells.push(cell)
          say(cell)
        }
      }
    }
  } finally {
    process.removeListener('SIGINT', interrupted)
    await probe.close()
  }
  return {
    harness: 'node',
    started,
    machine: machine(),
    cpus: plan.cpus,
    pinned,
    seconds: plan.seconds,
    capacity: plan.capacity,
    contenders: listing().filter(({ id }) => chosen.some((contender) => contender.id === id)),
    cells,
  }
}
