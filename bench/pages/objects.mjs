// The results of `objects` as a page.

import { bytes, duration } from '../node/text.mjs'
import { block, grid, listing, rate, render, spread } from './markdown.mjs'

/** The page's names of the measures. */
const NAMES = {
  objects: 'values',
  rpc: 'calls',
  'rpc-stalled': 'calls that wait',
  pass: 'large buffers',
  share: 'one buffer for four readers',
  single: 'single messages',
}
const atATime = (count) => (count === 1 ? 'one at a time' : `${count} at a time`)

function rates(half, measure, last, name, placement) {
  const cells = half.cells.filter((cell) => cell.measure === measure)
  const show = ({ messages_per_second: found }) => rate(found)
  return grid(half, cells, { column: 'size', name, show, last }, placement)
}

function latencies(half, placement) {
  const cells = half.cells.filter(({ measure }) => measure === 'rpc')
  const columns = { p50: 'p50_ns', p99: 'p99_ns', 'p99.9': 'p999_ns' }
  return Object.entries(columns)
    .map(([title, figure]) => {
      const show = ({ [figure]: found }) => (found === undefined ? '–' : spread(found, duration))
      return grid(half, cells, { column: 'size', name: (count) => `${atATime(count)}, ${title}`, show }, placement)
    })
    .join('\n\n')
}

function stalled(half, placement) {
  const cells = half.cells.filter(({ measure }) => measure === 'rpc-stalled')
  const megabytes = (value) => `${(value / 1e6).toFixed(0)} MB`
  const columns = [['held', ({ held_bytes: held }) => spread(held, megabytes)]]
  return listing(cells, ['', ({ contender }) => contender], columns, placement)
}

/** A table for each step of passing a buffer. */
function passed(half, placement) {
  const cells = half.cells.filter(({ measure }) => measure === 'pass')
  const steps = { written: 'write_ns', passed: 'pass_ns', read: 'read_ns', 'all of it': 'all_ns' }
  return Object.entries(steps)
    .map(([head, figure]) => {
      const show = ({ [figure]: found }) => spread(found, duration)
      return grid(half, cells, { column: 'size', name: bytes, show, head }, placement)
    })
    .filter(Boolean)
    .join('\n\n')
}

function shared(half, placement) {
  const cells = half.cells.filter(({ measure }) => measure === 'share')
  const show = (figure) => (found) => spread(found[figure], duration)
  const columns = [
    ['written', show('write_ns')],
    ['from then until all have read', (found) => duration(found.pass_ns.median + found.read_ns.median)],
    ['all of it', show('all_ns')],
    ['CPU, all processes', show('cpu_ns_per_message')],
  ]
  return listing(cells, ['', ({ contender }) => contender], columns, placement)
}

export function page(results) {
  const section = (half, placement) => [
    ...block(
      '## Values',
      'An order with lines: an object of strings, numbers and a list, whose JSON has about that many bytes. One way, values a second.',
      rates(half, 'objects', 'CPU of 104 B, both sides', bytes, placement),
    ),
    ...block(
      '## Calls',
      `A function of the other process that takes a number and returns the next: calls a second, one at a time and a hundred at a time. The
first six send eight bytes each way; the others are libraries, which also send the function's name.`,
      rates(half, 'rpc', 'CPU of one at a time, both sides', atATime, placement),
    ),
    ...block('The time from a call to its answer, as the caller waits for it:', latencies(half, placement)),
    ...block(
      `Calls to a side that stands still for a second and a half: 4,000 at once, each with a text of 16 KiB (66 MB in all). The table shows
what the caller's process (of the \`MessagePort\`: both threads) then holds more than before. Each call was answered afterwards.`,
      stalled(half, placement),
    ),
    ...block(
      '## Large buffers',
      `One at a time, in new memory. _Written_: made, and every byte filled. _Passed_: from then until the other side has bytes to read, in the case
of a file or a ring with the copies that this takes. _Read_: every byte, by the other side.`,
      passed(half, placement),
    ),
    ...block(
      '## One buffer for four readers',
      `A publisher makes and fills 256 MiB, and four subscribers (\`clone\`: threads) read every byte, all four on one core. \`ring\` passes it in
messages of 1 MiB, which are read as they arrive.`,
      shared(half, placement),
    ),
    ...block(
      '## Single messages',
      '64 B, messages a second.',
      rates(half, 'single', 'CPU, both sides', bytes, placement),
    ),
  ]
  return render(results, {
    title: 'Values, calls, large buffers and single messages, measured',
    intro: [
      'Written by `npm run bench -- objects`; the figures are those of one run, or of those that are named. Two processes in Node',
      '(`MessagePort`: two threads). Method: [bench/README.md](../../../bench/README.md#values-and-calls).',
    ],
    facts: Object.entries(results.earlier ?? {}).map(([measure, from]) => [NAMES[measure], from]),
    single: true,
    section,
  })
}
