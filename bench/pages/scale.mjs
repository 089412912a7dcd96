// The costs of ringfence as channels, subscribers, messages and rings grow: the results of `scale` as a page and as plots.

import { bytes, duration } from '../node/text.mjs'
import { block, flow, listing, rate, render, spread, times, usualPlacement } from './markdown.mjs'
import { bytesPerSecond, draw, filesOf, line, nanoseconds, perSecond } from './plots.mjs'

const milliseconds = (value) => duration(value * 1e6)
/** Formats percent of a core, which may be 0. */
const percent = (value) => (value === 0 ? '0' : `${Number(value.toPrecision(2))} %`)

/** The cells of a table, and the placement that most of its runs have. */
function tableOf({ cells }, name) {
  const own = cells.filter(({ measure }) => measure === name).sort((a, b) => a.size - b.size)
  return { cells: own, placement: usualPlacement(own) }
}

/** Converts a rate to nanoseconds: the highest rate is the minimum. */
const eachOf = ({ median, min, max }) => ({ median: 1e9 / median, min: 1e9 / max, max: 1e9 / min })

/** Bytes of the messages that go through rings of each capacity. */
const CAPACITY_SIZES = [64, 1024, 65_536, 1 << 20]

const PLOTS = {
  channels: {
    table: 'channels',
    title: 'Throughput over the number of channels',
    subtitle: '64 B to each channel in turn, the reader polls all of them',
    y: perSecond,
    lines: {
      'one each': ({ busy }) => busy.messages_per_second,
      'batches of 32': ({ batched }) => batched.messages_per_second,
    },
  },
  cost: {
    table: 'channels',
    title: 'Cost of a message over the number of channels',
    subtitle: '64 B to each channel in turn; time, and CPU of both sides',
    y: nanoseconds('each message'),
    lines: {
      'one each, time': ({ busy }) => eachOf(busy.messages_per_second),
      'batches of 32, time': ({ batched }) => eachOf(batched.messages_per_second),
      'one each, CPU': ({ busy }) => busy.cpu_ns_per_message,
      'batches of 32, CPU': ({ batched }) => batched.cpu_ns_per_message,
    },
  },
  merge: {
    table: 'channels',
    title: 'Throughput of a merge over the number of its sources',
    subtitle: '64 B from each of them in turn, read by one merge',
    y: perSecond,
    lines: {
      'one each': ({ merged }) => merged.messages_per_second,
      'batches of 32': ({ merged_batched: merged }) => merged.messages_per_second,
      'one each, polled in turn': ({ busy }) => busy.messages_per_second,
    },
  },
  idle: {
    table: 'channels',
    title: 'Idle, over the number of channels',
    subtitle: 'all readers asleep, nothing sent, both processes together',
    y: { label: 'each second', linear: true, least: 1, text: String },
    lines: {
      'CPU, µs per second': ({ idle_cpu_percent: cpu }) => times(cpu, 1e4),
      'wake-ups per second': ({ idle_wakeups_per_second: wakes }) => wakes,
    },
  },
  subscribers: {
    table: 'subscribers',
    title: 'Delivered, over the number of subscribers',
    subtitle: '64 B, read by each; all of them in one process, polled in turn',
    y: perSecond,
    lines: {
      'one at a time': ({ one }, { size }) => times(one.messages_per_second, size),
      'batches of 32': ({ batched }, { size }) => times(batched.messages_per_second, size),
    },
  },
  sizes: {
    table: 'sizes',
    title: 'Throughput over message size',
    subtitle: 'one channel, copied in and out, every word written and read',
    y: bytesPerSecond,
    every: 3,
    lines: {
      'ring of 4 MiB': ({ flow: { messages_per_second: found } }, { size }) => times(found, size),
      'one thread, no channel': ({ alone_per_second: alone }, { size }) => times(alone, size),
    },
  },
  capacities: {
    table: 'capacities',
    title: 'Throughput over capacity',
    subtitle: 'one channel, copied in and out, every word written and read',
    y: bytesPerSecond,
    lines: Object.fromEntries(
      CAPACITY_SIZES.map((size) => [bytes(size), (summary) => times(summary[size].messages_per_second, size)]),
    ),
  },
}
const LABELS = {
  channels: 'channels between two processes',
  subscribers: 'subscriptions of one process',
  sizes: 'bytes of a message',
  capacities: 'bytes of the ring',
}
const HEADS = { channels: 'channels', subscribers: 'subscribers', sizes: 'message', capacities: 'ring' }
const inBytes = (table) => table === 'sizes' || table === 'capacities'

