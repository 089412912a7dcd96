// A subscriber of the ticker: `node subscriber.mjs ADDRESS PUBLISHER DELIVERY`. Checks each tick, and reports to its parent.

import { subscribe } from 'ringfence'

const [, , address, publisher, delivery] = process.argv
const subscription = await subscribe(address, { delivery, policy: { executable: publisher }, wait: true })
let read = 0
let started = 0
const report = (more) =>
  process.send({
    read,
    lost: subscription.lost,
    sequence: subscription.sequence,
    seconds: read === 0 ? 0 : (performance.now() - started) / 1000,
    ...more,
  })
const timer = setInterval(report, 50)

for await (const tick of subscription) {
  if (read === 0) started = performance.now()
  read += 1
  let sum = 0n
  for (let at = 0; at < 32; at += 8) sum += tick.readBigUInt64LE(at)
  if (BigInt.asUintN(64, sum) !== tick.readBigUInt64LE(32)) throw new Error(`tick ${read} is torn`)
  // Skipped messages are counted, and nothing else is missing.
  const number = tick.readBigUInt64LE()
  if (delivery === 'reliable' && number !== BigInt(read)) throw new Error(`tick ${read} is number ${number}`)
}
clearInterval(timer)
report({ reason: (await subscription.closed).reason })
await subscription.close()
process.disconnect()
