// Two processes check each other's identity, and transfer a file with both backings. Then a parent calls its child, and
// one process publishes to three.
// `npm start [-- FILE]`; without a file, the node binary itself.

import { fork } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join as joinPath } from 'node:path'
import { pipeline } from 'node:stream/promises'

import { broadcast } from './broadcast.mjs'
import { call } from './call.mjs'
import { Progress } from '../../dist/esm/cli/progress.js'
import { evidenceTable, formatBytes } from '../../dist/esm/cli/text.js'

/** The minimum number of bytes if no file is named. */
const ENOUGH = 100_000_000

const folder = await mkdtemp(joinPath(tmpdir(), 'ringfence-transfer-'))
const file = process.argv[2] ?? (await enough())
const { size } = await stat(file)

try {
  for (const [backing, address, what] of [
    ['memfd', joinPath(folder, 'transfer.sock'), 'a named address, sealed memory'],
    ['shm', `@ringfence-transfer-${randomBytes(8).toString('hex')}`, 'an abstract address, memory by shm_open'],
  ]) {
    console.log(`\n━━ ${backing}: ${what} ━━`)
    await run(backing, address)
  }
  console.log('\n━━ calls: a parent calls its child, with a deadline ━━')
  await call()
  console.log('\n━━ broadcast: one publishes, three subscribe; one is killed and one stopped ━━')
  await broadcast(joinPath(folder, 'broadcast.sock'))
} catch (error) {
  console.error(`\nFailed: ${error.message}`)
  process.exitCode = 1
} finally {
  await rm(folder, { recursive: true, force: true })
}

/** A file of repeated copies of the node binary. */
async function enough() {
  const name = joinPath(folder, 'node')
  for (let length = 0; length < ENOUGH; { size: length } = await stat(name)) {
    await pipeline(createReadStream(process.execPath), createWriteStream(name, { flags: 'a' }))
  }
  return name
}

async function run(backing, address) {
  const copy = joinPath(folder, 'copy')
  const progress = new Progress(size)
  const started = [side('receive', copy), side('send', file, (bytes) => progress.add(bytes - progress.bytes))]
  const [receiver, sender] = await Promise.all(started)
  progress.done()
  for (const [name, { introduction }] of Object.entries({ sender, receiver })) {
    const { role, pid, peer, evidence } = introduction
    console.log(`\nThe ${name}, process ${pid}, was the ${role}. Its peer is process ${peer.pid}. Its checks:`)
    console.log(evidenceTable(evidence, process.stdout.columns ?? 160))
  }
  const written = await sha256(copy)
  const rate = `${formatBytes(sender.bytes / sender.seconds)}/s`
  console.log(
    `\n${formatBytes(sender.bytes)} of ${file} in ${sender.seconds.toFixed(2)} s: ${rate}, hashed at both ends and written to a file`,
  )
  console.log(`SHA-256 at the sender    ${sender.sha256}`)
  console.log(`SHA-256 at the receiver  ${receiver.sha256}`)
  console.log(`SHA-256 of the copy      ${written}`)
  if (sender.bytes !== size || new Set([sender.sha256, receiver.sha256, written]).size !== 1) {
    throw new Error('the received file differs from the sent one')
  }
  if (sender.reason !== 'closed' || receiver.reason !== 'closed') throw new Error('the channel did not end as agreed')
  console.log('They agree.')

  /** Starts a process, and resolves with its report once it has exited successfully. */
  function side(task, path, onBytes = () => {}) {
    const child = fork(new URL('side.mjs', import.meta.url), [task, address, backing, path])
    let introduction
    let result
    child.on('message', (message) => {
      if (message.role !== undefined) introduction = message
      else if (message.sha256 !== undefined) result = message
      if (message.bytes !== undefined) onBytes(message.bytes)
    })
    return new Promise((resolve, reject) => {
      child.on('error', reject)
      child.on('exit', (code, signal) => {
        if (code === 0 && result !== undefined) resolve({ introduction, ...result })
        else reject(new Error(`the process that should ${task} ended with ${signal ?? `code ${code}`}`))
      })
    })
  }
}

async function sha256(path) {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path)) hash.update(chunk)
  return hash.digest('hex')
}
