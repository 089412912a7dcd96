// Values, calls, and messages of 64 B by themselves, in Node.

import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'

import { runPlan } from '../node/plan.mjs'
import { json, page } from '../pages/objects.mjs'
import { buildNode, origin, progress, root, say, write } from './shared.mjs'

const text = { type: 'string' }
export const options = {
  seconds: { ...text, default: '0.25' },
  runs: { ...text, default: '3' },
  only: text,
  measures: text,
  out: { ...text, default: path.join(root, 'docs/bench') },
  build: { type: 'boolean', default: true },
}

export const help = `objects: values, calls and single messages in Node, beside what else sends them; writes objects.md, objects.json

  --seconds 0.25       of one run
  --runs 3             rounds
  --only a,b           these contenders alone
  --measures rpc,…     of objects, rpc, rpc-stalled, single; the others stay on the page as an earlier run has left them
  --out docs/bench     --out '' writes none
  --no-build           what is built already is good enough`

const MEASURES = ['objects', 'rpc', 'rpc-stalled', 'single']

export async function run(values) {
  if (values.build) buildNode()
  const chosen = values.measures?.split(',') ?? MEASURES
  const unknown = chosen.find((measure) => !MEASURES.includes(measure))
  if (unknown !== undefined) throw new Error(`no measure ${unknown}`)
  const plan = {
    only: values.only?.split(',') ?? [],
    measures: chosen,
    seconds: Number(values.seconds),
    runs: Number(values.runs),
  }
  const results = { ...origin(), runs: plan.runs, ...(await runPlan(plan, () => {}, progress)) }
  progress('')
  const before = path.join(values.out, 'objects.json')
  if (chosen.length < MEASURES.length && values.out !== '' && existsSync(before))
    keepOthers(results, JSON.parse(readFileSync(before, 'utf8')), chosen)
  const shown = page(results)
  if (values.out !== '') write(values.out, { 'objects.md': shown, 'objects.json': json(results) })
  say(`\n${shown}`)
}

/** What an earlier run has measured, and this one has not. */
function keepOthers(results, earlier, chosen) {
  const others = earlier.cells.filter(({ measure }) => !chosen.includes(measure))
  const names = [...new Set(others.map(({ measure }) => measure))]
  const isNew = ({ id }) => results.contenders.every((known) => known.id !== id)
  results.cells.push(...others)
  results.contenders.push(...earlier.contenders.filter(isNew))
  const { date, commit, load, runs } = earlier
  const from = `${runs} runs of ${date}, at ${commit}, load ${load.toFixed(1)} before`
  results.earlier = Object.fromEntries(names.map((name) => [name, earlier.earlier?.[name] ?? from]))
}
