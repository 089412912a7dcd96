// Measures a broadcast among workers, and the same with common adapters: see README.md.
//
//     node main.mjs [--runs 5] [--broadcasts 10000]

import { setupPrimary } from '@socket.io/cluster-adapter'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { startWorker, untilConnected } from './workers.mjs'

const { values } = parseArgs({
  options: { runs: { type: 'string', default: '5' }, broadcasts: { type: 'string', default: '10000' } },
})
const runs = Number(values.runs)
const broadcasts = Number(values.broadcasts)
const COUNTS = [1, 2, 4]
/** Microseconds of a clock tick in /proc/PID/stat. */
const TICK = 10_000

const folder = mkdtempSync(join(tmpdir(), 'ringfence-socket.io-'))
const children = []
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

// The primary's part of the cluster adapter. Other adapters do not use the primary.
setupPrimary()
const redis = await startRedis()
const ways = { ring: () => join(folder, `${Math.random()}`), 'cluster IPC': () => '', Redis: () => String(redis?.port) }
if (redis === null) {
  delete ways.Redis
  console.log('Redis is skipped: there is no redis-server on the PATH.\n')
}

const found = new Map()
const keep = (way, name, figure) => {
  const key = `${way}, ${name}`
  found.set(key, [...(found.get(key) ?? []), figure])
}
for (let run = 0; run < runs; run += 1) {
  for (const way of Object.keys(ways)) {
    for (const count of COUNTS) keep(way, count, await all(way, count))
    keep(way, 'killed', await killed(way))
  }
}
print()

async function startRedis() {
  // A free port.
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address()
  probe.close()
  await once(probe, 'close')
  const words = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']
  const server = spawn('redis-server', words, { stdio: ['ignore', 'pipe', 'ignore'] })
  server.on('error', () => {})
  children.push(server)
  const ready = (async () => {
    for await (const chunk of server.stdout) if (String(chunk).includes('Ready to accept')) return true
    return false
  })()
  const there = await Promise.race(
    [ready, once(server, 'exit'), once(server, 'error')].map((one) => one.catch(() => false)),
  )
  server.stdout.resume()
  return there === true ? { port, pid: server.pid } : null
}

async function start(way, count) {
  const where = ways[way]()
  const workers = await Promise.all(Array.from({ length: count }, () => startWorker(way, where)))
  await untilConnected(workers)
  await Promise.all(workers.map((worker) => worker.call('begin')))
  return { workers, where }
}

async function end(workers) {
  for (const worker of workers) worker.kill()
  await Promise.all(workers.map(({ exited }) => exited))
}

/** Processor time of the processes between the workers: the primary and the server. */
function cpuBetween() {
  const { user, system } = process.cpuUsage()
  if (redis === null) return user + system
  const fields = readFileSync(`/proc/${redis.pid}/stat`, 'utf8').split(') ')[1].split(' ')
  return user + system + (Number(fields[11]) + Number(fields[12])) * TICK
}

/** Lets all workers broadcast their parts concurrently, until each has delivered all parts to its clients. */
async function all(way, count) {
  const { workers } = await start(way, count)
  const part = Math.round(broadcasts / count)
  const before = cpuBetween()
  const began = process.hrtime.bigint()
  const done = workers.map((worker) => worker.call('seen', part * count))
  for (const worker of workers) void worker.call('tick', part)
  const ends = await Promise.all(done)
  const seconds = Math.max(...ends.map((at) => Number(BigInt(at) - began))) / 1e9
  const used = await Promise.all(workers.map((worker) => worker.call('cpu')))
  const cpu = used.reduce((sum, one) => sum + one, cpuBetween() - before)
  await end(workers)
  return { rate: (part * count) / seconds, cpu: cpu / (part * count) }
}

/** Kills one of four workers: counts the messages that the others lose, and measures when they notice. */
async function killed(way) {
  const { workers } = await start(way, 4)
  const part = Math.round(broadcasts / 4)
  const victim = workers[3]
  const others = workers.slice(0, 3)
  // Only broadcasts of the killed worker may be missing.
  const ticking = others.map((worker) => worker.call('tick', part))
  victim.call('tick', part).catch(() => {})
  while ((await others[0].call('saw')) < part) continue
  victim.kill()
  await victim.exited
  const died = process.hrtime.bigint()
  await untilConnected(others, 3)
  const knew = Number(process.hrtime.bigint() - died) / 1e6
  await Promise.all(ticking)
  await Promise.all(others.map((worker) => worker.call('seen', part * 3)))
  await end(others)
  return { knew }
}

function median(list) {
  const sorted = [...list].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)]
}

function print() {
  console.log(
    `${cpus()[0].model}, ${cpus().length} cores, load ${loadavg()[0].toFixed(1)}, Node ${process.version}; medians of ${runs} runs, ` +
      `${broadcasts} broadcasts each\n`,
  )
  const heads = [
    '',
    ...COUNTS.flatMap((count) => [`${count}: broadcasts/s`, `${count}: CPU µs each`]),
    'one of 4 killed: known after ms',
  ]
  const rows = Object.keys(ways).map((way) => {
    const row = [way]
    for (const count of COUNTS) {
      const figures = found.get(`${way}, ${count}`)
      row.push(Math.round(median(figures.map(({ rate }) => rate))).toLocaleString('en'))
      row.push(median(figures.map(({ cpu }) => cpu)).toFixed(0))
    }
    row.push(Math.round(median(found.get(`${way}, killed`).map(({ knew }) => knew))).toLocaleString('en'))
    return row
  })
  for (const row of [heads, heads.map(() => '---'), ...rows]) console.log(`| ${row.join(' | ')} |`)
}
process.exit()
