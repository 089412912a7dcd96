// The limit of a sender in JavaScript: it fills a message and copies it once, and nobody reads it.

import { fill, message } from '../work.mjs'

/** As many targets as a ring holds messages. */
const SLOTS = 4

export const copy = {
  id: 'copy',
  version: 'JavaScript',
  note: 'limit: one thread fills each message and copies it to one of four buffers; nothing is read',
  threads: true,
  takes: (measure) => (measure === 'one' ? null : 'one-way only'),
  async open({ job, port }) {
    const { words, bytes } = message(job.size)
    const slots = Array.from({ length: SLOTS }, () => Buffer.allocUnsafeSlow(job.size))
    return {
      expected: () => 0,
      async produce(count) {
        for (let n = 0; n < count; n++) {
          fill(words, 0, words.length, n)
          slots[n % SLOTS].set(bytes)
        }
        port.postMessage('done')
      },
      consume: () => new Promise((resolve) => port.once('message', () => resolve(0))),
      close: () => port.close(),
    }
  },
}
