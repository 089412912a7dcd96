// Values, calls, large buffers, and single messages of 64 B, in Node.

import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'

import { peersInNode } from '../node/tasks.mjs'
import { checkNames, checkSizes, common, conduct, wanted } from './experiment.mjs'
import { list, root } from './shared.mjs'

/** Bytes of a message; for `rpc` and `rpc-stalled`, the number of concurrent calls. */
const SIZES = {
  objects: [104, 1024, 65_536],
  rpc: [1, 100],
  'rpc-stalled': [4000],
  pass: [2 ** 16, 2 ** 20, 2 ** 24, 2 ** 30],
  share: [2 ** 28],
  single: [64],
}

export const about =
  'values, calls, large buffers and single messages in Node, beside what else sends them; writes objects.md, objects.json'
export const options = {
  only: ['only these contenders', undefined, 'a,b'],
  measures: [
    `of ${Object.keys(SIZES).join(', ')}; the page keeps the earlier results of the others`,
    undefined,
    'rpc,…',
  ],
  sizes: ['bytes of the passed buffers', undefined, '65536,…'],
  ...common({ seconds: '0.25', runs: '3' }),
}

export async function run(values) {
  wanted(values, ['node'])
  const measures = list(values.measures) ?? Object.keys(SIZES)
  checkNames(measures, Object.keys(SIZES), 'measure')
  const only = list(values.only)
  const pass = list(values.sizes, Number) ?? SIZES.pass
  checkSizes(pass)
  const cells = measures.map((measure) => [measure, { ...SIZES, pass }[measure]])
  const half = await peersInNode({ only, cells, seconds: Number(values.seconds), capacity: 4 << 20 })
  const before = path.resolve(root, values.out, 'objects.json')
  const adjust = (results) => {
    if (measures.length < Object.keys(SIZES).length && values.out !== '' && existsSync(before))
      keepOthers(results, JSON.parse(readFileSync(before, 'utf8')), measures)
  }
  await conduct([half], values, { data: 'objects', only, adjust })
}

/** Keeps the results of earlier runs for cells that this run does not measure. */
function keepOthers(results, earlier, measures) {
  const [half] = results.halves
  const [old] = earlier.halves
  const others = old.cells.filter(({ measure }) => !measures.includes(measure))
  half.cells.push(...others)
  half.contenders.push(...old.contenders.filter(({ id }) => half.contenders.every((known) => known.id !== id)))
  const { date, commit, load, runs } = earlier
  const from = `${runs} runs of ${date}, at ${commit}, load ${load.toFixed(1)} before`
  const names = [...new Set(others.map(({ measure }) => measure))]
  results.earlier = Object.fromEntries(names.map((name) => [name, earlier.earlier?.[name] ?? from]))
}
