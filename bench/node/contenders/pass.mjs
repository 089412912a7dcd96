// Large buffers, one at a time: made anew and filled by one side, and read by the other.

import fs from 'node:fs'
import process from 'node:process'

import { Inbox } from '../frames.mjs'
import { optional } from '../optional.mjs'
import { fill } from '../work.mjs'

const ringfence = await optional('ringfence')

function fillAll({ buffer, byteOffset, byteLength }, n) {
  fill(new Float64Array(buffer, byteOffset, byteLength / 8), 0, byteLength / 8, n)
}

const joined = ({ job }) =>
  ringfence.join(`@${job.tag}`, {
    capacity: job.capacity,
    maxMessageSize: Math.max(job.size, 65_536),
    attachments: { sealed: true, maxBytes: job.size },
  })

async function sealed(setup) {
  const channel = await joined(setup)
  return {
    async pass(n, filled) {
      const buffer = await ringfence.SealedBuffer.create(setup.job.size, (bytes) => fillAll(bytes, n))
      filled()
      await channel.send('', { attachments: [buffer] })
      buffer.close()
    },
    async take() {
      const { attachments } = await channel.receive()
      const bytes = attachments[0].bytes()
      attachments[0].close()
      return bytes
    },
    close: () => channel.close(),
  }
}

async function copied(setup) {
  const channel = await joined(setup)
  return {
    async pass(n, filled) {
      const bytes = Buffer.allocUnsafeSlow(setup.job.size)
      fillAll(bytes, n)
      filled()
      await channel.send(bytes)
    },
    take: () => channel.receive(),
    close: () => channel.close(),
  }
}

async function transferred({ job, port }) {
  const inbox = new Inbox()
  port.on('message', inbox.put)
  return {
    async pass(n, filled) {
      const bytes = new Uint8Array(job.size)
      fillAll(bytes, n)
      filled()
      port.postMessage(bytes, [bytes.buffer])
    },
    take: () => inbox.take(),
    close: () => port.close(),
  }
}

/** Its writer trusts its reader not to change it, and its reader the writer. */
async function filed({ side, job, child }) {
  const inbox = new Inbox()
  const end = side === 'a' ? child : process
  end.on('message', inbox.put)
  return {
    async pass(n, filled) {
      const bytes = Buffer.allocUnsafeSlow(job.size)
      fillAll(bytes, n)
      filled()
      const where = `/dev/shm/${job.tag}.${n}`
      fs.writeFileSync(where, bytes)
      end.send(where)
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

const contender = (id, version, note, open, more) => ({ id, version, note, takes: () => null, open, ...more })
const unavailable = ringfence.why

export const pass = [
  contender('sealed', 'this tree', 'a SealedBuffer, attached to a message', sealed, { unavailable }),
  contender('ring', 'this tree', 'a message: copied into the ring and out of it', copied, { unavailable }),
  contender('transfer', 'node:worker_threads', 'MessagePort, two threads of one process', transferred, {
    threads: true,
  }),
  contender('file', 'node:fs', 'a file in /dev/shm, whose name goes over the channel of fork()', filed, {
    ipc: 'json',
  }),
]
