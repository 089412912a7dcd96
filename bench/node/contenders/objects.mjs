// Values instead of bytes: channels with codecs, and Node's own ways to send values.

import { once } from 'node:events'

import { maker, reader } from '../objects/values.mjs'
import { Sink } from '../frames.mjs'
import { add } from '../work.mjs'
import { forkedPair } from './child-process.mjs'
import { contender, own, ringfence } from './contender.mjs'
import { portedPair } from './message-port.mjs'
import { socketPair } from './unix.mjs'

/** Bytes in flight before the sender waits. Otherwise each way queues without limit. */
const WINDOW = 256 * 1024
const everyOf = (size) => Math.max(1, Math.floor(WINDOW / size))

/** Fewer warm-up messages than half a ring holds, which would take JSON seconds. */
const first = 500

async function typed({ job }, codec) {
  const channel = await ringfence.join(`@${job.tag}`, { capacity: Math.max(job.capacity, 8 * job.size) })
  const values = channel.with(codec())
  const make = maker(job.size)
  const read = reader(job.size)
  const every = everyOf(job.size)
  return {
    first,
    async produce(count) {
      let sent
      for (let n = 0; n < count; n++) {
        sent = values.send(make(n))
        if (n % every === every - 1) await sent
      }
      await sent
    },
    async consume(count) {
      let total = 0
      let n = 0
      for await (const value of values) {
        total = add(total, read(value))
        if (++n === count) break
      }
      return total
    },
    close: () => channel.close(),
  }
}

async function lines(setup) {
  const { job } = setup
  const socket = await socketPair(setup)
  socket.setEncoding('utf8')
  const make = maker(job.size)
  const read = reader(job.size)
  const sink = new Sink()
  let rest = ''
  socket.on('data', (chunk) => {
    let from = 0
    for (let to; (to = chunk.indexOf('\n', from)) >= 0; from = to + 1) {
      const text = rest === '' ? chunk.slice(from, to) : rest + chunk.slice(from, to)
      rest = ''
      sink.put(read(JSON.parse(text)))
    }
    rest += chunk.slice(from)
  })
  return {
    first,
    async produce(count) {
      for (let n = 0; n < count; n++) if (!socket.write(`${JSON.stringify(make(n))}\n`)) await once(socket, 'drain')
    },
    consume: (count) => sink.expect(count),
    close: () => socket.destroy(),
  }
}

function forked(setup) {
  const { size } = setup.job
  const window = Math.min(256, everyOf(size))
  return { first, ...forkedPair(setup, { make: maker(size), read: reader(size), window }) }
}

function ported(setup) {
  const { size } = setup.job
  return { first, ...portedPair(setup, { make: maker(size), read: reader(size), window: everyOf(size) }) }
}

export const objects = [
  own('with-json', 'with(json()): send, read by for await', (setup) => typed(setup, ringfence.json)),
  own('with-structured', 'with(structured()): send, read by for await', (setup) => typed(setup, ringfence.structured)),
  contender('unix-json', 'node:net', 'a line of JSON each, over a Unix socket', lines),
  contender('child-json', 'node:child_process', "the channel of fork(), serialization 'json'", forked, {
    ipc: 'json',
  }),
  contender('child-advanced', 'node:child_process', "the channel of fork(), serialization 'advanced'", forked, {
    ipc: 'advanced',
  }),
  contender('port-structured', 'node:worker_threads', 'MessagePort, two threads of one process', ported, {
    threads: true,
  }),
]
