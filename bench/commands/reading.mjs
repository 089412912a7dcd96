// The cost of each message to a reader in Node: this tree beside others, in turn, medians.
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

import { median } from '../node/text.mjs'
import { list, root } from './shared.mjs'

const here = fileURLToPath(import.meta.url)

export const about = 'CPU of a reader in Node for each message'
export const options = {
  base: [
    'other trees, built (npm run build), to compare with; changes are relative to the first',
    undefined,
    'DIR,DIR',
  ],
  ways: ['how to read', 'for-await,receive,try-receive,receive-each'],
  sizes: ['bytes of a message', '16,64,1024,4096,16384'],
  rounds: ['processes, each of which runs every cell', '3'],
  turns: ['how often each tree has its turn in a process', '12'],
  milliseconds: ['CPU time of one turn', '40'],
  part: ['bytes of records in the ring when the reader starts', '2097152'],
}

const CAPACITY = 4 << 20
/** Turns that are not counted: the engine compiles. */
const WARM = 3

/** CPU time of this process, in nanoseconds. */
function cpu() {
  const { user, system } = process.cpuUsage()
  return (user + system) * 1000
}

/** Code of each tree's own, so that what the engine learns of one tree does not slow the others. */
const WAYS = `export default {
  async 'for-await'(channel, count) {
    let left = count
    let sum = 0
    for await (const message of channel) {
      sum += message[0]
      if (--left === 0) break
    }
    return sum
  },
  async receive(channel, count) {
    let sum = 0
    for (let left = count; left > 0; left -= 1) sum += (await channel.receive())[0]
    return sum
  },
  async 'try-receive'(channel, count) {
    let sum = 0
    for (let left = count; left > 0; left -= 1) sum += channel.tryReceive()[0]
    return sum
  },
  async 'receive-each'(channel, count) {
    let sum = 0
    const visit = (bytes, offset) => {
      sum += bytes[offset]
    }
    for (let left = count; left > 0;) left -= channel.receiveEach(visit, left)
    return sum
  },
}`

const library = (tree) => import(pathToFileURL(path.join(tree, 'dist/esm/index.js')).href)

/** Sends a part for each order. */
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
  const readAll = code.default[way]
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

/** Measures the turns of each tree in a process of their own. */
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
  const trees = [...(list(values.base) ?? []), root].map((tree) => path.resolve(tree))
  for (const way of values.ways.split(',')) {
    for (const size of values.sizes.split(',').map(Number)) {
      const found = trees.map(() => [])
      for (let round = 0; round < Number(values.rounds); round += 1)
        for (const [index, turns] of measure(trees, way, size, values).entries()) found[index].push(...turns)
      const figures = found.map((took) => `${median(took).toFixed(1)} (${Math.min(...took).toFixed(1)})`.padStart(18))
      // Turn by turn, since what disturbs one disturbs the other.
      const change = found.slice(1).map((took) => median(took.map((one, turn) => one / found[0][turn])) - 1)
      const changes = change.map((part) => `${(part * 100).toFixed(0)} %`.padStart(6))
      console.log(way.padEnd(12), String(size).padStart(6), ...figures, ...changes)
    }
  }
}

if (process.argv[2] === '--side') {
  const job = JSON.parse(process.argv[3])
  await (job.role === 'send' ? send(job) : read(job))
}
