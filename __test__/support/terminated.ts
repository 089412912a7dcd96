// Terminates workers of another process in the middle of their work, and counts what they leak.

import { fileURLToPath } from 'node:url'

import type { Deed } from './doomed.js'
import type { Partner } from './partner.js'

const doomed = fileURLToPath(new URL('doomed.js', import.meta.url))

/**
 * Makes `stage`, a process with `--expose-gc`, start and terminate workers, one after the other. Each is terminated
 * some time after its start, or soon after it has its resource. Returns the least number of descriptors in the second
 * after.
 */
export function terminateWorkers(
  stage: Partner,
  address: string,
  deed: Deed,
  first: number,
  count: number,
): Promise<number> {
  return stage.run(
    async (kit, where: string, script: string, what: Deed, from: number, to: number) => {
      const { Worker: Thread } = kit.require('node:worker_threads') as typeof import('node:worker_threads')
      const { readdirSync: list } = kit.require('node:fs') as typeof import('node:fs')
      const chance = kit.bytes.random(from)
      for (let round = from; round < to; round += 1) {
        const orders = { address: where, deed: what, threads: round % 2 === 1 }
        const worker = new Thread(script, { workerData: orders })
        const exited = new Promise((resolve) => worker.on('exit', resolve))
        await new Promise<void>((resolve) => {
          worker.on('message', (said: string) => {
            if (said === (round % 5 === 4 ? 'joining' : 'joined')) resolve()
          })
        })
        await new Promise((resolve) => setTimeout(resolve, chance() * 30))
        await worker.terminate()
        await exited
      }
      const { gc } = globalThis as unknown as { gc(): void }
      let fds = Infinity
      for (let look = 0; look < 100; look += 1) {
        await new Promise((resolve) => setTimeout(resolve, 10))
        gc()
        fds = Math.min(fds, list('/proc/self/fd').length)
      }
      return fds
    },
    address,
    doomed,
    deed,
    first,
    first + count,
  )
}
