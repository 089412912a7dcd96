// Half a minute: ringfence beside a Unix socket, in Node alone, in one run. It tells whether a change has helped; a figure that is to
// be quoted comes from `peers`.

import { machine } from '../node/machine.mjs'
import { runRounds } from '../node/rounds.mjs'
import { peersInNode } from '../node/tasks.mjs'
import { bytes, duration, quantity } from '../node/text.mjs'
import { buildNode, say } from './shared.mjs'

const small = ['ringfence', 'ringfence-await', 'unix-corked', 'unix']
const large = ['ringfence', 'unix']
const PARTS = [
  [small, [['one', [64]]]],
  [large, [['one', [1 << 20]]]],
  [large, ['rtt-parked', 'rtt-polled'].map((measure) => [measure, [64]])],
]

export const about = 'half a minute, ringfence and a Unix socket in Node'
export const options = {
  seconds: ['of one run', '0.4'],
  runs: ['rounds', '2'],
  build: ['what is built already is good enough', true],
}

export async function run(values) {
  if (values.build) buildNode()
  const job = { seconds: Number(values.seconds), capacity: 4 << 20 }
  const halves = []
  for (const [only, cells] of PARTS) halves.push(await peersInNode({ ...job, only, cells }))
  const tasks = halves.flatMap((half) => half.tasks)
  await runRounds(tasks, { runs: Number(values.runs) })
  const { cpu, kernel } = machine()
  say(`${cpu}, Linux ${kernel}, Node ${process.version}`)
  const cells = tasks.map(({ cell }) => cell)
  const lines = cells
    .filter(({ runs, failures }) => runs.length > 0 || failures.length > 0)
    .map((cell) => [cell.contender, cell.measure, bytes(cell.size)].concat(figures(cell)))
  const widths = lines[0]?.map((_, column) => Math.max(...lines.map((line) => line[column].length))) ?? []
  for (const line of lines)
    say(line.map((text, n) => (n < 3 ? text.padEnd(widths[n]) : text.padStart(widths[n]))).join('  '))
  const missing = cells.find(({ contender, skipped }) => contender === 'ringfence' && skipped)
  if (missing) say(`ringfence was not run: ${missing.skipped}`)
}

function figures({ by_placement, failures }) {
  const [[placement, summary] = []] = Object.entries(by_placement).sort(([, a], [, b]) => b.runs - a.runs)
  if (summary === undefined) return ['failed', failures.at(-1), '']
  const { p50_ns, p99_ns, messages_per_second, bytes_per_second } = summary
  if (p50_ns) return [`p50 ${duration(p50_ns.median)}`, `p99 ${duration(p99_ns.median)}`, placement]
  return [quantity(messages_per_second.median, 'msg/s'), quantity(bytes_per_second.median, 'B/s'), placement]
}
