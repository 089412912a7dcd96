// The far ends of a test's channels: in a process, in a worker thread of it, or in a spawned child.

import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'

import {
  connect,
  fromParent,
  join,
  listen,
  member,
  publish,
  subscribe,
  type Channel,
  type Publisher,
  type Subscription,
} from 'ringfence'

/** The call with which the far end is opened. */
export type RemoteCall = 'join' | 'connect' | 'listen' | 'member' | 'publish' | 'subscribe' | 'fromParent'

/** A way in which the far end ends. */
export type RemoteEnding = 'end' | 'close' | 'destroy' | 'unsent' | 'evict' | 'kill' | 'worker'

export interface RemoteOrder {
  call: RemoteCall
  addresses: string[]
  /** Open them in a worker thread. */
  inWorker: boolean
  /** The `stall` of publishers. */
  stall: number
}

const OPTIONS = { capacity: 16_384, handshakeTimeout: 60_000 }

let ends: (Channel | Publisher | Subscription)[] = []
/** Keeps each object reachable as long as its channel is open. */
const retained: unknown[] = []

async function open({ call, stall }: RemoteOrder, address: string): Promise<Channel | Publisher | Subscription> {
  switch (call) {
    case 'join':
      return join(address, OPTIONS)
    case 'connect':
      return connect(address, { ...OPTIONS, wait: true })
    case 'subscribe':
      return subscribe(address, { ...OPTIONS, capacity: undefined, wait: true } as object)
    case 'fromParent':
      return fromParent(OPTIONS)
    case 'publish': {
      const publisher = await publish(address, { ...OPTIONS, stall })
      await once(publisher, 'connection')
      return publisher
    }
    default: {
      const endpoint = call === 'listen' ? await listen(address, OPTIONS) : await member(address, OPTIONS)
      retained.push(endpoint)
      const { value } = await endpoint[Symbol.asyncIterator]().next()
      return value as Channel
    }
  }
}

async function openAndSend(order: RemoteOrder, address: string): Promise<Channel | Publisher | Subscription> {
  const opened = await open(order, address)
  if ('send' in opened) for (const message of ['one', 'two', 'three']) await opened.send(message)
  return opened
}

async function leave(end: Channel | Publisher | Subscription, ending: RemoteEnding): Promise<void> {
  if (ending === 'end' && 'end' in end) await end.end()
  else if (ending === 'close') await end.close()
  else if (ending === 'destroy') end.destroy()
  else if (ending === 'unsent' && 'send' in end) {
    // More than the ring holds.
    for (let number = 0; number < 20; number += 1) void end.send('x'.repeat(1500)).catch(() => {})
    await end.close({ linger: 0 })
  } else if (ending === 'evict' && 'send' in end) {
    for (let number = 0; number < 20; number += 1) await end.send('x'.repeat(1500))
  } else throw new Error(`no ${ending} here`)
}

async function execute(order: RemoteOrder | RemoteEnding): Promise<void> {
  if (typeof order === 'string') {
    await Promise.all(ends.map((end) => leave(end, order)))
    retained.length = 0
  } else ends = await Promise.all(order.addresses.map((address) => openAndSend(order, address)))
}

if (isMainThread) {
  let worker: Worker | null = null
  process.on('message', async (order: RemoteOrder | RemoteEnding) => {
    if (order === 'worker') {
      await worker!.terminate()
    } else if (typeof order === 'object' && order.inWorker) {
      worker = new Worker(fileURLToPath(import.meta.url))
      worker.postMessage(order)
      await once(worker, 'message')
    } else await execute(order)
    process.send!('done')
  })
} else {
  parentPort!.on('message', async (order: RemoteOrder) => {
    await execute(order)
    parentPort!.postMessage('done')
  })
}
