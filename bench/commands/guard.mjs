// Compares this tree with a base revision in alternating runs, and reports slowdowns above the noise.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import process from 'node:process'

import { Probe } from '../node/placement.mjs'
import { runOnce } from '../node/rounds.mjs'
import { duration, median, quantity } from '../node/text.mjs'
import { checkNames } from './experiment.mjs'
import { answer, buildNode, list, progress, root, run as runCommand, say } from './shared.mjs'

export const about =
  '[BASE]: reports what got slower in this tree since the revision BASE (main); exits with 1 if something did'
export const options = {
  seconds: ['seconds of the measurement, without building the base', '100'],
  each: ['seconds of one run', '0.2'],
  only: ['only these cells', undefined, 'a,b'],
  json: ['writes every pair of runs to this file', undefined, 'FILE'],
  build: ['uses the existing build', true],
  measure: ['only builds, for a later measurement on an idle machine', true],
}
export const takesPositionals = true

/** Smaller differences are not reported: a different code layout can cause them. */
const LEAST = 0.03
/** The minimum number of pairs of runs for a cell. */
const ENOUGH = 4

const rustJob = (contender, measure, size) => ({ rust: true, contender, measure, size })
const nodeJob = (contender, measure, size) => ({ rust: false, contender, measure, size })
const CELLS = {
  'rust/64': rustJob('ringfence', 'one', 64),
  'rust/64x32': rustJob('ringfence', 'batch', 64),
  'rust/64-copied': rustJob('ringfence', 'copy', 64),
  'rust/1024': rustJob('ringfence', 'one', 1024),
  'rust/65536': rustJob('ringfence', 'one', 65_536),
  'rust/rtt-polled': rustJob('ringfence', 'rtt-polled', 64),
  'rust/rtt-parked': rustJob('ringfence', 'rtt-parked', 64),
  'rust/to-1': { rust: true, subscribers: 1 },
  'rust/to-4': { rust: true, subscribers: 4 },
  'node/64': nodeJob('ringfence', 'one', 64),
  'node/64-for-await': nodeJob('ringfence-await', 'one', 64),
  'node/65536': nodeJob('ringfence', 'one', 65_536),
  'node/rtt-parked': nodeJob('ringfence', 'rtt-parked', 64),
}

/** Writes the files of a revision to a folder outside of git. */
function extract(revision, tree, folder = '.') {
  fs.mkdirSync(tree, { recursive: true })
  runCommand('extract', 'sh', ['-c', 'git archive "$0" "$2" | tar -x -C "$1"', revision, tree, folder])
}

/** Creates a tree for the base, with this tree's benchmark; built once for each revision. */
function baseTree(base) {
  const revision = answer('git', ['rev-parse', '--verify', '--quiet', `${base}^{commit}`])
  if (revision === '') throw new Error(`there is no revision ${base}`)
  const tree = path.join(root, 'build/guard', revision.slice(0, 12))
  if (!fs.existsSync(tree)) {
    // Renamed once it is complete, so that an interrupted run leaves no incomplete tree for the next one.
    const partial = `${tree}.partial`
    fs.rmSync(partial, { recursive: true, force: true })
    extract(revision, partial)
    fs.symlinkSync(path.join(root, 'node_modules'), path.join(partial, 'node_modules'))
    fs.renameSync(partial, tree)
  }
  // Both sides run this tree's benchmark, so they do the same work.
  const skipped = new Set(['target', 'node_modules'])
  fs.rmSync(path.join(tree, 'bench'), { recursive: true, force: true })
  fs.cpSync(path.join(root, 'bench'), path.join(tree, 'bench'), {
    recursive: true,
    filter: (from) => !skipped.has(path.basename(from)),
  })
  return { revision, tree }
}

/** Builds ringfence without the rivals, which is quick. Returns `false` if that fails. */
function buildProgram(tree, target) {
  const command = ['build', '--quiet', '--release', '--no-default-features', '--features', 'ringfence']
  const cwd = path.join(tree, 'bench/rust')
  const env = { ...process.env, CARGO_TARGET_DIR: target }
  return spawnSync('cargo', command, { cwd, env, stdio: 'inherit' }).status === 0
}

function build(tree, isWanted, revision) {
  const target = path.join(tree, 'build/guard-target')
  const built = { tree, program: path.join(target, 'release/ringfence-bench') }
  if (!isWanted) return built
  say(`building ${path.relative(process.cwd(), tree) || 'this tree'}`)
  if (!buildProgram(tree, target)) {
    if (tree === root) throw new Error('this tree cannot be built')
    say('the base lacks functions that this benchmark calls, so its own benchmark measures it')
    fs.rmSync(path.join(tree, 'bench'), { recursive: true })
    extract(revision, tree, 'bench')
    if (!buildProgram(tree, target)) throw new Error('the base cannot be built, not even with its own benchmark')
  }
  buildNode(tree)
  return built
}

