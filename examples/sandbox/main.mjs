// Runs untrusted code: first a job, then attacks. `node examples/sandbox/main.mjs [MIB]`: how much data the job gets, 8 by default.

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { attempts } from './attempts.mjs'
import { sandbox } from './sandbox.mjs'
import { compare, compareWithout } from './speed.mjs'

const size = Number(process.argv[2] ?? 8) * 2 ** 20
const folder = mkdtempSync(join(tmpdir(), 'ringfence-sandbox-'))
const secret = join(folder, 'secret')
writeFileSync(secret, 'no other user may read this', { mode: 0o600 })
const input = { secret, host: process.pid }

try {
  await job()
  console.log('\nHostile code:')
  for (const [name, attempt] of Object.entries(attempts)) {
    const started = await sandbox()
    const outcome = await attempt({ ...started, input }).finally(() => started[Symbol.asyncDispose]())
    console.log(`  ${name.padEnd(24)}${outcome}`)
  }
  console.log(`  ${'outlives its parent'.padEnd(24)}${await outlive()}`)
  await compare()
  await compareWithout()
} finally {
  rmSync(folder, { recursive: true })
}

/** Runs a job with its data and a deadline. */
async function job() {
  const started = await sandbox()
  const { channel } = started
  console.log(`The process in the sandbox is ${channel.peer.pid}. The checks before memory was shared:`)
  const checks = new Map(channel.evidence.map(({ check, found }) => [check, found]))
  for (const [check, found] of [...checks].filter(([name]) => name.startsWith('confined.')))
    console.log(`  ${check.padEnd(28)}${found}`)
  const code = `
    let sum = 0
    for (const byte of input.data) sum += byte
    return sum`
  const before = performance.now()
  const sum = await channel.call({ code, input: { data: new Uint8Array(size).fill(1) } }, { timeout: 60_000 })
  if (sum !== size) throw new Error(`the job returned ${sum}`)
  console.log(`Its job: the sum of ${size / 2 ** 20} MiB is ${sum} (${(performance.now() - before).toFixed(0)} ms)`)
  await started[Symbol.asyncDispose]()
}

/** Starts a daemon in the sandbox, ends the sandbox, and checks that the daemon was killed. */
async function outlive() {
  const mark = `ringfence-daemon-${process.pid}`
  const started = await sandbox()
  const code = `
    require('node:child_process').spawn('sh', ['-c', 'while :; do sleep 1; done', input.mark], { detached: true, stdio: 'ignore' })`
  await started.channel.call({ code, input: { mark } }, { timeout: 10_000 })
  if (!isRunning(mark)) throw new Error('the daemon was not started')
  await started[Symbol.asyncDispose]()
  if (isRunning(mark)) throw new Error('the daemon is still there')
  return 'its daemon was killed with it'
}

function isRunning(mark) {
  return readdirSync('/proc').some((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(mark)
    } catch {
      return false // it has exited
    }
  })
}
