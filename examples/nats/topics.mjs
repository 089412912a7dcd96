// Two hosts on one machine share a topic and a collector, through a stream of a NATS server. Each of the four bridges is killed
// repeatedly.
//
//     node topics.mjs [COUNT [NATS-SERVER [KILLS]]]

import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { startServer } from './server.mjs'

const [count = '5000', executable = 'nats-server', kills = '3'] = process.argv.slice(2)
const SENDERS = 3
const path = (name) => fileURLToPath(new URL(name, import.meta.url))
const name = randomBytes(6).toString('hex')
const address = (place) => `@ringfence-topics-${name}-${place}`
const store = mkdtempSync(join(tmpdir(), 'ringfence-nats-'))
const processes = new Set()
let over = false

const start = (script, words, output = 'inherit') => {
  const child = spawn(process.execPath, [path(script), ...words], { stdio: ['ignore', output, 'inherit'] })
  processes.add(child)
  const exited = once(child, 'exit').finally(() => processes.delete(child))
  return { child, exited }
}

/** Restarts a program whenever it has exited, like a service manager. */
function keep(...words) {
  const bridge = new EventEmitter()
  bridge.killed = 0
  bridge.kill = () => bridge.child.kill('SIGKILL')
  const again = async () => {
    while (!over) {
      const { child, exited } = start('topic.mjs', words, 'pipe')
      bridge.child = child
      // The program prints only a line with its first message.
      child.stdout.once('data', () => bridge.emit('carries'))
      await exited
      if (!over) await setTimeout(100)
    }
  }
  void again()
  return bridge
}

/** Kills a bridge soon after its first message, up to the given number of times. */
async function harass(bridge, times, end) {
  const aborted = { signal: end }
  try {
    while (bridge.killed < times) {
      await once(bridge, 'carries', aborted)
      await setTimeout(Math.random() * 50, undefined, aborted)
      bridge.kill()
      bridge.killed += 1
    }
  } catch (error) {
    if (!end.aborted) throw error
  }
}

async function finish({ exited }) {
  const [code, signal] = await exited
  if (code !== 0) throw new Error(`a program has ended with ${signal ?? code}`)
}

const server = await startServer(executable, ['--jetstream', '--store_dir', store])
try {
  const at = server.address
  const bridges = [
    keep('publish', 'out', address('west-topic'), 'topic', at, '--stream'),
    keep('publish', 'in', address('east-topic'), 'topic', at, '--stream', '--audience', '1'),
    keep('collect', 'out', address('west-log'), 'log', at, '--stream'),
    keep('collect', 'in', address('east-log'), 'log', at, '--stream'),
  ]
  const end = new AbortController()
  const harassing = bridges.map((bridge) => harass(bridge, Number(kills), end.signal))
  const publisher = start('ends.mjs', ['publish', address('west-topic'), count])
  const senders = Array.from({ length: SENDERS }, (_, number) => ['send', address('west-log'), count, `s${number}`])
  const ends = [
    ['subscribe', address('east-topic'), count],
    ['collect', address('east-log'), count, String(SENDERS)],
    ...senders,
  ].map((words) => start('ends.mjs', words))
  await Promise.all(ends.map(finish))
  end.abort()
  await Promise.all(harassing)
  const killed = bridges.map((bridge) => bridge.killed)
  console.log(`the four bridges were killed ${killed.join(', ')} times`)
  if (kills !== '0' && killed.every((times) => times === 0)) throw new Error('it was over before a bridge was killed')
  publisher.child.kill('SIGTERM')
  await finish(publisher)
} catch (error) {
  console.error(`The example failed: ${error.message}`)
  process.exitCode = 1
} finally {
  over = true
  for (const child of processes) child.kill('SIGKILL')
  await server.stop()
  rmSync(store, { recursive: true })
}
