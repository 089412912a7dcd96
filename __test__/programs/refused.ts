// A service refuses one agent and loses another, and goes on.

import { spawn } from 'node:child_process'
import { once } from 'node:events'

import { connect, listen, RingfenceError } from 'ringfence'

const [, program, address, role = 'service'] = process.argv
const start = (name: string) =>
  spawn(process.execPath, [program!, address!, name], { stdio: ['ignore', 'inherit', 'inherit'] })

if (role === 'service') {
  let refusing = true
  const listener = await listen(address!, { policy: { authorize: () => !refusing } })
  const refused = once(listener, 'refused')
  start('refused')
  const [{ code, check, identity }] = (await refused) as [RingfenceError]
  console.log(`the service refused process ${typeof identity?.pid}: ${code}, ${check}`)

  refusing = false
  const doomed = start('doomed')
  for await (const agent of listener) {
    console.log(`the agent says: ${await agent.receive()}`)
    doomed.kill('SIGKILL')
    try {
      for await (const message of agent) console.log(`not expected: ${message}`)
    } catch (error) {
      if (!(error instanceof RingfenceError)) throw error
      console.log(`the loop has failed: ${error.code}`)
    }
    const closed = await agent.closed
    console.log(`the channel has ended: ${closed.reason}, ${closed.error?.code}`)
    break
  }
  await listener.close()
} else {
  try {
    const channel = await connect(address!, { wait: true, timeout: 60_000 })
    await channel.send('I am here')
    await channel.closed
  } catch (error) {
    if (!(error instanceof RingfenceError)) throw error
    console.log(`${role}: ${error.code}, ${error.check ?? 'by the peer'}`)
  }
}
