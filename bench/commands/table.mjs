// Measures every cell that has a goal, with its rivals and the floor of the machine, in one run.

import { spawnSync } from 'node:child_process'
import process from 'node:process'

import { nodeTask } from '../node/tasks.mjs'
import { asTimes, figures, usualPlacement } from '../pages/markdown.mjs'
import { duration, quantity } from '../node/text.mjs'
import { common, conduct, listed, task, wanted } from './experiment.mjs'
import { buildSmoke, program, root, say } from './shared.mjs'

export const about =
  'measures every cell that has a goal; exit code 1 if one has no figure, 2 if the machine was not quiet'
export const options = {
  quick: ['a smoke run of a minute without rivals, whose figures are meaningless', false],
  only: ['only cells whose name contains this', undefined, 'fan-out'],
  ...common({ runs: '3' }),
}

const MIB = 1 << 20
const inPlace = (size) => ({ half: 'rust', measure: 'one', size, figure: 'bytes_per_second' })
const fanOut = (subscribers, size) => ({ half: 'publish', subscribers, size, figure: 'delivered_per_second' })
const roundTrip = (half, measure) => ({ half, measure, size: 64, figure: 'p50_ns' })
const paced = (half, figure) => ({ half, measure: 'paced', size: 64, figure })
const sent = (size, figure = 'bytes_per_second') => ({ half: 'node', measure: 'one', size, figure })
const scale = (measure, size, figure) => ({ half: 'scale', measure, size, figure })
const call = { half: 'node', measure: 'rpc', size: 1, figure: 'p50_ns' }
const batches = { half: 'node', measure: 'single', size: 64, figure: 'messages_per_second' }
const sealed = { half: 'node', measure: 'pass', size: 2 ** 30, figure: 'pass_ns' }
const small = { contender: 'ring', size: 64 }

const PUBLISHERS = ['ringfire', 'iceoryx2', 'zeromq']
const LARGE = ['iceoryx2', 'shmem-ipc', 'ringfire']
const SHARED = [...LARGE, 'tachyon']
const ONE_WAY = ['unix', 'iceoryx2', 'shmem-ipc', 'tachyon']
const SLEEPERS = [...ONE_WAY, 'tarpc']
/** A blocking call of each: some spin before they sleep. */
const BLOCKING = [
  ...['ringfire', 'tachyon'],
  ...['unix', 'iceoryx2', 'shmem-ipc', 'tarpc'].map((contender) => ({ contender, measure: 'rtt-parked' })),
]
const WAKEUPS = ['eventfd', 'futex']
const IN_NODE = ['unix', 'child-process', 'child-process-26', 'message-port']
const THREADS = [...IN_NODE, 'shared-array-buffer']
const CHANGES = {
  id: 'ringfence',
  version: 'this tree',
  note: 'the longest publish while a subscriber joins or leaves',
}
const PAGES = {
  id: 'pages',
  version: 'machine',
  note: 'limit: one thread loads a word from a page of each subscriber, once for each publish',
}
const CALLS = ['advanced/child-process', 'grpc/unix']

/**
 * `[cell, goal, rivals, floors, own]`: a cell has its half, its key and its figure; the others are contenders with the same key, unless
 * they name another one. A goal is `[limit]`, or `[times, beside]` the best rival or a contender. A rate must be at least that, a cost
 * at most. A row has only rivals that know its measure, so one without a figure did not run.
 */
