// ringfence beside its rivals between two processes, in Rust and in Node, in alternating rounds.

import { peersInNode } from '../node/tasks.mjs'
import { HALVES, checkNames, checkSizes, common, conduct, listed, task, wanted } from './experiment.mjs'
import { list, program } from './shared.mjs'

export const about = 'ringfence and its rivals between two processes; writes README.md, results.json and plots'
export const options = {
  ...HALVES,
  peers: ['only these contenders; variants of ringfence run only if named', undefined, 'a,b'],
  measures: ['of one, batch, copy, rtt-polled, rtt-spin, rtt-parked', undefined, 'a,b'],
  sizes: ['bytes of a message for the one-way measure; multiples of 8', undefined, '64,1024'],
  capacity: ['bytes of a ring; at least four messages', '4194304'],
  cpus: ['the cores of the two sides', '0,1'],
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

export function peersInRust({ only, cells, ...job }) {
  const contenders = listed().peers.filter(({ id }) => only?.includes(id) ?? true)
  const tasks = cells.flatMap(([measure, sizes]) =>
    sizes.flatMap((size) =>
      contenders.map(({ id }) => task({ contender: id, measure, size }, { command: [program, 'one'], job })),
    ),
  )
  return { name: 'rust', seconds: job.seconds, capacity: job.capacity, contenders, tasks }
}

export async function run(values) {
  const halves = wanted(values)
  const [cpus, sizes, measures] = [list(values.cpus, Number), list(values.sizes, Number), list(values.measures)]
  checkSizes(sizes)
  checkNames(measures, MEASURES.rust, 'measure')
  const job = { seconds: Number(values.seconds), capacity: Number(values.capacity), cpus }
  const only = list(values.peers)
  const made = []
  for (const name of halves) {
    // Batches and copies matter only for small messages, and a round trip of megabytes measures throughput.
    const cells = (measures ?? MEASURES[name])
      .filter((measure) => MEASURES[name].includes(measure))
      .map((measure) => [measure, measure === 'one' ? (sizes ?? SIZES[name]) : [64]])
    made.push(name === 'rust' ? peersInRust({ ...job, only, cells }) : await peersInNode({ ...job, only, cells }))
  }
  await conduct(made, values, { data: 'results', only, cpus })
}
