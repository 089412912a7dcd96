// What ringfence costs as channels, messages and rings grow: the results of `scale` as a page and as plots.

import { bytes, duration, quantity } from '../node/text.mjs'
import { aligned, rate, spread, table } from './markdown.mjs'
import { chart } from '../deps/plot.mjs'

const plain = (value) => quantity(value).trim()

function speed({ median, min, max }, size) {
  const of = { median: median * size, min: min * size, max: max * size }
  return spread(of, (shown) => quantity(shown, 'B/s'), plain)
}

const milliseconds = (value) => duration(value * 1e6)
/** Percent of a core, which can be none at all. */
const percent = (value) => (value === 0 ? '0' : `${Number(value.toPrecision(2))} %`)

/** The placement that most steps of a table have. */
function placementOf(rows) {
  const count = (name) => rows.filter(({ placement }) => placement === name).length
  return ['near', 'far', 'moved'].sort((a, b) => count(b) - count(a))[0]
}

/** A step, and in brackets its placement, where that is another than the table's. */
const named = (row, rows, text) => (row.placement === placementOf(rows) ? text : `${text} (${row.placement})`)

/** The points of a line, from rows with a spread each. */
const points = (rows, at, pick, by = () => 1) =>
  rows.map((row) => {
    const { median, min, max } = pick(row)
    return [at(row), median * by(row), min * by(row), max * by(row)]
  })

/** Nanoseconds from a rate: the fastest is the least. */
const nanoseconds = ({ median, min, max }) => ({ median: 1e9 / median, min: 1e9 / max, max: 1e9 / min })

function axes(series, x, y) {
  const all = series.flatMap((line) => line.points)
  const low = Math.min(...all.map((point) => point[2]))
  const high = Math.max(...all.map((point) => point[3]))
  return {
    x: { ...x, low: x.ticks[0][0], high: x.ticks.at(-1)[0] },
    y: y.linear ? { ...y, low: 0, high: Math.max(high * 1.1, y.least) } : { ...y, low: low / 1.3, high: high * 1.3 },
  }
}

const tidy = (text) => text.replace('.00', '').replace('.0', '')
const perSecond = { label: 'messages per second', text: (value) => tidy(quantity(value)) }
const bytesPerSecond = { label: 'bytes per second', text: (value) => tidy(quantity(value, 'B')) }
const RANGE = 'median, bars from min to max'

/** The tables of a run, in the order in which they are shown. */
const TABLES = ['channels', 'subscribers', 'sizes', 'capacities']

