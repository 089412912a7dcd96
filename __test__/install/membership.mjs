// Members of an address that follow each other: each that has been the host of one partner leaves, and that partner is
// the host from then on. How many there have been is passed on, so that the last one knows that it is the last.

import { member } from 'ringfence'

const [address, total] = process.argv.slice(2)
const membership = await member(address, { wait: true })

let number = 1
for await (const channel of membership) {
  if (channel.role === 'guest') {
    number = Number(await channel.receive()) + 1
    // The one that gets this leaves at once, and may be gone before this side has its answer.
    await channel.send('heard').catch(() => {})
    if (number < Number(total)) continue
  } else {
    await channel.send(String(number))
    const answer = String(await channel.receive())
    if (answer !== 'heard') throw new Error(`number ${number} got ${answer}`)
  }
  await membership.close()
  break
}
