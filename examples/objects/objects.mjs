// A parent and its child exchange values: see README.md.

import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { fromParent, json, spawn, structured } from 'ringfence'

/** A custom codec: a temperature in two bytes. */
const tenths = {
  encode(celsius) {
    const bytes = Buffer.alloc(2)
    bytes.writeInt16LE(Math.round(celsius * 10))
    return bytes
  },
  decode: (bytes) => bytes.readInt16LE() / 10,
}

await (process.argv[2] === 'child' ? child() : parent())

async function parent() {
  const self = fileURLToPath(import.meta.url)
  const started = await spawn(process.execPath, [self, 'child'], { spawn: { stdio: 'inherit' } })
  const { channel } = started
  const exited = once(started.child, 'exit')

  // One channel, with a codec for each kind of message. Both sides know the order of the kinds.
  const orders = channel.with(json())
  await orders.send({ id: 1, what: 'apples', count: 3 })
  console.log('json:', await orders.receive())

  const values = channel.with(structured())
  await values.send(new Map([['seen', new Set([1n, 2n])]]))
  console.log('structured:', await values.receive())

  const temperatures = channel.with(tenths)
  for (const celsius of [21.5, -3.2]) await temperatures.send(celsius)
  console.log('a custom codec:', await temperatures.receive(), await temperatures.receive())

  // Invalid JSON fails one call, and the next call continues.
  await channel.send('{"id": 2,')
  await orders.send({ id: 3 })
  console.log(String(await channel.receive()))
  console.log('json:', await orders.receive())

  await channel.end()
  const [code] = await exited
  console.log(`the channel is ${(await channel.closed).reason}, and the child has exited with ${code}`)
}

async function child() {
  const channel = await fromParent()
  const orders = channel.with(json())
  const order = await orders.receive()
  await orders.send({ ...order, done: true })

  const values = channel.with(structured())
  await values.send(await values.receive())

  const temperatures = channel.with(tenths)
  for (let count = 0; count < 2; count += 1) await temperatures.send((await temperatures.receive()) + 1)

  await orders.receive().catch((error) => channel.send(`${error.code}: ${error.bytes}`))
  for await (const next of orders) await orders.send({ ...next, done: true })
}
