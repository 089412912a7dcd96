// The floor of `batches()`: a reader that gets a Buffer for each message, without a sender.

import { Reader, add, fill, message } from '../work.mjs'
import { contender } from './contender.mjs'

/** The fastest constructor of Buffers over existing memory. */
const View = Buffer[Symbol.species]
/** Messages with different content, and those of one block. */
const [CYCLE, BLOCK] = [0x10000, 1024]

/** Copies blocks of messages into new memory, makes a Buffer over each message, and reads them. */
function open({ job: { size } }) {
  const { words, bytes } = message(size * CYCLE)
  for (let n = 0; n < CYCLE; n++) fill(words, (n * size) / 8, size / 8, n)
  const reader = new Reader()
  return {
    blocks: true,
    produce() {},
    consume(count) {
      let total = 0
      for (let n = 0; n < count;) {
        const from = (n % CYCLE) * size
        const { buffer } = Buffer.allocUnsafeSlow(BLOCK * size).fill(bytes.subarray(from, from + BLOCK * size))
        const batch = []
        const end = Math.min(n + BLOCK, count)
        for (; n < end; n++) {
          batch.push(new View(buffer, (n % BLOCK) * size, size))
        }
        for (const one of batch) total = add(total, reader.sum(one, 0, size))
      }
      return total
    },
  }
}

export const buffers = contender(
  'buffers',
  'JavaScript',
  'limit: a reader alone copies blocks of 1,024 messages, makes a Buffer of each, and reads it',
  open,
)
