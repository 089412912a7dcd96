// Runs the cells of an experiment in rounds, and summarizes the runs of each cell.

import { pause as sleep } from './usage.mjs'
import { Probe } from './placement.mjs'
import { run } from './run.mjs'
import { spread } from './text.mjs'
import { progress, say } from '../commands/shared.mjs'

/** A run whose cores were moved during it belongs to neither placement. */
export const placementOf = ({ before, after }) => (before.near !== after.near ? 'moved' : before.near ? 'near' : 'far')

/** The spread of each figure in the outcomes, at any depth. */
function summarise(outcomes) {
  const names = new Set(outcomes.flatMap((outcome) => Object.keys(outcome)))
  const entries = [...names].map((name) => {
    const values = outcomes.map((outcome) => outcome[name]).filter((value) => value !== null && value !== undefined)
    if (values.length === 0 || Array.isArray(values[0])) return null
    if (typeof values[0] === 'object') return [name, summarise(values)]
    return typeof values[0] === 'number' ? [name, spread(values)] : [name, values[0]]
  })
  return Object.fromEntries(entries.filter(Boolean))
}

/** Summarizes near and far runs separately: a median over both would describe neither. */
export function byPlacement(runs) {
  const groups = {}
  for (const one of runs) (groups[placementOf(one)] ??= []).push(one)
  const summary = (group) => {
    const found = summarise(group)
    Object.assign(found, found.round_trip)
    for (const name of ['before', 'after', 'round_trip']) delete found[name]
    return { runs: group.length, ...found }
  }
  return Object.fromEntries(Object.entries(groups).map(([name, group]) => [name, summary(group)]))
}

let serial = 0

/** Runs a command once, and returns its outcome. The job's tag makes the names of its sockets and files unique. */
export function runOnce({ command, job, cpu }) {
  const tag = `rfbench-${process.pid}-${++serial}`
  return run([...command, JSON.stringify({ ...job, tag })], { cpu, seconds: job.seconds, tag })
}

async function measure(task, probe) {
  const { cell } = task
  const before = await probe.measure()
  try {
    const outcome = await runOnce(task)
    if (outcome.skipped) cell.skipped = outcome.skipped
    else cell.runs.push({ before, after: await probe.measure(), ...outcome })
  } catch (error) {
    cell.failures.push(error.message)
  }
}

/** A cell may fail once. After a second failure or a timeout it is not repeated, since it would take its time limit again. */
const isOver = ({ skipped, failures, runs }) =>
  Boolean(skipped) || failures.length > 1 || runs.some((one) => one.continues === false)

/**
 * Runs every cell once in each round, so that disturbances of the machine affect all cells alike. Returns the distances of the cores
 * before and after the runs.
 */
export async function runRounds(tasks, { runs, cpus = [0, 1], pause = 0 }) {
  const probe = new Probe(cpus)
  try {
    // The first round also compiles the loops.
    await probe.measure()
    const before = await probe.measure()
    for (let round = 1; round <= runs; round++) {
      say(`round ${round} of ${runs}`)
      for (const task of tasks) {
        if (isOver(task.cell)) continue
        progress(task.label)
        await measure(task, probe)
        if (pause > 0) await sleep(pause * 1000)
      }
      progress('')
    }
    for (const { cell } of tasks) cell.by_placement = byPlacement(cell.runs)
    return [before, await probe.measure()]
  } finally {
    await probe.close()
  }
}
