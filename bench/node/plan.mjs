// Which runs, in which order, and what they add up to. The shape of the results is that of ../rust.

import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import { contenders } from './contenders/index.mjs'
import { machine } from './machine.mjs'
import { Probe } from './placement.mjs'
import { run as runSide } from './run.mjs'
import { placementOf, spread } from './spread.mjs'

const MEASURES = ['one', 'rtt-polled', 'rtt-parked']
const OBJECT_SIZES = [104, 1024, 65_536]
const AT_A_TIME = [1, 100]
/** Calls to a side that stands still. */
const STALLED = 4000

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

export function listing() {
  return contenders.map(({ id, version, note, unavailable }) => ({
    id,
    version,
    note,
    unavailable: unavailable ?? null,
  }))
}

const side = fileURLToPath(new URL('./side.mjs', import.meta.url))

function runJob(job) {
  const { threads } = contenders.find(({ id }) => id === job.contender)
  const command = [job.node, side, 'a', JSON.stringify(job)]
  // Threads are pinned one by one; a whole process is pinned as it starts.
  return runSide(command, { cpu: job.pinned && !threads ? job.cpus[0] : undefined, seconds: job.seconds, tag: job.tag })
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
  if (runs[0].held_bytes !== undefined) summary.held_bytes = of((run) => run.held_bytes)
  if (runs[0].idle_wakeups_per_second !== null)
    summary.idle_wakeups_per_second = of((run) => run.idle_wakeups_per_second)
  return summary
}

/** Near runs and far runs are summed up apart: a median over both describes neither. */
export function byPlacement(runs) {
  const groups = {}
  for (const run of runs) (groups[placementOf(run)] ??= []).push(run)
  return Object.fromEntries(Object.entries(groups).map(([name, group]) => [name, summarise(group)]))
}

/** Bytes of a message; of `rpc` and `rpc-stalled` how many calls are under way at a time. */
function sizesOf(measure, plan) {
  if (measure === 'one') return plan.sizes
  if (measure === 'objects') return OBJECT_SIZES
  if (measure === 'rpc-stalled') return [STALLED]
  return measure === 'rpc' ? AT_A_TIME : [64]
}

export async function runPlan(options = {}, say = () => {}, progress = () => {}) {
  const plan = { ...defaults, ...options }
  const unknown = plan.only.find((id) => !contenders.some((contender) => contender.id === id))
  if (unknown !== undefined) throw new Error(`no contender ${unknown}`)
  if (plan.sizes.some((size) => !(size > 0) || size % 8 !== 0)) throw new Error('sizes are multiples of 8')
  const takesPart = ({ measures }) => plan.measures.some((measure) => measures.includes(measure))
  const isWanted = ({ id }) => plan.only.length === 0 || plan.only.includes(id)
  const chosen = contenders.filter((contender) => isWanted(contender) && takesPart(contender))
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
      for (const size of sizesOf(measure, plan)) {
        const measured = chosen.filter(({ measures }) => measures.includes(measure))
        const row = measured.map((contender) => ({
          contender: contender.id,
          measure,
          size,
          by_placement: {},
          runs: [],
          skipped: contender.unavailable ?? contender.takes(measure, size) ?? undefined,
          failures: [],
        }))
        // Contenders alternate: what the machine does to one run it does to its neighbours.
        for (let turn = 0; turn < plan.runs; turn++) {
          for (const cell of row) {
            if (cell.skipped !== undefined || cell.failures.length > 1) continue
            progress(`${cell.contender} ${measure} ${size} run ${turn + 1}`)
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
