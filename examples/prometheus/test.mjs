import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { collectMetrics } from './metrics.mjs'

const folder = mkdtempSync(join(tmpdir(), 'ringfence-prometheus-'))
const directory = join(folder, 'workers')
const workers = new Set()
after(() => {
  for (const worker of workers) worker.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

/** Starts a worker that publishes at this interval. With the default it publishes only on request. */
async function start(every = 1_000_000, place = directory) {
  const worker = fork(fileURLToPath(new URL('worker.mjs', import.meta.url)), [place, '1', String(every)])
  workers.add(worker)
  await once(worker, 'message')
  return worker
}

async function add(worker, count, now = true) {
  const added = once(worker, 'message')
  worker.send({ add: count, now })
  await added
}

const total = async (metrics) => Number(/^requests_total\{route="0"\} (\d+)$/m.exec(await metrics.scrape())?.[1] ?? 0)

async function until(holds) {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 5))
}

test('a scrape sums up the newest snapshots of current workers only', async () => {
  const first = await start()
  const second = await start()
  await add(first, 10)
  const metrics = await collectMetrics({ directory, places: 8 })
  // Earlier messages are retained.
  assert.equal(metrics.size, 2)
  assert.equal(await total(metrics), 12)
  await add(second, 100)
  assert.equal(await total(metrics), 112)

  const third = await start()
  await until(async () => metrics.size === 3)
  await add(third, 1000)
  assert.equal(await total(metrics), 1113)

  second.kill('SIGKILL')
  await until(async () => metrics.size === 2)
  assert.equal(await total(metrics), 1012)
  const fourth = await start()
  await until(async () => metrics.size === 3)
  assert.equal(await total(metrics), 1013)

  // The last snapshot of a blocked worker is read.
  fourth.kill('SIGSTOP')
  assert.equal(await total(metrics), 1013)
  fourth.kill('SIGCONT')
  await metrics.close()
})

test('many places cause no warning of too many listeners', async () => {
  const warnings = []
  const note = (warning) => warnings.push(warning)
  process.on('warning', note)
  const place = join(folder, 'many')
  const [worker, other] = [await start(20, place), await start(20, place)]
  const metrics = await collectMetrics({ directory: place, places: 64 })
  assert.equal(metrics.size, 2)
  worker.kill('SIGKILL')
  await until(() => metrics.size === 1)
  other.kill('SIGKILL')
  await until(() => metrics.size === 0)
  await metrics.close()
  process.off('warning', note)
  assert.deepEqual(warnings, [])
})

test('a worker publishes at intervals', async () => {
  const place = join(folder, 'by itself')
  const worker = await start(20, place)
  const metrics = await collectMetrics({ directory: place, places: 2 })
  await add(worker, 41, false)
  await until(async () => (await total(metrics)) === 42)
  await metrics.close()
})
