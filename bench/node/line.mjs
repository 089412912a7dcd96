// The line over which the sides of a run agree; nothing measured goes over it. Messages that come before they are waited for are kept.

import readline from 'node:readline'

import { Inbox } from './frames.mjs'

export function lineOfStreams(output, input) {
  const inbox = new Inbox()
  readline.createInterface({ input }).on('line', (text) => inbox.put(JSON.parse(text)))
  return { send: (message) => output.write(`${JSON.stringify(message)}\n`), receive: () => inbox.take() }
}

export function lineOfPort(port) {
  const inbox = new Inbox()
  port.on('message', inbox.put)
  return { send: (message) => port.postMessage(message), receive: () => inbox.take() }
}
