// Ways to publish to many subscribers in Node: ringfence, a channel to each, and alternatives.

import { once } from 'node:events'
import net from 'node:net'

import { PREFIX, sinkOf } from '../frames.mjs'
import { ringfence } from '../contenders/contender.mjs'
import { endpoint, reading, zmq } from '../contenders/zeromq.mjs'
import { absence, publication, server, socketOf, subscription } from '../redis.mjs'
import { Maker, Reader, add, fill, message } from '../work.mjs'

/** Bytes that a sender stages before it awaits, as a program would do to limit its memory. */
const AWAIT_EVERY = 256 * 1024
const address = (job) => `@${job.tag}`

/** Reads a channel or a subscription by `receiveEach`. */
function drained(source) {
  const reader = new Reader()
  return {
    async consume(count) {
      let total = 0
      const visit = (memory, offset, length) => {
        total = add(total, reader.sum(memory, offset, length))
      }
      for (let n = 0; n < count;) {
        const seen = source.receiveEach(visit, count - n)
        n += seen
        if (seen === 0) await source.waitReadable()
      }
      return total
    },
  }
}

/** Fills each message once, and sends it with all `senders`. */
function sending(senders, job) {
  const { words, bytes } = message(job.size)
  const every = Math.max(1, Math.floor(AWAIT_EVERY / job.size))
  return async (count) => {
    let sent = []
    for (let n = 0; n < count; n++) {
      fill(words, 0, words.length, n)
      sent = senders.map((sender) => sender.send(bytes))
      if (n % every === every - 1) await Promise.all(sent)
    }
    await Promise.all(sent)
  }
}

const ours = {
  id: 'ringfence',
  version: 'this tree',
  note: 'send each, drained with a visitor; reliable',
  unavailable: ringfence.why,
  async publisher(job) {
    const publisher = await ringfence.publish(address(job), { capacity: job.capacity, maxPeers: 64 })
    return { publish: sending([publisher], job) }
  },
  subscriber: async (job) => drained(await ringfence.subscribe(address(job))),
}

const pairs = {
  id: 'pairs',
  version: 'this tree',
  note: 'a ringfence channel to each subscriber, read in the same way',
  unavailable: ringfence.why,
  async publisher(job) {
    const listener = await ringfence.listen(address(job), { capacity: job.capacity, maxPeers: 64 })
    const channels = []
    return {
      async admit() {
        for await (const channel of listener) if (channels.push(channel) === job.subscribers) break
        this.publish = sending(channels, job)
      },
    }
  },
  subscriber: async (job) => drained(await ringfence.connect(address(job), { capacity: job.capacity })),
}

const unix = {
  id: 'unix',
  version: 'node:net',
  note: 'a stream socket to each subscriber, length before each message, one write a message and subscriber',
  async publisher(job) {
    const hub = net.createServer()
    const sockets = []
    hub.on('connection', (socket) => sockets.push(socket))
    hub.listen(`\0${job.tag}`)
    await once(hub, 'listening')
    const maker = new Maker(job.size, PREFIX)
    return {
      async admit() {
        while (sockets.length < job.subscribers) await once(hub, 'connection')
      },
      async publish(count) {
        for (let n = 0; n < count; n++) {
          const bytes = maker.make(n)
          const full = sockets.filter((socket) => !socket.write(bytes))
          if (full.length > 0) await Promise.all(full.map((socket) => once(socket, 'drain')))
        }
      },
    }
  },
  async subscriber(job) {
    const socket = net.connect(`\0${job.tag}`)
    await once(socket, 'connect')
    const sink = sinkOf(socket)
    return { consume: (count) => sink.expect(count) }
  },
}

/** Returns false if a subscriber's queue is full. With no-drop, the socket throws then, and does not report when there is room. */
async function taken(socket, bytes) {
  try {
    await socket.send(bytes)
    return true
  } catch (error) {
    if (error.code !== 'EAGAIN') throw error
    await new Promise((resolve) => setImmediate(resolve))
    return false
  }
}

const zeromq = {
  id: 'zeromq',
  version: '6',
  note: 'XPUB and SUB, ipc transport, no drop',
  unavailable: zmq.why,
  async publisher(job) {
    const slots = Math.max(16, Math.floor(job.capacity / job.size))
    const socket = new zmq.XPublisher({ noDrop: true, sendHighWaterMark: slots, verbosity: 'allSubs' })
    await socket.bind(endpoint(job))
    // Allocates memory for each message: the socket keeps a reference to it, and does not report when it is sent.
    const maker = new Maker(job.size)
    return {
      async admit() {
        for (let n = 0; n < job.subscribers; n++) await socket.receive()
      },
      async publish(count) {
        for (let n = 0; n < count; n++) {
          const bytes = maker.make(n)
          while (!(await taken(socket, bytes)));
        }
      },
    }
  },
  async subscriber(job) {
    const slots = Math.max(16, Math.floor(job.capacity / job.size))
    const socket = new zmq.Subscriber({ receiveHighWaterMark: slots })
    socket.connect(endpoint(job))
    socket.subscribe()
    return reading(socket)
  },
}

const redis = {
  id: 'redis',
  version: 'redis-server on the PATH',
  note: "PUBLISH, pipelined, through a local server on a Unix socket, on the publisher's core; its queues are not bounded",
  unavailable: absence(),
  async publisher(job) {
    const { where } = await server(job)
    const { produce } = await publication(where, 'm', job.size)
    return { publish: produce }
  },
  async subscriber(job) {
    const { sink } = await subscription(socketOf(job), 'm')
    return { consume: (count) => sink.expect(count) }
  },
}

/** Subscribers connect once the publisher is listening. */
const opening = ({ publisher, subscriber, ...rival }) => ({
  ...rival,
  async open({ side, job, line, lines }) {
    if (side === 'b') {
      await line.receive()
      return subscriber(job)
    }
    const opened = await publisher(job)
    for (const one of lines) one.send('open')
    await opened.admit?.()
    return opened
  },
})

export const contenders = [ours, pairs, unix, zeromq, redis].map(opening)
