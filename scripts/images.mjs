// Draws the charts in docs/images from docs/internals/bench/results.json: `node scripts/images.mjs`. The other images are drawn by hand.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root } from './lib/run.mjs'

import { figures, usualPlacement } from '../bench/pages/markdown.mjs'

const NAMES = {
  ringfence: 'ringfence',
  'unix-corked': 'Unix socket, batched',
  'message-port': 'MessagePort',
  unix: 'Unix socket',
  redis: 'Redis',
  zeromq: 'ZeroMQ',
  'child-process': 'child_process',
  'shared-array-buffer': 'SharedArrayBuffer',
}

const CHARTS = {
  speed: {
    label: 'Throughput in Node beside other ways between two processes',
    title: 'Throughput in Node',
    better: (a, b) => b - a,
    panels: [
      { title: '64 B, million messages a second', measure: 'one', size: 64, figure: 'messages_per_second', unit: 1e6 },
      { title: '1 KiB, GB a second', measure: 'one', size: 1024, figure: 'bytes_per_second', unit: 1e9 },
    ],
  },
  latency: {
    label: 'Round trip time in Node beside other ways between two processes',
    title: 'Round trip in Node, 64 B, median',
    better: (a, b) => a - b,
    panels: [
      { title: 'both sides asleep, µs', measure: 'rtt-parked', size: 64, figure: 'p50_ns', unit: 1e3 },
      { title: 'both sides polling, µs', measure: 'rtt-polled', size: 64, figure: 'p50_ns', unit: 1e3 },
    ],
  },
}

// Readable at a width of 375 px: text of 16 px is shown at 11 px there.
const [WIDTH, NAME, BAR, STEP] = [480, 188, 24, 34]
const LONGEST = WIDTH - NAME - 84

const results = JSON.parse(readFileSync(join(root, 'docs', 'internals', 'bench', 'results.json'), 'utf8'))
const { cells } = results.halves.find((half) => half.name === 'node')
const { machine } = results

/** The contenders that have this figure, and its medians: the best first. */
function rowsOf({ measure, size, figure, unit }, better) {
  const rows = Object.keys(NAMES).flatMap((contender) => {
    const cell = cells.find((one) => one.contender === contender && one.measure === measure && one.size === size)
    const median = figures(cell, usualPlacement(cells))?.summary[figure]
    return median === undefined ? [] : [[contender, (median.median ?? median) / unit]]
  })
  if (rows[0]?.[0] !== 'ringfence') fail(`✗ results.json has no ${measure} of ringfence at ${size} B.`)
  return rows.sort(([, a], [, b]) => better(a, b))
}

function draw({ label, title, better, panels }) {
  const out = []
  let y = 66
  for (const panel of panels) {
    const rows = rowsOf(panel, better)
    const most = Math.max(...rows.map(([, value]) => value))
    out.push(`<text class="panel" x="20" y="${y + 6}">${panel.title}</text>`)
    y += 20
    for (const [contender, value] of rows) {
      const [long, ours] = [Math.max((value / most) * LONGEST, 2), contender === 'ringfence']
      const shown = value >= 10 ? value.toFixed(1) : value.toFixed(2)
      out.push(
        `<text${ours ? ' class="panel"' : ''} x="${NAME - 8}" y="${y + 18}" text-anchor="end">${NAMES[contender]}</text>`,
        `<rect class="${ours ? 'ours' : 'theirs'}" x="${NAME}" y="${y}" width="${long.toFixed(1)}" height="${BAR}" rx="3"/>`,
        `<text x="${(NAME + long + 7).toFixed(1)}" y="${y + 18}">${shown}</text>`,
      )
      y += STEP
    }
    y += 28
  }
  const notes = [
    'MessagePort and SharedArrayBuffer connect threads of one process',
    `${machine.cpu.split(' (')[0]}${machine.hypervisor ? ', virtual' : ''}, ${machine.cores} cores, Node ${results.node.slice(1)}`,
    `medians of ${results.runs} runs, ${results.date}`,
  ]
  for (const note of notes) out.push(`<text class="note" x="20" y="${(y += 20) - 26}">${note}</text>`)
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y}" width="${WIDTH}" height="${y}" role="img" aria-label="${label}">
<style>
  text { font: 16px system-ui, "DejaVu Sans", sans-serif; fill: #343a40 }
  .page { fill: #ffffff } .title { font-size: 18px; font-weight: 700 } .panel { font-weight: 700 } .note { font-size: 14px; fill: #495057 }
  .ours { fill: #d6336c } .theirs { fill: #adb5bd }
  @media (prefers-color-scheme: dark) {
    text { fill: #e9ecef } .page { fill: #16181d } .note { fill: #adb5bd } .ours { fill: #f06595 } .theirs { fill: #5c636a }
  }
</style>
<rect class="page" width="${WIDTH}" height="${y}" rx="10"/>
<text class="title" x="20" y="34">${title}</text>
${out.join('\n')}
</svg>
`
}

for (const [name, chart] of Object.entries(CHARTS)) {
  writeFileSync(join(root, 'docs', 'images', `${name}.svg`), draw(chart))
  console.log(`docs/images/${name}.svg`)
}
