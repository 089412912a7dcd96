// Terminates workers of another process in the middle of their work, and counts what they leak.

import { fileURLToPath } from 'node:url'

import type { WorkerTask } from './worker-task.js'
import type { Partner } from './partner.js'

const workerScript = fileURLToPath(new URL('worker-task.js', import.meta.url))

/**
 * Makes `stage`, a process with `--expose-gc`, start and terminate workers, one after the other. Each is terminated
 * some time after its start, or soon after it has its resource. Returns the least number of descriptors in the second
 * after.
 */
export function terminateWorkers(
  partner: Partner,
  address: string,
  deed: WorkerTask,
  first: number,
  count: number,
): Promise<number> {
  return partner.run(
    async (kit, at: string, script: string, kind: WorkerTask, from: number, to: number) => {
      const { Worker: Thread } = kit.require('node:worker_threads') as typeof import('node:worker_threads')
      const { readdirSync: list } = kit.require('node:fs') as typeof import('node:fs')
      const chance = kit.bytes.random(from)
      for (let round = from; round < to; round += 1) {
        const settings = { address: at, task: kind, threads: round % 2 === 1 }
        const worker = new Thread(script, { workerData: settings })
        const exited = new Promise((resolve) => worker.on('exit', resolve))
        await new Promise<void>((resolve) => {
          worker.on('message', (report: string) => {
            if (report === (round % 5 === 4 ? 'joining' : 'joined')) resolve()
          })
        })
        await new Promise((resolve) => setTimeout(resolve, chance() * 30))
        await worker.terminate()
        await exited
      }
      const { gc } = globalThis as unknown as { gc(): void }
      let fds = Infinity
      for (let sample = 0; sample < 100; sample += 1) {
        await new Promise((resolve) => setTimeout(resolve, 10))
        gc()
        fds = Math.min(fds, list('/proc/self/fd').length)
      }
      return fds
    },
    address,
    workerScript,
    deed,
    first,
    first + count,
  )
}
