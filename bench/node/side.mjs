// One side of one run. Side A makes the messages, times them and starts side B, which takes and sums them. Both are
// fresh for every run, so that no contender inherits another's heap or compiled code.

import { spawn } from 'node:child_process'
import process from 'node:process'
import { fileURLToPath } from 'node:url'
import { MessageChannel, Worker, isMainThread, workerData } from 'node:worker_threads'

import { build } from 'hdr-histogram-js'

import { contenders } from './contenders/index.mjs'
import { lineOfPort, lineOfStreams } from './line.mjs'
import { median } from './text.mjs'
import { collect, pause, pinThread, since, switches, usage } from './usage.mjs'
import { Reader, add, expectedSum, messageSum, now, warmedUp } from './work.mjs'

const here = fileURLToPath(import.meta.url)

function startPeer(job, contender) {
  const stdio = ['pipe', 'pipe', 'inherit', ...(contender.ipc ? ['ipc'] : [])]
  const options = { stdio, serialization: contender.ipc === 'json' ? 'json' : 'advanced' }
  const arguments_ = [...process.execArgv, here, 'b', JSON.stringify(job)]
  const start = contender.start ?? spawn
  return job.pinned
    ? start('taskset', ['-c', String(job.cpus[1]), process.execPath, ...arguments_], options, job)
    : start(process.execPath, arguments_, options, job)
}

async function ping(contender, count, record) {
  let total = 0
  let at = 0
  const sent = () => {
    at = performance.now()
  }
  const received = (sum, n) => {
    record((performance.now() - at) * 1e6)
    total = add(total, sum)
    return n
  }
  if (contender.roundTrips) contender.roundTrips(count, sent, received)
  else {
    for (let n = 0; n < count; n++) {
      sent()
      contender.send(n)
      received(await contender.receive(), n)
    }
  }
  return total
}

async function echo(contender, count) {
  if (contender.echo) return contender.echo(count)
  let total = 0
  for (let n = 0; n < count; n++) {
    total = add(total, await contender.receive())
    contender.send(n)
  }
  return total
}

async function receiveAll(contender, count) {
  let total = 0
  for (let n = 0; n < count; n++) total = add(total, await contender.receive())
  return { sum: total }
}

/** Takes one buffer, whole or in parts, and reads all of it. */
async function take(contender) {
  const reader = new Reader()
  let taken
  let sum = 0
  for await (const bytes of contender.parts?.() ?? [contender.take()]) {
    taken ??= now()
    sum = add(sum, reader.sum(bytes, 0, bytes.length))
  }
  return { taken, sum }
}

/** Side B: does what A orders. */
async function serve(setup, line) {
  const contender = await setup.contender.open({ ...setup, line })
  line.send({ pid: process.pid })
  for (;;) {
    const order = await line.receive()
    if (order.quit) break
    if (order.take) collect()
    const before = usage()
    // The receiver must be listening before A starts its clock, and not only about to; but one that blocks its
    // thread could not say so later.
    if (contender.blocks) line.send('ready')
    const work = order.consume
      ? contender.consume(order.consume)
      : order.take
        ? take(contender)
        : order.paced
          ? receiveAll(contender, order.paced)
          : null
    if (!contender.blocks) line.send('ready')
    const found = work === null ? { sum: await echo(contender, order.echo) } : await work
    line.send({ finished: now(), ...(typeof found === 'number' ? { sum: found } : found), ...since(before) })
  }
  await contender.close()
}

function startThread(job) {
  const control = new MessageChannel()
  const data = new MessageChannel()
  new Worker(here, {
    workerData: { job, control: control.port2, data: data.port2 },
    transferList: [control.port2, data.port2],
  })
  return { line: lineOfPort(control.port1), port: data.port1 }
}

function startChild(job, contender) {
  const child = startPeer(job, contender)
  child.on('exit', (code) => {
    if (code !== 0) {
      console.error(`the other side ended with ${code}`)
      process.exit(1)
    }
  })
  return { line: lineOfStreams(child.stdin, child.stdout), child }
}

