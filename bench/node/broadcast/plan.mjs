// Which runs, in which order, and what they add up to. The shape of the results is that of ../../rust.

import { spawnSync } from 'node:child_process'
import process from 'node:process'
import { fileURLToPath } from 'node:url'

import { machine } from '../machine.mjs'
import { Probe } from '../placement.mjs'
import { run } from '../run.mjs'
import { placementOf, spread } from '../spread.mjs'
import { rivals } from './rivals.mjs'

export const defaults = {
  only: [],
  subscribers: [1, 4, 8, 16],
  sizes: [64, 1024],
  // Sixteen readers share a core, and each must have had its code compiled: runs of 0.15 s have told of that alone, and were off by ten times.
  seconds: 1,
  runs: 3,
  capacity: 4 << 20,
  cpus: [0, 1],
}

const FIGURES = ['published_per_second', 'delivered_per_second', 'cpu_ns_per_delivered', 'publisher_ns']
const side = fileURLToPath(new URL('./side.mjs', import.meta.url))

function summarise(runs) {
  const groups = {}
  for (const one of runs) (groups[placementOf(one)] ??= []).push(one)
  const summary = (group) => ({
    runs: group.length,
    ...Object.fromEntries(FIGURES.map((name) => [name, spread(group.map((one) => one[name]))])),
  })
  return Object.fromEntries(Object.entries(groups).map(([name, group]) => [name, summary(group)]))
}

/** Every cell once in each round, so that what the machine does in one minute it does to all of them. */
export async function runBroadcast(options = {}, progress = () => {}) {
  const plan = { ...defaults, ...options }
  const chosen = rivals.filter(({ id }) => plan.only.length === 0 || plan.only.includes(id))
  const pinned = spawnSync('taskset', ['--version']).error === undefined
  const cells = plan.sizes.flatMap((size) =>
    plan.subscribers.flatMap((subscribers) =>
      chosen.map(({ id, unavailable }) => ({
        rival: id,
        subscribers,
        size,
        batch: false,
        skipped: unavailable ?? null,
        runs: [],
        failures: [],
      })),
    ),
  )
  const probe = new Probe(plan.cpus)
  // The first one is spoilt by the compiler.
  await probe.measure()
  const placements = [await probe.measure()]
  let serial = 0
  try {
    for (let round = 1; round <= plan.runs; round++) {
      for (const cell of cells) {
        // One failure is bad luck, and the next one is not: what hangs would take the time of all.
        if (cell.skipped !== null || cell.failures.length > 1) continue
        const { rival, subscribers, size } = cell
        progress(`round ${round}: ${rival} to ${subscribers}, ${size} B`)
        const tag = `rfcast-${process.pid}-n${++serial}`
        // Eight messages at least: ringfence's longest is an eighth of the ring.
        const capacity = Math.max(plan.capacity, 16 * size)
        const job = { rival, subscribers, size, capacity, seconds: plan.seconds, cpus: plan.cpus, pinned, tag }
        const command = [process.execPath, side, 'publish', JSON.stringify(job)]
        const before = await probe.measure()
        try {
          const outcome = await run(command, { cpu: pinned ? plan.cpus[0] : undefined, seconds: plan.seconds, tag })
          cell.runs.push({ before, after: await probe.measure(), ...outcome })
        } catch (error) {
          cell.failures.push(error.message)
        }
      }
    }
    placements.push(await probe.measure())
  } finally {
    await probe.close()
  }
  for (const cell of cells) cell.by_placement = summarise(cell.runs)
  return {
    machine: machine(),
    placements,
    seconds: plan.seconds,
    capacity: plan.capacity,
    rivals: chosen.map(({ id, version, note, unavailable }) => ({ id, version, note, skipped: unavailable ?? null })),
    cells,
    blocked: [],
  }
}
