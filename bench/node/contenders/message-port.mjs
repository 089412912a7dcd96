// A MessagePort between two threads of one process: small messages are cloned, large ones transferred and returned.

import { Credit, Sink } from '../frames.mjs'
import { Reader, fill, neverPolls } from '../work.mjs'

const TRANSFER = 65_536

/**
 * Both ends of a port with at most `window` messages in flight. `make(n, memory)` returns a message, in `memory` if some was
 * returned. `transfers`: the message's memory is transferred to the reader and returned.
 */
export function portedPair({ port }, { make, read, window, transfers = false }) {
  const sink = new Sink()
  const credit = new Credit(Math.min(1024, window), (taken) => port.postMessage(taken))
  const spare = []
  port.on('message', (what) => {
    if (typeof what === 'number') credit.grant(what)
    else if (what instanceof ArrayBuffer) {
      spare.push(what)
      credit.grant(1)
    } else {
      const sum = read(what)
      if (transfers) port.postMessage(what.buffer, [what.buffer])
      else credit.took()
      sink.put(sum)
    }
  })
  const send = (n) => {
    const what = make(n, spare.pop())
    port.postMessage(what, transfers ? [what.buffer] : undefined)
  }
  return {
    async produce(count) {
      for (let n = 0; n < count; n++) {
        if (credit.left === 0) await credit.some()
        credit.left--
        send(n)
      }
    },
    consume: (count) => sink.expect(count),
    send,
    receive: () => sink.inbox.take(),
    close: () => port.close(),
  }
}

export const messagePort = {
  id: 'message-port',
  version: 'node:worker_threads',
  note: 'two threads of one process; cloned below 64 KiB, from there on the memory is transferred and handed back',
  threads: true,
  takes: neverPolls,
  async open(setup) {
    const { size } = setup.job
    const reader = new Reader()
    const read = (what) => reader.sum(what, 0, what.length)
    const window = Math.floor((4 << 20) / size)
    const words = new Float64Array(size / 8)
    const bytes = new Uint8Array(words.buffer)
    const copied = (n) => {
      fill(words, 0, words.length, n)
      return bytes
    }
    const handed = (n, memory = new ArrayBuffer(size)) => {
      fill(new Float64Array(memory), 0, size / 8, n)
      return new Uint8Array(memory)
    }
    const transfers = size >= TRANSFER
    return portedPair(setup, { make: transfers ? handed : copied, read, window, transfers })
  },
}
