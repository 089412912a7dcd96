// What the runs add up to, as a page and as plots.

import { byPlacement } from '../node/plan.mjs'
import { bytes, duration, quantity } from '../node/text.mjs'
import {
  aims,
  atLeast,
  atMost,
  disturbed,
  figures,
  millions,
  table,
  asTimes,
  usualPlacement as usualOf,
} from './markdown.mjs'
import { chart } from '../deps/plot.mjs'

const TITLES = {
  one: 'One-way, one publish a message',
  batch: 'One-way, batches',
  copy: 'One-way, copied in and out',
  'rtt-polled': 'Round trip, polling',
  'rtt-spin': 'Round trip, spinning before sleeping',
  'rtt-parked': 'Round trip, asleep between messages',
}

/** Adds the cells of another round to those so far. */
export function merge(into, more) {
  if (into === null) return more
  for (const cell of more.cells) {
    const known = into.cells.find(
      (other) => other.contender === cell.contender && other.measure === cell.measure && other.size === cell.size,
    )
    if (known === undefined) into.cells.push(cell)
    else {
      known.runs.push(...cell.runs)
      if (cell.failures?.length) known.failures = [...(known.failures ?? []), ...cell.failures]
      known.by_placement = byPlacement(known.runs)
    }
  }
  return into
}

/** The placement that most runs had: the one to compare in. */
export const usualPlacement = (harnesses) => usualOf(harnesses.flatMap(({ cells }) => cells))

const plain = (value) => quantity(value).trim()

function throughputCell(cell, placement) {
  const found = figures(cell, placement)
  if (found === null) return cell?.failures?.length ? 'failed' : '–'
  const { median, min, max } = found.summary.messages_per_second
  const shown =
    cell.size >= 1024
      ? `**${quantity(found.summary.bytes_per_second.median, 'B/s')}**`
      : `**${quantity(median, '/s')}**`
  const range =
    cell.size >= 1024 ? `${plain(min * cell.size)}–${plain(max * cell.size)}` : `${plain(min)}–${plain(max)}`
  return `${shown}<br>${range}${found.mark}`
}

function throughputTable(harness, measure, placement) {
  const cells = harness.cells.filter((cell) => cell.measure === measure)
  const sizes = [...new Set(cells.map(({ size }) => size))].sort((a, b) => a - b)
  const rows = harness.contenders
    .map(({ id }) => ({
      id,
      row: sizes.map((size) => cells.find((cell) => cell.contender === id && cell.size === size)),
    }))
    .filter(({ row }) => row.some((cell) => cell?.runs.length || cell?.failures?.length))
  if (rows.length === 0) return ''
  const cpu = rows.some(({ row }) => row[0] && figures(row[0], placement))
  const head = ['', ...sizes.map(bytes), ...(cpu ? [`CPU per ${bytes(sizes[0])}`] : [])]
  const lines = [head, head.map((_, i) => (i === 0 ? '---' : '--:'))]
  for (const { id, row } of rows) {
    const first = figures(row[0], placement)
    lines.push([
      id,
      ...row.map((cell) => throughputCell(cell, placement)),
      ...(cpu ? [first ? duration(first.summary.cpu_ns_per_message.median) : '–'] : []),
    ])
  }
  return table(lines)
}

function latencyTable(harness, measure, placement) {
  const cells = harness.cells.filter((cell) => cell.measure === measure && (cell.runs.length || cell.failures?.length))
  if (cells.length === 0) return ''
  const idle = cells.some((cell) => figures(cell, placement)?.summary.idle_wakeups_per_second)
  const lines = [
    ['', 'p50', 'p50 min–max', 'p99', 'p99.9', 'CPU', ...(idle ? ['idle wake-ups'] : [])],
    ['---', '--:', '--:', '--:', '--:', '--:', ...(idle ? ['--:'] : [])],
  ]
  for (const cell of cells) {
    const found = figures(cell, placement)
    if (found === null) {
      lines.push([cell.contender, 'failed', '', '', '', '', ...(idle ? [''] : [])])
      continue
    }
    const { p50_ns, p99_ns, p999_ns, cpu_ns_per_message, idle_wakeups_per_second } = found.summary
    lines.push([
      cell.contender,
      `**${duration(p50_ns.median)}**${found.mark}`,
      `${duration(p50_ns.min)}–${duration(p50_ns.max)}`,
      duration(p99_ns.median),
      duration(p999_ns.median),
      duration(cpu_ns_per_message.median),
      ...(idle ? [idle_wakeups_per_second ? `${idle_wakeups_per_second.median.toFixed(0)}/s` : '–'] : []),
    ])
  }
  return table(lines)
}