export function plots(results) {
  const files = {}
  const usual = (rows) => rows.filter((row) => row.placement === placementOf(rows))
  const [channels, subscribers, sizes, capacities] = TABLES.map((name) => usual(results[name]))
  const draw = (name, title, subtitle, rows, series, x, y) => {
    const note = `${subtitle}; ${RANGE}; ${rows[0].placement} placement`
    files[`scale-${name}.svg`] = chart({ title, subtitle: note, series, ...axes(series, x, y) })
  }
  if (channels.length > 1) {
    const at = (row) => row.channels
    const x = { label: 'channels between two processes', ticks: channels.map((row) => [at(row), String(at(row))]) }
    const lines = (pick, after = '', strong = true) => [
      { name: `one each${after}`, strong, points: points(channels, at, (row) => pick(row.busy)) },
      { name: `batches of 32${after}`, strong, points: points(channels, at, (row) => pick(row.batched)) },
    ]
    draw(
      'channels',
      'Throughput over the number of channels',
      '64 B to each channel in turn, the reader polls all of them',
      channels,
      lines((flow) => flow.messages_per_second),
      x,
      perSecond,
    )
    draw(
      'cost',
      'Cost of a message over the number of channels',
      '64 B to each channel in turn; time, and CPU of both sides',
      channels,
      [
        ...lines((flow) => nanoseconds(flow.messages_per_second), ', time'),
        ...lines((flow) => flow.cpu_ns_per_message, ', CPU', false),
      ],
      x,
      { label: 'each message', text: (value) => tidy(duration(value)) },
    )
    draw(
      'merge',
      'Throughput of a merge over the number of its sources',
      '64 B from each of them in turn, read by one merge',
      channels,
      [
        { name: 'one each', strong: true, points: points(channels, at, (row) => row.merged.messages_per_second) },
        {
          name: 'batches of 32',
          strong: true,
          points: points(channels, at, (row) => row.merged_batched.messages_per_second),
        },
        { name: 'one each, polled in turn', points: points(channels, at, (row) => row.busy.messages_per_second) },
      ],
      x,
      perSecond,
    )
    draw(
      'idle',
      'Idle, over the number of channels',
      'all readers asleep, nothing sent, both processes together',
      channels,
      [
        {
          name: 'CPU, µs per second',
          strong: true,
          points: points(
            channels,
            at,
            (row) => row.idle_cpu_percent,
            () => 1e4,
          ),
        },
        { name: 'wake-ups per second', points: points(channels, at, (row) => row.idle_wakeups_per_second) },
      ],
      x,
      { label: 'each second', linear: true, least: 1, text: (value) => String(value) },
    )
  }
  if (subscribers.length > 1) {
    const at = (row) => row.subscribers
    const line = (name, pick) => ({ name, strong: true, points: points(subscribers, at, pick, at) })
    draw(
      'subscribers',
      'Delivered, over the number of subscribers',
      '64 B, read by each; all of them in one process, polled in turn',
      subscribers,
      [
        line('one at a time', (row) => row.one.messages_per_second),
        line('batches of 32', (row) => row.batched.messages_per_second),
      ],
      {
        label: 'subscriptions of one process',
        ticks: subscribers.map((row) => [at(row), String(at(row))]),
      },
      perSecond,
    )
  }
  if (sizes.length > 1) {
    const series = [
      {
        name: 'ring of 4 MiB',
        strong: true,
        points: points(
          sizes,
          (row) => row.size,
          (row) => row.flow.messages_per_second,
          (row) => row.size,
        ),
      },
      {
        name: 'one thread, no channel',
        points: points(
          sizes,
          (row) => row.size,
          (row) => row.alone_per_second,
          (row) => row.size,
        ),
      },
    ]
    const ticks = sizes.filter((_, index) => index % 3 === 0 || index === sizes.length - 1)
    draw(
      'sizes',
      'Throughput over message size',
      'one channel, copied in and out, every word written and read',
      sizes,
      series,
      { label: 'bytes of a message', ticks: ticks.map(({ size }) => [size, bytes(size)]) },
      bytesPerSecond,
    )
  }
  if (capacities.length > 1) {
    const line = (name, pick, size) => ({
      name,
      strong: true,
      points: points(
        capacities,
        (row) => row.capacity,
        (row) => pick(row).messages_per_second,
        () => size,
      ),
    })
    draw(
      'capacities',
      'Throughput over capacity',
      'one channel, copied in and out, every word written and read',
      capacities,
      [line('64 B', (row) => row.small, 64), line('16 KiB', (row) => row.large, 16384)],
      { label: 'bytes of the ring', ticks: capacities.map(({ capacity }) => [capacity, bytes(capacity)]) },
      bytesPerSecond,
    )
  }
  return files
}

/** Losing the core so often a second means that something else ran beside the measurement. */
const DISTURBED = 50

function disturbed({ channels, subscribers, sizes, capacities }) {
  const flows = [
    ...channels.flatMap((row) => [row.busy, row.batched, row.merged, row.merged_batched]),
    ...subscribers.flatMap((row) => [row.one, row.batched]),
    ...sizes.map((row) => row.flow),
    ...capacities.flatMap((row) => [row.small, row.large]),
  ]
  const count = flows.filter((flow) => flow.preempted_per_second.median > DISTURBED).length
  return `in ${count} of ${flows.length} steps the median run lost a core more than ${DISTURBED} times a second to something else`
}

function placements(found) {
  const ns = found.map(({ line_ns }) => line_ns)
  const near = found.filter((placement) => placement.near).length
  const where = near === found.length ? 'near' : near === 0 ? 'far' : `near in ${near} of ${found.length} looks`
  return `${Math.min(...ns).toFixed(0)} to ${Math.max(...ns).toFixed(0)} ns (${where}), before and after each step`
}

