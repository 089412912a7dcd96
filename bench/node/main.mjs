// The Node half by itself: node bench/node/main.mjs --help

import fs from 'node:fs'
import { parseArgs } from 'node:util'

import { defaults, listing, runPlan } from './plan.mjs'
import { cellLines } from './text.mjs'

const HELP = `
  --only a,b         these contenders alone (see --list)
  --measures a,b     of one, rtt-polled, rtt-parked
  --sizes 64,1024    bytes of a message for the one-way measure; multiples of 8
  --seconds 0.5      of one run, warm-up not counted
  --runs 5           of each cell; contenders alternate
  --capacity BYTES   of a ring (4 MiB; at least four messages)
  --cpus 0,1         where the two sides are pinned
  --json FILE        every run and its summary
  --list             who takes part, and who cannot`

const text = { type: 'string' }
const { values } = parseArgs({
  options: {
    only: text,
    measures: text,
    sizes: text,
    seconds: text,
    runs: text,
    capacity: text,
    cpus: text,
    json: text,
    list: { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
  },
})

if (values.help) console.log(HELP.trimStart())
else if (values.list) console.log(JSON.stringify(listing(), null, 2))
else {
  const list = (value, map = (item) => item) => value?.split(',').map(map)
  const options = {
    only: list(values.only) ?? defaults.only,
    measures: list(values.measures) ?? defaults.measures,
    sizes: list(values.sizes, Number) ?? defaults.sizes,
    seconds: Number(values.seconds ?? defaults.seconds),
    runs: Number(values.runs ?? defaults.runs),
    capacity: Number(values.capacity ?? defaults.capacity),
    cpus: list(values.cpus, Number) ?? defaults.cpus,
  }
  const terminal = process.stderr.isTTY
  const results = await runPlan(
    options,
    (cell) => {
      if (terminal) process.stderr.write('\r\x1b[K')
      if (cell.skipped === undefined || options.only.length > 0) console.log(cellLines(cell).join('\n'))
    },
    (doing) => terminal && process.stderr.write(`\r\x1b[K${doing}`),
  )
  if (values.json) fs.writeFileSync(values.json, `${JSON.stringify(results, null, 2)}\n`)
}
