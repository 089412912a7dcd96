// The counter: adds the numbers that it gets, and answers once that is written down. Started by counter.mjs.

import { openSync, readSync, writeSync } from 'node:fs'

import { member } from 'ringfence'

const [address, file] = process.argv.slice(2)

// Waits where two are there already: the one before this, and the client.
const membership = await member(address, { wait: true, capacity: 1 << 16 })
console.log(membership.role)

let leaving = false
process.on('SIGTERM', () => {
  // From here on the book is the next one's.
  leaving = true
  void membership.close()
})

// The state that its predecessor has left. It is gone, or this process would not have its place.
const book = openSync(file, 'r+')
const words = new BigUint64Array(2)
readSync(book, words, 0, words.byteLength, 0)
let [count, last] = words

for await (const channel of membership) {
  try {
    for await (const message of channel) {
      if (leaving) break
      const [number, addend] = message.toString().split(' ').map(BigInt)
      // The client says again what was not answered; what is in the book is not added twice.
      if (number > last) {
        count += addend
        last = number
        words.set([count, last])
        writeSync(book, words, 0, words.byteLength, 0)
      }
      await channel.send(`${number} ${count}`)
    }
  } catch {
    // This process leaves, or the client has gone: what was not answered will be said again.
  }
}
