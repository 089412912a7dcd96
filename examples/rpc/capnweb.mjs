// capnweb over a channel, with a custom transport: the loss of the peer rejects every pending call, and a call waits for room in the ring.

import { RpcSession } from 'capnweb'

export { RpcTarget } from 'capnweb'

/** The transport interface of capnweb. */
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

  /** The last message has the reason, and a moment to be sent. */
  abort() {
    void this.#channel.close({ linger: 1000 })
  }
}

/** Returns the other side's main object. `main`: this side's, an RpcTarget. */
export function capnweb(channel, main) {
  const remote = new RpcSession(new ChannelTransport(channel), main).getRemoteMain()
  return { remote, close: () => channel.close({ linger: 1000 }) }
}
