// Two threads of one process and a MessagePort: cloned when small, transferred and handed back when large.

import { Credit, Sink } from '../frames.mjs'
import { Reader, add, fill, neverPolls } from '../work.mjs'

const TRANSFER = 65_536

export const messagePort = {
  id: 'message-port',
  version: 'node:worker_threads',
  note: 'two threads of one process; cloned below 64 KiB, from there on the memory is transferred and handed back',
  threads: true,
  takes: neverPolls,
  async open({ job, port }) {
    const sink = new Sink(add)
    const reader = new Reader()
    const { size } = job
    const transfers = size >= TRANSFER
    const credit = new Credit(Math.min(1024, Math.floor((4 << 20) / size)), (taken) => port.postMessage(taken))
    const spare = []
    port.on('message', (what) => {
      if (typeof what === 'number') credit.grant(what)
      else if (what instanceof ArrayBuffer) {
        spare.push(what)
        credit.grant(1)
      } else {
        const sum = reader.sum(what, 0, what.length)
        if (transfers) port.postMessage(what.buffer, [what.buffer])
        else credit.took()
        sink.put(sum)
      }
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
  },
}
