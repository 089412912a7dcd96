// A subscriber of broadcast.mjs: `node reader.mjs ADDRESS`. Reads, checks that no message is missing, and reports to its parent.

import { subscribe } from 'ringfence'

const subscription = await subscribe(process.argv[2], { handshakeTimeout: 10_000 })
let read = 0
let started = 0
let last = 0
const report = (more) => process.send({ read, lost: subscription.lost, seconds: (last - started) / 1000, ...more })
const timer = setInterval(report, 50)

try {
  for await (const message of subscription) {
    last = performance.now()
    if (read === 0) started = last
    read += 1
    const number = message.readBigUInt64LE()
    if (number !== BigInt(read)) throw new Error(`message ${read} is number ${number}`)
  }
} catch (error) {
  // Reported as the reason below.
  if (error.code !== 'ERR_RINGFENCE_EVICTED') throw error
}
clearInterval(timer)
report({ reason: (await subscription.closed).reason })
await subscription.close()
process.disconnect()
