// One that is killed in the moment after its send: the other has what was sent, and then the end.

import { join } from 'ringfence'

const [side, address] = process.argv.slice(2)
const channel = await join(address, { signal: AbortSignal.timeout(60_000) })
if (side === 'killed') {
  // Before it the handshake of the other may not be over.
  await channel.receive()
  await channel.send('the last')
  process.kill(process.pid, 'SIGKILL')
} else {
  await channel.send('here')
  const heard = []
  for await (const message of channel) heard.push(String(message))
  if (heard.join() !== 'the last') throw new Error(`it got ${heard}`)
  const reason = await channel.closed
  if (reason !== 'exited') throw new Error(`the peer that was killed is told as ${reason}`)
}
