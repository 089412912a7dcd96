// The same as a transport that pino loads by its name into a thread of its own. Lines that that thread has not taken yet are lost with
// the process: prefer destination.mjs.
//
//     pino({ transport: { target: '/…/transport.mjs', options: { address: '/run/logs/collector.sock' } } })

import { once } from 'node:events'

import build from 'pino-abstract-transport'

import { ringDestination } from './destination.mjs'

/** Those of a destination that can be handed to a thread. */
const OPTIONS = new Set(['address', 'patience', 'capacity', 'maxMessageSize', 'policy', 'handshakeTimeout', 'wait'])

export default async function transport(options) {
  // pino adds some of its own to those that the program gives.
  const known = Object.entries(options).filter(([name]) => OPTIONS.has(name))
  const ring = await ringDestination(Object.fromEntries(known))
  const write = async (source) => {
    for await (const line of source) ring.write(`${line}\n`)
  }
  const close = async () => {
    ring.end()
    await once(ring, 'close')
  }
  // The thread hands over bytes in pieces: they are cut into lines, so that each is one message. A stage before this one may write
  // any text: a line that is not JSON would be dropped if it was parsed.
  const asItIs = {}
  return build(write, { parse: 'lines', parseLine: () => asItIs, close })
}
