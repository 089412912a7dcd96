// Members of an address that replace each other. Each host leaves after one partner, which then becomes the host. They pass on
// the number of members so far, so that the last one knows that it is the last.

import { member } from 'ringfence'

const [address, total] = process.argv.slice(2)
const membership = await member(address, { wait: true })

let number = 1
for await (const channel of membership) {
  if (channel.role === 'guest') {
    number = Number(await channel.receive()) + 1
    // The receiver leaves at once, and may be gone before this side has its answer.
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
