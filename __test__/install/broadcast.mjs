// A publisher and its subscribers. One of those may have another runtime, so the policy does not check the executable.

import { json, publish, subscribe } from 'ringfence'

const [role, address, number] = process.argv.slice(2)
const options = { policy: { executable: 'any' }, signal: AbortSignal.timeout(60_000) }
/** More than the ring holds, so that the publisher has to wait for room. */
const COUNT = 3000
const made = (count) => ({ count, text: 'x'.repeat((37 * count) % 1000) })

if (role === 'publisher') {
  const publisher = await publish(address, { ...options, capacity: 1 << 16 })
  const typed = publisher.with(json())
  await new Promise((resolve) => {
    publisher.on('connection', () => publisher.subscribers.length === Number(number) && resolve())
  })
  for (let count = 1; count <= COUNT; count += 1) await typed.send(made(count))
  await publisher.end()
  const { reason } = await publisher.closed
  if (reason !== 'closed') throw new Error(`the publisher was closed as ${reason}`)
} else {
  const subscription = await subscribe(address, { ...options, wait: true })
  let count = 0
  for await (const value of subscription.with(json())) {
    count += 1
    if (JSON.stringify(value) !== JSON.stringify(made(count))) throw new Error(`message ${count} is another`)
  }
  if (count !== COUNT || subscription.lost !== 0n) throw new Error(`${count} have come, ${subscription.lost} are lost`)
}