export function plots({ halves: [half] }) {
  const entries = Object.entries(PLOTS).map(([name, { table, title, subtitle, lines, y, every }]) => {
    const { cells, placement } = tableOf(half, table)
    const series = Object.entries(lines).map(([text, pick]) => line(text, cells, placement, pick, true))
    const shown = { title, subtitle: `${subtitle}; ${placement} placement`, series, label: LABELS[table], y, every }
    return [`scale-${name}.svg`, draw({ ...shown, name: inBytes(table) ? bytes : String })]
  })
  return filesOf(Object.fromEntries(entries))
}

const secondsOf = (pick) => (summary) => 1 / pick(summary).messages_per_second.median

/**
 * The costs of each table that must not grow faster than its work: of all `size` channels or subscribers together, or of one step.
 * For a join the minimum, since most other joins have waited for a core.
 */
const COSTS = {
  channels: {
    'join time': ({ join_ms: join }, { size }) => join.min * size,
    'time to leave': ({ leave_ms: leave }, { size }) => leave.min * size,
    memory: ({ memory_kib: memory }, { size }) => memory.median * size,
    descriptors: ({ descriptors }, { size }) => descriptors.median * size,
    // A round visits each channel once.
    'a busy round': (summary, { size }) => size * secondsOf(({ busy }) => busy)(summary),
    'a batched round': (summary, { size }) => size * secondsOf(({ batched }) => batched)(summary),
    'a merged round': (summary, { size }) => size * secondsOf(({ merged }) => merged)(summary),
    'a woken round trip': ({ woken_round_trip_us: trip }) => trip.median,
  },
  subscribers: {
    'join time': ({ join_ms: join }, { size }) => join.min * size,
    'time to leave': ({ leave_ms: leave }, { size }) => leave.min * size,
    'a message': secondsOf(({ one }) => one),
    'a message in a batch': secondsOf(({ batched }) => batched),
  },
  sizes: { 'a message': secondsOf(({ flow: found }) => found) },
  capacities: { 'join time': ({ join_ms: join }) => join.min },
}

/** Steps at which a cost grew faster than the work, by more than a quarter, which is the usual difference between two runs. */
function worse(half) {
  return Object.entries(COSTS).flatMap(([name, costs]) => {
    const { cells, placement } = tableOf(half, name)
    return Object.entries(costs).flatMap(([what, cost]) =>
      cells.slice(1).flatMap((after, index) => {
        const before = cells[index]
        const [from, to] = [before, after].map(({ by_placement }) => by_placement[placement])
        if (!from || !to) return []
        const dearer = cost(to, after) / cost(from, before)
        const isWorse = dearer > (after.size / before.size) * 1.25
        return isWorse
          ? [`- ${name}: ${what} grew ${dearer.toFixed(2)} times from ${before.size} to ${after.size}`]
          : []
      }),
    )
  })
}

const spreadOf = (name, show) => (summary) => spread(summary[name], show)
const RESTING = [
  ['join, each', spreadOf('join_ms', milliseconds)],
  ['leave, each', spreadOf('leave_ms', milliseconds)],
  ['descriptors, each', ({ descriptors }) => Number(descriptors.median.toFixed(2))],
]
const IDLE = [
  ['idle CPU', spreadOf('idle_cpu_percent', percent)],
  ['idle wake-ups', spreadOf('idle_wakeups_per_second', (value) => `${Number(value.toFixed(1))}/s`)],
]
const busy = (title, name, cpu = 'CPU', by = () => 1) => [
  [title, (summary, cell) => rate(times(summary[name].messages_per_second, by(cell)))],
  [cpu, (summary) => spread(summary[name].cpu_ns_per_message, duration)],
]
const memory = ({ memory_kib: kib }) => `${kib.median.toFixed(0)} KiB`