function placementsShown({ channels, subscribers, sizes, capacities }) {
  const tables = Object.entries({ channels, subscribers, messages: sizes, capacities }).filter(
    ([, rows]) => rows.length > 0,
  )
  return tables.map(([name, rows]) => `${name}: ${placementOf(rows)}`).join(', ')
}

function channelTables(rows) {
  const head = [
    'channels',
    'join, each',
    'leave, each',
    'descriptors, each',
    'shared memory, each',
    'idle CPU',
    'idle wake-ups',
  ]
  const resting = rows.map((row) => [
    named(row, rows, row.channels),
    spread(row.join_ms, milliseconds),
    spread(row.leave_ms, milliseconds),
    Number(row.descriptors.toFixed(2)),
    `${row.memory_kib.toFixed(0)} KiB`,
    spread(row.idle_cpu_percent, percent),
    spread(row.idle_wakeups_per_second, (value) => `${Number(value.toFixed(1))}/s`),
  ])
  const busyHead = ['channels', 'one each', 'CPU', 'batches of 32', 'CPU', 'round trip, asleep on all']
  const busy = rows.map((row) => [
    named(row, rows, row.channels),
    rate(row.busy.messages_per_second),
    spread(row.busy.cpu_ns_per_message, duration),
    rate(row.batched.messages_per_second),
    spread(row.batched.cpu_ns_per_message, duration),
    spread(row.woken_round_trip_us, (value) => duration(value * 1e3)),
  ])
  const mergeHead = ['sources', 'one each', 'CPU', 'batches of 32', 'CPU']
  const merged = rows.map((row) => [
    named(row, rows, row.channels),
    rate(row.merged.messages_per_second),
    spread(row.merged.cpu_ns_per_message, duration),
    rate(row.merged_batched.messages_per_second),
    spread(row.merged_batched.cpu_ns_per_message, duration),
  ])
  return [
    [head, ...resting],
    [busyHead, ...busy],
    [mergeHead, ...merged],
  ].map(([first, ...others]) => table([first, aligned(first), ...others]))
}

function subscriberTable(rows) {
  const head = [
    'subscribers',
    'join, each',
    'leave, each',
    'descriptors, each',
    'idle CPU',
    'idle wake-ups',
    'delivered, one at a time',
    'CPU of a published',
    'delivered, batches of 32',
    'CPU of a published',
  ]
  const delivered = (row, { median, min, max }) =>
    rate({ median: median * row.subscribers, min: min * row.subscribers, max: max * row.subscribers })
  const shown = rows.map((row) => [
    named(row, rows, row.subscribers),
    spread(row.join_ms, milliseconds),
    spread(row.leave_ms, milliseconds),
    Number(row.descriptors.toFixed(2)),
    spread(row.idle_cpu_percent, percent),
    spread(row.idle_wakeups_per_second, (value) => `${Number(value.toFixed(1))}/s`),
    delivered(row, row.one.messages_per_second),
    spread(row.one.cpu_ns_per_message, duration),
    delivered(row, row.batched.messages_per_second),
    spread(row.batched.cpu_ns_per_message, duration),
  ])
  return table([head, aligned(head), ...shown])
}

