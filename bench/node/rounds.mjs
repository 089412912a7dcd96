// Runs the cells of an experiment in rounds, and sums the runs of each up.

import { pause as sleep } from './usage.mjs'
import { Probe } from './placement.mjs'
import { run } from './run.mjs'
import { spread } from './text.mjs'
import { progress, say } from '../commands/shared.mjs'

/** A run whose cores moved in the meantime belongs to neither placement. */
export const placementOf = ({ before, after }) => (before.near !== after.near ? 'moved' : before.near ? 'near' : 'far')

/** A spread of each figure that the outcomes have, at any depth. */
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

/** Near runs and far runs are summed up apart: a median over both describes neither. */
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

/** Runs a command once; returns its outcome. The job gets a tag, which names sockets, services and files of this run alone. */
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

/** One failure is bad luck, a second one is not. What does not go on would take its whole time limit again. */
const isOver = ({ skipped, failures, runs }) =>
  Boolean(skipped) || failures.length > 1 || runs.some((one) => one.goes_on === false)

/**
 * Runs every cell once in each round, so that what the machine does in one minute it does to all of them. Returns where the cores
 * were before and afterwards.
 */
export async function runRounds(tasks, { runs, cpus = [0, 1], pause = 0 }) {
  const probe = new Probe(cpus)
  try {
    // The first one also compiles the loops.
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
