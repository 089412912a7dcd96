// A Unix stream socket with a length before each message, as most programs would write it.

import { once } from 'node:events'
import net from 'node:net'

import { PREFIX, sinkOf } from '../frames.mjs'
import { Maker, fill, neverPolls } from '../work.mjs'

/** One end of a socket between the two sides. */
export async function socketPair({ side, job, line }) {
  const where = `\0${job.tag}`
  if (side === 'a') {
    const server = net.createServer()
    server.listen(where)
    await once(server, 'listening')
    line.send('listening')
    const [socket] = await once(server, 'connection')
    server.close()
    return socket
  }
  await line.receive()
  const socket = net.connect(where)
  await once(socket, 'connect')
  return socket
}

async function open(setup, corked) {
  const socket = await socketPair(setup)
  const sink = sinkOf(socket)
  const { size } = setup.job
  const words = size / 8
  const maker = new Maker(size, PREFIX)
  const per = corked ? Math.max(1, Math.floor(65_536 / (size + PREFIX))) : 1
  // The socket buffers the remainder, and emits 'drain' once it is written.
  function write(n) {
    const bytes = maker.make(n)
    return maker.recycles ? socket.write(bytes, () => maker.recycle(bytes)) : socket.write(bytes)
  }

  async function produceCorked(count) {
    const spare = []
    const length = (size + PREFIX) / 8
    for (let n = 0; n < count;) {
      const block = spare.pop() ?? new Float64Array(per * length)
      const bytes = Buffer.from(block.buffer)
      let used = 0
      for (; used < block.length && n < count; used += length, n++) {
        bytes.writeUInt32LE(size, used * 8)
        fill(block, used + 1, words, n)
      }
      if (!socket.write(bytes.subarray(0, used * 8), () => spare.push(block))) await once(socket, 'drain')
    }
  }

  async function produce(count) {
    for (let n = 0; n < count; n++) if (!write(n)) await once(socket, 'drain')
  }

  return {
    produce: corked ? produceCorked : produce,
    consume: (count) => sink.expect(count),
    send: write,
    receive: () => sink.inbox.take(),
    close: () => socket.destroy(),
  }
}

export const plain = {
  id: 'unix',
  version: 'node:net',
  note: 'stream socket, length before each message, one write a message',
  takes: neverPolls,
  open: (setup) => open(setup, false),
}

export const corked = {
  id: 'unix-corked',
  version: 'node:net',
  note: 'the same, messages gathered into writes of 64 KiB by hand',
  takes: (measure, size) =>
    measure !== 'one' ? 'one-way only' : size > 32_768 ? 'a message fills the write by itself' : null,
  open: (setup) => open(setup, true),
}