async function main(side, job) {
  const contender = contenders.find(({ id }) => id === job.contender)
  const setup = { side, job, contender }
  if (side === 'b') {
    // stdout is the line.
    await serve({ ...setup }, lineOfStreams(process.stdout, process.stdin))
    process.exit(0)
  }

  if (contender.threads && job.pinned) pinThread(job.cpus[0])
  const peers = Array.from({ length: job.readers ?? 1 }, () =>
    contender.threads ? startThread(job) : startChild(job, contender),
  )
  const [{ line, child, port }] = peers
  const lines = peers.map((peer) => peer.line)
  const all = { children: peers.map((peer) => peer.child), ports: peers.map((peer) => peer.port) }
  const opened = await contender.open({ ...setup, ...all, line, child, port })
  const [hello] = await Promise.all(lines.map((each) => each.receive()))
  const outcome = await (job.measure === 'pass' || job.measure === 'share'
    ? passing(opened, lines, job, contender)
    : measured(opened, line, job, contender, hello))
  console.log(JSON.stringify(outcome))
  for (const each of lines) each.send({ quit: true })
  await Promise.race([
    pause(500),
    contender.threads
      ? pause(100)
      : Promise.all(all.children.map((each) => new Promise((resolve) => each.on('exit', resolve)))),
  ])
  await Promise.race([pause(200), opened.close()])
  process.exit(0)
}

function measured(opened, line, job, contender, hello) {
  if (job.measure === 'paced') return paced(opened, line, job)
  if (job.measure.startsWith('rtt')) return roundTrip(opened, line, job, contender, hello)
  return job.measure === 'rpc-stalled' ? stalled(opened, job) : oneWay(opened, line, job, contender)
}

/** The outcome of `count` messages, or calls, of the job. */
const outcomeOf = (job, count, { seconds, cpu = 0, preempted = 0 }, more) => ({
  messages: count,
  seconds,
  messages_per_second: count / seconds,
  bytes_per_second: (count * job.size) / seconds,
  cpu_ns_per_message: cpu / count,
  preempted,
  ...more,
})

/**
 * Sends a message each millisecond: how often the reader goes to sleep, and the CPU of both sides. A timer is up to a millisecond late, so
 * each message has its own deadline, and one that is due already is sent at once.
 */
async function paced(contender, line, job) {
  async function stretch(count) {
    line.send({ paced: count })
    await line.receive()
    const before = usage()
    const started = now()
    let wanted = 0
    for (let n = 0; n < count; n++) {
      const early = n - (now() - started) / 1e6
      if (early > 0) await pause(early)
      void contender.send(n)
      wanted = add(wanted, messageSum(job.size, n))
    }
    const report = await line.receive()
    if (report.sum !== wanted) throw new Error('what arrived is not what was sent')
    return { ...together(since(before), report, {}), sleeps: report.sleeps, seconds: (report.finished - started) / 1e9 }
  }
  await stretch(100)
  const count = Math.ceil(job.seconds * 1000)
  const found = await stretch(count)
  return outcomeOf(job, count, found, { wakeups_per_message: found.sleeps / count })
}

/** The memory that this process holds of calls that are not answered: no rates, but the shape of the other results. */
async function stalled(contender, job) {
  const started = now()
  const held_bytes = await contender.stalled(job.size)
  return outcomeOf(job, job.size, { seconds: (now() - started) / 1e9 }, { held_bytes })
}

/**
 * Passes buffers one at a time, each to all readers: the medians of how long one is written, passed and read, up to the last reader. The
 * first one touches new memory.
 */
async function passing(contender, lines, job, { threads }) {
  const fromAll = () => Promise.all(lines.map((line) => line.receive()))
  const steps = { write_ns: [], pass_ns: [], read_ns: [], all_ns: [] }
  const spent = { seconds: 0, cpu: 0, preempted: 0 }
  for (let n = 0; n < 3 || spent.seconds < job.seconds; n++) {
    // Memory of earlier ones is released outside of the measurement.
    collect()
    for (const line of lines) line.send({ take: true })
    await fromAll()
    const before = usage()
    const started = now()
    let written = 0
    await contender.pass(n, () => (written = now()))
    const reports = await fromAll()
    for (const { sum } of reports)
      if (sum !== messageSum(job.size, n)) throw new Error(`what arrived is not what was sent: sum ${sum}`)
    if (n === 0) continue
    const used = reports.reduce((mine, report) => together(mine, report, { threads }), since(before))
    const taken = Math.max(...reports.map((report) => report.taken))
    const finished = Math.max(...reports.map((report) => report.finished))
    spent.seconds += (finished - started) / 1e9
    spent.cpu += used.cpu
    spent.preempted += used.preempted
    steps.write_ns.push(written - started)
    steps.pass_ns.push(taken - written)
    steps.read_ns.push(finished - taken)
    steps.all_ns.push(finished - started)
  }
  const medians = Object.entries(steps).map(([name, values]) => [name, median(values)])
  return outcomeOf(job, steps.all_ns.length, spent, Object.fromEntries(medians))
}

