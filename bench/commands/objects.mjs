// Values, calls, and messages of 64 B by themselves, in Node.

import path from 'node:path'

import { runPlan } from '../node/plan.mjs'
import { json, page } from '../pages/objects.mjs'
import { buildNode, origin, progress, root, say, write } from './shared.mjs'

const text = { type: 'string' }
export const options = {
  seconds: { ...text, default: '0.25' },
  runs: { ...text, default: '3' },
  only: text,
  out: { ...text, default: path.join(root, 'docs/bench') },
  build: { type: 'boolean', default: true },
}

export const help = `objects: values, calls and single messages in Node, beside what else sends them; writes objects.md, objects.json

  --seconds 0.25       of one run
  --runs 3             rounds
  --only a,b           these contenders alone
  --out docs/bench     --out '' writes none
  --no-build           what is built already is good enough`

const MEASURES = ['objects', 'rpc', 'single']

export async function run(values) {
  if (values.build) buildNode()
  const plan = {
    only: values.only?.split(',') ?? [],
    measures: MEASURES,
    seconds: Number(values.seconds),
    runs: Number(values.runs),
  }
  const results = { ...origin(), runs: plan.runs, ...(await runPlan(plan, () => {}, progress)) }
  progress('')
  const shown = page(results)
  if (values.out !== '') write(values.out, { 'objects.md': shown, 'objects.json': json(results) })
  say(`\n${shown}`)
}
