// The other end of a service's channel, on the service's host: forwards its messages to a NATS server, and delivers to it
// the messages of the other host's bridge.
//
//     node bridge.mjs ADDRESS HERE THERE SERVER        HERE and THERE: names of the two hosts

import { connect, headers } from '@nats-io/transport-node'
import { join } from 'ringfence'

const [address, here, there, server] = process.argv.slice(2)
/** After this number of messages the bridge waits until the server has them, since NATS has no backpressure for publishers. */
const UNTIL_FLUSH = 64

const nats = await connect({ servers: server })
const incoming = nats.subscribe(`ringfence.${here}`)
nats.subscribe(`ringfence.${here}.there`, { callback: (_, question) => question.respond() })
// The server has both subscriptions now, so later messages to this host arrive.
await nats.flush()

// A message without a subscriber is lost, so publish nothing before the other bridge answers.
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
