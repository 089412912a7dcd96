// One side of one run. Side A makes the messages, times them and starts side B, which receives and sums them. Both are
// fresh for every run, so that no contender inherits another's heap or compiled code.

import { spawn } from 'node:child_process'
import process from 'node:process'
import { fileURLToPath } from 'node:url'
import { MessageChannel, Worker, isMainThread, workerData } from 'node:worker_threads'

import { lineOfPort, lineOfStreams } from './line.mjs'
import { median } from './text.mjs'
import { collect, pause, pinThread, since, switches, usage } from './usage.mjs'
import { Reader, add, expectedSum, messageSum, now, warmedUp } from './work.mjs'

const here = fileURLToPath(import.meta.url)
/** Bursts into an empty queue, which measure the cost of a call that finds room. */
const BURSTS = 15

/** Only the contenders of this kind of run are loaded, since many subscribers start on one core. */
async function contenderOf({ contender, subscribers }) {
  const { contenders } = await import(subscribers ? './broadcast/rivals.mjs' : './contenders/index.mjs')
  return contenders.find(({ id }) => id === contender)
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

async function receiveAll(contender, count, answer = () => {}) {
  let total = 0
  for (let n = 0; n < count; n++) {
    total = add(total, await contender.receive())
    answer(n)
  }
  return total
}

const echo = (contender, count) =>
  contender.echo ? contender.echo(count) : receiveAll(contender, count, (n) => contender.send(n))

/** Receives one buffer, whole or in parts, and reads all of it. */
async function take(contender) {
  const reader = new Reader()
  let taken
  let sum = 0
  for await (const part of contender.parts?.() ?? [contender.take()]) {
    taken ??= now()
    // A sealed buffer is mapped on demand.
    const bytes = part.bytes?.() ?? part
    part.close?.()
    sum = add(sum, reader.sum(bytes, 0, bytes.length))
  }
  return { taken, sum }
}

/** Side B: carries out the orders of side A. */
async function serve(setup, line) {
  const contender = await setup.contender.open({ ...setup, line })
  line.send({ pid: process.pid })
  for (;;) {
    const order = await line.receive()
    if (order.quit) break
    if (order.take) collect()
    const before = usage()
    // The receiver must be listening before A starts its clock, and one that blocks its
    // thread could not report that later.
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
  await contender.close?.()
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
  const stdio = ['pipe', 'pipe', 'inherit', ...(contender.ipc ? ['ipc'] : [])]
  const options = { stdio, serialization: contender.ipc === 'json' ? 'json' : 'advanced' }
  const pinning = job.pinned ? ['taskset', '-c', String(job.cpus[1])] : []
  const [command, ...words] = [...pinning, process.execPath, ...process.execArgv, here, 'b', JSON.stringify(job)]
  const child = (contender.start ?? spawn)(command, words, options, job)
  child.on('exit', (code) => {
    if (code !== 0) {
      console.error(`the other side ended with ${code}`)
      process.exit(1)
    }
  })
  return { line: lineOfStreams(child.stdin, child.stdout), child }
}

async function main(side, job) {
  const contender = await contenderOf(job)
  const setup = { side, job, contender }
  if (side === 'b') {
    // Standard output is the control line.
    await serve(setup, lineOfStreams(process.stdout, process.stdin))
    process.exit(0)
  }

  const { threads } = contender
  if (threads && job.pinned) pinThread(job.cpus[0])
  const peers = Array.from({ length: job.subscribers ?? job.readers ?? 1 }, () =>
    threads ? startThread(job) : startChild(job, contender),
  )
  const lines = peers.map(({ line }) => line)
  const children = peers.map(({ child }) => child)
  const ports = peers.map(({ port }) => port)
  const opened = await contender.open({ ...setup, ...peers[0], lines, children, ports })
  const [{ pid }] = await fromAll(lines)
  const measure = MEASURES[job.subscribers ? 'broadcast' : job.measure] ?? oneWay
  const outcome = await measure(opened, { lines, threads, pid }, job, contender)
  console.log(JSON.stringify(outcome))
  for (const line of lines) line.send({ quit: true })
  await Promise.race([
    pause(500),
    threads ? pause(100) : Promise.all(children.map((child) => new Promise((resolve) => child.on('exit', resolve)))),
  ])
  await Promise.race([pause(200), opened.close?.()])
  process.exit(0)
}

const fromAll = (lines) => Promise.all(lines.map((line) => line.receive()))

/**
 * Lets the other sides carry out an order while this side runs `work`, and compares the sums. Returns the result of `work`, the reports,
 * the times, and the resources that all sides used: threads share a process, so each reports the figures of all.
 */
async function carryOut({ lines, threads }, order, wanted, work) {
  for (const line of lines) line.send(order)
  await fromAll(lines)
  const before = usage()
  const started = now()
  const result = await work()
  const worked = now()
  const reports = await fromAll(lines)
  const used = [since(before), ...(threads ? [] : reports)]
  for (const { sum } of reports)
    if (sum !== wanted) throw new Error(`what arrived is not what was sent: sum ${sum}, not ${wanted}`)
  const total = (name) => used.reduce((sum, one) => sum + one[name], 0)
  const finished = Math.max(...reports.map((report) => report.finished))
  const seconds = (finished - started) / 1e9
  return { result, reports, started, worked, finished, seconds, cpu: total('cpu'), preempted: total('preempted') }
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
 * Sends a message each millisecond, and measures the reader's sleeps and the CPU of both sides. A timer is up to a millisecond late, so
 * each message has its own deadline, and an overdue message is sent immediately.
 */
async function paced(contender, sides, job) {
  const stretch = (count, atOnce) =>
    carryOut(sides, { paced: count }, expectedSum(job.size, count), async () => {
      const started = now()
      for (let n = 0; n < count; n++) {
        const early = Math.floor(n / atOnce) - (now() - started) / 1e6
        if (early > 0) await pause(early)
        void contender.send(n)
      }
    })
  const count = Math.ceil(job.seconds * 1000)
  await stretch(10 * count, 10)
  const found = await stretch(count, 1)
  return outcomeOf(job, count, found, { wakeups_per_message: found.reports[0].sleeps / count })
}

/** The memory that unanswered calls take in this process, in the format of the other results, without rates. */
async function stalled(contender, sides, job) {
  const started = now()
  const held_bytes = await contender.stalled(job.size)
  return outcomeOf(job, job.size, { seconds: (now() - started) / 1e9 }, { held_bytes })
}

/**
 * Passes buffers one at a time, each to all readers, and returns the median times to write, pass and read one, up to the last reader. The
 * first buffer touches new memory.
 */
async function passing(contender, sides, job) {
  const steps = { write_ns: [], pass_ns: [], read_ns: [], all_ns: [] }
  const spent = { seconds: 0, cpu: 0, preempted: 0 }
  for (let n = 0; n < 3 || spent.seconds < job.seconds; n++) {
    // Memory of earlier ones is released outside of the measurement.
    collect()
    let written = 0
    const pass = () => contender.pass(n, () => (written = now()))
    const found = await carryOut(sides, { take: true }, messageSum(job.size, n), pass)
    if (n === 0) continue
    for (const name of Object.keys(spent)) spent[name] += found[name]
    const { started, finished } = found
    const taken = Math.max(...found.reports.map((report) => report.taken))
    steps.write_ns.push(written - started)
    steps.pass_ns.push(taken - written)
    steps.read_ns.push(finished - taken)
    steps.all_ns.push(finished - started)
  }
  const medians = Object.entries(steps).map(([name, values]) => [name, median(values)])
  return outcomeOf(job, steps.all_ns.length, spent, Object.fromEntries(medians))
}

/** Publishes to all subscribers, and then in bursts. */
async function broadcast(publisher, sides, job) {
  const stretch = (count) =>
    carryOut(sides, { consume: count }, expectedSum(job.size, count), () => publisher.publish(count))
  const slots = Math.max(8, Math.floor(job.capacity / job.size))
  const burst = Math.max(4, Math.floor(slots / 16))
  const count = await warmedUp(job, Math.ceil(slots / 16), stretch)
  const { seconds, cpu, preempted } = await stretch(count)
  const bursts = []
  for (let n = 0; n < BURSTS; n++) {
    const { started, worked } = await stretch(burst)
    bursts.push((worked - started) / burst)
  }
  const delivered = count * job.subscribers
  return {
    seconds,
    delivered_per_second: delivered / seconds,
    cpu_ns_per_delivered: cpu / delivered,
    publisher_ns: median(bursts),
    preempted,
  }
}

async function newHistogram() {
  const { build } = await import('hdr-histogram-js')
  return build({ lowestDiscernibleValue: 1, highestTrackableValue: 60e9, numberOfSignificantValueDigits: 3 })
}

const recordIn = (histogram) => (ns) => histogram.recordValue(Math.max(1, Math.round(ns)))

async function oneWay(contender, sides, job, { times }) {
  const expected = contender.expected ?? ((count) => expectedSum(job.size, count))
  const stretch = (count, record) =>
    carryOut(sides, { consume: count }, expected(count), () => contender.produce(count, record))
  const first = contender.first ?? Math.ceil((2 * Math.max(job.capacity, 4 * job.size)) / job.size / 8)
  const count = await warmedUp(job, first, (tries) => stretch(tries, () => {}))
  const histogram = await newHistogram()
  const found = await stretch(count, recordIn(histogram))
  return outcomeOf(job, count, found, times ? { round_trip: curveOf(histogram) } : {})
}

async function roundTrip(contender, sides, job) {
  async function stretch(count, record) {
    const wanted = expectedSum(job.size, count)
    const found = await carryOut(sides, { echo: count }, wanted, () => ping(contender, count, record))
    if (found.result !== wanted) throw new Error('the reply differs from the request')
    return { ...found, seconds: (found.worked - found.started) / 1e9 }
  }

  const count = await warmedUp(job, 500, (tries) => stretch(tries, () => {}))
  const histogram = await newHistogram()
  const found = await stretch(count, recordIn(histogram))

  let idle = null
  if (job.measure === 'rtt-parked' && !sides.threads) {
    const [line] = sides.lines
    line.send({ echo: 1 })
    await line.receive()
    await pause(100)
    // In its own pid namespace, the other side does not know its process id here.
    const pid = contender.pid ?? sides.pid
    const [from, started] = [switches(pid), now()]
    await pause(300)
    idle = (switches(pid) - from) / ((now() - started) / 1e9)
    contender.send(0)
    await contender.receive()
    await line.receive()
  }

  return outcomeOf(job, count, found, { round_trip: curveOf(histogram), idle_wakeups_per_second: idle })
}

/** The measures that are not one-way. */
const MEASURES = {
  broadcast,
  pass: passing,
  share: passing,
  paced,
  'rtt-polled': roundTrip,
  'rtt-parked': roundTrip,
  'rpc-stalled': stalled,
}

function curveOf(histogram) {
  const at = (percentile) => histogram.getValueAtPercentile(percentile)
  const curve = [0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 99.999, 100]
  return {
    p50_ns: at(50),
    p99_ns: at(99),
    p999_ns: at(99.9),
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
  const contender = await contenderOf(job)
  serve({ side: 'b', job, contender, port: data, ports: [data] }, lineOfPort(control)).then(() => control.close(), fail)
}
