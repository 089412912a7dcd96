// Receives frames from a Rust process: see README.md.

import { fork, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { join } from 'ringfence'

import { checker } from './check.mjs'

const { values } = parseArgs({
  options: {
    frames: { type: 'string', default: '500' },
    size: { type: 'string', default: '1920x1080' },
    readers: { type: 'string' },
    producer: { type: 'string' },
    unchecked: { type: 'boolean', default: false },
  },
})
const frames = Number(values.frames)
const [width, height] = values.size.split('x').map(Number)
const readers = values.readers === undefined ? null : Number(values.readers)
if (!(frames > 0 && width > 0 && height > 0 && (readers === null || readers > 0)))
  throw new Error('--frames NUMBER --size WIDTHxHEIGHT --readers NUMBER')
const state = checker({ width, height, checked: !values.unchecked })
const { bytesOfFrame } = state

const producer = values.producer ?? build()
const address = `@ringfence-frames-${randomBytes(8).toString('hex')}`
const orders = [address, process.execPath, width, height, frames, ...(readers === null ? [] : [readers])]
const child = spawn(producer, orders.map(String), { stdio: ['ignore', 'inherit', 'inherit'] })
process.on('exit', () => child.kill('SIGKILL'))
// A producer that failed has printed the reason.
const over = new AbortController()
const exited = once(child, 'exit').finally(() => over.abort())

const elapsed = readers === null ? await readOne() : await readMany()
const [end] = await exited
if (end !== 0) throw new Error(`the producer ended with ${end}`)

const rate = (frames / elapsed).toFixed(0)
const volume = ((frames * bytesOfFrame) / elapsed / 1e9).toFixed(2)
const checked = values.unchecked ? 'their numbers checked' : 'every pixel summed up and checked'
const by = readers === null ? '' : `, each drawn once and read by ${readers}`
console.log(`${frames} frames of ${width}x${height} RGBA${by}, ${checked}: ${rate} frames/s, ${volume} GB/s`)

/** Reads the frames in this process. Returns the seconds from the first frame to the last. */
async function readOne() {
  const channel = await join(address, {
    policy: { executable: producer },
    maxMessageSize: bytesOfFrame,
    // This side sends nothing.
    capacity: 4096,
    signal: over.signal,
  })
  // The only copy is from the ring to this process's memory.
  while (await channel.waitReadable()) channel.receiveEach(state.look)
  const seconds = (performance.now() - state.started) / 1000
  await channel.close()
  complete(state.count)
  return seconds
}

/** Reads the frames in separate processes. Returns the seconds of the slowest. */
async function readMany() {
  const words = [address, producer, width, height, values.unchecked ? 'unchecked' : 'checked'].map(String)
  const children = Array.from({ length: readers }, () => fork(new URL('reader.mjs', import.meta.url), words))
  const kill = () => children.forEach((reader) => reader.kill('SIGKILL'))
  // Without a producer, the readers would wait.
  exited.then(([code]) => code === 0 || kill())
  const ends = children.map(
    (reader) =>
      new Promise((resolve, reject) => {
        let report
        reader.on('message', (message) => (report = message))
        reader.on('error', reject)
        reader.on('close', (code) => {
          if (code === 0 && report !== undefined) resolve(report)
          else reject(new Error(`a reader ended with ${code}`))
        })
      }),
  )
  const reports = await Promise.all(ends).catch((error) => {
    kill()
    throw error
  })
  for (const { count } of reports) complete(count)
  return Math.max(...reports.map(({ seconds }) => seconds))
}

function complete(count) {
  if (count !== frames) throw new Error(`${count} of ${frames} frames arrived`)
}

/** Builds the producer in release mode, and returns its path. */
function build() {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  const cargo = ['build', '--quiet', '--release', '-p', 'ringfence-frames']
  const { status } = spawnSync('cargo', cargo, { cwd: root, stdio: 'inherit' })
  if (status !== 0) throw new Error('the producer could not be built')
  return `${root}target/release/ringfence-frames`
}
