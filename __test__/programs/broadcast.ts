// A publisher sends each message to two subscribers.

import { spawn } from 'node:child_process'
import { once } from 'node:events'

import { publish, subscribe } from 'ringfence'

const [, program, address, role = 'publisher'] = process.argv

if (role === 'publisher') {
  const publisher = await publish(address!)
  for (const name of ['one', 'two']) spawn(process.execPath, [program!, address!, name], { stdio: 'inherit' })
  while (publisher.subscribers.length < 2) await once(publisher, 'connection')
  for (const price of [101, 102, 103]) await publisher.send(`price ${price}`)
  await publisher.end()
  const { reason } = await publisher.closed
  console.log(`${publisher.stats().messagesSent} messages were published: ${reason}`)
} else {
  const subscription = await subscribe(address!, { wait: true, timeout: 60_000 })
  const prices: string[] = []
  for await (const message of subscription) prices.push(String(message))
  console.log(`${role}: ${prices.join(', ')}`)
  await subscription.close()
}
