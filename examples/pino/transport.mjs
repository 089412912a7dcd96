// The destination as a transport, which pino loads into a thread. Lines that the thread has not received yet are lost with
// the process: prefer destination.mjs.
//
//     pino({ transport: { target: '/…/transport.mjs', options: { address: '/run/logs/collector.sock' } } })

import { once } from 'node:events'

import build from 'pino-abstract-transport'

import { ringDestination } from './destination.mjs'

/** The options of a destination that can be passed to a thread. */
const OPTIONS = new Set(['address', 'patience', 'capacity', 'maxMessageSize', 'policy', 'handshakeTimeout', 'wait'])

export default async function transport(options) {
  // pino adds its own options to those of the program.
  const known = Object.entries(options).filter(([name]) => OPTIONS.has(name))
  const ring = await ringDestination(Object.fromEntries(known))
  const write = async (source) => {
    for await (const line of source) ring.write(`${line}\n`)
  }
  const close = async () => {
    ring.end()
    await once(ring, 'close')
  }
  // The thread passes bytes in pieces, which are split into lines, so that each line is one message. An earlier stage may write
  // any text: a line that is not JSON would be dropped if it was parsed.
  const asItIs = {}
  return build(write, { parse: 'lines', parseLine: () => asItIs, close })
}
