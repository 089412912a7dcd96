// Measures how far apart the hypervisor has placed the two cores: a cache line bounces between two pinned threads.

import { fileURLToPath } from 'node:url'
import { Worker, isMainThread, workerData } from 'node:worker_threads'

import { pinThread } from './usage.mjs'

/** A shorter round trip stays on one die. Other round trips take several times as long, and there are none in between. */
export const NEAR = 200

const [PING, PONG, GO] = [0, 32, 64]
const STRETCHES = 40
const TRIPS = 500

function bounce(control, lead) {
  const times = []
  let turn = 0
  for (let i = 0; i < STRETCHES; i++) {
    const started = performance.now()
    for (let j = 0; j < TRIPS; j++) {
      turn++
      if (lead) {
        Atomics.store(control, PING, turn)
        while (Atomics.load(control, PONG) !== turn);
      } else {
        while (Atomics.load(control, PING) !== turn);
        Atomics.store(control, PONG, turn)
      }
    }
    times.push(((performance.now() - started) * 1e6) / TRIPS)
  }
  return times
}

export class Probe {
  #control = new Int32Array(new SharedArrayBuffer(512))
  #workers
  #answers = []

  constructor(cpus) {
    this.#workers = cpus.map((cpu, side) => {
      const worker = new Worker(fileURLToPath(import.meta.url), {
        workerData: { cpu, lead: side === 0, control: this.#control },
      })
      worker.on('message', (times) => this.#answers.shift()(times))
      return worker
    })
  }

  async measure() {
    const answer = new Promise((resolve) => this.#answers.push(resolve))
    Atomics.store(this.#control, PING, 0)
    Atomics.store(this.#control, PONG, 0)
    Atomics.add(this.#control, GO, 1)
    Atomics.notify(this.#control, GO)
    const times = (await answer).sort((a, b) => a - b)
    const line_ns = times[times.length >> 1]
    return { line_ns, near: line_ns < NEAR }
  }

  async close() {
    await Promise.all(this.#workers.map((worker) => worker.terminate()))
  }
}

if (!isMainThread && workerData?.control && 'lead' in workerData) {
  const { parentPort } = await import('node:worker_threads')
  const { cpu, lead, control } = workerData
  pinThread(cpu)
  // A warm-up, so that the loops are compiled.
  for (let round = 0; ; round++) {
    Atomics.wait(control, GO, round)
    const times = bounce(control, lead)
    if (lead) parentPort.postMessage(times)
  }
}
