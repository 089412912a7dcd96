// A cluster adapter for socket.io: the workers of one host exchange their broadcasts by publish and subscribe.
//
//     const mesh = await joinMesh({ directory: '/run/chat' })
//     io.adapter(createAdapter(mesh))
//
// Each worker publishes to one ring, which all others read. There is no primary and no server in between.

import { EventEmitter, once, setMaxListeners } from 'node:events'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'

import { publish, structured, subscribe } from 'ringfence'
import { ClusterAdapterWithHeartbeat, MessageType } from 'socket.io-adapter'

/** Milliseconds for which a new worker waits until the workers that it reads have subscribed to it. */
const MUTUAL = 5000
/** Milliseconds before the next attempt to read a place that has failed. */
const AGAIN = 1000

/**
 * Takes a place among the workers of a directory. Resolves once this worker and all others are connected.
 *
 * @param {object} options
 * @param {string} options.directory - Created for this user alone if it is missing. Each place is a socket in it.
 * @param {number} [options.places] - The maximum number of workers (16).
 * All other options are those of `publish`; the policy is that of both directions.
 * @returns {Promise<Mesh>} It rejects with ADDRESS_OCCUPIED if all places are taken.
 */
export async function joinMesh({ directory, places = 16, ...options }) {
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const addresses = Array.from({ length: places }, (_, place) => join(directory, `${place}.sock`))
  const publisher = await firstFree(addresses, options)
  const mesh = new Mesh(publisher, options.policy)
  await mesh.subscribe(addresses)
  return mesh
}

/** For `io.adapter`. `options`: `heartbeatInterval` and `heartbeatTimeout`, as of any cluster adapter. */
export function createAdapter(mesh, options = {}) {
  // socket.io calls it with `new`.
  return function adapter(namespace) {
    return new RingAdapter(namespace, mesh, options)
  }
}

/** Claims the first free place. Two concurrent workers get different ones. */
async function firstFree(addresses, options) {
  let occupied
  for (const address of addresses) {
    try {
      return await publish(address, options)
    } catch (error) {
      if (error.code !== 'ERR_RINGFENCE_ADDRESS_OCCUPIED') throw error
      occupied = error
    }
  }
  throw occupied
}

/** The shared part of the adapters of one worker: its ring, and the rings of the others. Emits 'lost' with an error that cost messages. */
class Mesh extends EventEmitter {
  #publisher
  #sending
  #policy
  #adapters = new Map()
  #closing = new AbortController()

  constructor(publisher, policy) {
    super()
    this.#publisher = publisher
    this.#sending = publisher.with(structured())
    this.#policy = policy
    // One for each place.
    setMaxListeners(0, this.#closing.signal)
    // The new peer has missed earlier messages of this worker, so announce each namespace again.
    publisher.on('connection', () => {
      for (const adapter of this.#adapters.values()) adapter.greet()
    })
  }

  add(adapter) {
    this.#adapters.set(adapter.nsp.name, adapter)
  }

  delete(adapter) {
    if (this.#adapters.get(adapter.nsp.name) === adapter) this.#adapters.delete(adapter.nsp.name)
  }

  /** Resolves once the message is in the ring, and so outlives this worker. */
  send(message) {
    return this.#sending.send(message)
  }

  /** Disconnects this worker from the others. */
  async close() {
    this.#closing.abort()
    await this.#publisher.close()
  }

  async subscribe(addresses) {
    const others = addresses.filter((address) => address !== this.#publisher.address)
    const there = await Promise.all(others.map((address) => this.#trySubscribe(address)))
    await this.#waitForSubscribers(there.filter((subscription) => subscription !== null))
  }

  /** Reads from the current worker at a place, if there is one, and from later ones. */
  async #trySubscribe(address) {
    const subscription = await this.#subscribe(address, false)
    void this.#follow(address, subscription)
    return subscription
  }

  async #follow(address, first) {
    for (let subscription = first; !this.#closing.signal.aborted;) {
      if (subscription === null) subscription = await this.#subscribe(address, true)
      if (subscription !== null) await this.#read(subscription)
      subscription = null
    }
  }

  async #subscribe(address, wait) {
    const { signal } = this.#closing
    try {
      return await subscribe(address, { wait, signal, policy: this.#policy })
    } catch (error) {
      // Without `wait`, there is no worker. Otherwise it is a refusal or a local error, which may be temporary.
      if (wait && !signal.aborted) {
        this.emit('refused', error)
        await new Promise((resolve) => setTimeout(resolve, AGAIN).unref())
      }
      return null
    }
  }

  /** Dispatches the messages of a worker until it has ended. */
  async #read(subscription) {
    const { signal } = this.#closing
    const close = () => void subscription.close()
    signal.addEventListener('abort', close, { once: true })
    const speakers = new Map()
    try {
      for await (const message of subscription.with(structured())) {
        speakers.set(message.uid, message.nsp)
        this.#adapters.get(message.nsp)?.onMessage(message)
      }
    } catch (error) {
      // This worker was too slow and missed messages. It subscribes again.
      this.emit('lost', error)
    }
    signal.removeEventListener('abort', close)
    await subscription.close()
    // The kernel reports the exit of a worker, so nothing waits for a missing heartbeat.
    for (const [uid, nsp] of speakers) this.#adapters.get(nsp)?.onMessage({ type: MessageType.ADAPTER_CLOSE, uid, nsp })
  }

  /** Waits until the other workers have subscribed to this one, so that they get its first message. */
  async #waitForSubscribers(subscriptions) {
    const deadline = AbortSignal.timeout(MUTUAL)
    const gone = new Set()
    for (const subscription of subscriptions) void subscription.closed.then(() => gone.add(subscription))
    const isSubscribed = (subscription) =>
      gone.has(subscription) || this.#publisher.subscribers.some(({ peer }) => peer.pid === subscription.peer.pid)
    while (!subscriptions.every(isSubscribed)) {
      try {
        await once(this.#publisher, 'connection', { signal: deadline })
      } catch {
        // A worker that does not respond must not delay the others.
        return
      }
    }
  }
}

class RingAdapter extends ClusterAdapterWithHeartbeat {
  #mesh

  constructor(namespace, mesh, options) {
    super(namespace, options)
    this.#mesh = mesh
    mesh.add(this)
  }

  greet() {
    this.publish({ type: MessageType.HEARTBEAT })
  }

  /** Returns no offset: a client that reconnects to another worker gets only later messages. */
  async doPublish(message) {
    await this.#mesh.send(message)
    return ''
  }

  /** All workers get the response, and the requester recognizes its request. */
  doPublishResponse(_, response) {
    return this.#mesh.send(response)
  }

  close() {
    super.close()
    this.#mesh.delete(this)
  }
}
