// The results of `objects` as a page.

import { bytes, duration } from '../node/text.mjs'
import { block, grid, listing, rate, render, spread } from './markdown.mjs'

/** The names of the measures on the page. */
const NAMES = {
  objects: 'values',
  rpc: 'calls',
  'rpc-stalled': 'calls that wait',
  pass: 'large buffers',
  share: 'one buffer for four readers',
  single: 'single messages',
}
const atATime = (count) => (count === 1 ? 'one at a time' : `${count} at a time`)

/** The grids of each measure: `[figure, formatter, options of the grid]`. */
function grids(half, measure, name, figures, placement) {
  const cells = half.cells.filter((cell) => cell.measure === measure)
  return figures
    .map(([figure, show, more]) => {
      const shown = ({ [figure]: found }) => (found === undefined ? '–' : show(found))
      return grid(half, cells, { column: 'size', name, show: shown, ...more }, placement)
    })
    .filter(Boolean)
    .join('\n\n')
}

const time = (value) => spread(value, duration)
const speed = (last) => [['messages_per_second', rate, { last }]]
const latency = (title, figure) => [figure, time, { name: (count) => `${atATime(count)}, ${title}` }]
const LATENCIES = [latency('p50', 'p50_ns'), latency('p99', 'p99_ns'), latency('p99.9', 'p999_ns')]
const STEPS = Object.entries({ written: 'write_ns', passed: 'pass_ns', read: 'read_ns', 'all of it': 'all_ns' }).map(
  ([head, figure]) => [figure, time, { head }],
)

function list(half, measure, columns, placement) {
  const cells = half.cells.filter((cell) => cell.measure === measure)
  return listing(cells, ['', ({ contender }) => contender], columns, placement)
}

const megabytes = (value) => `${(value / 1e6).toFixed(0)} MB`
const STALLED = [['held', ({ held_bytes: held }) => spread(held, megabytes)]]
const SHARED = [
  ['written', ({ write_ns }) => time(write_ns)],
  ['from then until all have read', ({ pass_ns, read_ns }) => duration(pass_ns.median + read_ns.median)],
  ['all of it', ({ all_ns }) => time(all_ns)],
  ['CPU, all processes', ({ cpu_ns_per_message }) => time(cpu_ns_per_message)],
]

export function page(results) {
  const section = (half, placement) => [
    ...block(
      '## Values',
      'An order with lines: an object of strings, numbers and a list, whose JSON has about that many bytes. One way, values a second.',
      grids(half, 'objects', bytes, speed('CPU of 104 B, both sides'), placement),
    ),
    ...block(
      '## Calls',
      `A function of the other process that takes a number and returns the next: calls a second, one at a time and a hundred at a time. The
first six send eight bytes each way; the others are libraries, which also send the function's name.`,
      grids(half, 'rpc', atATime, speed('CPU of one at a time, both sides'), placement),
    ),
    ...block(
      'The time from a call to its answer, as the caller waits for it:',
      grids(half, 'rpc', atATime, LATENCIES, placement),
    ),
    ...block(
      `Calls to a side that stands still for a second and a half: 4,000 at once, each with a text of 16 KiB (66 MB in all). The table shows
what the caller's process (of the \`MessagePort\`: both threads) then holds more than before. Each call was answered afterwards.`,
      list(half, 'rpc-stalled', STALLED, placement),
    ),
    ...block(
      '## Large buffers',
      `One at a time, in new memory. _Written_: made, and every byte filled. _Passed_: from then until the other side has bytes to read, in the case
of a file or a ring with the copies that this takes. _Read_: every byte, by the other side.`,
      grids(half, 'pass', bytes, STEPS, placement),
    ),
    ...block(
      '## One buffer for four readers',
      `A publisher makes and fills 256 MiB, and four subscribers (\`clone\`: threads) read every byte, all four on one core. \`ring\` passes it in
messages of 1 MiB, which are read as they arrive.`,
      list(half, 'share', SHARED, placement),
    ),
    ...block(
      '## Single messages',
      '64 B, messages a second.',
      grids(half, 'single', bytes, speed('CPU, both sides'), placement),
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
