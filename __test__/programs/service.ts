// A service answers the requests of two agents.

import { spawn } from 'node:child_process'

import { connect, json, listen } from 'ringfence'

interface Sum {
  numbers?: number[]
  sum?: number
}

const [, program, address, role = 'service'] = process.argv
const codec = json<Sum>()

if (role === 'service') {
  const listener = await listen(address!, { codec, maxPeers: 10 })
  listener.on('connection', async (agent) => {
    for await (const { numbers = [] } of agent) await agent.send({ sum: numbers.reduce((sum, next) => sum + next, 0) })
  })
  let left = 2
  listener.on('disconnect', (agent, { reason }) => {
    console.log(`an agent has disconnected: ${reason}`)
    left -= 1
    if (left === 0) void listener.close({ channels: 'close' })
  })
  for (const numbers of ['1 2 3', '4 5 6'])
    spawn(process.execPath, [program!, address!, 'agent', ...numbers.split(' ')], { stdio: 'inherit' })
  await listener.closed
  console.log(`${listener.stats().accepted} agents were served`)
} else {
  const numbers = process.argv.slice(4).map(Number)
  const channel = await connect(address!, { codec, wait: true, timeout: 60_000 })
  await channel.send({ numbers })
  const answer = await channel.receive()
  console.log(`${numbers.join(' + ')} = ${answer?.sum}`)
  await channel.close()
}
