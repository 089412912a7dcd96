// The counter: adds the numbers that it receives, and answers once the sum is stored. Started by counter.mjs.

import { openSync, readSync, writeSync } from 'node:fs'

import { member } from 'ringfence'

const [address, file] = process.argv.slice(2)

// Waits while the previous counter and the client hold the address.
const membership = await member(address, { wait: true, capacity: 1 << 16 })
console.log(membership.role)

let leaving = false
process.on('SIGTERM', () => {
  // From here on, the file belongs to the next counter.
  leaving = true
  void membership.close()
})

// The state of its predecessor, which has exited: otherwise this process would not have its place.
const book = openSync(file, 'r+')
const words = new BigUint64Array(2)
readSync(book, words, 0, words.byteLength, 0)
let [count, last] = words

for await (const channel of membership) {
  try {
    for await (const message of channel) {
      if (leaving) break
      const [number, addend] = message.toString().split(' ').map(BigInt)
      // The client repeats unanswered additions. Additions that are stored already are not added twice.
      if (number > last) {
        count += addend
        last = number
        words.set([count, last])
        writeSync(book, words, 0, words.byteLength, 0)
      }
      await channel.send(`${number} ${count}`)
    }
  } catch {
    // This process leaves, or the client has exited. Unanswered additions will be repeated.
  }
}
