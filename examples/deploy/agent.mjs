// An agent: repeats each order until the service has answered, even if the service is replaced in the meantime.

import { setTimeout as sleep } from 'node:timers/promises'

import { connect, harden, json } from 'ringfence'

harden()

const connected = () =>
  connect(process.env.ORDERS_SOCKET ?? '/run/orders/agent.sock', {
    capacity: 256 << 10,
    codec: json(),
    policy: JSON.parse(process.env.ORDERS_POLICY ?? '{}'),
    wait: true, // until the service listens
  })

let stopped = false
process.once('SIGTERM', () => (stopped = true))

let channel = await connected()
for (let order = 1; !stopped; order++) {
  for (let answer; answer === undefined;) {
    try {
      answer = await channel.call({ order }, { timeout: 5000 })
      console.log(`order ${answer.done} is done`)
    } catch (error) {
      console.error(error.message)
      await channel.close()
      channel = await connected()
    }
  }
  await sleep(1000)
}
await channel.close()
