// Writes orders to its parent, one message each: `orders.mjs channel | pipe | websocket COUNT [SOCKET]`.
// `orders.mjs echo` sends back what it receives.

import { once } from 'node:events'
import { setImmediate } from 'node:timers/promises'

const [way, count, path] = process.argv.slice(2)

const order = (id) => ({ id, symbol: 'RFNC', side: id & 1 ? 'buy' : 'sell', quantity: id % 1000, price: 100.25 })

const ways = {
  async channel() {
    const { fromParent, json } = await import('ringfence')
    const channel = await fromParent({ codec: json() })
    for (let id = 0; id < count; id++) if (!channel.trySend(order(id))) await channel.send(order(id))
    await channel.close({ linger: 60_000 })
  },
  async echo() {
    const { fromParent, json } = await import('ringfence')
    const channel = await fromParent({ codec: json() })
    for await (const message of channel) await channel.send(message)
  },
  async pipe() {
    for (let id = 0; id < count; id++) {
      if (!process.stdout.write(`${JSON.stringify(order(id))}\n`)) await once(process.stdout, 'drain')
    }
  },
  async websocket() {
    const { WebSocket } = await import('ws')
    const socket = new WebSocket(`ws+unix:${path}:/`)
    await once(socket, 'open')
    for (let id = 0; id < count; id++) {
      socket.send(JSON.stringify(order(id)))
      if (socket.bufferedAmount > 1 << 20) await setImmediate()
    }
    socket.close()
  },
}

await ways[way]()
