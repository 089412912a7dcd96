// Starts workers and sends them commands. Each command is answered once it was carried out, so the result does not depend on timing.

import cluster from 'node:cluster'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

let next = 0

export async function startWorker(way, where) {
  cluster.setupPrimary({
    exec: fileURLToPath(new URL('worker.mjs', import.meta.url)),
    args: [way, where],
    serialization: 'advanced',
  })
  const worker = cluster.fork()
  const exited = once(worker, 'exit')
  const pending = new Map()
  const ready = new Promise((resolve, reject) => {
    worker.on('message', (message) => {
      if (message.port !== undefined) resolve(message.port)
      const call = pending.get(message.id)
      pending.delete(message.id)
      if (call === undefined) return
      if (message.failure === undefined) call.resolve(message.answer)
      else call.reject(new Error(message.failure))
    })
    void exited.then(() => reject(new Error('the worker has ended before it was ready')))
  })
  const port = await ready
  return {
    port,
    exited,
    pid: worker.process.pid,
    kill: (signal = 'SIGKILL') => worker.process.kill(signal),
    call: (command, words) =>
      new Promise((resolve, reject) => {
        const id = (next += 1)
        pending.set(id, { resolve, reject })
        worker.send({ id, command, words })
      }),
  }
}

/** Polls the workers until each is connected to this number of workers. */
export async function untilConnected(workers, count = workers.length) {
  for (const worker of workers) {
    while ((await worker.call('count')) !== count) await new Promise((resolve) => setTimeout(resolve, 2))
  }
}
