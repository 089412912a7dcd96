// ringfence beside its rivals between two processes, in Rust and in Node, in alternating rounds.

import fs from 'node:fs'
import path from 'node:path'
import process from 'node:process'

import { peersInNode } from '../node/tasks.mjs'
import { HALVES, checkNames, checkSizes, common, conduct, listed, task, wanted } from './experiment.mjs'
import { answer, list, must, program, rust, say } from './shared.mjs'

export const about = 'ringfence and its rivals between two processes; writes README.md, results.json and plots'
export const options = {
  ...HALVES,
  peers: ["these contenders alone, ringfence's own names included", undefined, 'a,b'],
  measures: ['of one, batch, copy, rtt-polled, rtt-spin, rtt-parked', undefined, 'a,b'],
  sizes: ['bytes of a message for the one-way measure; multiples of 8', undefined, '64,1024'],
  capacity: ['bytes of a ring; at least four messages', '4194304'],
  cpus: ['where the two sides are pinned', '0,1'],
  ...common({ seconds: '0.5', runs: '5' }),
}

const MEASURES = {
  rust: ['one', 'batch', 'copy', 'rtt-polled', 'rtt-spin', 'rtt-parked'],
  node: ['one', 'rtt-polled', 'rtt-parked'],
}
const SIZES = {
  rust: [64, 1024, 65_536, 1 << 20, 16 << 20],
  node: [64, 1024, 16_384, 65_536, 1 << 20, 16 << 20],
}

/** The toolchain argument of one that is new enough for native-ipc, '' for the usual one, or null. */
function toolchainOf197() {
  const isNewEnough = (version) => {
    const [, major, minor] = version.match(/^rustc (\d+)\.(\d+)/) ?? []
    return Number(major) > 1 || Number(minor) >= 97
  }
  const installed = answer('rustup', ['toolchain', 'list']).split('\n')
  // A release before a nightly: a nightly changes under the measurement.
  const names = installed.map((row) => row.split(' ')[0]).sort((a, b) => a.includes('nightly') - b.includes('nightly'))
  const candidates = ['', ...names.filter(Boolean).map((name) => `+${name}`)]
  return candidates.find((one) => isNewEnough(answer('rustc', [one, '--version'].filter(Boolean)))) ?? null
}

/** native-ipc, which takes part if a toolchain is new enough: the program, or why there is none. */
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

function peersInRust({ only, cells, second, absent, ...job }) {
  const known = listed().peers.map((contender) => [contender, program])
  const others =
    second === undefined ? [] : listed(second).peers.filter(({ id }) => known.every(([one]) => one.id !== id))
  for (const contender of others) known.push([contender, second])
  const chosen = known.filter(([{ id }]) => only?.includes(id) ?? true)
  const tasks = cells.flatMap(([measure, sizes]) =>
    sizes.flatMap((size) =>
      chosen.map(([{ id }, one]) => task({ contender: id, measure, size }, { command: [one, 'one'], job })),
    ),
  )
  const contenders = chosen.map(([contender]) => contender)
  return { name: 'rust', seconds: job.seconds, capacity: job.capacity, contenders, absent, tasks }
}

export async function run(values) {
  const halves = wanted(values)
  const { second, why } = halves.includes('rust') ? nativeIpc(values.build) : {}
  if (why) say(`native-ipc is left out: it ${why}`)
  const [cpus, sizes, measures] = [list(values.cpus, Number), list(values.sizes, Number), list(values.measures)]
  checkSizes(sizes)
  checkNames(measures, MEASURES.rust, 'measure')
  const job = { seconds: Number(values.seconds), capacity: Number(values.capacity), cpus }
  const only = list(values.peers)
  const made = []
  for (const name of halves) {
    // Batches and copies matter where messages are small; a round trip of megabytes is a throughput.
    const cells = (measures ?? MEASURES[name])
      .filter((measure) => MEASURES[name].includes(measure))
      .map((measure) => [measure, measure === 'one' ? (sizes ?? SIZES[name]) : [64]])
    made.push(
      name === 'rust'
        ? peersInRust({ ...job, only, cells, second, absent: why && { 'native-ipc': why } })
        : await peersInNode({ ...job, only, cells }),
    )
  }
  const pages = await import('../pages/peers.mjs')
  await conduct(made, values, {
    name: 'README',
    data: 'results',
    only,
    cpus,
    pages,
    more: { seconds: job.seconds },
  })
}