const newHistogram = () =>
  build({ lowestDiscernibleValue: 1, highestTrackableValue: 60e9, numberOfSignificantValueDigits: 3 })

/** Threads share a process, whose figures each of them sees. */
const together = (mine, theirs, contender) =>
  contender.threads ? mine : { cpu: mine.cpu + theirs.cpu, preempted: mine.preempted + theirs.preempted }

async function oneWay(contender, line, job, { threads, times }) {
  const expected = contender.expected ?? ((count) => expectedSum(job.size, count))
  async function stretch(count, record) {
    line.send({ consume: count })
    await line.receive()
    const before = usage()
    const started = now()
    await contender.produce(count, record)
    let mine = since(before)
    const report = await line.receive()
    if (threads) mine = since(before)
    const wanted = expected(count)
    if (report.sum !== wanted) throw new Error(`what arrived is not what was sent: sum ${report.sum}, not ${wanted}`)
    return { seconds: (report.finished - started) / 1e9, ...together(mine, report, { threads }) }
  }

  const first = contender.first ?? Math.ceil((2 * Math.max(job.capacity, 4 * job.size)) / job.size / 8)
  const count = await warmedUp(job, first, (tries) => stretch(tries, () => {}))
  const histogram = newHistogram()
  const found = await stretch(count, recordIn(histogram))
  return outcomeOf(job, count, found, times ? { round_trip: curveOf(histogram) } : {})
}

const recordIn = (histogram) => (ns) => histogram.recordValue(Math.max(1, Math.round(ns)))

async function roundTrip(contender, line, job, { threads }, hello) {
  async function stretch(count, record) {
    line.send({ echo: count })
    await line.receive()
    const before = usage()
    const started = now()
    const sum = await ping(contender, count, record)
    const seconds = (now() - started) / 1e9
    const mine = since(before)
    const report = await line.receive()
    let wanted = 0
    for (let n = 0; n < count; n++) wanted = add(wanted, messageSum(job.size, n))
    if (sum !== wanted || report.sum !== wanted) throw new Error('what came back is not what was sent')
    return { seconds, ...together(mine, report, { threads }) }
  }

  const count = await warmedUp(job, 500, (tries) => stretch(tries, () => {}))
  const histogram = newHistogram()
  const found = await stretch(count, recordIn(histogram))

  let idle = null
  if (job.measure === 'rtt-parked' && !threads) {
    line.send({ echo: 1 })
    await line.receive()
    await pause(100)
    // In a namespace of its own the other side does not know the number that it has here.
    const pid = contender.pid ?? hello.pid
    const [from, started] = [switches(pid), now()]
    await pause(300)
    idle = (switches(pid) - from) / ((now() - started) / 1e9)
    contender.send(0)
    await contender.receive()
    await line.receive()
  }

  return outcomeOf(job, count, found, { round_trip: curveOf(histogram), idle_wakeups_per_second: idle })
}

function curveOf(histogram) {
  const at = (percentile) => histogram.getValueAtPercentile(percentile)
  const curve = [0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 99.999, 100]
  return {
    min_ns: histogram.minNonZeroValue,
    p50_ns: at(50),
    p90_ns: at(90),
    p99_ns: at(99),
    p999_ns: at(99.9),
    max_ns: histogram.maxValue,
    curve: curve.map((percentile) => [percentile, at(percentile)]),
  }
}

function fail(error) {
  console.error(error?.stack ?? String(error))
  process.exit(1)
}

if (isMainThread) main(process.argv[2], JSON.parse(process.argv[3])).catch(fail)
else {
  const { job, control, data } = workerData
  if (job.pinned) pinThread(job.cpus[1])
  const contender = contenders.find(({ id }) => id === job.contender)
  serve({ side: 'b', job, contender, port: data, ports: [data] }, lineOfPort(control)).then(() => control.close(), fail)
}
