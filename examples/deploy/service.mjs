// A service whose agents call it. SIGTERM ends it without a lost order: each agent reconnects to the next instance.

import { harden, json, listen } from 'ringfence'

harden() // first, so that other processes of this user never have access to this one

const listener = await listen(process.env.ORDERS_SOCKET ?? '/run/orders/agent.sock', {
  capacity: 256 << 10,
  codec: json(),
  maxPeers: 100,
  mode: 0o660, // the directory decides who can connect
  policy: JSON.parse(process.env.ORDERS_POLICY ?? '{}'),
})
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => listener.close({ channels: 'close' }))
listener.on('refused', ({ message }) => console.error(`refused: ${message}`))

for await (const channel of listener) {
  console.log(`process ${channel.peer.pid} of user ${channel.peer.uid} connected`)
  channel.serve(({ order }) => ({ done: order })).catch((error) => console.error(error.message))
}
