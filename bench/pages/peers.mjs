// The results of `peers` as a page and as plots.

import { chart } from '../deps/plot.mjs'
import { placementOf } from '../node/rounds.mjs'
import { bytes, duration } from '../node/text.mjs'
import { block, figures, flow, grid, listing, nameOf, rate, render, usualPlacement } from './markdown.mjs'
import { bytesPerSecond, draw, filesOf, line, nanoseconds } from './plots.mjs'

const TITLES = {
  one: 'One-way, one publish a message',
  batch: 'One-way, batches',
  copy: 'One-way, copied in and out',
  'rtt-polled': 'Round trip, polling',
  'rtt-spin': 'Round trip, spinning before sleeping',
  'rtt-parked': 'Round trip, asleep between messages',
  paced: 'One-way, 1,000 messages a second',
}

const PACED = [
  ['wakeups of the reader per message', ({ wakeups_per_message: found }) => found.median.toFixed(2)],
  ['CPU of both sides per message', ({ cpu_ns_per_message: found }) => duration(found.median)],
]

function throughputTable(half, cells, placement) {
  const show = ({ messages_per_second: found }, { size }) => (size >= 1024 ? flow(found, size) : rate(found))
  const last = `CPU per ${bytes(Math.min(...cells.map(({ size }) => size)))}`
  return grid(half, cells, { column: 'size', name: bytes, show, last }, placement)
}

function latencyTable(cells, placement) {
  const wakes = cells.some((cell) => figures(cell, placement)?.summary.idle_wakeups_per_second)
  const columns = [
    ['p50', ({ p50_ns }) => duration(p50_ns.median)],
    ['p99', ({ p99_ns }) => duration(p99_ns.median)],
    ['p99.9', ({ p999_ns }) => duration(p999_ns.median)],
    ['CPU', ({ cpu_ns_per_message }) => duration(cpu_ns_per_message.median)],
  ]
  const idle = ({ idle_wakeups_per_second: found }) => (found ? `${found.median.toFixed(0)}/s` : '–')
  if (wakes) columns.push(['idle wake-ups', idle])
  return listing(cells, ['', ({ contender }) => contender], columns, placement)
}

const isOurs = (contender) => contender.startsWith('ringfence')

function throughputPlot(half, placement) {
  const cells = half.cells.filter(({ measure }) => measure === 'one')
  const series = half.contenders.map(({ id }) => {
    const own = cells.filter(({ contender }) => contender === id)
    return line(id, own, placement, ({ bytes_per_second: found }) => found, isOurs(id))
  })
  return draw({
    title: `Throughput over message size, ${nameOf(half)}`,
    subtitle: `one-way, one publish a message, every word written and read; ${placement} placement`,
    series,
    label: 'bytes of a message',
    name: bytes,
    y: bytesPerSecond,
  })
}

/** The run whose median is the median of all medians. Its curve is shown. */
function typicalRun({ runs }, placement) {
  const there = runs.filter((run) => placementOf(run) === placement)
  return there.sort((a, b) => a.round_trip.p50_ns - b.round_trip.p50_ns)[there.length >> 1]
}

function latencyPlot(half, measures, placement, title) {
  const series = half.cells.flatMap((cell) => {
    const run = measures.includes(cell.measure) ? typicalRun(cell, placement) : undefined
    if (run === undefined) return []
    const points = run.round_trip.curve
      .filter(([percentile, ns]) => percentile <= 99.99 && ns > 0)
      .map(([percentile, ns]) => [100 / (100 - percentile), ns])
    const name = cell.measure === 'rtt-spin' ? `${cell.contender} (spin)` : cell.contender
    return [{ name, strong: isOurs(cell.contender), points }]
  })
  if (series.length === 0) return null
  const all = series.flatMap(({ points }) => points.map(([, ns]) => ns))
  const ticks = [0, 50, 90, 99, 99.9, 99.99].map((percentile) => [100 / (100 - percentile), String(percentile)])
  return chart({
    title: `${title}, ${nameOf(half)}`,
    subtitle: `64 B there and back, the typical run of each; ${placement} placement`,
    series,
    x: { label: 'percentile', low: 1, high: 10_000, ticks },
    y: { ...nanoseconds('round trip'), low: Math.min(...all) / 1.3, high: Math.max(...all) * 1.3 },
  })
}

export function plots({ halves }) {
  const made = halves.map((half) => {
    const placement = usualPlacement(half.cells)
    const parked = ['rtt-parked', 'rtt-spin']
    return {
      [`${half.name}-throughput.svg`]: throughputPlot(half, placement),
      [`${half.name}-latency-polled.svg`]: latencyPlot(half, ['rtt-polled'], placement, 'Round trip, polling'),
      [`${half.name}-latency-parked.svg`]: latencyPlot(half, parked, placement, 'Round trip with sleeping'),
    }
  })
  return filesOf(Object.assign({}, ...made))
}

export function page(results, files) {
  const section = (half, placement) => {
    const images = Object.keys(files).filter((file) => file.startsWith(`${half.name}-`))
    const measures = [...new Set(half.cells.map((cell) => cell.measure))]
    return [
      ...images.flatMap((name) => [`![${name.replace('.svg', '').replaceAll('-', ' ')}](${name})`, '']),
      ...measures.flatMap((measure) => {
        const cells = half.cells.filter((cell) => cell.measure === measure)
        const isRoundTrip = measure.startsWith('rtt')
        const shown = isRoundTrip
          ? latencyTable(cells, placement)
          : measure === 'paced'
            ? listing(cells, ['', ({ contender }) => contender], PACED, placement)
            : throughputTable(half, cells, placement)
        return block(`### ${TITLES[measure]}`, shown)
      }),
    ]
  }
  return render(results, {
    title: 'Measured',
    intro: [
      'Written by `npm run bench`; the figures are those of one run. Method: [bench/README.md](../../../bench/README.md). Other pages:',
      '[goals](table.md), [one to many](broadcast.md), [values and calls](objects.md), [a sandbox](sandbox.md), [as work grows](scale.md).',
    ],
    section,
  })
}