export function page(results, files) {
  const { machine, channels, subscribers, sizes, capacities, worse_than_linear: worse } = results
  const image = (name, text) => (files[`scale-${name}.svg`] ? [`![${text}](scale-${name}.svg)`, ''] : [])
  const out = [
    '# As work grows',
    '',
    `Written by \`npm run bench -- scale\` on ${results.date}; every figure below comes from that one run. Two Rust processes,`,
    'every word written and read, the sums compared. How it is measured: [bench/README.md](../../bench/README.md).',
    '',
    '| machine | |',
    '| --- | --- |',
    `| CPU | ${machine.cpu}${machine.hypervisor ? ', virtual' : ''}, ${machine.cores} cores |`,
    `| caches | ${machine.caches} |`,
    `| memory | ${machine.memory_gib.toFixed(0)} GiB |`,
    `| kernel | Linux ${machine.kernel} |`,
    `| versions | ${[machine.rustc, results.commit && `ringfence at ${results.commit}`].filter(Boolean).join('; ')} |`,
    `| cache line to and fro | ${placements(results.placements)} |`,
    `| runs | ${results.runs} of ${results.seconds} s each, in rounds; medians of those in one placement, and min–max below them |`,
    `| disturbed | ${disturbed(results)} |`,
    `| shown | ${placementsShown(results)}; a step without such a run says in brackets which it had |`,
    '',
    '## Worse than linear',
    '',
  ]
  if (worse.length === 0) out.push('No step cost more than the work that it added, by more than a quarter.')
  else {
    out.push(
      'Steps that cost more than the work that they added, by more than a quarter (medians, of a join the least):',
      '',
    )
    out.push(...worse.map((step) => `- ${step}`))
  }
  out.push('')
  if (channels.length > 0) {
    const [resting, busy, merged] = channelTables(channels)
    out.push(
      '## Channels',
      '',
      'Rings of 64 KiB each way, messages of 64 B. CPU is that of both processes together.',
      '',
    )
    out.push(...image('channels', 'throughput over channels'), ...image('cost', 'cost over channels'), busy, '')
    out.push(...image('idle', 'idle over channels'), resting, '')
    out.push('## Many to one', '', 'The same channels, read by one merge of all of them.', '')
    out.push(...image('merge', 'throughput of a merge over its sources'), merged, '')
  }
  if (subscribers.length > 0) {
    out.push(
      '## One to many',
      '',
      'One publisher with a ring of 1 MiB, messages of 64 B, all subscriptions in one other process, which reads them in turn.',
      '',
    )
    out.push(...image('subscribers', 'delivered over subscribers'), subscriberTable(subscribers), '')
  }
  if (sizes.length > 0) {
    const head = ['message', 'messages', 'bytes', 'each', 'CPU of both, each', 'without a channel, each', '']
    const rows = sizes.map(({ size, flow, alone_per_second: alone, in_fragments, placement }) => [
      named({ placement }, sizes, bytes(size)),
      rate(flow.messages_per_second),
      speed(flow.messages_per_second, size),
      duration(1e9 / flow.messages_per_second.median),
      duration(flow.cpu_ns_per_message.median),
      duration(1e9 / alone.median),
      in_fragments ? 'in fragments' : '',
    ])
    out.push(
      '## Messages',
      '',
      'One channel with a ring of 4 MiB, each message copied in and out. Without a channel: one thread writes, copies in and out',
      'of plain memory of that size, and sums.',
      '',
    )
    out.push(...image('sizes', 'throughput over message size'), table([head, aligned(head), ...rows]), '')
  }
  if (capacities.length > 0) {
    const head = ['ring', 'join', '64 B', 'CPU of both, each', '16 KiB', 'CPU of both, each']
    const rows = capacities.map(({ capacity, join_ms, small, large, placement }) => [
      named({ placement }, capacities, bytes(capacity)),
      spread(join_ms, milliseconds),
      rate(small.messages_per_second),
      duration(small.cpu_ns_per_message.median),
      speed(large.messages_per_second, 16384),
      duration(large.cpu_ns_per_message.median),
    ])
    out.push('## Capacities', '', 'One channel, each message copied in and out.', '')
    out.push(...image('capacities', 'throughput over capacity'), table([head, aligned(head), ...rows]), '')
  }
  return `${out.join('\n').trimEnd()}\n`
}

/** One step a line: readable in a diff. */
export function json(results) {
  const rest = Object.fromEntries(
    Object.entries(results).filter(([name]) => name !== 'placements' && !TABLES.includes(name)),
  )
  const parts = TABLES.map((name) => `"${name}": [\n${results[name].map((row) => JSON.stringify(row)).join(',\n')}\n]`)
  return `${JSON.stringify(rest, null, 2).slice(0, -2)},\n"placements": ${JSON.stringify(results.placements)},\n${parts.join(',\n')}\n}\n`
}