function throughputPlot(harness, placement, where) {
  const series = harness.contenders.map(({ id }) => ({
    name: id,
    strong: id.startsWith('ringfence'),
    points: harness.cells
      .filter((cell) => cell.contender === id && cell.measure === 'one' && cell.by_placement[placement])
      .sort((a, b) => a.size - b.size)
      .map((cell) => {
        const { median, min, max } = cell.by_placement[placement].bytes_per_second
        return [cell.size, median, min, max]
      }),
  }))
  const drawn = series.filter(({ points }) => points.length > 1)
  if (drawn.length === 0) return null
  const all = drawn.flatMap(({ points }) => points)
  const sizes = [...new Set(all.map(([size]) => size))].sort((a, b) => a - b)
  return chart({
    title: `Throughput over message size, ${where}`,
    subtitle: `one-way, one publish a message, every word written and read; median, bars from min to max; ${placement} placement`,
    series: drawn,
    x: {
      label: 'bytes of a message',
      low: sizes[0],
      high: sizes.at(-1),
      ticks: sizes.map((size) => [size, bytes(size)]),
    },
    y: {
      label: 'bytes per second',
      low: Math.min(...all.map((p) => p[2])) / 1.3,
      high: Math.max(...all.map((p) => p[3])) * 1.3,
      text: (value) => quantity(value, 'B').replace('.00', '').replace('.0', ''),
    },
  })
}

/** The run whose median is the median of the medians: its curve is shown. */
function typicalRun(cell, placement) {
  const runs = cell.runs.filter(
    ({ before, after }) => (before.near === after.near ? (before.near ? 'near' : 'far') : 'moved') === placement,
  )
  return runs.sort((a, b) => a.round_trip.p50_ns - b.round_trip.p50_ns)[runs.length >> 1]
}

function latencyPlot(harness, measures, placement, where, title) {
  const series = []
  for (const cell of harness.cells) {
    if (!measures.includes(cell.measure)) continue
    const run = typicalRun(cell, placement)
    if (run === undefined) continue
    const points = run.round_trip.curve
      .filter(([percentile, ns]) => percentile <= 99.99 && ns > 0)
      .map(([percentile, ns]) => [100 / (100 - percentile), ns])
    const name = measures.length > 1 && cell.measure === 'rtt-spin' ? `${cell.contender} (spin)` : cell.contender
    series.push({ name, strong: cell.contender.startsWith('ringfence'), points })
  }
  if (series.length === 0) return null
  const all = series.flatMap(({ points }) => points.map(([, ns]) => ns))
  const nines = [0, 50, 90, 99, 99.9, 99.99]
  return chart({
    title: `${title}, ${where}`,
    subtitle: `64 B there and back, the typical run of each; ${placement} placement`,
    series,
    x: {
      label: 'percentile',
      low: 1,
      high: 10_000,
      ticks: nines.map((percentile) => [100 / (100 - percentile), String(percentile)]),
    },
    y: {
      label: 'round trip',
      low: Math.min(...all) / 1.3,
      high: Math.max(...all) * 1.3,
      text: (value) => duration(value).replace('.00', '').replace('.0', ''),
    },
  })
}

const NAMES = { rust: 'Rust', node: 'Node' }

const gigabytes = (perSecond) => `${Number((perSecond / 1e9).toFixed(1))} GB/s`

/** What was asked for of this half. Where it has no run with near cores, nothing was asked for. */
function asked({ harness, cells }, placement) {
  if (placement !== 'near') return ''
  const of = (contender, measure, size, figure) => {
    const cell = cells.find((one) => one.contender === contender && one.measure === measure && one.size === size)
    return cell?.by_placement.near?.[figure].median
  }
  const rate = (contender, measure, size) => of(contender, measure, size, 'messages_per_second')
  const flow = (contender, size) => of(contender, 'one', size, 'bytes_per_second')
  const trip = (contender, measure) => of(contender, measure, 64, 'p50_ns')
  const best = (own, measure, size) => {
    const others = cells.filter(
      (cell) => cell.measure === measure && cell.size === size && !cell.contender.startsWith('ringfence'),
    )
    return own / Math.max(...others.map((cell) => rate(cell.contender, measure, size) ?? 0))
  }
  if (harness === 'rust') {
    const run = rate('ringfence-run', 'batch', 64)
    return aims([
      atLeast('64 B in batches, of one size', run, 700e6, millions),
      atLeast('the same beside the fastest other', best(run, 'batch', 64), 1, asTimes),
      atLeast(
        '16 MiB in place',
        flow('ringfence', 16 << 20),
        42e9,
        gigabytes,
        'a ring goes on to the place that was used longest ago',
      ),
      atMost(
        'round trip, polled, p50',
        trip('ringfence', 'rtt-polled'),
        115,
        duration,
        `a line alone takes ${duration(trip('cache-line', 'rtt-polled') ?? NaN)}`,
      ),
    ])
  }
  return aims([
    atLeast(
      'for await, 64 B',
      rate('ringfence-await', 'one', 64),
      12e6,
      millions,
      'an `await`, its promise and a Buffer each',
    ),
    atLeast('gathered by hand, 64 B', rate('ringfence-gathered', 'one', 64), 20e6, millions),
    atMost(
      'round trip, polled, p50',
      trip('ringfence', 'rtt-polled'),
      600,
      duration,
      'four calls of the binding and two clocks each way',
    ),
    atMost(
      'round trip, asleep, beside a Unix socket',
      trip('ringfence', 'rtt-parked') / trip('unix', 'rtt-parked'),
      0.8,
      asTimes,
      'both wait for the kernel to wake a core',
    ),
    atLeast('16 MiB by send', flow('ringfence', 16 << 20), 9e9, gigabytes),
    atLeast('16 MiB in place', flow('ringfence-reserve', 16 << 20), 9e9, gigabytes),
  ])
}

