// One process of one run: the publisher, which times, or one of the subscribers, which take and sum.

import { spawn } from 'node:child_process'
import process from 'node:process'
import { fileURLToPath } from 'node:url'

import { lineOfStreams } from '../line.mjs'
import { since, usage } from '../usage.mjs'
import { expectedSum, now, warmedUp } from '../work.mjs'
import { rivals } from './rivals.mjs'

const here = fileURLToPath(import.meta.url)
/** Into an empty queue, to see what a call costs that finds room. */
const BURSTS = 15

function start(job) {
  const command = [process.execPath, here, 'subscribe', JSON.stringify(job)]
  if (job.pinned) command.unshift('taskset', '-c', String(job.cpus[1]))
  const child = spawn(command[0], command.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] })
  child.on('exit', (code) => {
    if (code !== 0) fail(new Error(`a subscriber ended with ${code}`))
  })
  return lineOfStreams(child.stdin, child.stdout)
}

async function subscribe(job, rival) {
  const line = lineOfStreams(process.stdout, process.stdin)
  // One that was left alone must not stay on a core.
  process.stdin.on('end', () => process.exit(1))
  const subscriber = await rival.subscriber(job)
  line.send('ready')
  for (;;) {
    const { consume } = await line.receive()
    if (consume === undefined) process.exit(0)
    const before = usage()
    const work = subscriber.consume(consume)
    line.send('ready')
    const sum = await work
    line.send({ finished: now(), sum, ...since(before) })
  }
}

const all = (lines) => Promise.all(lines.map((line) => line.receive()))

async function publish(job, rival) {
  const publisher = await rival.publisher(job)
  const lines = Array.from({ length: job.subscribers }, () => start(job))
  await publisher.admit?.()
  await all(lines)

  async function stretch(count) {
    for (const line of lines) line.send({ consume: count })
    await all(lines)
    const before = usage()
    const started = now()
    await publisher.publish(count)
    const publishing = now() - started
    const used = since(before)
    const reports = await all(lines)
    const wanted = expectedSum(job.size, count)
    for (const { sum, cpu, preempted } of reports) {
      if (sum !== wanted) throw new Error('what arrived is not what was published')
      used.cpu += cpu
      used.preempted += preempted
    }
    const finished = Math.max(...reports.map((report) => report.finished))
    return { seconds: (finished - started) / 1e9, publishing, used }
  }

  const slots = Math.max(8, Math.floor(job.capacity / job.size))
  const count = await warmedUp(job, Math.ceil(slots / 16), stretch)
  const { seconds, used } = await stretch(count)
  const burst = Math.max(4, Math.floor(slots / 16))
  const bursts = []
  for (let n = 0; n < BURSTS; n++) bursts.push((await stretch(burst)).publishing / burst)
  bursts.sort((a, b) => a - b)
  const delivered = count * job.subscribers
  const outcome = {
    published: count,
    seconds,
    published_per_second: count / seconds,
    delivered_per_second: delivered / seconds,
    cpu_ns_per_delivered: used.cpu / delivered,
    publisher_ns: bursts[BURSTS >> 1],
    preempted: used.preempted,
  }
  process.stdout.write(`${JSON.stringify(outcome)}\n`, () => process.exit(0))
}

function fail(error) {
  console.error(error?.stack ?? String(error))
  process.exit(1)
}

const [role, text] = process.argv.slice(2)
const job = JSON.parse(text)
const rival = rivals.find(({ id }) => id === job.contender)
await (role === 'publish' ? publish(job, rival) : subscribe(job, rival)).catch(fail)
