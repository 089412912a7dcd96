// Simulates two hosts on one machine: each has a service and a bridge, and a NATS server connects the bridges.
//
//     node main.mjs [COUNT [NATS-SERVER]]

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { startServer } from './server.mjs'

const [count = '1000', executable = 'nats-server'] = process.argv.slice(2)
const path = (name) => fileURLToPath(new URL(name, import.meta.url))
const address = (host) => `@ringfence-nats-${process.pid}-${host}`

const processes = []
const start = (name, ...words) => {
  const child = spawn(process.execPath, [path(name), ...words], { stdio: ['ignore', 'inherit', 'inherit'] })
  processes.push(child)
  return once(child, 'exit').then(([code, signal]) => {
    if (code !== 0) throw new Error(`${name} ${words.join(' ')} has ended with ${signal ?? code}`)
  })
}

let server = null
try {
  server = await startServer(executable)
  const at = server.address
  await Promise.all([
    start('bridge.mjs', address('west'), 'west', 'east', at),
    start('bridge.mjs', address('east'), 'east', 'west', at),
    start('service.mjs', address('west'), 'asks', count),
    start('service.mjs', address('east'), 'answers'),
  ])
} catch (error) {
  console.error(`The example failed: ${error.message}`)
  process.exitCode = 1
} finally {
  for (const child of processes) child.kill()
  await server?.stop()
}