/** Runs once. Returns the nanoseconds of a message, delivery or round trip. */
async function once(built, cell, seconds) {
  const job = { ...cell, seconds, cpus: [0, 1], capacity: 4 << 20, pinned: true }
  if (cell.subscribers !== undefined) {
    const cast = { ...job, contender: 'ringfence', idle: 0, size: 64, batch: false }
    const outcome = await runOnce({ command: [built.program, 'publish'], job: cast })
    return 1e9 / outcome.delivered_per_second
  }
  const side = path.join(built.tree, 'bench/node/side.mjs')
  const command = cell.rust ? [built.program, 'one'] : [process.execPath, side, 'a']
  const outcome = await runOnce({ command, job, cpu: cell.rust ? undefined : 0 })
  return outcome.round_trip ? outcome.round_trip.p50_ns : 1e9 / outcome.messages_per_second
}

/** Runs rounds until the time is over. Each round runs every cell once in both trees, in alternating order. */
async function measureAll(trees, names, { seconds, each }) {
  const pairs = Object.fromEntries(names.map((name) => [name, []]))
  const end = performance.now() + seconds * 1000
  const probe = new Probe([0, 1])
  const isNear = async () => (await probe.measure()).near
  await isNear()
  for (let round = 0; round < ENOUGH || performance.now() < end; round += 1) {
    for (const name of names) {
      progress(`round ${round + 1}: ${name}`)
      const order = round % 2 === 0 ? ['base', 'tree'] : ['tree', 'base']
      const before = await isNear()
      const pair = {}
      for (const which of order) pair[which] = await once(trees[which], CELLS[name], each)
      // If the cores were moved between the two runs, the difference would be theirs.
      if (before === (await isNear())) pairs[name].push(pair)
    }
  }
  progress('')
  await probe.close()
  return pairs
}

/** The additional cost of this tree: the median of the pairs' differences, and its error. */
function compare(pairs) {
  const changes = pairs.map(({ base, tree }) => tree / base - 1)
  const change = median(changes)
  // The standard error of the median, from the median absolute deviation, which is robust against outliers.
  const spread = 1.4826 * median(changes.map((one) => Math.abs(one - change)))
  const noise = Math.max(LEAST, (3 * 1.2533 * spread) / Math.sqrt(changes.length))
  return { change, spread, noise, pairs: pairs.length }
}

export async function run(values, [base = 'main']) {
  const names = list(values.only) ?? Object.keys(CELLS)
  checkNames(names, Object.keys(CELLS), 'cell')
  const { revision, tree } = baseTree(base)
  const built = { base: build(tree, values.build, revision), tree: build(root, values.build) }
  if (!values.measure) return
  const plan = { seconds: Number(values.seconds), each: Number(values.each) }
  say(`\n${revision.slice(0, 12)} beside this tree; ${os.cpus()[0].model}, load ${os.loadavg()[0].toFixed(1)}`)
  const pairs = await measureAll(built, names, plan)
  if (values.json) fs.writeFileSync(values.json, JSON.stringify({ revision, pairs }))
  const slower = []
  say(`${'each'.padEnd(18)}${'base'.padStart(10)}${'tree'.padStart(10)}${'change'.padStart(9)}${'noise'.padStart(9)}`)
  for (const name of names) {
    if (pairs[name].length < ENOUGH) {
      say(`${name.padEnd(18)} too few pairs: the cores were moved`)
      continue
    }
    const { change, noise } = compare(pairs[name])
    const [before, after] = ['base', 'tree'].map((which) => shown(median(pairs[name].map((pair) => pair[which]))))
    const verdict = change > noise ? '  slower' : change < -noise ? '  faster' : ''
    if (change > noise) slower.push(name)
    const [by, within] = [change, noise].map((part) => `${(part * 100).toFixed(1)} %`.padStart(9))
    say(`${name.padEnd(18)}${before.padStart(10)}${after.padStart(10)}${by}${within}${verdict}`)
  }
  say(slower.length === 0 ? '\nnothing got slower than the noise' : `\nslower: ${slower.join(', ')}`)
  if (slower.length > 0) process.exitCode = 1
}

const shown = (ns) => (ns < 100 ? `${quantity(ns)} ns` : duration(ns))
