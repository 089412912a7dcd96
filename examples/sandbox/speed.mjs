// Measures orders as JSON from a sandboxed child to its parent: over a channel, a pipe and a WebSocket.

import { spawn as start } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import { json, spawn } from 'ringfence'
import { WebSocketServer } from 'ws'

import { sandbox, view } from './sandbox.mjs'

const ORDERS = 300_000
const RUNS = 3
const orders = fileURLToPath(new URL('orders.mjs', import.meta.url))

/** Each counts the arrived orders, and resolves once all have arrived. */
const ways = {
  'a channel': async (count) => {
    const started = await sandbox([orders, 'channel', ORDERS], { codec: json() })
    for await (const messages of started.channel.batches()) messages.forEach(count)
    await started[Symbol.asyncDispose]()
  },
  'a pipe, JSON lines': async (count) => {
    const child = start('bwrap', [...view, process.execPath, orders, 'pipe', ORDERS], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    for await (const line of createInterface({ input: child.stdout })) count(JSON.parse(line))
  },
  // Needs a weaker sandbox: access to the folder of a Unix socket, and a filter that allows socket(2) and connect(2).
  'a WebSocket': async (count) => {
    const folder = mkdtempSync(join(tmpdir(), 'ringfence-sandbox-'))
    const path = join(folder, 'orders.sock')
    const server = createServer().listen(path)
    try {
      await once(server, 'listening')
      const sockets = new WebSocketServer({ server })
      start('bwrap', [...view, '--bind', folder, folder, process.execPath, orders, 'websocket', ORDERS, path], {
        stdio: 'inherit',
      })
      const [socket] = await once(sockets, 'connection')
      socket.on('message', (data) => count(JSON.parse(data)))
      await once(socket, 'close')
      sockets.close()
    } finally {
      server.close()
      rmSync(folder, { recursive: true })
    }
  },
}

export async function compare() {
  console.log(
    `\n${ORDERS.toLocaleString('en')} orders as JSON from the sandbox, median of ${RUNS}, from the first to the last:`,
  )
  const times = Object.fromEntries(Object.keys(ways).map((name) => [name, []]))
  for (let run = 0; run < RUNS; run++)
    for (const [name, way] of Object.entries(ways)) times[name].push(await measure(way))
  for (const [name, seconds] of Object.entries(times)) {
    const median = seconds.sort((a, b) => a - b)[RUNS >> 1]
    console.log(
      `  ${name.padEnd(24)}${Math.round(ORDERS / median)
        .toLocaleString('en')
        .padStart(10)} a second`,
    )
  }
}

const ROUND_TRIPS = 20_000

/** Starts the program in a sandbox, and without one. */
const places = {
  'in the sandbox': (words) => sandbox([orders, ...words], { codec: json() }),
  // In its own session, like the sandbox: the scheduler divides processor time among sessions (sched_autogroup).
  'without a sandbox': (words) =>
    spawn(process.execPath, [orders, ...words], { codec: json(), spawn: { detached: true } }),
}

/** Compares the channel with and without a sandbox. */
export async function compareWithout() {
  console.log(`\nThe channel in a sandbox and without one, median of ${RUNS}:`)
  const found = Object.fromEntries(Object.keys(places).map((name) => [name, { times: [], trips: [] }]))
  for (let run = 0; run < RUNS; run++)
    for (const [name, place] of Object.entries(places)) {
      const time = await measure(async (count) => {
        const started = await place(['channel', ORDERS])
        for await (const messages of started.channel.batches()) messages.forEach(count)
        await started[Symbol.asyncDispose]()
      })
      found[name].times.push(time)
      found[name].trips.push(await roundTrip(place))
    }
  for (const [name, { times, trips }] of Object.entries(found)) {
    const [time, trip] = [times, trips].map((all) => all.sort((a, b) => a - b)[RUNS >> 1])
    const rate = Math.round(ORDERS / time).toLocaleString('en')
    console.log(`  ${name.padEnd(24)}${rate.padStart(10)} a second, ${trip.toFixed(1)} µs a round trip`)
  }
}

/** Average microseconds of a round trip of one order. */
async function roundTrip(place) {
  const started = await place(['echo'])
  const { channel } = started
  const order = { id: 1, symbol: 'RFNC', side: 'buy', quantity: 1, price: 100.25 }
  const before = performance.now()
  for (let trip = 0; trip < ROUND_TRIPS; trip++) {
    await channel.send(order)
    await channel.receive()
  }
  const each = ((performance.now() - before) * 1000) / ROUND_TRIPS
  await started[Symbol.asyncDispose]()
  return each
}

async function measure(way) {
  let arrived = 0
  let sum = 0
  let first
  await way((order) => {
    first ??= performance.now()
    arrived++
    sum += order.id
  })
  if (arrived !== ORDERS || sum !== (ORDERS * (ORDERS - 1)) / 2)
    throw new Error(`${arrived} orders arrived, of sum ${sum}`)
  return (performance.now() - first) / 1000
}
