// Calls by three libraries, each over three transports. `size` is the number of concurrent calls.

import { createBirpc } from 'birpc'
import { RpcSession, RpcTarget, newMessagePortRpcSession } from 'capnweb'
import * as comlink from 'comlink'

import { Inbox, Sink } from '../frames.mjs'
import { pause } from '../usage.mjs'
import { expectedSum, messageSum } from '../work.mjs'
import { contender, ringfence } from './contender.mjs'

/** Milliseconds for which a side blocks, and bytes of each call that it gets in that time. */
const STALL = 1500
export const STALLED_SIZE = 16_384

/** The service of the other side: takes a number, returns the next one, and sums up its arguments. */
class Counter extends RpcTarget {
  #sink = new Sink()

  /** Blocks the thread and its event loop. */
  hold(milliseconds) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds)
    return milliseconds
  }

  measure(text) {
    return text.length
  }

  bump(n) {
    this.#sink.put(messageSum(8, n))
    return n + 1
  }

  expect(count) {
    return this.#sink.expect(count)
  }
}

/** A transport as birpc and comlink expect it: messages out, messages in. */
async function lineOver(transport, { side, job, child, port }) {
  if (transport === 'message-port') {
    return { post: (message) => port.postMessage(message), on: (hear) => port.on('message', hear), port }
  }
  if (transport === 'child-process') {
    const end = side === 'a' ? child : process
    return { post: (message) => end.send(message), on: (hear) => end.on('message', hear) }
  }
  const channel = await ringfence.join(`@${job.tag}`)
  const own = channel.port()
  return { post: (message) => own.postMessage(message), on: (hear) => own.on('message', hear), channel }
}

const servedBy = (counter) => ({
  bump: (n) => counter.bump(n),
  hold: (milliseconds) => counter.hold(milliseconds),
  measure: (text) => counter.measure(text),
})

function birpc(line, counter) {
  const functions = servedBy(counter)
  return createBirpc(functions, { post: line.post, on: line.on })
}

function overComlink(line, counter, side) {
  const endpoint = {
    postMessage: line.post,
    addEventListener: (_, hear) => line.on((data) => (hear.handleEvent ?? hear)({ data, origin: '' })),
    removeEventListener() {},
  }
  if (side === 'a') return comlink.wrap(endpoint)
  comlink.expose(servedBy(counter), endpoint)
  return null
}

/** capnweb sends text. */
class TextTransport {
  #line
  #inbox = new Inbox()

  constructor(line) {
    this.#line = line
    line.on(this.#inbox.put)
  }

  async send(text) {
    this.#line.post(text)
  }

  receive() {
    return this.#inbox.take()
  }
}

/** As in examples/rpc, without a port. */
class ChannelTransport {
  #channel

  constructor(channel) {
    this.#channel = channel
  }

  send(text) {
    return this.#channel.send(text)
  }

  async receive() {
    const message = await this.#channel.receive()
    if (message === undefined) throw new Error('the peer has gone')
    return message.toString()
  }
}

async function capnweb(transport, setup, counter) {
  if (transport === 'message-port') return newMessagePortRpcSession(setup.port, counter)
  const own =
    transport === 'ringfence'
      ? new ChannelTransport(await ringfence.join(`@${setup.job.tag}`))
      : new TextTransport(await lineOver(transport, setup))
  return new RpcSession(own, counter).getRemoteMain()
}

async function remoteOf(library, transport, setup, counter) {
  if (library === 'capnweb') return capnweb(transport, setup, counter)
  const line = await lineOver(transport, setup)
  return library === 'birpc' ? birpc(line, counter) : overComlink(line, counter, setup.side)
}

/** A contender's side. `connect(counter)` returns the remote object. */
export async function open(setup, connect) {
  const counter = new Counter()
  const remote = await connect(counter)
  return {
    first: 300,
    expected: (count) => expectedSum(8, count),
    async produce(count, record) {
      let next = 0
      const caller = async () => {
        while (next < count) {
          const n = next++
          const at = performance.now()
          const answer = await remote.bump(n)
          record((performance.now() - at) * 1e6)
          if (answer !== n + 1) throw new Error(`the answer to ${n} was ${answer}`)
        }
      }
      await Promise.all(Array.from({ length: setup.job.size }, caller))
    },
    /** Makes `count` calls to a blocked side. Returns the memory that they take in this process. Each is answered afterwards. */
    async stalled(count) {
      const text = 'x'.repeat(STALLED_SIZE)
      const held = remote.hold(STALL)
      await pause(STALL / 6)
      const before = process.memoryUsage.rss()
      const answers = Array.from({ length: count }, () => remote.measure(text))
      await pause(STALL / 2)
      const bytes = process.memoryUsage.rss() - before
      await held
      for (const answer of await Promise.all(answers))
        if (answer !== text.length) throw new Error(`an answer was ${answer}`)
      return bytes
    },
    consume: (count) => counter.expect(count),
    close() {},
  }
}

const TRANSPORTS = [
  ['ringfence', { unavailable: ringfence.why }],
  ['child-process', { ipc: 'advanced' }],
  ['message-port', { threads: true }],
]

export const rpc = ['comlink', 'birpc', 'capnweb'].flatMap((library) =>
  TRANSPORTS.map(([transport, more]) => {
    const connecting = (setup) => open(setup, (counter) => remoteOf(library, transport, setup, counter))
    const version = transport === 'ringfence' ? 'this tree' : 'node'
    return contender(`${library}/${transport}`, version, `${library} over ${transport}`, connecting, {
      times: true,
      ...more,
    })
  }),
)
