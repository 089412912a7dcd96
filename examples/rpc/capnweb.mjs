// capnweb over a channel, by a transport of its own: a peer that is gone rejects every call that is pending, and a call that is sent waits for room.

import { RpcSession } from 'capnweb'

export { RpcTarget } from 'capnweb'

/** The interface that capnweb expects of a line. */
class ChannelTransport {
  #channel

  constructor(channel) {
    this.#channel = channel
  }

  send(message) {
    return this.#channel.send(message)
  }

  async receive() {
    const message = await this.#channel.receive()
    if (message === undefined) throw new Error('the peer has gone')
    return message.toString()
  }

  /** The last message says why; it has a moment to get through. */
  abort() {
    void this.#channel.close({ linger: 1000 })
  }
}

/** The other side's main object. `main`: this side's, an RpcTarget. */
export function capnweb(channel, main) {
  const remote = new RpcSession(new ChannelTransport(channel), main).getRemoteMain()
  return { remote, close: () => channel.close({ linger: 1000 }) }
}
