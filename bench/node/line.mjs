// The line over which the sides of a run agree; nothing measured goes over it.

import readline from 'node:readline'

/** Messages that come before they are waited for are kept. */
function lineOf(write, subscribe) {
  const queue = []
  let waiting = null
  subscribe((message) => {
    if (waiting === null) queue.push(message)
    else {
      const resolve = waiting
      waiting = null
      resolve(message)
    }
  })
  return {
    send: write,
    receive: () =>
      queue.length > 0
        ? Promise.resolve(queue.shift())
        : new Promise((resolve) => {
            waiting = resolve
          }),
  }
}

export const lineOfStreams = (output, input) =>
  lineOf(
    (message) => output.write(`${JSON.stringify(message)}\n`),
    (put) => readline.createInterface({ input }).on('line', (text) => put(JSON.parse(text))),
  )

export const lineOfPort = (port) =>
  lineOf(
    (message) => port.postMessage(message),
    (put) => port.on('message', put),
  )
