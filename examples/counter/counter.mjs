// Restarts a counter a hundred times while its client keeps its place: see README.md.

import { spawn } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { member } from 'ringfence'

const RESTARTS = Number(process.argv[2] ?? 100)
/** The additions between two restarts. */
const BETWEEN = 50
/** The maximum number of additions in flight. */
const AHEAD = 32

const directory = mkdtempSync(join(tmpdir(), 'ringfence-counter-'))
const address = join(directory, 'counter.sock')
const book = join(directory, 'book')
writeFileSync(book, new BigUint64Array(2))

/** Additions that were answered, in order. */
let answered = 0
const progress = new EventEmitter()
/** The counter's last answer. */
let count = 0
let requested = 0
let over = false

let service = start()
await once(service.stdout, 'data')
const membership = await member(address, { wait: true, capacity: 1 << 16 })
const roles = [membership.role]
membership.on('role', (role) => roles.push(role))

const client = add()
for (let round = 0; round < RESTARTS; round += 1) {
  // The next counter is started before this one leaves, and waits for its place.
  const next = start()
  await someMore()
  await stop(service, round % 2 === 0 ? 'SIGTERM' : 'SIGKILL')
  service = next
}
await someMore()
over = true
await client
await stop(service, 'SIGTERM')
await membership.close()
rmSync(directory, { recursive: true })

console.log(`${RESTARTS} restarts, every other one by SIGKILL; the client was the ${roles.join(', then the ')}`)
console.log(`${answered} additions were answered (${requested} were sent), and the counter is at ${count}`)
process.exitCode = answered === count ? 0 : 1

/** Adds one repeatedly, with the current partner. Unanswered additions are sent to the next one. */
async function add() {
  for await (const channel of membership) {
    let sent = answered
    const more = () => {
      for (; !over && sent < answered + AHEAD; sent += 1, requested += 1) {
        // The answer shows whether it has arrived.
        channel.send(`${sent + 1} 1`).catch(() => {})
      }
    }
    more()
    try {
      for await (const answer of channel) {
        ;[answered, count] = answer.toString().split(' ').map(Number)
        progress.emit('answered')
        more()
        if (over && answered === sent) return
      }
    } catch (error) {
      // The partner was killed, so the next one gets its unanswered additions.
      if (error.code !== 'ERR_RINGFENCE_PEER_LOST') throw error
    }
  }
}

async function someMore() {
  const goal = answered + BETWEEN
  while (answered < goal) await once(progress, 'answered')
}

function start() {
  const script = fileURLToPath(new URL('service.mjs', import.meta.url))
  return spawn(process.execPath, [script, address, book], { stdio: ['ignore', 'pipe', 'inherit'] })
}

async function stop(child, signal) {
  const exited = once(child, 'exit')
  child.kill(signal)
  await exited
}
