// child_process: the channel that fork() gives, with serialization 'advanced' (structured clone).

import { Sink } from '../frames.mjs'
import { Reader, add, fill, message } from '../work.mjs'

/** Messages between two waits for the channel to have taken them; it queues without limit otherwise. */
const WINDOW = 256

export const childProcess = {
  id: 'child-process',
  version: 'node:child_process',
  note: "the channel of fork(), serialization 'advanced'",
  ipc: true,
  takes: (measure) => (measure === 'rtt-polled' ? 'it does not poll' : null),
  async open({ side, job, child }) {
    const port = side === 'a' ? child : process
    const sink = new Sink(add)
    const reader = new Reader()
    port.on('message', (bytes) => sink.put(reader.sum(bytes, 0, bytes.length)))
    const { words, bytes } = message(job.size)
    // Serialized before send returns, so the memory may be filled anew.
    const send = (n, done) => {
      fill(words, 0, words.length, n)
      return port.send(bytes, done)
    }
    const window = Math.max(1, Math.min(WINDOW, Math.floor((4 << 20) / job.size)))
    return {
      async produce(count) {
        for (let n = 0; n < count; n++) {
          if (n % window === window - 1 || n === count - 1) {
            await new Promise((resolve, reject) => send(n, (error) => (error ? reject(error) : resolve())))
          } else send(n)
        }
      },
      consume: (count) => sink.expect(count),
      send: (n) => send(n),
      receive: () => sink.inbox.take(),
      close() {
        if (side === 'b') process.disconnect()
      },
    }
  },
}
