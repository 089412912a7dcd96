// What a reader pays in Node for each message: this tree beside others, in turn, medians.
//
//   npm run bench -- reading --base ../before
//
// The measure is CPU time of the reading process alone, user and system, between the moment when the sender says that a part is
// in the ring and the moment when it has been read. So a busy machine changes it little. All trees are loaded into one process and
// read in turn, so that what the machine does in one moment it does to all of them. Each process is one round.

import { fork, spawnSync } from 'node:child_process'
import path from 'node:path'
import process from 'node:process'
import { fileURLToPath, pathToFileURL } from 'node:url'

const here = fileURLToPath(import.meta.url)
const root = path.join(path.dirname(here), '../..')

const text = { type: 'string' }
export const options = {
  base: { ...text, default: '' },
  ways: { ...text, default: 'for-await,receive,try-receive,receive-each' },
  sizes: { ...text, default: '16,64,1024,4096,16384' },
  rounds: { ...text, default: '3' },
  turns: { ...text, default: '12' },
  milliseconds: { ...text, default: '40' },
  part: { ...text, default: '2097152' },
}

export const help = `reading: CPU of a reader in Node for each message

  --base DIR,DIR       other trees, built (npm run build), to compare with; the first is the one that changes are told against
  --ways a,b           of for-await, receive, try-receive, receive-each
  --sizes 16,64        bytes of a message
  --rounds 3           processes, each of which runs every cell
  --turns 12           how often each tree has its turn in a process
  --milliseconds 40    CPU time of one turn
  --part 2097152       bytes of records in the ring when the reader begins`

const CAPACITY = 4 << 20
/** Turns that are not counted: the engine compiles. */
const WARM = 3

/** CPU time of this process, in nanoseconds. */
function cpu() {
  const { user, system } = process.cpuUsage()
  return (user + system) * 1000
}

/** Code of each tree's own, so that what the engine learns of one tree does not slow the others. */
const WAYS = `
export async function forAwait(channel, count) {
  let left = count
  let sum = 0
  for await (const message of channel) {
    sum += message[0]
    if (--left === 0) break
  }
  return sum
}
export async function receive(channel, count) {
  let sum = 0
  for (let left = count; left > 0; left -= 1) sum += (await channel.receive())[0]
  return sum
}
export async function tryReceive(channel, count) {
  let sum = 0
  for (let left = count; left > 0; left -= 1) sum += channel.tryReceive()[0]
  return sum
}
export async function receiveEach(channel, count) {
  let sum = 0
  const visit = (bytes, offset) => {
    sum += bytes[offset]
  }
  for (let left = count; left > 0;) left -= channel.receiveEach(visit, left)
  return sum
}`
const NAMES = {
  'for-await': 'forAwait',
  receive: 'receive',
  'try-receive': 'tryReceive',
  'receive-each': 'receiveEach',
}

const library = (tree) => import(pathToFileURL(path.join(tree, 'dist/esm/index.js')).href)

/** Sends a part each time it is told to. */
async function send({ tree, address, size, count }) {
  const { join } = await library(tree)
  const channel = await join(address, { capacity: CAPACITY })
  const message = new Uint8Array(size).fill(1)
  process.on('message', async () => {
    let sent
    for (let n = 0; n < count; n += 1) sent = channel.send(message)
    await sent
    process.send('sent')
  })
  process.on('disconnect', () => process.exit())
  process.send('here')
}

/** A tree under measurement: reads one part, and answers with the CPU time of a message. */
async function open({ tree, index, way, size, count }) {
  const { join } = await library(tree)
  const address = `@ringfence-bench-${process.pid}-${index}`
  const sender = fork(here, ['--side', JSON.stringify({ role: 'send', tree, address, size, count })])
  const heard = () => new Promise((resolve) => sender.once('message', resolve))
  const isHere = heard()
  const channel = await join(address, { capacity: CAPACITY })
  await isHere
  const code = await import(`data:text/javascript,${encodeURIComponent(`${WAYS}\n//${index}`)}`)
  const readAll = code[NAMES[way]]
  return async () => {
    const sent = heard()
    sender.send('go')
    await sent
    const before = cpu()
    const sum = await readAll(channel, count)
    const took = cpu() - before
    if (sum !== count) throw new Error(`${sum} of ${count} messages`)
    return took
  }
}

async function read({ trees, way, size, count, turns, milliseconds }) {
  const parts = await Promise.all(trees.map((tree, index) => open({ tree, index, way, size, count })))
  const found = trees.map(() => [])
  for (let turn = 0; turn < WARM + turns; turn += 1) {
    const order = [...trees.keys()]
    if (turn % 2 === 1) order.reverse()
    for (const index of order) {
      let took = 0
      let taken = 0
      while (took < milliseconds * 1e6) {
        took += await parts[index]()
        taken += count
      }
      if (turn >= WARM) found[index].push(took / taken)
    }
  }
  process.stdout.write(JSON.stringify(found))
  process.exit()
}

const median = (list) => {
  const sorted = [...list].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** What each tree's turns took in a process of their own. */
function measure(trees, way, size, values) {
  const record = 8 + ((size + 7) & ~7)
  const count = Math.max(1, Math.floor(Number(values.part) / record))
  const [turns, milliseconds] = [Number(values.turns), Number(values.milliseconds)]
  const job = { role: 'read', trees, way, size, count, turns, milliseconds }
  const how = { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }
  const { stdout, status } = spawnSync(process.execPath, [here, '--side', JSON.stringify(job)], how)
  if (status !== 0) throw new Error(`${way} of ${size} bytes ended with ${status}`)
  return JSON.parse(stdout)
}

export function run(values) {
  const trees = [...values.base.split(',').filter(Boolean), root].map((tree) => path.resolve(tree))
  for (const way of values.ways.split(',')) {
    for (const size of values.sizes.split(',').map(Number)) {
      const found = trees.map(() => [])
      for (let round = 0; round < Number(values.rounds); round += 1)
        for (const [index, turns] of measure(trees, way, size, values).entries()) found[index].push(...turns)
      const figures = found.map((list) => `${median(list).toFixed(1)} (${Math.min(...list).toFixed(1)})`.padStart(18))
      // Turn by turn, since what disturbs one disturbs the other.
      const change = found.slice(1).map((list) => median(list.map((took, turn) => took / found[0][turn])) - 1)
      const changes = change.map((part) => `${(part * 100).toFixed(0)} %`.padStart(6))
      console.log(way.padEnd(12), String(size).padStart(6), ...figures, ...changes)
    }
  }
}

if (process.argv[2] === '--side') {
  const job = JSON.parse(process.argv[3])
  await (job.role === 'send' ? send(job) : read(job))
}
