// The other end of a service's channel, on the service's own host: carries its messages to a NATS server, and to it
// what the bridge of the other host has carried there.
//
//     node bridge.mjs ADDRESS HERE THERE SERVER        HERE and THERE: names of the two hosts

import { connect, headers } from '@nats-io/transport-node'
import { join } from 'ringfence'

const [address, here, there, server] = process.argv.slice(2)
/** After this many messages the bridge waits until the server has them: NATS itself asks no publisher to wait. */
const UNTIL_FLUSH = 64

const nats = await connect({ servers: server })
const incoming = nats.subscribe(`ringfence.${here}`)
nats.subscribe(`ringfence.${here}.there`, { callback: (_, question) => question.respond() })
// Now the server knows of both: what is sent to this host from here on comes.
await nats.flush()

// What is published without a subscriber is lost, so nothing is before the other bridge answers.
for (;;) {
  const answer = await nats.request(`ringfence.${there}.there`, '', { timeout: 1000 }).catch(() => null)
  if (answer !== null) break
  await new Promise((resolve) => setTimeout(resolve, 100))
}

// If a message is too long for the server, `send` fails in the service itself. One direction may end before the other: answers of
// the other host are still delivered.
const channel = await join(address, { maxMessageSize: nats.info.max_payload, allowHalfOpen: true })

async function carryAway() {
  let number = 0
  for await (const message of channel) {
    nats.publish(`ringfence.${there}`, message)
    number += 1
    if (number % UNTIL_FLUSH === 0) await nats.flush()
  }
  const end = headers()
  end.set('ringfence', 'end')
  nats.publish(`ringfence.${there}`, '', { headers: end })
  await nats.flush()
}

async function bringHome() {
  for await (const { data, headers: head } of incoming) {
    if (head?.get('ringfence') === 'end') break
    await channel.send(data)
  }
  await channel.end()
}

await Promise.all([carryAway(), bringHome()])
await channel.closed
await nats.close()
