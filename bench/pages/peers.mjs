// The results of `peers` as a page and as plots.

import { chart } from '../deps/plot.mjs'
import { placementOf } from '../node/rounds.mjs'
import { bytes, duration } from '../node/text.mjs'
import {
  aims,
  asTimes,
  atLeast,
  atMost,
  block,
  figures,
  flow,
  grid,
  listing,
  millions,
  nameOf,
  rate,
  render,
  usualPlacement,
} from './markdown.mjs'
import { bytesPerSecond, draw, filesOf, line, nanoseconds } from './plots.mjs'

const TITLES = {
  one: 'One-way, one publish a message',
  batch: 'One-way, batches',
  copy: 'One-way, copied in and out',
  'rtt-polled': 'Round trip, polling',
  'rtt-spin': 'Round trip, spinning before sleeping',
  'rtt-parked': 'Round trip, asleep between messages',
}

function throughputTable(half, cells, placement) {
  const show = ({ messages_per_second: found }, { size }) => (size >= 1024 ? flow(found, size) : rate(found))
  const last = `CPU per ${bytes(Math.min(...cells.map(({ size }) => size)))}`
  return grid(half, cells, { column: 'size', name: bytes, show, last }, placement)
}

function latencyTable(cells, placement) {
  const wakes = cells.some((cell) => figures(cell, placement)?.summary.idle_wakeups_per_second)
  const columns = [
    ['p50', ({ p50_ns }) => `**${duration(p50_ns.median)}**`],
    ['p50 min–max', ({ p50_ns }) => `${duration(p50_ns.min)}–${duration(p50_ns.max)}`],
    ['p99', ({ p99_ns }) => duration(p99_ns.median)],
    ['p99.9', ({ p999_ns }) => duration(p999_ns.median)],
    ['CPU', ({ cpu_ns_per_message }) => duration(cpu_ns_per_message.median)],
  ]
  const idle = ({ idle_wakeups_per_second: found }) => (found ? `${found.median.toFixed(0)}/s` : '–')
  if (wakes) columns.push(['idle wake-ups', idle])
  return listing(cells, ['', ({ contender }) => contender], columns, placement)
}

const gigabytes = (perSecond) => `${Number((perSecond / 1e9).toFixed(1))} GB/s`

/** The aims of this half, with near cores. */
function asked({ name, cells }, placement) {
  if (placement !== 'near') return ''
  const of = (contender, measure, size, figure) =>
    cells.find((one) => one.contender === contender && one.measure === measure && one.size === size)?.by_placement
      .near?.[figure].median
  const messages = (contender, measure, size) => of(contender, measure, size, 'messages_per_second')
  const long = (contender) => of(contender, 'one', 16 << 20, 'bytes_per_second')
  const trip = (contender, measure) => of(contender, measure, 64, 'p50_ns')
  const others = cells.filter((cell) => cell.measure === 'batch' && !cell.contender.startsWith('ringfence'))
  const run = messages('ringfence-run', 'batch', 64)
  const fastest = Math.max(...others.map(({ contender }) => messages(contender, 'batch', 64) ?? 0))
  const alone = duration(trip('cache-line', 'rtt-polled') ?? NaN)
  const rows = {
    rust: [
      ['64 B in batches, of one size', run, 700e6, millions],
      ['the same beside the fastest other', run / fastest, 1, asTimes],
      ['16 MiB in place', long('ringfence'), 42e9, gigabytes, 'a ring goes on to the place that was used longest ago'],
      ['round trip, polled, p50', trip('ringfence', 'rtt-polled'), -115, duration, `a line alone takes ${alone}`],
    ],
    node: [
      [
        'for await, 64 B',
        messages('ringfence-await', 'one', 64),
        12e6,
        millions,
        'an `await`, its promise and a Buffer each',
      ],
      ['gathered by hand, 64 B', messages('ringfence-gathered', 'one', 64), 20e6, millions],
      [
        'round trip, polled, p50',
        trip('ringfence', 'rtt-polled'),
        -600,
        duration,
        'four calls of the binding and two clocks each way',
      ],
      [
        'round trip, asleep, beside a Unix socket',
        trip('ringfence', 'rtt-parked') / trip('unix', 'rtt-parked'),
        -0.8,
        asTimes,
        'both wait for the kernel to wake a core',
      ],
      ['16 MiB by send', long('ringfence'), 9e9, gigabytes],
      ['16 MiB in place', long('ringfence-reserve'), 9e9, gigabytes],
    ],
  }
  // A negative aim is an upper limit.
  const row = ([what, found, aim, show, why]) =>
    aim < 0 ? atMost(what, found, -aim, show, why) : atLeast(what, found, aim, show, why)
  return aims(rows[name].map(row))
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

/** The run whose median is the median of the medians: its curve is shown. */
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
        const shown = isRoundTrip ? latencyTable(cells, placement) : throughputTable(half, cells, placement)
        return block(`### ${TITLES[measure]}`, shown)
      }),
      ...block('### Aims', asked(half, placement)),
    ]
  }
  return render(results, {
    title: 'Measured',
    intro: [
      'Written by `npm run bench`; every figure below comes from that one run. The method and the meaning of placement:',
      '[bench/README.md](../../../bench/README.md). As channels, messages and rings grow: [scale.md](scale.md). One to many:',
      '[broadcast.md](broadcast.md). Values and calls: [objects.md](objects.md). More aims, and what holds each: [goals.md](goals.md).',
    ],
    section,
  })
}
