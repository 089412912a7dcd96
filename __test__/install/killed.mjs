// A process that is killed right after its send: the other one gets the message, and then PEER_LOST.

import { join } from 'ringfence'

const [side, address] = process.argv.slice(2)
const channel = await join(address, { signal: AbortSignal.timeout(60_000) })
if (side === 'killed') {
  // Until then, the handshake may not be complete on the other side.
  await channel.receive()
  await channel.send('the last')
  process.kill(process.pid, 'SIGKILL')
} else {
  await channel.send('here')
  const heard = []
  try {
    for await (const message of channel) heard.push(String(message))
    throw new Error('the end is told as a clean one')
  } catch (error) {
    if (error.code !== 'ERR_RINGFENCE_PEER_LOST') throw error
  }
  if (heard.join() !== 'the last') throw new Error(`it got ${heard}`)
  const { reason } = await channel.closed
  if (reason !== 'lost') throw new Error(`the peer that was killed is told as ${reason}`)
}
