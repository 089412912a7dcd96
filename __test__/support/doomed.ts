// A worker thread that uses a channel until it is terminated.

import { parentPort, workerData } from 'node:worker_threads'

import { join, listen, member } from 'ringfence'

import { turn } from './until.js'

/** The work of the thread. */
export type Deed =
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

export interface Orders {
  address: string
  deed: Deed
  /** Watch the line with a thread. */
  threads: boolean
}

const { address, deed, threads } = workerData as Orders
if (threads) Object.defineProperty(process.versions, 'bun', { value: '1.0.0' })
const say = (what: string) => parentPort!.postMessage(what)

say('joining')
if (deed === 'serving') {
  const listener = await listen(address, { capacity: 16_384, wait: true })
  say('joined')
  for await (const agent of listener) {
    void (async () => {
      for await (const message of agent) await agent.send(message)
    })().catch(() => {})
  }
}
if (deed === 'deciding') {
  const authorize = () => {
    say('asked')
    return new Promise<boolean>(() => {})
  }
  await listen(address, { policy: { authorize } })
  say('listening')
}
if (deed === 'staying') {
  const membership = await member(address, { capacity: 16_384, wait: true })
  say('joined')
  for await (const partner of membership) {
    for await (const message of partner) await partner.send(message).catch(() => {})
  }
}
// It decides until it is terminated.
if (deed === 'deciding') await new Promise(() => {})
const channel = await join(address, { capacity: 16_384 })
say('joined')
switch (deed) {
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
say('over')
