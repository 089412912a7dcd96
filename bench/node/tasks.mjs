// The Node half: its contenders, and the command of each of their cells.

import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import { task } from '../commands/experiment.mjs'

const pinned = spawnSync('taskset', ['--version']).error === undefined
const side = fileURLToPath(new URL('side.mjs', import.meta.url))
/** The number of readers of a shared buffer. */
const READERS = 4
const describe = ({ id, version, note }) => ({ id, version, note })

/** The command of a process of this half, with the job for all its processes. */
const starting = ({ cpus = [0, 1], ...job }, { threads = false, runtime = process.execPath, skipped } = {}) => ({
  command: [runtime, side, 'a'],
  job: { cpus, pinned, ...job },
  // Threads are pinned individually; a process is pinned at its start.
  cpu: pinned && !threads ? cpus[0] : undefined,
  skipped,
})

export function nodeTask({ id, threads, runtime, unavailable, takes }, measure, size, job) {
  const alone = threads && measure === 'paced' ? 'two threads, whose CPU time is one' : undefined
  const skipped = alone ?? unavailable ?? takes(measure, size) ?? undefined
  const readers = measure === 'share' ? READERS : 1
  return task({ contender: id, measure, size }, starting({ ...job, readers }, { threads, runtime, skipped }))
}

/** Cells between two sides. `cells`: `[measure, sizes]` each; a contender runs the measures that it knows. */
export async function peersInNode({ only, cells, ...job }) {
  // After the build: modules that do not load are skipped.
  const { contenders } = await import('./contenders/index.mjs')
  const chosen = contenders.filter(
    ({ id, measures, alone }) =>
      (only?.includes(id) ?? !alone) && cells.some(([measure]) => measures.includes(measure)),
  )
  const tasks = cells.flatMap(([measure, sizes]) =>
    sizes.flatMap((size) =>
      chosen
        .filter(({ measures }) => measures.includes(measure))
        .map((contender) => nodeTask(contender, measure, size, job)),
    ),
  )
  return { name: 'node', seconds: job.seconds, capacity: job.capacity, contenders: chosen.map(describe), tasks }
}

/** Cells of one publisher and its subscribers. */
export async function broadcastInNode({ only, subscribers, sizes, ...job }) {
  const { contenders } = await import('./broadcast/rivals.mjs')
  const chosen = contenders.filter(({ id }) => only?.includes(id) ?? true)
  const tasks = sizes.flatMap((size) =>
    subscribers.flatMap((count) =>
      chosen.map(({ id, unavailable: skipped }) => {
        const key = { contender: id, subscribers: count, idle: 0, size, batch: false }
        // At least sixteen messages: ringfence's longest message is an eighth of the ring.
        const capacity = Math.max(job.capacity, 16 * size)
        return task(key, starting({ ...job, capacity }, { skipped }))
      }),
    ),
  )
  return { name: 'node', seconds: job.seconds, capacity: job.capacity, contenders: chosen.map(describe), tasks }
}
