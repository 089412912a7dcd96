// Half a minute: ringfence beside a Unix socket, in Node alone, in one run. It tells whether a change has helped; a figure that is to
// be quoted comes from `peers`.

import { runPlan } from '../node/plan.mjs'
import { bytes, cellLines, duration, quantity } from '../node/text.mjs'
import { buildNode, progress } from './shared.mjs'

const RUNS = 2
const SECONDS = 0.4
const small = ['ringfence', 'ringfence-await', 'unix-corked', 'unix']
const large = ['ringfence', 'unix']

export const options = { build: { type: 'boolean', default: true } }

export const help = `quick: half a minute, ringfence and a Unix socket in Node

  --no-build           what is built already is good enough`

const part = (only, measures, sizes) =>
  runPlan({ only, measures, sizes, runs: RUNS, seconds: SECONDS }, () => {}, progress)

export async function run(values) {
  if (values.build) buildNode()
  const results = [
    await part(small, ['one'], [64]),
    await part(large, ['one'], [1 << 20]),
    await part(large, ['rtt-parked', 'rtt-polled'], [64]),
  ]
  progress('')

  const { machine } = results[0]
  console.log(`${machine.cpu}, Linux ${machine.kernel}, Node ${machine.node}`)
  const cells = results.flatMap((result) => result.cells).filter((cell) => cell.runs.length > 0 || cell.failures)
  const row = (cell, ...figures) => [cell.contender, cell.measure, bytes(cell.size), ...figures]
  const lines = cells.map((cell) => {
    const [[placement, summary] = []] = Object.entries(cell.by_placement).sort(([, a], [, b]) => b.runs - a.runs)
    if (summary === undefined) return row(cell, 'failed', cell.failures.at(-1), '')
    const { p50_ns, p99_ns, messages_per_second, bytes_per_second } = summary
    if (p50_ns) return row(cell, `p50 ${duration(p50_ns.median)}`, `p99 ${duration(p99_ns.median)}`, placement)
    const rate = quantity(messages_per_second.median, 'msg/s')
    return row(cell, rate, quantity(bytes_per_second.median, 'B/s'), placement)
  })
  const skipped = results.flatMap((result) => result.cells).find((cell) => cell.skipped?.startsWith('ringfence'))
  if (skipped) console.log(cellLines(skipped)[0])
  const widths = lines[0]?.map((_, column) => Math.max(...lines.map((line) => line[column].length))) ?? []
  for (const line of lines)
    console.log(
      line.map((text, column) => (column < 3 ? text.padEnd(widths[column]) : text.padStart(widths[column]))).join('  '),
    )
}
