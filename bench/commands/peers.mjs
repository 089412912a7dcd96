// ringfence beside its rivals between two processes, in Rust and in Node, in alternating rounds.

import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import process from 'node:process'

import { Probe } from '../node/placement.mjs'
import { json, merge, page, plots, usualPlacement } from '../pages/peers.mjs'
import { answer, buildNode, buildRust, must, origin, program, root, rust, say, withScratch, write } from './shared.mjs'

const text = { type: 'string' }
export const options = {
  rust: { type: 'boolean' },
  node: { type: 'boolean' },
  peers: text,
  measures: text,
  sizes: text,
  seconds: { ...text, default: '0.5' },
  runs: { ...text, default: '5' },
  capacity: text,
  cpus: text,
  out: { ...text, default: path.join(root, 'docs/bench') },
  json: text,
  build: { type: 'boolean', default: true },
}

export const help = `peers: ringfence and its rivals between two processes; writes README.md, results.json and plots

  --rust, --node       that half alone
  --peers a,b          these contenders alone, ringfence's own names included; a half that has none of them is left out
  --measures a,b       of one, batch, copy, rtt-polled, rtt-spin, rtt-parked
  --sizes 64,1024      bytes of a message for the one-way measure; multiples of 8
  --seconds 0.5        of one run, warm-up not counted
  --runs 5             rounds: each runs every cell once
  --capacity BYTES     of a ring (4 MiB; at least four messages)
  --cpus 0,1           where the two sides are pinned
  --out docs/bench     --out '' writes none
  --json FILE          the results there as well
  --no-build           what is built already is good enough`

const MEASURES_OF = {
  rust: ['one', 'batch', 'copy', 'rtt-polled', 'rtt-spin', 'rtt-parked'],
  node: ['one', 'rtt-polled', 'rtt-parked'],
}

/** The toolchain argument of one that is new enough for native-ipc, '' for the usual one, or null. */
function toolchainOf197() {
  const isNewEnough = (version) => {
    const [, major, minor] = version.match(/^rustc (\d+)\.(\d+)/) ?? []
    return Number(major) > 1 || Number(minor) >= 97
  }
  if (isNewEnough(answer('rustc', ['--version']))) return ''
  const installed = answer('rustup', ['toolchain', 'list'])
    .split('\n')
    .map((row) => row.split(' ')[0])
    .filter(Boolean)
  // A release before a nightly: a nightly changes under the measurement.
  for (const name of installed.sort((a, b) => a.includes('nightly') - b.includes('nightly'))) {
    if (isNewEnough(answer('rustup', ['run', name, 'rustc', '--version']))) return `+${name}`
  }
  return null
}

/** native-ipc, which takes part where a toolchain is new enough: the program, or why there is none. */
function nativeIpc(builds) {
  const toolchain = toolchainOf197()
  if (toolchain === null) return { why: 'needs Rust 1.97, which is not installed (rustup toolchain install 1.97.0)' }
  const directory = path.join(rust, 'target/native-ipc')
  if (builds) {
    const features = ['--no-default-features', '--features', 'native-ipc']
    must('cargo', [toolchain, 'build', '--release', ...features].filter(Boolean), {
      cwd: rust,
      env: { ...process.env, CARGO_TARGET_DIR: directory },
    })
  }
  const second = path.join(directory, 'release/ringfence-bench')
  return fs.existsSync(second) ? { second } : {}
}

/** One half, with the arguments of each of its rounds; null where it has nothing to run. */
function harness(name, values, { second, scratch }) {
  const [command, first] =
    name === 'rust'
      ? [program, ['peers', ...(second ? ['--also', second] : [])]]
      : [process.execPath, [path.join(root, 'bench/node/main.mjs')]]
  const list = name === 'rust' ? ['list'] : [...first, '--list']
  const listed = [second, command].filter((one) => one && (one === command || name === 'rust'))
  const ids = new Set(listed.flatMap((one) => JSON.parse(answer(one, list))).map(({ id }) => id))
  const chosen = values.peers?.split(',').filter((id) => ids.has(id))
  const measures = values.measures?.split(',').filter((measure) => MEASURES_OF[name].includes(measure))
  if (chosen?.length === 0 || measures?.length === 0) return null
  const file = path.join(scratch, `${name}.json`)
  const arguments_ = [...first, '--runs', '1', '--seconds', values.seconds, '--json', file]
  if (chosen) arguments_.push('--only', chosen.join(','))
  if (measures) arguments_.push('--measures', measures.join(','))
  for (const option of ['sizes', 'capacity', 'cpus']) if (values[option]) arguments_.push(`--${option}`, values[option])
  const round = async () => {
    await new Promise((resolve, reject) => {
      const child = spawn(command, arguments_, { cwd: root, stdio: 'inherit' })
      child.on('error', reject)
      child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`the ${name} half ended with ${code}`))))
    })
    return JSON.parse(fs.readFileSync(file, 'utf8'))
  }
  return { name, round }
}

async function placement(cpus) {
  const probe = new Probe((cpus ?? '0,1').split(',').map(Number))
  await probe.measure()
  const found = await probe.measure()
  await probe.close()
  return found
}

/** Rounds, and not one contender's runs in a row: what the machine does in one minute it does to all of them. */
async function rounds(running, runs) {
  const merged = {}
  for (let round = 1; round <= runs; round++) {
    for (const { name, round: measure } of running) {
      say(`\n${name}, round ${round} of ${runs}`)
      merged[name] = merge(merged[name] ?? null, await measure())
    }
  }
  return merged
}

export async function run(values) {
  const both = !values.rust && !values.node
  const wanted = { rust: both || values.rust, node: both || values.node }
  if (wanted.rust && values.build) buildRust()
  const { second, why } = wanted.rust ? nativeIpc(values.build) : {}
  if (why) say(`native-ipc is left out: it ${why}`)
  if (wanted.node && values.build) buildNode()
  await withScratch(async (scratch) => {
    const halves = ['rust', 'node'].filter((name) => wanted[name])
    const running = halves.map((name) => harness(name, values, { second, scratch })).filter(Boolean)
    if (running.length === 0) throw new Error('nothing to run: no half has these peers and measures')
    const before = await placement(values.cpus)
    const merged = await rounds(running, Number(values.runs))
    const after = await placement(values.cpus)
    const found = running.map(({ name }) => merged[name])
    const results = {
      ...origin(),
      node: wanted.node ? process.version : undefined,
      rustc: merged.rust?.machine.rustc,
      machine: found[0].machine,
      before,
      after,
      placement: usualPlacement(found),
      runs: Number(values.runs),
      seconds: Number(values.seconds),
      absent: why ? { 'native-ipc': why } : {},
      harnesses: found,
    }
    const files = plots(results)
    if (values.out !== '')
      write(values.out, { 'results.json': json(results), 'README.md': page(results, files), ...files })
    if (values.json) fs.writeFileSync(values.json, json(results))
    say(`\n${page(results, files)}`)
  })
}
