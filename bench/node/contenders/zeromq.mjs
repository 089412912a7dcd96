// ZeroMQ over its ipc transport, one pair of sockets.

import os from 'node:os'
import path from 'node:path'

import { optional } from '../optional.mjs'
import { Maker, Reader, add, neverPolls } from '../work.mjs'

export const zmq = await optional('../deps/zeromq.mjs')

export const endpoint = ({ tag }) => `ipc://${path.join(os.tmpdir(), `${tag}.zmq`)}`

/** Both ways to read a socket, whose messages have one part. */
export function reading(socket) {
  const reader = new Reader()
  const sum = ([bytes]) => reader.sum(bytes, 0, bytes.length)
  return {
    receive: async () => sum(await socket.receive()),
    async consume(count) {
      let total = 0
      for (let n = 0; n < count; n++) total = add(total, sum(await socket.receive()))
      return total
    },
  }
}

export const zeromq = {
  id: 'zeromq',
  version: '6',
  note: 'ipc transport, a pair of sockets, default high-water marks',
  unavailable: zmq.why,
  takes: neverPolls,
  async open({ side, job, line }) {
    const where = endpoint(job)
    const socket = new zmq.Pair()
    if (side === 'a') {
      await socket.bind(where)
      line.send('bound')
    } else {
      await line.receive()
      socket.connect(where)
    }
    // Allocates memory for each message: the socket keeps a reference to it, and does not report when it is sent.
    const maker = new Maker(job.size)
    return {
      ...reading(socket),
      async produce(count) {
        for (let n = 0; n < count; n++) await socket.send(maker.make(n))
      },
      send: (n) => socket.send(maker.make(n)),
      close: () => socket.close(),
    }
  },
}