const TABLES = [
  {
    heading: '## Channels',
    text: 'Rings of 64 KiB each way, messages of 64 B. CPU is that of both processes together.',
    table: 'channels',
    images: ['channels', 'cost'],
    columns: [
      ...busy('one each', 'busy'),
      ...busy('batches of 32', 'batched'),
      ['round trip, asleep on all', spreadOf('woken_round_trip_us', (value) => duration(value * 1e3))],
    ],
  },
  {
    table: 'channels',
    images: ['idle'],
    columns: [...RESTING, ['shared memory, each', memory], ...IDLE],
  },
  {
    heading: '## Many to one',
    text: 'The same channels, read by one merge of all of them.',
    table: 'channels',
    images: ['merge'],
    columns: [...busy('one each', 'merged'), ...busy('batches of 32', 'merged_batched')],
  },
  {
    heading: '## One to many',
    text: 'One publisher with a ring of 1 MiB, messages of 64 B, all subscriptions in one other process, which reads them in turn.',
    table: 'subscribers',
    images: ['subscribers'],
    columns: [
      ...RESTING,
      ...IDLE,
      ...busy('delivered, one at a time', 'one', 'CPU of a published', ({ size }) => size),
      ...busy('delivered, batches of 32', 'batched', 'CPU of a published', ({ size }) => size),
    ],
  },
  {
    heading: '## Messages',
    text: `One channel with a ring of 4 MiB, each message copied in and out. Without a channel: one thread writes, copies in and out
of plain memory of that size, and sums.`,
    table: 'sizes',
    images: ['sizes'],
    columns: [
      ['messages', (summary) => rate(summary.flow.messages_per_second)],
      ['bytes', (summary, { size }) => flow(summary.flow.messages_per_second, size)],
      ['each', (summary) => duration(1e9 / summary.flow.messages_per_second.median)],
      ['CPU of both, each', (summary) => duration(summary.flow.cpu_ns_per_message.median)],
      ['without a channel, each', ({ alone_per_second: alone }) => duration(1e9 / alone.median)],
      ['', ({ in_fragments: fragments }) => (fragments ? 'in fragments' : '')],
    ],
  },
  {
    heading: '## Capacities',
    text: 'One channel, each message copied in and out.',
    table: 'capacities',
    images: ['capacities'],
    columns: [
      ['join', spreadOf('join_ms', milliseconds)],
      ['shared memory', memory],
      ['64 B in batches', ({ batched }) => rate(batched.messages_per_second)],
      ...CAPACITY_SIZES.map((size) => [
        bytes(size),
        (summary) => (size < 1024 ? rate : flow)(summary[size].messages_per_second, size),
      ]),
    ],
  },
]

export function page(results, files) {
  const section = (half) => {
    const steps = worse(half)
    const grown =
      'Steps that cost more than the work that they added, by more than a quarter (medians, of a join the least):'
    const none = 'No step cost more than the work that it added, by more than a quarter.'
    const tables = TABLES.flatMap(({ heading, text, table, images, columns }) => {
      const { cells, placement } = tableOf(half, table)
      const name = ({ size }) => (inBytes(table) ? bytes(size) : size)
      const pictures = images.map((image) => `scale-${image}.svg`).filter((file) => files[file])
      return block(
        heading,
        text,
        ...pictures.map((file) => `![${file.replace('.svg', '').replaceAll('-', ' ')}](${file})`),
        listing(cells, [HEADS[table], name], columns, placement),
      )
    })
    return [...block('## Worse than linear', steps.length > 0 && grown, steps.join('\n') || none), ...tables]
  }
  return render(results, {
    title: 'As work grows',
    intro: [
      'Written by `npm run bench -- scale`; the figures are those of one run of two Rust processes.',
      'Method: [bench/README.md](../../../bench/README.md#as-work-grows).',
    ],
    single: true,
    section,
  })
}
