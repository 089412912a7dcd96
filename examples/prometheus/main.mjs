// Measures a scrape of many workers, and the same with prom-client's AggregatorRegistry: see README.md.
//
//     node main.mjs [--runs 3] [--workers 8] [--routes 50] [--scrapes 50]

import cluster from 'node:cluster'
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import prometheus from 'prom-client'

import { collectMetrics } from './metrics.mjs'

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '3' },
    workers: { type: 'string', default: '8' },
    routes: { type: 'string', default: '50' },
    scrapes: { type: 'string', default: '50' },
  },
})
const [runs, count, routes, scrapes] = ['runs', 'workers', 'routes', 'scrapes'].map((name) => Number(values[name]))
/** Milliseconds between two scrapes. */
const PAUSE = 50

const here = (name) => fileURLToPath(new URL(name, import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'ringfence-prometheus-'))
const directory = join(folder, 'workers')
const workers = []
let exporter = null
process.on('exit', () => {
  for (const { process: worker } of workers) worker.kill('SIGKILL')
  exporter?.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

cluster.setupPrimary({ exec: here('worker.mjs'), args: [directory, String(routes)] })
for (let number = 0; number < count; number += 1) {
  const worker = cluster.fork()
  workers.push(worker)
  await once(worker, 'message')
}
const aggregator = new prometheus.AggregatorRegistry()
const metrics = await collectMetrics({ directory, places: count })
exporter = fork(here('exporter.mjs'), [directory, String(count)])
await once(exporter, 'message')
let next = 0

/** The ways to collect the metrics: the primary asks all workers, the primary reads the rings, or a separate process reads the rings. */
const ways = {
  AggregatorRegistry: () => aggregator.clusterMetrics(),
  'rings, in the primary': () => metrics.scrape(),
  'rings, in a separate process': async () => {
    exporter.send((next += 1))
    const [{ text }] = await once(exporter, 'message')
    return text
  },
}

// All ways must give the same metrics, except for those that change on their own.
const steady = (text) =>
  text
    .split('\n')
    .filter((line) => /^(requests_total|took_seconds)/.test(line))
    .sort()
    .join('\n')
const texts = await Promise.all(Object.values(ways).map(async (way) => steady(await way())))
if (new Set(texts).size !== 1 || texts[0] === '') throw new Error('the ways differ')
const size = (await ways.AggregatorRegistry()).length

const found = new Map(Object.keys(ways).map((way) => [way, { times: [], delays: [], stopped: [] }]))
for (let run = 0; run < runs; run += 1) {
  for (const [name, way] of Object.entries(ways)) {
    const { times, delays, stopped } = found.get(name)
    const { took, delay } = await measure(way)
    times.push(took)
    delays.push(delay)
    stopped.push(await withOneStopped(way))
  }
}
print()
process.exit()

async function measure(way) {
  const loop = monitorEventLoopDelay({ resolution: 1 })
  loop.enable()
  const took = []
  for (let scrape = 0; scrape < scrapes; scrape += 1) {
    const began = performance.now()
    await way()
    took.push(performance.now() - began)
    await setTimeout(PAUSE)
  }
  loop.disable()
  return { took, delay: { p99: loop.percentile(99) / 1e6, max: loop.max / 1e6 } }
}

/** Blocks one worker for a while, like a long computation. */
async function withOneStopped(way) {
  const [worker] = workers
  worker.process.kill('SIGSTOP')
  const began = performance.now()
  const text = await way().catch((error) => error)
  const took = performance.now() - began
  worker.process.kill('SIGCONT')
  return { took, failed: text instanceof Error ? text.message : null }
}

function percentile(list, part) {
  const sorted = [...list].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]
}

function print() {
  console.log(
    `${cpus()[0].model}, ${cpus().length} cores, load ${loadavg()[0].toFixed(1)}, Node ${process.version}; ${count} workers, ` +
      `${routes} routes, ${Math.round(size / 1000)} kB of text; medians of ${runs} runs of ${scrapes} scrapes\n`,
  )
  const median = (list) => percentile(list, 0.5)
  const heads = ['', 'scrape p50 ms', 'p99 ms', 'loop of the primary p99, max ms', 'one worker stopped: ms']
  const rows = [...found].map(([name, { times, delays, stopped }]) => [
    name,
    median(times.map((took) => median(took))).toFixed(1),
    median(times.map((took) => percentile(took, 0.99))).toFixed(1),
    `${median(delays.map(({ p99 }) => p99)).toFixed(1)}, ${median(delays.map(({ max }) => max)).toFixed(0)}`,
    `${median(stopped.map(({ took }) => took)).toFixed(0)}${stopped[0].failed === null ? '' : `: "${stopped[0].failed}"`}`,
  ])
  for (const row of [heads, heads.map(() => '---'), ...rows]) console.log(`| ${row.join(' | ')} |`)
}
