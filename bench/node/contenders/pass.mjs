// Large buffers, one at a time: allocated and filled by one side, and read by the other side, or by each of several readers.

import fs from 'node:fs'
import process from 'node:process'

import { Inbox } from '../frames.mjs'
import { fill } from '../work.mjs'
import { contender, own, ringfence } from './contender.mjs'

function fillAll({ buffer, byteOffset, byteLength }, n) {
  fill(new Float64Array(buffer, byteOffset, byteLength / 8), 0, byteLength / 8, n)
}

/** Bytes of each message if a buffer passes through a publisher's ring in parts. */
const PART = 1 << 20

async function joined({ side, job }) {
  const address = `@${job.tag}`
  const capacity = Math.max(job.capacity, job.readers > 1 ? 16 * PART : 0)
  const maxMessageSize = Math.max(job.readers > 1 ? PART : job.size, 65_536)
  const attachments = { sealed: true, maxBytes: job.size }
  if (job.readers === 1) return ringfence.join(address, { capacity, maxMessageSize, attachments })
  return side === 'a'
    ? ringfence.publish(address, { capacity, maxMessageSize })
    : ringfence.subscribe(address, { maxMessageSize, attachments, wait: true })
}

/** `isAnnounced`: a message without attachments goes first. Its time is that of a bare message after the same work. */
const sealed = (isAnnounced) => async (setup) => {
  const channel = await joined(setup)
  return {
    async pass(n, filled) {
      const buffer = await ringfence.SealedBuffer.create(setup.job.size, (bytes) => fillAll(bytes, n))
      filled()
      if (isAnnounced) await channel.send('')
      await channel.send('', { attachments: [buffer] })
      buffer.close()
    },
    async *parts() {
      if (isAnnounced) yield await channel.receive()
      const { attachments } = await channel.receive()
      yield attachments[0]
    },
    close: () => channel.close(),
  }
}

async function copied(setup) {
  const channel = await joined(setup)
  const { size, readers } = setup.job
  const part = readers > 1 ? PART : size
  return {
    async pass(n, filled) {
      const bytes = Buffer.allocUnsafeSlow(size)
      fillAll(bytes, n)
      filled()
      for (let at = 0; at < size; at += part) await channel.send(bytes.subarray(at, at + part))
    },
    async *parts() {
      for (let at = 0; at < size; at += part) yield await channel.receive()
    },
    close: () => channel.close(),
  }
}

const posted =
  (transfers) =>
  async ({ job, ports }) => {
    const inbox = new Inbox()
    for (const port of ports) port.on('message', inbox.put)
    return {
      async pass(n, filled) {
        const bytes = new Uint8Array(job.size)
        fillAll(bytes, n)
        filled()
        for (const port of ports) port.postMessage(bytes, transfers ? [bytes.buffer] : [])
      },
      take: () => inbox.take(),
      close: () => ports.forEach((port) => port.close()),
    }
  }

/** The writer and the reader trust each other not to change it. */
async function filed({ side, job, children }) {
  const inbox = new Inbox()
  if (side === 'b') process.on('message', inbox.put)
  return {
    async pass(n, filled) {
      const bytes = Buffer.allocUnsafeSlow(job.size)
      fillAll(bytes, n)
      filled()
      const where = `/dev/shm/${job.tag}.${n}`
      fs.writeFileSync(where, bytes)
      for (const [at, child] of children.entries()) {
        // Each reader removes its own file name.
        fs.linkSync(where, `${where}.${at}`)
        child.send(`${where}.${at}`)
      }
      fs.rmSync(where)
    },
    async take() {
      const where = await inbox.take()
      const bytes = fs.readFileSync(where)
      fs.rmSync(where)
      return bytes
    },
    close() {},
  }
}

const measures = ['pass', 'share']

export const pass = [
  own('sealed', 'a SealedBuffer, attached to a message', sealed(false), { measures }),
  own('announced', 'limit: a bare message, sent once the SealedBuffer is written; the buffer follows', sealed(true), {
    measures: ['pass'],
    alone: true,
  }),
  own('ring', 'a message: copied into the ring and out of it; to several, in messages of 1 MiB', copied, { measures }),
  contender('transfer', 'node:worker_threads', 'MessagePort, two threads of one process', posted(true), {
    threads: true,
    measures: ['pass'],
  }),
  contender('clone', 'node:worker_threads', 'MessagePort, cloned for each of several threads', posted(false), {
    threads: true,
    measures: ['share'],
  }),
  contender('file', 'node:fs', 'a file in /dev/shm, whose name goes over the channel of fork()', filed, {
    measures,
    ipc: 'json',
  }),
]