export function plots(results) {
  const files = {}
  const { placement } = results
  for (const harness of results.harnesses) {
    const where = NAMES[harness.harness]
    const add = (name, svg) => {
      if (svg !== null) files[`${harness.harness}-${name}.svg`] = svg
    }
    add('throughput', throughputPlot(harness, placement, where))
    add('latency-polled', latencyPlot(harness, ['rtt-polled'], placement, where, 'Round trip, polling'))
    add(
      'latency-parked',
      latencyPlot(harness, ['rtt-parked', 'rtt-spin'], placement, where, 'Round trip with sleeping'),
    )
  }
  return files
}

export function page(results, files) {
  const { machine, placement } = results
  const out = [
    '# Measured',
    '',
    `Written by \`npm run bench\` on ${results.date}; every figure below comes from that one run.`,
    `How it is measured, and how to read placement: [bench/README.md](../../bench/README.md). As channels, messages and rings`,
    'grow: [scale.md](scale.md). One to many: [broadcast.md](broadcast.md). Values and calls: [objects.md](objects.md). More aims, and',
    'what holds each: [goals.md](goals.md).',
    '',
    `| machine | |`,
    `| --- | --- |`,
    `| CPU | ${machine.cpu}${machine.hypervisor ? ', virtual' : ''}, ${machine.cores} cores |`,
    `| caches | ${machine.caches} |`,
    `| memory | ${machine.memory_gib.toFixed(0)} GiB |`,
    `| kernel | Linux ${machine.kernel} |`,
    `| versions | ${[results.node && `Node ${results.node}`, results.rustc, results.commit && `ringfence at ${results.commit}`].filter(Boolean).join('; ')} |`,
    `| cache line to and fro | before ${line(results.before)}, after ${line(results.after)} |`,
    `| runs | ${results.runs} of ${results.seconds} s each, rounds alternate; medians, and min–max below them |`,
    `| disturbed | ${disturbed(results.harnesses.flatMap(({ cells }) => cells))} |`,
    `| shown | ${placement} placement; a cell without such a run says in brackets which it had |`,
    '',
  ]
  for (const harness of results.harnesses) {
    out.push(`## ${NAMES[harness.harness]}`, '')
    for (const name of Object.keys(files).filter((file) => file.startsWith(`${harness.harness}-`)))
      out.push(`![${name.replace('.svg', '').replaceAll('-', ' ')}](${name})`, '')
    for (const measure of [...new Set(harness.cells.map((cell) => cell.measure))]) {
      const text = measure.startsWith('rtt')
        ? latencyTable(harness, measure, placement)
        : throughputTable(harness, measure, placement)
      if (text !== '') out.push(`### ${TITLES[measure]}`, '', text, '')
    }
    const aimed = asked(harness, placement)
    if (aimed !== '') out.push('### Aims', '', aimed, '')
    out.push('Who is who:', '')
    for (const { id, version, note, unavailable } of harness.contenders)
      out.push(`- **${id}** (${version}): ${note}${unavailable ? `. Not run: ${unavailable}` : ''}`)
    for (const [id, why] of Object.entries(results.absent ?? {}))
      if (harness.harness === 'rust') out.push(`- **${id}**: not run: ${why}`)
    const failed = harness.cells.filter((cell) => cell.failures?.length)
    if (failed.length > 0) {
      out.push('', 'Failed runs:', '')
      for (const cell of failed)
        out.push(
          `- ${cell.contender}, ${cell.measure}, ${bytes(cell.size)}: ${cell.failures.length} (${cell.failures.at(-1)})`,
        )
    }
    out.push('')
  }
  return `${out.join('\n').trimEnd()}\n`
}

const line = ({ line_ns, near }) => `${line_ns.toFixed(0)} ns (${near ? 'near' : 'far'})`

/** One cell a line: readable in a diff, and a tenth of the length. */
export function json(results) {
  const { harnesses, ...rest } = results
  const head = JSON.stringify(rest, null, 2).slice(0, -2)
  const parts = harnesses.map(({ cells, ...harness }) => {
    const start = JSON.stringify(harness, null, 2).slice(0, -2)
    return `${start},\n"cells": [\n${cells.map((cell) => JSON.stringify(cell)).join(',\n')}\n]}`
  })
  return `${head},\n"harnesses": [\n${parts.join(',\n')}\n]}\n`
}
