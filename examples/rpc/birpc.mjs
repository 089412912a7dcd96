// birpc over a channel: calls both ways, by functions of either side.

import { createBirpc } from 'birpc'

/**
 * The other side's functions. `timeout`: milliseconds that a call may take. birpc has a `$close` for a line that is cut: every call that
 * is pending rejects then.
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
