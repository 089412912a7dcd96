// A worker thread that uses a channel until it is terminated.

import { parentPort, workerData } from 'node:worker_threads'

import { join, listen, member } from 'ringfence'

import { turn } from './until.js'

/** The work of the thread. */
export type WorkerTask =
  | 'joining'
  | 'waiting'
  | 'sending'
  | 'draining'
  | 'reserving'
  | 'echoing'
  | 'closing'
  | 'serving'
  | 'signalling'
  | 'staying'
  | 'deciding'

export interface WorkerSettings {
  address: string
  task: WorkerTask
  /** Watch the line with a thread. */
  threads: boolean
}

const { address, task, threads } = workerData as WorkerSettings
if (threads) Object.defineProperty(process.versions, 'bun', { value: '1.0.0' })
const report = (what: string) => parentPort!.postMessage(what)

report('joining')
if (task === 'serving') {
  const listener = await listen(address, { capacity: 16_384, wait: true })
  report('joined')
  for await (const agent of listener) {
    void (async () => {
      for await (const message of agent) await agent.send(message)
    })().catch(() => {})
  }
}
if (task === 'deciding') {
  const authorize = () => {
    report('asked')
    return new Promise<boolean>(() => {})
  }
  await listen(address, { policy: { authorize } })
  report('listening')
}
if (task === 'staying') {
  const membership = await member(address, { capacity: 16_384, wait: true })
  report('joined')
  for await (const partner of membership) {
    for await (const message of partner) await partner.send(message).catch(() => {})
  }
}
// It decides until it is terminated.
if (task === 'deciding') await new Promise(() => {})
const channel = await join(address, { capacity: 16_384 })
report('joined')
switch (task) {
  case 'joining':
  case 'waiting':
    while ((await channel.receive()) !== undefined);
    break
  case 'sending':
    for (let number = 0; ; number += 1) {
      void channel.send('x'.repeat(number % 500)).catch(() => {})
      if (number % 20 === 0) await channel.send(new Uint8Array(number % 50_000))
      if (number % 100 === 0) await turn()
    }
  case 'draining':
    while (await channel.waitReadable()) {
      channel.receiveEach(() => {}, 3)
      await turn()
    }
    break
  case 'reserving':
    for (;;) {
      await channel.waitWritable(5000)
      channel.reserve(5000)?.commit()
      channel.reserve(10)?.cancel()
      await turn()
    }
  case 'echoing':
    for await (const message of channel) await channel.send(message)
    await channel.close()
    break
  case 'signalling':
    void (async () => {
      for (let token = 0; ; token += 1) {
        try {
          channel.sendToken(token)
        } catch {
          // The ring is full, or the channel is over.
        }
        if (token % 10 === 0) await turn()
      }
    })()
    for await (const token of channel.tokens()) if (token === 2n ** 64n - 1n) break
    break
  case 'closing':
    for (let number = 0; number < 50; number += 1) void channel.send('x'.repeat(1000)).catch(() => {})
    await channel.close({ linger: 50 })
    break
}
report('over')
