// The control line between the sides of a run, which carries no measured messages. Early messages are queued until a caller awaits them.

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
