// A service, and clients that it tells apart by their messages.

import { connect, listen } from 'ringfence'

const [role, address, count] = process.argv.slice(2)

if (role === 'service') {
  const listener = await listen(address)
  let left = Number(count)
  for await (const channel of listener) {
    for await (const message of channel) await channel.send(`${message}, heard`)
    await channel.close({ linger: 5000 })
    if (--left === 0) break
  }
  await listener.close()
} else {
  const channel = await connect(address, { wait: true })
  await channel.send(role)
  await channel.end()
  const answer = String(await channel.receive())
  if (answer !== `${role}, heard`) throw new Error(`${role} got ${answer}`)
  await channel.close()
}
