// A child in a sandbox beside the same child without one, in Node.

import { peersInNode } from '../node/tasks.mjs'
import { ROWS } from '../pages/sandbox.mjs'
import { common, conduct, wanted } from './experiment.mjs'

export const about = 'a child in a sandbox beside the same child without one; writes sandbox.md, sandbox.json'
export const options = common({ seconds: '0.25', runs: '21' })

export async function run(values) {
  wanted(values, ['node'])
  const cells = Object.values(ROWS).map(([measure, size]) => [measure, [size]])
  const only = ['message/spawned', 'message/sandboxed', 'call/spawned', 'call/sandboxed']
  const half = await peersInNode({ only, cells, seconds: Number(values.seconds), capacity: 4 << 20 })
  await conduct([half], values, { data: 'sandbox' })
}
