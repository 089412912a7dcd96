// Redis publish/subscribe, with one topic for each direction.

import { neverPolls } from '../work.mjs'
import { absence, publication, server, subscription } from '../redis.mjs'

export const redis = {
  id: 'redis',
  version: 'redis-server on the PATH',
  note: 'publish/subscribe through a local server, Unix socket, pipelined; the server runs on either core',
  get unavailable() {
    return absence()
  },
  takes: neverPolls,
  async open({ side, job, line }) {
    let child
    let where
    if (side === 'a') {
      ;({ child, where } = await server(job))
      line.send(where)
    } else where = await line.receive()
    const [mine, theirs] = side === 'a' ? ['a', 'b'] : ['b', 'a']
    const incoming = await subscription(where, mine)
    const outgoing = await publication(where, theirs, job.size)
    // A message published before the other side has subscribed would be lost.
    line.send('subscribed')
    await line.receive()
    return {
      produce: outgoing.produce,
      consume: (count) => incoming.sink.expect(count),
      send: outgoing.send,
      receive: () => incoming.sink.inbox.take(),
      close() {
        incoming.close()
        outgoing.close()
        child?.kill()
      },
    }
  },
}
