// One publisher and many subscribers, in Rust and in Node.

import { broadcastInNode } from '../node/tasks.mjs'
import { HALVES, checkSizes, common, conduct, listed, task, wanted } from './experiment.mjs'
import { list, program } from './shared.mjs'

export const about =
  'ringfence and its rivals, one publisher and 1 to 16 subscribers; writes broadcast.md, broadcast.json'
export const options = {
  ...HALVES,
  only: ['only these rivals', undefined, 'a,b'],
  subscribers: ['numbers of subscribers (1, 2, 4, 8 and 16; in Node 1, 4, 8 and 16)', undefined, '1,16'],
  idle: ['subscribers that never read, in addition to one that reads; in Rust', '0,16,62'],
  sizes: ['bytes of a message (64, 1024 and 65536; in Node 64 and 1024); 64 also in batches, in Rust', undefined, '64'],
  capacity: ['bytes of a queue; at least sixteen messages', '4194304'],
  cpus: ['the core of the publisher, and the core of all subscribers', '0,1'],
  blocked: ['skips the measurement of how long a killed or stopped subscriber blocks the publisher', true],
  ...common({ runs: '3' }),
  // Sixteen readers in Node share a core, and each must first compile its code: runs of 0.15 s were wrong by a factor of ten.
  seconds: ['seconds of one run (0.15, in Node 1)', undefined, '0.15'],
}

const USUAL = {
  rust: { seconds: 0.15, subscribers: [1, 2, 4, 8, 16], sizes: [64, 1024, 65_536] },
  node: { seconds: 1, subscribers: [1, 4, 8, 16], sizes: [64, 1024] },
}
const FAILURES = ['killed', 'stopped', 'zombie']

/** The steps for each rival: sizes and subscribers, idle subscribers in addition to one, and a kill or stop of one of two. */
function* steps({ id, blocked }, { subscribers, idle, sizes, failures }) {
  for (const size of sizes) {
    for (const batch of size === 64 ? [false, true] : [false]) {
      for (const count of subscribers) yield { subscribers: count, idle: 0, size, batch }
      if (size !== 64 || id !== 'ringfence') continue
      for (const others of idle) if (others > 0) yield { subscribers: 1, idle: others, size, batch }
    }
  }
  if (blocked) for (const failure of failures) yield { subscribers: 2, idle: 0, size: 64, batch: false, failure }
}

function broadcastInRust({ only, subscribers, idle, sizes, failures, ...job }) {
  const chosen = listed().broadcast.filter(({ id }) => only?.includes(id) ?? true)
  const tasks = chosen.flatMap((rival) =>
    [...steps(rival, { subscribers, idle, sizes, failures })].map((step) =>
      task({ contender: rival.id, ...step }, { command: [program, 'publish'], job }),
    ),
  )
  const contenders = chosen.map(({ id, version, note }) => ({ id, version, note }))
  return { name: 'rust', seconds: job.seconds, capacity: job.capacity, contenders, tasks }
}

export async function run(values) {
  const halves = wanted(values)
  const [only, sizes, subscribers] = [list(values.only), list(values.sizes, Number), list(values.subscribers, Number)]
  checkSizes(sizes)
  const cpus = list(values.cpus, Number)
  const inRust = { idle: list(values.idle, Number), failures: values.blocked ? FAILURES : [] }
  const made = halves.map((name) => {
    const usual = USUAL[name]
    const job = {
      only,
      cpus,
      capacity: Number(values.capacity),
      seconds: Number(values.seconds ?? usual.seconds),
      subscribers: subscribers ?? usual.subscribers,
      sizes: sizes ?? usual.sizes,
    }
    return name === 'rust' ? broadcastInRust({ ...job, ...inRust }) : broadcastInNode(job)
  })
  await conduct(await Promise.all(made), values, { data: 'broadcast', only, cpus })
}
