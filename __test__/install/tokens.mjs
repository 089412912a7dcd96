// Two processes that exchange tokens, and confirm them before they close: a token does not outlive the channel.

import { join } from 'ringfence'

const [mine, address] = process.argv.slice(2)
const channel = await join(address, { signal: AbortSignal.timeout(60_000) })
channel.sendToken(BigInt(mine))
for await (const token of channel.tokens()) {
  await channel.send(String(token))
  break
}
const heard = String(await channel.receive())
if (heard !== mine) throw new Error(`${mine} was sent, and ${heard} has come`)
await channel.close({ linger: 5000 })
