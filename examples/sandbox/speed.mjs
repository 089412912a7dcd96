// Orders as JSON from a sandboxed child to its parent: through a channel, through a pipe, and through a WebSocket.

import { spawn as start } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import { json } from 'ringfence'
import { WebSocketServer } from 'ws'

import { sandbox, view } from './sandbox.mjs'

const ORDERS = 300_000
const RUNS = 3
const orders = fileURLToPath(new URL('orders.mjs', import.meta.url))

/** Each counts what arrives, and resolves once all has arrived. */
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
  // It needs a hole in the sandbox: the folder of a Unix socket, and a filter that allows socket(2) and connect(2).
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
