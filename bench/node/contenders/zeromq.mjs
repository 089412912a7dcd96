// ZeroMQ over its ipc transport, one pair of sockets.

import os from 'node:os'
import path from 'node:path'

import { optional } from '../optional.mjs'
import { Maker, Reader, add, neverPolls } from '../work.mjs'

const zmq = await optional('../deps/zeromq.mjs')

export const zeromq = {
  id: 'zeromq',
  version: '6',
  note: 'ipc transport, a pair of sockets, default high-water marks',
  unavailable: zmq.why,
  takes: neverPolls,
  async open({ side, job, line }) {
    const where = `ipc://${path.join(os.tmpdir(), `${job.tag}.zmq`)}`
    const socket = new zmq.Pair()
    if (side === 'a') {
      await socket.bind(where)
      line.send('bound')
    } else {
      await line.receive()
      socket.connect(where)
    }
    const reader = new Reader()
    // It keeps a reference to what it sends and does not tell when it is done: fresh memory each time.
    const maker = new Maker(job.size)
    const receive = async () => {
      const [bytes] = await socket.receive()
      return reader.sum(bytes, 0, bytes.length)
    }
    return {
      async produce(count) {
        for (let n = 0; n < count; n++) await socket.send(maker.make(n))
      },
      async consume(count) {
        let total = 0
        for (let n = 0; n < count; n++) total = add(total, await receive())
        return total
      },
      send: (n) => socket.send(maker.make(n)),
      receive,
      close: () => socket.close(),
    }
  },
}
