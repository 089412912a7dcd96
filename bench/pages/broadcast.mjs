// The results of `broadcast` as a page.

import { bytes, duration } from '../node/text.mjs'
import { block, figures, grid, rate, render, spread, table } from './markdown.mjs'

const fine = (ns) => (ns < 10 ? `${ns.toFixed(1)} ns` : duration(ns))
const finely = (value) => spread(value, fine)

const FIGURES = [
  ['Delivered: messages that a subscriber has read, all subscribers together.', 'delivered_per_second', rate],
  [
    'A call of the publisher: filling and publishing a message that finds room, into an empty queue.',
    'publisher_ns',
    finely,
  ],
]

function figureTables(half, placement) {
  const works = [...new Set(half.cells.map(({ size, batch }) => JSON.stringify({ size, batch })))].map((work) =>
    JSON.parse(work),
  )
  return works.flatMap(({ size, batch }) => {
    const cells = half.cells.filter((cell) => cell.size === size && cell.batch === batch && !cell.idle && !cell.failure)
    const tables = FIGURES.flatMap(([what, figure, show]) => {
      const of = { column: 'subscribers', head: 'subscribers', show: (summary) => show(summary[figure]) }
      return block(what, grid(half, cells, of, placement))
    })
    return tables.length === 0
      ? []
      : block(`### ${bytes(size)}${batch ? ', 32 at a time' : ', one at a time'}`, tables.join('\n').trim())
  })
}

/** The cost of a subscriber that never reads, beside one that does. */
function idleTable({ cells }, placement) {
  const found = cells.filter(
    (cell) => cell.contender === 'ringfence' && cell.size === 64 && cell.subscribers === 1 && !cell.failure,
  )
  const counts = [...new Set(found.map(({ idle }) => idle))].sort((a, b) => a - b)
  if (!counts.some((idle) => idle > 0)) return ''
  const row = (batch) =>
    counts.map((idle) => {
      const cell = found.find((one) => one.idle === idle && one.batch === batch)
      const { summary, mark } = figures(cell, placement) ?? {}
      return summary === undefined ? '–' : `${finely(summary.publisher_ns)}${mark}`
    })
  return table(
    ['idle subscribers', ...counts],
    [
      ['64 B, one at a time', ...row(false)],
      ['64 B, 32 at a time', ...row(true)],
    ],
  )
}

function blockedTable({ cells }) {
  const blocked = cells.filter(({ failure }) => failure)
  if (blocked.length === 0) return ''
  const kinds = ['killed', 'stopped', 'zombie']
  const shown = ({ runs, failures } = { runs: [], failures: [] }) => {
    if (runs.length === 0) return failures.length > 0 ? 'failed' : '–'
    const times = runs.map(({ milliseconds }) => milliseconds).sort((a, b) => a - b)
    return `${duration(times[times.length >> 1] * 1e6)}${runs.some((run) => !run.continues) ? ' and more' : ''}`
  }
  const ids = [...new Set(blocked.map(({ contender }) => contender))]
  const of = (id, failure) => blocked.find((cell) => cell.contender === id && cell.failure === failure)
  return table(
    ['one of two subscribers is', ...kinds],
    ids.map((id) => [id].concat(kinds.map((failure) => shown(of(id, failure))))),
  )
}

export function page(results) {
  const section = (half, placement) => [
    ...figureTables(half, placement),
    ...block(
      '### Idle subscribers',
      'A call of the publisher, as above, with one subscriber that reads, and others beside it that have best-effort delivery and never read.',
      idleTable(half, placement),
    ),
    ...block(
      '### How long the publisher is blocked',
      `The longest time between two publishes after one of two subscribers was killed, was stopped (SIGSTOP), or was killed and is not
waited for by its parent. ringfence runs with a \`stall\` of 1 s here (its default is 5 s). A publisher that has not gone on within
6 s is not waited for any longer.`,
      blockedTable(half),
    ),
  ]
  return render(results, {
    title: 'One to many, measured',
    intro: [
      'Written by `npm run bench -- broadcast`; the figures are those of one run. One publisher on the first core, all subscribers on the',
      `second, a process each. Queues of ${bytes(results.halves[0].capacity)}. Method: [bench/README.md](../../../bench/README.md#one-to-many).`,
    ],
    section,
  })
}
