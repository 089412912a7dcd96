// An experiment: runs cells in rounds, and writes the page, the plots and the JSON.

import fs from 'node:fs'
import path from 'node:path'
import process from 'node:process'

import { disturbances, machine, watch } from '../node/machine.mjs'
import { runRounds } from '../node/rounds.mjs'
import { json } from '../pages/json.mjs'
import { answer, buildNode, buildRust, fetchDeps, origin, program, root, say, write } from './shared.mjs'

/** The options of every experiment. */
export const common = ({ seconds, runs }) => ({
  ...(seconds && { seconds: ['seconds of one run, without warm-up', seconds] }),
  runs: ['number of rounds, each of which runs every cell once', runs],
  out: ["--out '' writes no files", 'docs/internals/bench'],
  json: ['also writes the results to this file', undefined, 'FILE'],
  build: ['uses the existing build', true],
})

export const HALVES = { rust: ['runs only this half', false], node: ['runs only this half', false] }

/** Builds the requested halves, or all, and returns their names. */
export function wanted({ rust, node, build }, of = ['rust', 'node']) {
  const chosen = of.filter((name) => (!rust && !node) || { rust, node }[name])
  if (build && chosen.includes('rust')) buildRust()
  if (build && chosen.includes('node')) buildNode()
  fetchDeps()
  return chosen
}

export const listed = () => JSON.parse(answer(program, ['list']))

/** Throws if an option has an unknown value. */
export function checkNames(names, known, what) {
  const unknown = names?.find((name) => !known.includes(name))
  if (unknown !== undefined) throw new Error(`no ${what} ${unknown}; there are ${known.join(', ')}`)
}

export function checkSizes(sizes) {
  if (sizes?.some((size) => !(size > 0) || size % 8 !== 0)) throw new Error('sizes must be multiples of 8')
}

/** A task: a cell of the results, and the command that runs it. `key` identifies the cell within its half. */
export const task = (key, { command, job, cpu, skipped }) => ({
  label: Object.values(key).join(' '),
  cell: { ...key, by_placement: {}, runs: [], skipped, failures: [] },
  command,
  job: { ...job, ...key },
  cpu,
})

const resultsOf = ({ tasks, ...half }) => ({ ...half, cells: tasks.map(({ cell }) => cell) })

/** The page of each results file, and the module that renders it: `page(results, plots)` and, if it has plots, `plots(results)`. */
export const PAGES = {
  table: ['table', 'table.mjs'],
  results: ['README', 'peers.mjs'],
  broadcast: ['broadcast', 'broadcast.mjs'],
  objects: ['objects', 'objects.mjs'],
  scale: ['scale', 'scale.mjs'],
  sandbox: ['sandbox', 'sandbox.mjs'],
}

/** The distances of the cores around all runs. */
export const looksOf = ({ halves }) =>
  halves
    .flatMap(({ cells }) => cells)
    .flatMap(({ runs }) => runs.flatMap(({ before, after }) => [before, after]))
    .filter(Boolean)

/** The files for these results: a page and its plots. */
export async function pageOf(data, results) {
  const [name, module] = PAGES[data]
  const { page, plots } = await import(`../pages/${module}`)
  const images = plots?.(results) ?? {}
  return { [`${name}.md`]: page(results, images), ...images }
}

/**
 * Runs the tasks of all halves, and writes the results. `data`: the name of the results, as in {@link PAGES}. `only`: the requested
 * contenders. `adjust(results)` is called before the page is rendered.
 */
export async function conduct(made, values, { data, only, cpus, pause, adjust }) {
  const halves = made.filter(({ tasks }) => tasks.length > 0)
  if (halves.length === 0) throw new Error('nothing to run: no cell matches these options')
  const known = halves.flatMap(({ contenders }) => contenders.map(({ id }) => id))
  checkNames(only, known, 'contender')
  const start = origin()
  const state = watch()
  const runs = Number(values.runs)
  const placements = await runRounds(
    halves.flatMap(({ tasks }) => tasks),
    { runs, cpus, pause },
  )
  const results = {
    ...start,
    node: process.version,
    rustc: halves.some(({ name }) => name !== 'node') ? answer('rustc', ['--version']) : undefined,
    machine: machine(),
    state: state(),
    runs,
    placements,
    halves: halves.map(resultsOf),
  }
  results.disturbed = disturbances(results.state, looksOf(results))
  adjust?.(results)
  const files = await pageOf(data, results)
  if (values.out !== '') write(values.out, { [`${data}.json`]: json(results), ...files })
  if (values.json) fs.writeFileSync(path.resolve(root, values.json), json(results))
  say(`\n${Object.values(files)[0]}`)
  return results
}
