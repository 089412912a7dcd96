// Values instead of bytes: typed channels beside what sends values in Node by itself.

import { once } from 'node:events'
import net from 'node:net'

import { maker, reader } from '../objects/values.mjs'
import { Sink } from '../frames.mjs'
import { add } from '../work.mjs'

const ringfence = await import('ringfence').catch(() => null)
const why = ringfence === null ? 'ringfence is not built' : null

/** Bytes under way before the sender waits: each queues without limit otherwise. */
const WINDOW = 256 * 1024
const everyOf = (size) => Math.max(1, Math.floor(WINDOW / size))

/** About as many messages as half a ring holds would warm JSON up for seconds. */
const first = 500

async function typed({ job }, codec) {
  const { join, json, structured } = ringfence
  const channel = await join(`@${job.tag}`, { capacity: Math.max(job.capacity, 8 * job.size) })
  const values = channel.with(codec === 'json' ? json() : structured())
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

async function lines({ side, job, line }) {
  let socket
  if (side === 'a') {
    const server = net.createServer()
    server.listen(`\0${job.tag}`)
    await once(server, 'listening')
    line.send('listening')
    ;[socket] = await once(server, 'connection')
    server.close()
  } else {
    await line.receive()
    socket = net.connect(`\0${job.tag}`)
    await once(socket, 'connect')
  }
  socket.setEncoding('utf8')
  const make = maker(job.size)
  const read = reader(job.size)
  const sink = new Sink(add)
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

async function forked({ side, job, child }) {
  const port = side === 'a' ? child : process
  const make = maker(job.size)
  const read = reader(job.size)
  const sink = new Sink(add)
  port.on('message', (value) => sink.put(read(value)))
  const every = Math.min(256, everyOf(job.size))
  return {
    first,
    async produce(count) {
      for (let n = 0; n < count; n++) {
        if (n % every === every - 1 || n === count - 1) {
          await new Promise((resolve, reject) => {
            port.send(make(n), (error) => (error ? reject(error) : resolve()))
          })
        } else port.send(make(n))
      }
    },
    consume: (count) => sink.expect(count),
    close() {
      if (side === 'b') process.disconnect()
    },
  }
}

async function ported({ job, port }) {
  const make = maker(job.size)
  const read = reader(job.size)
  const sink = new Sink(add)
  const window = Math.max(2, Math.min(1024, everyOf(job.size)))
  let credit = window
  let taken = 0
  let wake = null
  port.on('message', (value) => {
    if (typeof value === 'number') {
      credit += value
      wake?.()
      wake = null
      return
    }
    if (++taken === window >> 1) {
      port.postMessage(taken)
      taken = 0
    }
    sink.put(read(value))
  })
  return {
    first,
    async produce(count) {
      for (let n = 0; n < count; n++) {
        while (credit === 0) {
          await new Promise((resolve) => {
            wake = resolve
          })
        }
        credit--
        port.postMessage(make(n))
      }
    },
    consume: (count) => sink.expect(count),
    close: () => port.close(),
  }
}

const takes = () => null
const contender = (id, version, note, open, more = {}) => ({ id, version, note, takes, open, ...more })

export const objects = [
  contender('with-json', 'this tree', 'with(json()): send, read by for await', (setup) => typed(setup, 'json'), {
    unavailable: why,
  }),
  contender(
    'with-structured',
    'this tree',
    'with(structured()): send, read by for await',
    (setup) => typed(setup, 'structured'),
    { unavailable: why },
  ),
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
