// Measures the cost of a log, and the lines that remain when its writer is killed: see README.md.
//
//     node main.mjs [--runs 5] [--lines 100000]

import { spawn } from 'node:child_process'
import { randomBytes, randomInt } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values } = parseArgs({
  options: { runs: { type: 'string', default: '5' }, lines: { type: 'string', default: '100000' } },
})
const runs = Number(values.runs)
const lines = Number(values.lines)
const WRITERS = 4
/** Lines per millisecond while the event loop is measured, far below the maximum of any way. */
const PACE = 10
/** Microseconds of a clock tick in /proc/PID/stat. */
const TICK = 10_000

const WAYS = ['ring', 'ring by transport', 'worker thread', 'sonic-boom, sync', 'sonic-boom, async', 'stdout to a pipe']
const here = (name) => fileURLToPath(new URL(name, import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'ringfence-pino-'))
const children = new Set()
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

const found = new Map(WAYS.map((way) => [way, { one: [], many: [], steady: [], lost: [] }]))
for (let run = 0; run < runs; run += 1) {
  for (const way of WAYS) {
    const figures = found.get(way)
    figures.one.push(await flood(way, 1))
    figures.many.push(await flood(way, WRITERS))
    figures.steady.push(await steady(way))
    figures.lost.push(await kill(way))
  }
}
print()

function start(command, words, stdio) {
  const child = spawn(command, words, { stdio })
  children.add(child)
  const exited = once(child, 'exit').finally(() => children.delete(child))
  return { child, exited, pid: child.pid }
}

/** Starts the process that writes the file, if the writers do not write it themselves. */
async function begin(way) {
  const name = randomBytes(8).toString('hex')
  const file = join(folder, name)
  writeFileSync(file, '')
  if (!way.startsWith('ring')) return { file, target: file, collector: null }
  const address = `@ringfence-pino-${name}`
  const collector = start(process.execPath, [here('collector.mjs'), address, file], ['ignore', 'pipe', 'inherit'])
  await once(collector.child.stdout, 'data')
  return { file, target: address, collector }
}

function write(way, place, name, count, pace, counter = []) {
  const words = [here('writer.mjs'), way, place.target, name, String(count), String(pace), ...counter]
  const writer = start(process.execPath, words, ['ignore', way === 'stdout to a pipe' ? 'pipe' : 'ignore', 'pipe'])
  const cats = []
  if (way === 'stdout to a pipe') {
    // The cheapest possible reader.
    const cat = start('cat', [], [writer.child.stdout, openSync(place.file, 'a'), 'inherit'])
    writer.child.stdout.destroy()
    cats.push(cat)
  }
  return { ...writer, cats, report: text(writer.child.stderr) }
}

async function end(place, writers) {
  await Promise.all(writers.map(({ exited }) => exited))
  await Promise.all(writers.flatMap(({ cats }) => cats).map(({ exited }) => exited))
  if (place.collector === null) return
  place.collector.child.kill('SIGTERM')
  await place.collector.exited
}

/** Processor time of a process so far, in microseconds. */
function cpuOf({ pid }) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')
  return (Number(fields[11]) + Number(fields[12])) * TICK
}

/** Logs at full speed: lines/s until the last is in the file, and processor time per line of all processes. */
async function flood(way, count) {
  const place = await begin(way)
  const before = place.collector === null ? 0 : cpuOf(place.collector)
  const each = Math.round(lines / count)
  const writers = Array.from({ length: count }, (_, name) => write(way, place, `w${name}`, each, 0))
  // The size of the file over time.
  const sizes = []
  const look = setInterval(() => sizes.push([process.hrtime.bigint(), statSync(place.file).size]), 2)
  const reports = (await Promise.all(writers.map((writer) => writer.report))).map((line) => JSON.parse(line))
  const collecting = place.collector === null ? 0 : cpuOf(place.collector) - before
  await end(place, writers)
  await setTimeout(10)
  clearInterval(look)
  // A reader of a pipe has already exited. Its little processor time is not counted.
  const all = sizes.at(-1)[1]
  const done = sizes.find(([, size]) => size === all)[0]
  const began = reports.map((one) => BigInt(one.began)).reduce((a, b) => (a < b ? a : b))
  const { whole, torn, unordered } = judge(place.file)
  if (!way.startsWith('stdout') && whole !== each * count && torn === 0) throw new Error(`${way}: ${whole} lines`)
  const writing = reports.reduce((sum, { cpu }) => sum + cpu, 0)
  return {
    rate: (each * count) / (Number(done - began) / 1e9),
    cpu: writing / (each * count),
    collecting: collecting / (each * count),
    torn,
    unordered,
  }
}

/** Logs at a low rate, and measures the delay of the writer's event loop. */
async function steady(way) {
  const place = await begin(way)
  const writer = write(way, place, 'a', PACE * 1500, PACE)
  const report = JSON.parse(await writer.report)
  await end(place, [writer])
  return report
}

/** Kills the writer, and counts the missing lines whose log call had returned. */
async function kill(way) {
  const place = await begin(way)
  const counter = `${place.file}.counter`
  writeFileSync(counter, '0'.padStart(12))
  const returned = () => Number(readFileSync(counter, 'utf8'))
  const at = randomInt(5000, 20_000)
  const writer = write(way, place, 'a', 1e9, 0, [counter])
  while (returned() < at) await setTimeout(1)
  writer.child.kill('SIGKILL')
  await end(place, [writer])
  const promised = returned()
  const { numbers } = judge(place.file)
  let there = 0
  for (const number of numbers) if (number < promised) there += 1
  return { returned: promised, lost: promised - there }
}

function judge(file) {
  const numbers = []
  const last = new Map()
  let torn = 0
  let unordered = 0
  for (const one of readFileSync(file, 'utf8').split('\n')) {
    if (one === '') continue
    let parsed
    try {
      parsed = JSON.parse(one)
    } catch {
      torn += 1
      continue
    }
    if (parsed.line <= (last.get(parsed.writer) ?? -1)) unordered += 1
    last.set(parsed.writer, parsed.line)
    numbers.push(parsed.line)
  }
  return { whole: numbers.length, torn, unordered, numbers }
}

function median(all) {
  const sorted = [...all].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)]
}

function print() {
  console.log(
    `${cpus()[0].model}, ${cpus().length} cores, load ${loadavg()[0].toFixed(1)}, Node ${process.version}; medians of ${runs} runs, ` +
      `${lines} lines of 126 B each; the file is in ${tmpdir()}\n`,
  )
  const heads = [
    '',
    'lines/s',
    'CPU µs/line: writer, collector',
    `lines/s, ${WRITERS} writers`,
    'torn',
    'loop p99, max ms',
    'returned, then lost by SIGKILL',
  ]
  const rows = WAYS.map((way) => {
    const { one, many, steady: loop, lost } = found.get(way)
    const pick = (list, name) => median(list.map((figures) => figures[name]))
    return [
      way,
      Math.round(pick(one, 'rate')).toLocaleString('en'),
      `${pick(one, 'cpu').toFixed(1)}, ${pick(one, 'collecting').toFixed(1)}`,
      Math.round(pick(many, 'rate')).toLocaleString('en'),
      String(Math.max(...[...one, ...many].map(({ torn, unordered }) => torn + unordered))),
      `${pick(loop, 'p99').toFixed(1)}, ${pick(loop, 'max').toFixed(0)}`,
      lost.map(({ lost: missing }) => missing.toLocaleString('en')).join('; '),
    ]
  })
  for (const row of [heads, heads.map(() => '---'), ...rows]) console.log(`| ${row.join(' | ')} |`)
}
