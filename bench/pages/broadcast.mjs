// The results of `broadcast` as a page.

import { bytes, duration } from '../node/text.mjs'
import {
  aims,
  aligned,
  atLeast,
  atMost,
  disturbed,
  figures,
  machineRows,
  rate,
  spread,
  table,
  asTimes,
  usualPlacement,
} from './markdown.mjs'

const NAMES = { rust: 'Rust', inNode: 'Node' }

const fine = (ns) => (ns < 10 ? `${ns.toFixed(1)} ns` : duration(ns))

const FIGURES = [
  ['Delivered', 'messages that a subscriber has read, all subscribers together', 'delivered_per_second', rate],
  ['Published', 'messages that went into the ring, each once', 'published_per_second', rate],
  [
    'A call of the publisher',
    'filling and publishing a message that finds room, into an empty queue',
    'publisher_ns',
    (value) => spread(value, fine),
  ],
  [
    'CPU for each delivered message',
    'of all processes; readers that poll use all of their core',
    'cpu_ns_per_delivered',
    (value) => spread(value, fine),
  ],
]

function figureTable(half, { size, batch }, [, , name, show], placement) {
  const cells = half.cells.filter((cell) => cell.size === size && cell.batch === batch && !cell.idle)
  const counts = [...new Set(cells.map(({ subscribers }) => subscribers))].sort((a, b) => a - b)
  const head = ['subscribers', ...counts]
  const rows = half.rivals.map(({ id }) => [
    id,
    ...counts.map((count) => {
      const cell = cells.find((one) => one.rival === id && one.subscribers === count)
      const found = figures(cell, placement)
      if (found === null) return cell?.failures.length ? 'failed' : '–'
      return `${show(found.summary[name])}${found.mark}`
    }),
  ])
  const shown = rows.filter((row) => row.slice(1).some((cell) => cell !== '–'))
  return shown.length === 0 ? '' : table([head, aligned(head), ...shown])
}

/** The work that the tables have in common. */
const works = (half) => [...new Map(half.cells.map(({ size, batch }) => [`${size}${batch}`, { size, batch }])).values()]

/** What a subscriber costs that never reads, beside one that does. */
function idleTable({ cells }, placement) {
  const found = cells.filter((cell) => cell.rival === 'ringfence' && cell.size === 64 && cell.subscribers === 1)
  const counts = [...new Set(found.map(({ idle }) => idle))].sort((a, b) => a - b)
  if (!counts.some((idle) => idle > 0)) return ''
  const head = ['idle subscribers', ...counts]
  const row = (batch) =>
    counts.map((idle) => {
      const cell = found.find((one) => one.idle === idle && one.batch === batch)
      const { summary, mark } = figures(cell, placement) ?? {}
      return summary === undefined ? '–' : `${spread(summary.publisher_ns, fine)}${mark}`
    })
  return table([head, aligned(head), ['64 B, one at a time', ...row(false)], ['64 B, 32 at a time', ...row(true)]])
}

function blockedTable({ blocked }) {
  const harms = ['killed', 'stopped', 'zombie']
  const head = ['one of two subscribers is', ...harms]
  const shown = ({ runs, failures }) => {
    if (runs.length === 0) return failures.length > 0 ? 'failed' : '–'
    const times = runs.map(({ milliseconds }) => milliseconds).sort((a, b) => a - b)
    const middle = duration(times[times.length >> 1] * 1e6)
    return runs.some((run) => !run.goes_on) ? `**${middle} and more**` : `**${middle}**`
  }
  const ids = [...new Set(blocked.map(({ rival }) => rival))]
  const rows = []
  for (const id of ids) {
    const of = (harm) => blocked.find((cell) => cell.rival === id && cell.harm === harm)
    rows.push([id, ...harms.map((harm) => shown(of(harm)))])
  }
  return table([head, aligned(head), ...rows])
}

/** The asked figures, each reached or not, from the medians of the Rust half in its usual placement. */
function reached(half, placement) {
  const of = (rival, subscribers, size, batch = false, name = 'delivered_per_second') => {
    const cell = half.cells.find(
      (one) =>
        one.rival === rival && one.subscribers === subscribers && one.size === size && one.batch === batch && !one.idle,
    )
    return cell?.by_placement[placement]?.[name].median
  }
  const ratio = (rival, subscribers, size, batch) =>
    of('ringfence', subscribers, size, batch) / of(rival, subscribers, size, batch)
  const call = (subscribers, batch) => of('ringfence', subscribers, 64, batch, 'publisher_ns')
  const rows = [
    ['one subscriber, 64 B, beside the pair', ratio('pairs', 1, 64), 0.9],
    ['4 subscribers, 64 B, beside 4 pairs', ratio('pairs', 4, 64), 2],
    ['16 subscribers, 64 B, beside 16 pairs', ratio('pairs', 16, 64), 2.5],
    ['8 subscribers, 1 KiB, beside 8 pairs', ratio('pairs', 8, 1024), 5],
    ['16 subscribers, 1 KiB, beside 16 pairs', ratio('pairs', 16, 1024), 5],
    ['4 subscribers, 64 B, beside iceoryx2', ratio('iceoryx2', 4, 64), 20],
    ['4 subscribers, 1 KiB, beside iceoryx2', ratio('iceoryx2', 4, 1024), 5],
    ['4 subscribers, 64 B × 32, beside ringfire', ratio('ringfire', 4, 64, true), 1],
    ['16 subscribers, 64 B × 32, beside ringfire', ratio('ringfire', 16, 64, true), 1],
    ['4 subscribers, 1 KiB, beside ringfire', ratio('ringfire', 4, 1024), 4],
    ['4 subscribers, 64 B, beside ringfire', ratio('ringfire', 4, 64), 1],
    ['4 subscribers, 64 B, beside zeromq', ratio('zeromq', 4, 64), 20],
  ]
  const shown = rows.map(([what, found, asked]) => atLeast(what, found, asked, asTimes))
  for (const subscribers of [1, 4, 16]) {
    const who = subscribers === 1 ? 'one subscriber' : `${subscribers} subscribers`
    shown.push(atMost(`a call of the publisher, 64 B, ${who}`, call(subscribers), 8 + 0.5 * subscribers, fine))
  }
  for (const cell of half.cells.filter(({ idle }) => idle)) {
    const found = (cell.by_placement[placement]?.publisher_ns.median - call(1, cell.batch)) / cell.idle
    const what = `each of ${cell.idle} idle subscribers, 64 B${cell.batch ? ' × 32' : ''}`
    shown.push(atMost(what, found, cell.batch ? 0.05 : 0.5, (ns) => `${Number(ns.toFixed(2))} ns`))
  }
  return aims(shown)
}

