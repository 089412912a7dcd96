// A process that measures: started, pinned, waited for, and ended where it takes too long.

import { spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const SIGNALS = ['SIGINT', 'SIGTERM']

/**
 * The last line of what the program prints, as JSON. `cpu`: the core to which it is pinned. `tag`: of the sockets that it may leave
 * as files. `seconds`: of the measurement alone.
 */
export function run(command, { cpu, seconds, tag }) {
  return new Promise((resolve, reject) => {
    const line = cpu === undefined ? command : ['taskset', '-c', String(cpu), ...command]
    // A group of its own, so that nothing of a run that is cut short stays on a core.
    const child = spawn(line[0], line.slice(1), { stdio: ['ignore', 'pipe', 'pipe'], detached: true })
    const end = () => {
      try {
        process.kill(-child.pid, 'SIGKILL')
      } catch {
        // Gone already, as it should be.
      }
    }
    // A signal to this process alone would leave the group running.
    const exit = (_, number) => process.exit(128 + number)
    process.once('exit', end)
    for (const signal of SIGNALS) process.once(signal, exit)
    let out = ''
    let err = ''
    child.stdout.on('data', (data) => (out += data))
    child.stderr.on('data', (data) => (err += data))
    let late = false
    const limit = setTimeout(
      () => {
        late = true
        end()
      },
      30_000 + 30_000 * seconds,
    )
    child.on('error', reject)
    child.on('close', (code) => {
      clearTimeout(limit)
      end()
      process.removeListener('exit', end)
      for (const signal of SIGNALS) process.removeListener(signal, exit)
      // Sockets and rings stay behind as files if their owner did not live to remove them.
      for (const folder of [os.tmpdir(), '/dev/shm']) sweep(folder, tag)
      if (late) reject(new Error('took too long'))
      else if (code !== 0) reject(new Error(reason(err) ?? `ended with ${code}`))
      else resolve(JSON.parse(out.trim().split('\n').at(-1)))
    })
  })
}

function sweep(folder, tag) {
  for (const name of fs.readdirSync(folder))
    if (name.startsWith(`${tag}.`)) fs.rmSync(path.join(folder, name), { force: true })
}

function reason(err) {
  const lines = err.trim().split('\n')
  return lines.find((line) => line.includes('Error')) ?? (lines.at(-1) || undefined)
}
