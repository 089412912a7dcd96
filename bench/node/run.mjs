// Starts and pins a measuring process, awaits it, and kills it if it takes too long.

import { spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const SIGNALS = ['SIGINT', 'SIGTERM']

/**
 * Returns the last line of the program's output, as JSON. `cpu`: the core to which it is pinned. `tag`: of the sockets that it may leave
 * as files. `seconds`: the duration of the measurement.
 */
export function run(command, { cpu, seconds, tag }) {
  return new Promise((resolve, reject) => {
    const line = cpu === undefined ? command : ['taskset', '-c', String(cpu), ...command]
    // A separate process group, so that an aborted run leaves no process on a core.
    const child = spawn(line[0], line.slice(1), { stdio: ['ignore', 'pipe', 'pipe'], detached: true })
    const end = () => {
      try {
        process.kill(-child.pid, 'SIGKILL')
      } catch {
        // The group has already exited.
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
      // Killed processes leave sockets and rings as files.
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