function section(name, results) {
  const found = results[name]
  const placement = usualPlacement(found.cells)
  const out = [
    `## ${NAMES[name]}`,
    '',
    `${placement} placement; a cell without such a run says in brackets which it had.`,
    '',
  ]
  for (const work of works(found)) {
    out.push(`### ${bytes(work.size)}${work.batch ? ', 32 at a time' : ', one at a time'}`, '')
    for (const figure of FIGURES) {
      const shown = figureTable(found, work, figure, placement)
      if (shown !== '') out.push(`${figure[0]}: ${figure[1]}.`, '', shown, '')
    }
  }
  const idle = idleTable(found, placement)
  if (idle !== '')
    out.push(
      '### Idle subscribers',
      '',
      'A call of the publisher, as above, with one subscriber that reads, and others beside it that have best-effort delivery and never read.',
      '',
      idle,
      '',
    )
  if (found.blocked.length > 0) {
    out.push(
      '### How long the publisher is blocked',
      '',
      'The longest time between two publishes after one of two subscribers was killed, was stopped (SIGSTOP), or was killed and is not',
      'waited for by its parent. ringfence runs with a `stall` of 1 s here (its default is 5 s). A publisher that has not gone on within',
      '6 s is not waited for any longer.',
      '',
      blockedTable(found),
      '',
    )
  }
  if (name === 'rust') {
    const shown = reached(found, placement)
    if (shown !== '') out.push('### Aims', '', shown, '')
  }
  out.push('Who is who:', '')
  for (const { id, version, note, skipped } of found.rivals)
    out.push(`- **${id}** (${version}): ${note}${skipped ? `. Not run: ${skipped}` : ''}`)
  const failed = found.cells.filter((cell) => cell.failures.length > 0)
  if (failed.length > 0) {
    out.push('', 'Failed runs:', '')
    for (const cell of failed)
      out.push(
        `- ${cell.rival}, ${cell.subscribers} subscribers, ${bytes(cell.size)}: ${cell.failures.length} (${cell.failures.at(-1)})`,
      )
  }
  out.push('')
  return out
}

export function page(results) {
  const halves = Object.keys(NAMES).filter((name) => results[name] !== undefined)
  const first = results[halves[0]]
  const looks = halves.flatMap((name) => results[name].placements)
  const cells = halves.flatMap((name) => results[name].cells)
  const { machine, seconds } = first
  const out = [
    '# One to many, measured',
    '',
    'Written by `npm run bench -- broadcast`; every figure below comes from that one run. One publisher on the first core, all subscribers',
    'on the second, a process each; every word of every message written, and read by every subscriber, the sums compared. Nothing may be',
    'lost: each rival runs in the mode in which its publisher waits. The exceptions are ringfence-best-effort and ringfence-latest, whose',
    `subscribers check each message that they have got. Queues of ${bytes(first.capacity)}. Readers of shared memory poll and yield their core. How`,
    'it is measured: [bench/README.md](../../bench/README.md#one-to-many).',
    '',
    '| machine | |',
    '| --- | --- |',
    ...machineRows({ ...results, machine, seconds }),
    `| cache line to and fro | ${looks.map(({ line_ns, near }) => `${line_ns.toFixed(0)} ns (${near ? 'near' : 'far'})`).join(', ')}, before and after each half |`,
    `| disturbed | ${disturbed(cells)} (subscribers that share a core lose it to each other) |`,
    '',
    ...halves.flatMap((name) => section(name, results)),
  ]
  return `${out.join('\n').trimEnd()}\n`
}

/** One cell a line: readable in a diff. */
export function json(results) {
  const { rust, inNode, ...rest } = results
  const halves = Object.entries({ rust, inNode }).filter(([, found]) => found !== undefined)
  const parts = halves.map(([name, { cells, ...found }]) => {
    const start = JSON.stringify(found).slice(0, -1)
    return `"${name}": ${start},\n"cells": [\n${cells.map((cell) => JSON.stringify(cell)).join(',\n')}\n]}`
  })
  return `${JSON.stringify(rest, null, 2).slice(0, -2)},\n${parts.join(',\n')}\n}\n`
}
