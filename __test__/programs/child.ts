// A parent gives its child two jobs.

import { fromParent, spawn } from 'ringfence'

const [, program, , role = 'parent'] = process.argv

if (role === 'parent') {
  const { child, channel } = await spawn(process.execPath, [program!, '', 'child'], { spawn: { stdio: 'inherit' } })
  for (const job of ['sweep', 'mop']) {
    await channel.send(job)
    console.log(`${await channel.receive()}`)
  }
  await channel.end()
  if ((await channel.receive()) !== undefined) throw new Error('the child has more to say')
  const { reason } = await channel.closed
  console.log(
    `the channel has ended: ${reason}, and the peer was ${channel.peer.pid === child.pid ? 'the child' : 'not'}`,
  )
} else {
  const channel = await fromParent()
  for await (const job of channel) await channel.send(`done: ${job}`)
}