const ROWS = {
  'fan-out, 64 B, 4 readers': [fanOut(4, 64), [1, 'rivals'], PUBLISHERS],
  'fan-out, 64 B, 16 readers': [fanOut(16, 64), [1, 'rivals'], PUBLISHERS],
  'fan-out, 64 B, 100 readers': [fanOut(100, 64), [1, 'rivals'], PUBLISHERS],
  'fan-out, 1 KiB, 4 readers': [fanOut(4, 1024), [3, 'rivals'], PUBLISHERS],
  'fan-out, 1 KiB, 16 readers': [fanOut(16, 1024), [3, 'rivals'], PUBLISHERS],
  'a change among 4,000 subscribers': [scale('changes', 4000, 'p50_ns'), [50e3], [], [PAGES.id]],
  '64 B in place, Rust': [{ ...inPlace(64), figure: 'messages_per_second' }, [1, 'rivals'], [...SHARED, 'unix']],
  '1 MiB in place, Rust': [inPlace(MIB), [1, 'rivals'], SHARED],
  '16 MiB in place, Rust': [inPlace(16 * MIB), [1, 'rivals'], LARGE],
  // Each way moves two lines, one after the other: the word that publishes, then the record. A tenth is for the rest.
  'round trip, polled, Rust': [roundTrip('rust', 'rtt-polled'), [2 * 1.1, 'cache-line'], SHARED, ['cache-line']],
  'round trip, blocking calls, Rust': [roundTrip('rust', 'rtt-spin'), [1, 'rivals'], BLOCKING],
  'round trip, asleep, Rust': [roundTrip('rust', 'rtt-parked'), [1, 'rivals'], SLEEPERS, WAKEUPS],
  'CPU per message at 1,000/s, Rust': [paced('rust', 'cpu_ns_per_message'), [1, 'unix'], ONE_WAY],
  'wakeups per message at 1,000/s, Rust': [paced('rust', 'wakeups_per_message'), [1, 'unix'], ONE_WAY],
  'wakeups per second, 64 idle subscribers': [scale('subscribers', 64, 'idle_wakeups_per_second'), [1]],
  'CPU of a core, 64 idle subscribers': [scale('subscribers', 64, 'idle_cpu_percent'), [0.1]],
  'join, warm': [scale('joins', 200, 'p50_ns'), [400e3]],
  'first join of a process with threads': [scale('joins', 200, 'first_ns'), [1e6]],
  '64 B, Node': [sent(64, 'messages_per_second'), [1, 'rivals'], IN_NODE, ['copied']],
  '64 B, gathered by the program, Node': [
    sent(64, 'messages_per_second'),
    [1, 'rivals'],
    ['unix-corked'],
    [],
    'ringfence-gathered',
  ],
  '1 MiB, Node': [sent(MIB), [1, 'message-port'], THREADS, ['copied']],
  '16 MiB, Node': [sent(16 * MIB), [10e9], THREADS, ['copied']],
  'round trip, asleep, Node': [roundTrip('node', 'rtt-parked'), [1, 'rivals'], IN_NODE],
  'CPU per message at 1,000/s, Node': [paced('node', 'cpu_ns_per_message'), [1, 'unix'], IN_NODE.slice(0, 3)],
  'batches(), 64 B, Node': [batches, [1 / 1.3, 'send-drain'], ['send-drain'], ['buffers'], 'send-batches'],
  'call, both asleep': [call, [1.2, 'message/ringfence'], CALLS, ['message/ringfence'], 'call/ringfence'],
  'call, polled': [call, [1.2, 'message-polled/ringfence'], [], ['message-polled/ringfence'], 'call-polled/ringfence'],
  'sealed buffer of 1 GiB passed': [sealed, [2, 'announced'], [], ['announced', small], 'sealed'],
}

/** The replacements of a smoke run for slow or large steps. */
const SMALLER = { changes: 100, joins: 20, subscribers: 8, [2 ** 30]: MIB, [16 * MIB]: 65_536, [MIB]: 65_536, 100: 8 }

/** The keys of a row's contenders, its own first. A key identifies a cell within its half. */
function keysOf([cell, [, beside], rivals = [], floors = [], own = 'ringfence'], isQuick) {
  const smaller = (value) => (isQuick ? (SMALLER[value] ?? value) : value)
  const { half, subscribers } = cell
  const usual = isQuick ? (SMALLER[cell.measure] ?? smaller(cell.size)) : cell.size
  const of = (one) => {
    const { contender, size = usual, measure = cell.measure } = typeof one === 'string' ? { contender: one } : one
    if (half !== 'publish') return { contender, measure, size }
    return { contender, subscribers: smaller(subscribers), idle: 0, size, batch: false }
  }
  const reference = beside === undefined || beside === 'rivals' ? [] : [beside]
  return {
    own: of(own),
    rivals: rivals.map(of),
    floors: floors.map(of),
    reference: reference.map(of)[0],
    run: [own, ...(isQuick ? reference : [...rivals, ...floors])].map(of),
  }
}

/** A half of the results for each program and way to call it. */
async function halvesOf(rows, isQuick) {
  const job = { cpus: [0, 1], capacity: 4 * MIB }
  const { contenders: inNode } = await import('../node/contenders/index.mjs')
  const { peers, broadcast } = listed()
  const seconds = (usual, measure) => (isQuick ? 0.05 : measure === 'paced' ? 1 : usual)
  // A hundred readers share a core, so each would take seconds to read a long queue.
  const capacityFor = ({ subscribers }) => (subscribers === 100 ? MIB / 4 : job.capacity)
  const rust = (order, usual) => (key) =>
    task(key, {
      command: [program, order],
      job: { ...job, capacity: capacityFor(key), seconds: seconds(usual, key.measure) },
    })
  const kinds = {
    rust: [peers, rust('one', 0.15)],
    publish: [broadcast, rust('publish', 0.15)],
    scale: [[CHANGES, PAGES], rust('step', 0.15)],
    node: [
      inNode,
      ({ contender, measure, size }) =>
        nodeTask(
          inNode.find(({ id, measures }) => id === contender && measures.includes(measure)),
          measure,
          size,
          { ...job, seconds: seconds(0.4, measure) },
        ),
    ],
  }
  return Object.entries(kinds).map(([name, [known, taskOf]]) => {
    const keys = rows.filter(([{ half }]) => half === name).flatMap((row) => keysOf(row, isQuick).run)
    const unique = [...new Map(keys.map((key) => [JSON.stringify(key), key])).values()]
    const there = unique.filter(({ contender }) => known.some(({ id }) => id === contender))
    const used = known.filter(({ id }) => there.some(({ contender }) => contender === id))
    const contenders = used.map(({ id, version, note }) => ({ id, version, note }))
    return { name, seconds: seconds(name === 'node' ? 0.4 : 0.15), contenders, tasks: there.map(taskOf) }
  })
}

