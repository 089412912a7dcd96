// The results of `objects` as a page.

import { bytes, duration } from '../node/text.mjs'
import {
  aims,
  aligned,
  atLeast,
  disturbed,
  figures,
  machineRows,
  millions,
  rate,
  spread,
  table,
  asTimes,
  usualPlacement,
} from './markdown.mjs'

function rates(results, measure, sizes, { head, name }, placement) {
  const cells = results.cells.filter((cell) => cell.measure === measure)
  const shown = (cell) => {
    const found = figures(cell, placement)
    return found === null ? 'failed' : `${rate(found.summary.messages_per_second)}${found.mark}`
  }
  const rows = []
  for (const { id } of results.contenders) {
    const row = sizes.map((size) => cells.find((cell) => cell.contender === id && cell.size === size))
    if (!row.some((cell) => cell?.runs.length || cell?.failures?.length)) continue
    const first = figures(row[0], placement)
    rows.push([id, ...row.map(shown), first ? duration(first.summary.cpu_ns_per_message.median) : '–'])
  }
  const titles = ['', ...sizes.map(name), head]
  return table([titles, aligned(titles), ...rows])
}

/** What the page calls the measures. */
const NAMES = { objects: 'values', rpc: 'calls', 'rpc-stalled': 'calls that wait', single: 'single messages' }

function latencies(results, placement) {
  const cells = results.cells.filter(({ measure }) => measure === 'rpc')
  const shown = (contender, size, figure) => {
    const found = figures(
      cells.find((cell) => cell.contender === contender && cell.size === size),
      placement,
    )
    if (found === null) return 'failed'
    // An earlier run may not have told it.
    return found.summary[figure] === undefined ? '–' : `${spread(found.summary[figure], duration)}${found.mark}`
  }
  const ids = results.contenders.map(({ id }) => id).filter((id) => cells.some(({ contender }) => contender === id))
  const head = ['', 'one at a time, p50', 'p99', '100 at a time, p50', 'p99']
  const rows = ids.map((id) => {
    const cellsOf = (size) => [shown(id, size, 'p50_ns'), shown(id, size, 'p99_ns')]
    return [id].concat(cellsOf(1), cellsOf(100))
  })
  return table([head, aligned(head), ...rows])
}

function stalled(results, placement) {
  const head = ['', 'held']
  const rows = results.cells
    .filter(({ measure }) => measure === 'rpc-stalled')
    .map((cell) => {
      const found = figures(cell, placement)
      const megabytes = (value) => `${(value / 1e6).toFixed(0)} MB`
      return [cell.contender, found === null ? 'failed' : `${spread(found.summary.held_bytes, megabytes)}${found.mark}`]
    })
  return table([head, aligned(head), ...rows])
}

/** What was asked for, each reached or not. */
function reached(results, placement) {
  const of = (contender, size, measure) =>
    results.cells.find((cell) => cell.contender === contender && cell.size === size && cell.measure === measure)
      ?.by_placement[placement]?.messages_per_second
  const rows = []
  for (const size of [104, 1024, 65_536]) {
    for (const [rival, asked] of [
      ['unix-json', 1.5],
      ['child-json', 3],
    ]) {
      const found = of('with-json', size, 'objects')?.median / of(rival, size, 'objects')?.median
      rows.push(
        atLeast(`with(json()) of ${bytes(size)} beside ${rival}`, found, asked, asTimes, 'each takes JSON itself'),
      )
    }
  }
  for (const [contender, what, asked, because] of [
    ['send-await', 'await each send, 64 B', 4e6, 'a call of the binding, a promise and an `await` each'],
    ['send-for-await', 'for await, 64 B', 12e6, 'an `await`, its promise and a Buffer each'],
    ['send-256-drain', 'send, each 256 awaited, 64 B', 20e6],
    ['try-send-drain', 'trySend, 64 B', 20e6, 'each answer is given by the ring, by a call of the binding'],
    ['fill-drain', 'fill, 64 B', 10e6],
  ]) {
    rows.push(atLeast(what, of(contender, 64, 'single')?.median, asked, millions, because))
  }
  return aims(rows)
}

export function page(results) {
  const placement = usualPlacement(results.cells)
  const out = [
    '# Values, calls and single messages, measured',
    '',
    'Written by `npm run bench -- objects`; every figure below comes from that one run, or from those that are named. Node to Node, two processes (a `MessagePort`: two',
    'threads). Each value is made anew and read whole, and what is read must add up. How it is measured:',
    '[bench/README.md](../../bench/README.md#values-and-calls).',
    '',
    '| machine | |',
    '| --- | --- |',
    ...machineRows(results),
    ...Object.entries(results.earlier ?? {}).map(([measure, from]) => `| ${NAMES[measure]} | ${from} |`),
    `| disturbed | ${disturbed(results.cells)} |`,
    `| shown | ${placement} placement; a cell without such a run says in brackets which it had |`,
    '',
    '## Values',
    '',
    'An order with lines: an object of strings, numbers and a list, whose JSON has about so many bytes. One way, values a second.',
    '',
    rates(results, 'objects', [104, 1024, 65_536], { head: 'CPU of 104 B, both sides', name: bytes }, placement),
    '',
    '## Calls',
    '',
    'A function of the other process that takes a number and answers with the next: calls a second, one at a time and a hundred at a time.',
    '',
    rates(
      results,
      'rpc',
      [1, 100],
      {
        head: 'CPU of one at a time, both sides',
        name: (count) => (count === 1 ? 'one at a time' : `${count} at a time`),
      },
      placement,
    ),
    '',
    'From the call to its answer, p50 and p99, as the caller waits for it:',
    '',
    latencies(results, placement),
    '',
    `And calls to a side that stands still for a second and a half: 4,000 at once, each with a text of 16 KiB (66 MB in all). What the`,
    "caller's process (of the `MessagePort`: both threads) then holds more than before. It is what is under way, and no more comes of it: each call was answered.",
    '',
    stalled(results, placement),
    '',
    '## Single messages',
    '',
    '64 B, messages a second.',
    '',
    rates(results, 'single', [64], { head: 'CPU, both sides', name: bytes }, placement),
    '',
    '## Aims',
    '',
    reached(results, placement),
    '',
    'Who is who:',
    '',
    ...results.contenders
      .filter(({ id }) => results.cells.some((cell) => cell.contender === id && cell.runs.length > 0))
      .map(({ id, version, note }) => `- **${id}** (${version}): ${note}`),
  ]
  const failed = results.cells.filter((cell) => cell.failures?.length)
  if (failed.length > 0) {
    out.push('', 'Failed runs:', '')
    for (const cell of failed) out.push(`- ${cell.contender}, ${cell.measure}, ${cell.size}: ${cell.failures.at(-1)}`)
  }
  return `${out.join('\n').trimEnd()}\n`
}

/** One cell a line: readable in a diff. Cells that were not meant to run are left out. */
export function json(results) {
  const { cells, ...rest } = results
  const ran = cells.filter((cell) => cell.runs.length > 0 || cell.failures?.length)
  return `${JSON.stringify(rest, null, 2).slice(0, -2)},\n"cells": [\n${ran.map((cell) => JSON.stringify(cell)).join(',\n')}\n]\n}\n`
}
