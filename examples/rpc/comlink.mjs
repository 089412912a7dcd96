// comlink over a channel. comlink itself never settles the pending calls of a lost peer, and passes callbacks as ports, which no
// process can send to another. The endpoint here solves both.

import * as comlink from 'comlink'

/** One of several endpoints over one port: the main object's, and one for each callback. */
class Lane {
  #link
  #number
  #listeners = new Set()
  /** Pending calls, each with its timer. */
  #pending = new Map()

  constructor(link, number) {
    this.#link = link
    this.#number = number
  }

  addEventListener(_, listener) {
    this.#listeners.add(listener)
  }

  removeEventListener(_, listener) {
    this.#listeners.delete(listener)
  }

  postMessage(message) {
    // Only calls have a path.
    if (message.path !== undefined) this.#expect(message.id)
    this.#link.post({ lane: this.#number, message })
  }

  receive(message) {
    clearTimeout(this.#pending.get(message.id))
    this.#pending.delete(message.id)
    const listeners = [...this.#listeners]
    for (const listener of listeners) {
      const call = typeof listener === 'function' ? listener : listener.handleEvent.bind(listener)
      call({ data: message, origin: '' })
    }
  }

  #expect(id) {
    const timer = setTimeout(() => this.fail(id, 'TimeoutError', 'the call took too long'), this.#link.timeout)
    timer.unref()
    this.#pending.set(id, timer)
    if (this.#link.closed) queueMicrotask(() => this.failAll())
  }

  failAll() {
    for (const id of this.#pending.keys()) this.fail(id, 'Error', 'the peer has gone')
  }

  /** Answers instead of the peer, with an error in comlink's format. */
  fail(id, name, message) {
    if (!this.#pending.has(id)) return
    const value = { isError: true, value: { name, message, stack: new Error(message).stack } }
    this.receive({ id, type: 'HANDLER', name: 'throw', value })
  }
}

class Link {
  timeout
  closed = false
  #port
  #lanes = new Map()
  #next

  constructor(channel, timeout, codec) {
    this.timeout = timeout
    // Each side numbers the callbacks that it passes.
    this.#next = channel.role === 'host' ? 2 : 1
    this.#port = (codec === undefined ? channel : channel.with(codec)).port()
    this.#port.on('message', ({ lane, message }) => this.lane(lane).receive(message))
    this.#port.on('close', () => {
      this.closed = true
      for (const lane of this.#lanes.values()) lane.failAll()
    })
  }

  lane(number) {
    if (!this.#lanes.has(number)) this.#lanes.set(number, new Lane(this, number))
    return this.#lanes.get(number)
  }

  newLane() {
    this.#next += 2
    return this.#next
  }

  post(message) {
    this.#port.postMessage(message)
  }

  close() {
    this.#port.close()
  }
}

/**
 * Returns the other side's object. `exposed`: this side's. `timeout`: milliseconds for a call. comlink has one transfer handler for all callbacks of
 * a process (`comlink.proxy`), so this is for one channel in a process.
 */
export function overComlink(channel, exposed, { timeout = 60_000, codec } = {}) {
  const link = new Link(channel, timeout, codec)
  const { canHandle } = comlink.transferHandlers.get('proxy')
  comlink.transferHandlers.set('proxy', {
    canHandle,
    serialize(callback) {
      const number = link.newLane()
      comlink.expose(callback, link.lane(number))
      return [number, []]
    },
    deserialize: (number) => comlink.wrap(link.lane(number)),
  })
  if (exposed !== undefined) comlink.expose(exposed, link.lane(0))
  return { remote: comlink.wrap(link.lane(0)), close: () => link.close() }
}
