// birpc over a channel: calls both ways, by functions of either side.

import { createBirpc } from 'birpc'

/**
 * Returns the other side's functions. `timeout`: milliseconds for a call. At the end of the channel, birpc's `$close` rejects every pending
 * call.
 */
export function birpc(channel, functions, { timeout = 60_000, codec } = {}) {
  const port = (codec === undefined ? channel : channel.with(codec)).port()
  const remote = createBirpc(functions, {
    post: (message) => port.postMessage(message),
    on: (listener) => port.on('message', listener),
    off: (listener) => port.off('message', listener),
    timeout,
  })
  port.on('close', () => remote.$close(new Error('the peer has gone')))
  return { remote, close: () => port.close() }
}
