// Frames from a Rust process, consumed by this one: README.md, beside this file, tells how.

import { spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { join } from 'ringfence'

const { values } = parseArgs({
  options: {
    frames: { type: 'string', default: '500' },
    size: { type: 'string', default: '1920x1080' },
    producer: { type: 'string' },
    unchecked: { type: 'boolean', default: false },
  },
})
const frames = Number(values.frames)
const [width, height] = values.size.split('x').map(Number)
const bytesOfFrame = 16 + width * height * 4
if (!(frames > 0 && width > 0 && height > 0)) throw new Error('--frames NUMBER --size WIDTHxHEIGHT')

const producer = values.producer ?? build()
const address = `@ringfence-frames-${randomBytes(8).toString('hex')}`
const child = spawn(producer, [address, process.execPath, width, height, frames].map(String), {
  stdio: ['ignore', 'inherit', 'inherit'],
})
// A producer that could not go on has said why, and is not waited for any longer.
const over = new AbortController()
const exited = once(child, 'exit').finally(() => over.abort())

const channel = await join(address, {
  policy: { executable: producer },
  maxMessageSize: bytesOfFrame,
  // Nothing is sent from here.
  capacity: 4096,
  signal: over.signal,
})
let count = 0
let started = 0
while (await channel.readable()) {
  if (count === 0) started = performance.now()
  // The one copy is out of the ring, into memory that is this process's own.
  channel.drain(look)
}
const seconds = (performance.now() - started) / 1000
await channel.close()
const [code] = await exited
if (code !== 0 || count !== frames)
  throw new Error(`${count} of ${frames} frames came; the producer ended with ${code}`)

const rate = (count / seconds).toFixed(0)
const volume = ((count * bytesOfFrame) / seconds / 1e9).toFixed(2)
const checked = values.unchecked ? 'their numbers checked' : 'every pixel summed up and checked'
console.log(`${count} frames of ${width}x${height} RGBA, ${checked}: ${rate} frames/s, ${volume} GB/s`)

function look(bytes, offset, length) {
  const { buffer, byteOffset } = bytes
  const header = new DataView(buffer, byteOffset + offset, 16)
  const number = Number(header.getBigUint64(0, true))
  if (length !== bytesOfFrame || number !== count) throw new Error(`frame ${count} is ${number}, of ${length} bytes`)
  if (!values.unchecked) {
    const found = sum(new Int32Array(buffer, byteOffset + offset + 16, width * height))
    const wanted = header.getInt32(8, true)
    if (found !== wanted) throw new Error(`the pixels of frame ${number} add up to ${found}, not ${wanted}`)
  }
  count += 1
}

function sum(pixels) {
  let total = 0
  for (let at = 0; at < pixels.length; at += 1) total = (total + pixels[at]) | 0
  return total
}

/** The producer's executable, built as it is measured. */
function build() {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  const cargo = ['build', '--quiet', '--release', '-p', 'ringfence-frames']
  const { status } = spawnSync('cargo', cargo, { cwd: root, stdio: 'inherit' })
  if (status !== 0) throw new Error('the producer could not be built')
  return `${root}target/release/ringfence-frames`
}
