// ringfence alone, as channels, subscribers, messages and rings grow.

import { spawnSync } from 'node:child_process'

import { checkSizes, common, conduct, task, wanted } from './experiment.mjs'
import { list, program, say } from './shared.mjs'

const powers = (from, to) => Array.from({ length: to - from + 1 }, (_, n) => 2 ** (from + n)).join(',')
const TABLES = ['channels', 'subscribers', 'sizes', 'capacities']

export const about = 'ringfence alone, as work grows; writes scale.md, scale.json and its plots'
export const options = {
  only: ['only these tables', TABLES.join(',')],
  channels: [
    'numbers of channels between two processes, also read by a merge',
    '1,2,5,10,20,50,100,200,500,1000,5000,10000',
  ],
  subscribers: ['numbers of subscriptions of one process', '1,2,5,10,20,50,100,200,500,1000'],
  sizes: ['bytes of a message through a ring of 4 MiB; multiples of 8', powers(3, 26)],
  capacities: ['bytes of a ring', powers(16, 26)],
  pause: ['seconds to pause between two steps, for other users of the machine', '0'],
  ...common({ seconds: '0.5', runs: '3' }),
}

/** Descriptors that a process needs for a channel, and in addition to its channels. */
const EACH = 3
const BESIDE = 200

/** The numbers of channels for which this process has enough descriptors. */
function affordable(counts) {
  const limit = Number(spawnSync(program, ['descriptors'], { encoding: 'utf8' }).stdout)
  const can = (count) => count * EACH + BESIDE <= limit
  const left = counts.filter((count) => !can(count))
  if (left.length > 0) say(`skipped, with a limit of ${limit} descriptors: ${left.join(', ')} channels`)
  return counts.filter(can)
}

export async function run(values) {
  wanted({ ...values, rust: true })
  checkSizes(list(values.sizes, Number))
  const seconds = Number(values.seconds)
  const tasks = list(values.only).flatMap((measure) => {
    const steps = list(values[measure], Number)
    return (measure === 'channels' ? affordable(steps) : steps).map((size) =>
      task({ contender: 'ringfence', measure, size }, { command: [program, 'step'], job: { seconds } }),
    )
  })
  const half = { name: 'rust', seconds, contenders: [{ id: 'ringfence' }], tasks }
  await conduct([half], values, { data: 'scale', pause: Number(values.pause) })
}
