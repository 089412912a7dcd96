// Two threads of one process and a MessagePort: cloned when small, transferred and handed back when large.

import { Sink } from '../frames.mjs'
import { Reader, add, fill } from '../work.mjs'

const TRANSFER = 65_536

export const messagePort = {
  id: 'message-port',
  version: 'node:worker_threads',
  note: 'two threads of one process; cloned below 64 KiB, from there on the memory is transferred and handed back',
  threads: true,
  takes: (measure) => (measure === 'rtt-polled' ? 'it does not poll' : null),
  async open({ job, port }) {
    const sink = new Sink(add)
    const reader = new Reader()
    const { size } = job
    const transfers = size >= TRANSFER
    // A port queues without limit: so many messages may be under way before the reader has told of half of them.
    const window = Math.max(2, Math.min(1024, Math.floor((4 << 20) / size)))
    const spare = []
    let credit = window
    let taken = 0
    let wake = null
    port.on('message', (what) => {
      if (typeof what === 'number') credit += what
      else if (what instanceof ArrayBuffer) {
        credit++
        spare.push(what)
      } else {
        const sum = reader.sum(what, 0, what.length)
        if (transfers) port.postMessage(what.buffer, [what.buffer])
        else if (++taken === window >> 1) {
          port.postMessage(taken)
          taken = 0
        }
        sink.put(sum)
        return
      }
      wake?.()
      wake = null
    })
    const words = new Float64Array(size / 8)
    const bytes = new Uint8Array(words.buffer)
    const send = (n) => {
      if (!transfers) {
        fill(words, 0, words.length, n)
        port.postMessage(bytes)
        return
      }
      const memory = spare.pop() ?? new ArrayBuffer(size)
      fill(new Float64Array(memory), 0, size / 8, n)
      port.postMessage(new Uint8Array(memory), [memory])
    }
    return {
      async produce(count) {
        for (let n = 0; n < count; n++) {
          while (credit === 0) {
            await new Promise((resolve) => {
              wake = resolve
            })
          }
          credit--
          send(n)
        }
      },
      consume: (count) => sink.expect(count),
      send,
      receive: () => sink.inbox.take(),
      close: () => port.close(),
    }
  },
}