const isRate = (figure) => figure.endsWith('_per_second') && !figure.startsWith('idle')

function shown(figure, value) {
  if (value === undefined) return undefined
  if (isRate(figure)) return quantity(value, figure.startsWith('bytes') ? 'B/s' : '/s')
  if (figure.includes('_ns')) return value < 1000 && value % 1 ? `${value.toFixed(1)} ns` : duration(value)
  return figure.endsWith('percent') ? `${Number(value.toPrecision(2))} %` : String(Number(value.toFixed(2)))
}

/** A row of the page. All fields except the last two are text; fields without a figure are missing. `forbidden`: the best floor does not reach the goal. */
function rowOf(what, row, { halves }, isQuick) {
  const [{ figure, half }, [limit, beside]] = row
  const { cells } = halves.find(({ name }) => name === half) ?? { cells: [] }
  const placement = usualPlacement(cells)
  const keys = keysOf(row, isQuick)
  const summaryOf = (key) =>
    figures(
      cells.find((cell) => Object.entries(key).every(([name, value]) => cell[name] === value)),
      placement,
    )?.summary
  const isBetter = (one, other) => (isRate(figure) ? one > other : one < other)
  const withFigure = (list) =>
    list
      .map((key) => ({ id: key.contender, value: summaryOf(key)?.[figure]?.median }))
      .filter(({ value }) => value !== undefined)
      .sort((a, b) => (isBetter(a.value, b.value) ? -1 : 1))
  const show = (value) => shown(figure, value)
  const named = ({ id, value }) => `${id} ${show(value)}`
  const summary = summaryOf(keys.own)
  const value = summary?.[figure]?.median
  const rivals = withFigure(keys.rivals)
  const [best] = rivals
  const ids = keys.rivals.map(({ contender }) => contender)
  const missing = ids.filter((id) => rivals.every((rival) => rival.id !== id))
  // A rival that did not run could be the best.
  const [asked] = keys.reference ? withFigure([keys.reference]) : missing.length === 0 ? rivals : []
  const required = limit * (beside === undefined ? 1 : asked?.value)
  const floors = withFigure(keys.floors)
  const limits = (floor) => isBetter(required, floor) && isBetter(floor, value)
  const sign = isRate(figure) ? '≥' : '≤'
  return {
    what,
    value: show(value),
    latency: figure === 'p50_ns' && summary?.p99_ns ? show(summary.p99_ns.median) : undefined,
    goal: `${sign} ${beside === undefined ? show(limit) : `${asTimes(limit)} ${keys.reference?.contender ?? 'best rival'}`}`,
    rival: [...(best ? [named(best)] : []), ...missing.map((id) => `${id} did not run`)].join('; ') || undefined,
    ratio: best && asTimes(value / best.value),
    floor: floors.map(named).join(', ') || undefined,
    reached: Number.isFinite(value / required) ? !isBetter(required, value) : undefined,
    // A rival shows that a goal beside the best of them is possible. A floor that did not run could be the best.
    forbidden: beside !== 'rivals' && floors.length === keys.floors.length && limits(floors[0]?.value),
  }
}

/** Runs the test that counts allocations, and reads their number from its output. If it fails for another reason, there is no figure. */
function allocations() {
  const command = ['test', '--quiet', '-p', 'ringfence', '--test', 'allocations']
  const { status, stdout } = spawnSync('cargo', command, { cwd: root, encoding: 'utf8' })
  const value = status === 0 ? '0' : stdout?.includes('allocations: [') ? 'more than 0' : undefined
  return { what: 'allocations per message', value, goal: '≤ 0', reached: value && value === '0' }
}

export async function run(values) {
  const { quick } = values
  if (quick) buildSmoke(values.build)
  else wanted(values)
  const rows = Object.entries(ROWS).filter(([what]) => what.includes(values.only ?? ''))
  const halves = await halvesOf(
    rows.map(([, row]) => row),
    quick,
  )
  const isWhole = !quick && values.only === undefined
  const found = isWhole ? [allocations()] : []
  const adjust = (results) => {
    results.rows = [...rows.map(([what, row]) => rowOf(what, row, results, quick)), ...found]
  }
  const settings = { ...values, runs: quick ? 1 : values.runs, out: isWhole ? values.out : '' }
  const results = await conduct(halves, settings, { data: 'table', cpus: [0, 1], adjust })
  const empty = results.rows.filter(({ value }) => value === undefined).map(({ what }) => what)
  if (empty.length > 0) {
    say(`no figure: ${empty.join('; ')}`)
    process.exitCode = 1
  } else if (results.disturbed.length > 0) {
    say(`not a quiet run: ${results.disturbed.join('; ')}`)
    if (!quick) process.exitCode = 2
  } else say('a quiet run')
}
