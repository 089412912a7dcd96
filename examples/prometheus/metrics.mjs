// The metrics of many workers, readable by any process: each worker publishes snapshots, and a scrape reads the newest of each worker.
// A scrape sends no request to a worker, so it waits for none.
//
//     await exposeMetrics({ directory: '/run/shop/metrics' })                                  // in each worker
//     const metrics = await collectMetrics({ directory: '/run/shop/metrics' })                 // where it is scraped
//     http.createServer(async (_, response) => response.end(await metrics.scrape()))

import { setMaxListeners } from 'node:events'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'

import prometheus from 'prom-client'
import { publish, subscribe } from 'ringfence'

/** Milliseconds before the next attempt to read a place that has failed. */
const AGAIN = 1000

const addressesOf = (directory, places) =>
  Array.from({ length: places }, (_, place) => join(directory, `${place}.sock`))

/**
 * Publishes the metrics of the registry, now and at intervals, until `close`.
 *
 * @param {object} options
 * @param {string} options.directory - Created for this user alone if it is missing. Each worker takes the first free place in it.
 * @param {import('prom-client').Registry} [options.registry] - The global one.
 * @param {number} [options.every] - Milliseconds between two snapshots (1,000), and the greatest age of a scrape.
 * @param {number} [options.places] - The maximum number of workers (64).
 * All other options are those of `publish`. A snapshot is at most an eighth of `capacity` long.
 * @returns {Promise<{ now(): Promise<void>, close(): Promise<void> }>} It rejects with ADDRESS_OCCUPIED if all places are taken.
 */
export async function exposeMetrics({
  directory,
  registry = prometheus.register,
  every = 1000,
  places = 64,
  ...options
}) {
  await mkdir(directory, { recursive: true, mode: 0o700 })
  // No reader may delay the worker.
  const publisher = await firstFree(addressesOf(directory, places), { ...options, deliveries: ['latest'] })
  // The metrics must not keep the worker alive.
  publisher.unref()
  const now = async () => publisher.send(JSON.stringify(await registry.getMetricsAsJSON()))
  try {
    await now()
  } catch (error) {
    await publisher.close()
    throw error
  }
  // A failed snapshot is reported, and the previous one stays.
  const timer = setInterval(() => void now().catch((error) => process.emitWarning(error)), every).unref()
  return {
    now,
    close() {
      clearInterval(timer)
      return publisher.close()
    },
  }
}

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

/**
 * Subscribes to all workers of a directory, and to later ones. Resolves once it has a snapshot of each current worker.
 *
 * @param {object} options
 * @param {string} options.directory
 * @param {number} [options.places] - The same as for the workers (64).
 * @param {(error: Error) => void} [options.refused] - Called if a worker cannot be subscribed to.
 * All other options are those of `subscribe`.
 */
export async function collectMetrics({ directory, places = 64, refused = () => {}, ...options }) {
  const collection = new Collection(refused, options)
  await collection.open(addressesOf(directory, places))
  return collection
}

class Collection {
  /** The open subscriptions, each with the last snapshot that a scrape has read. */
  #workers = new Map()
  #closing = new AbortController()
  #refused
  #options

  constructor(refused, options) {
    this.#refused = refused
    this.#options = options
    // Each place without a worker adds a listener.
    setMaxListeners(0, this.#closing.signal)
  }

  /** The number of connected workers. */
  get size() {
    return this.#workers.size
  }

  /** Returns the metrics of all workers as one text, aggregated by each metric's `aggregator`. */
  scrape() {
    const snapshots = []
    for (const subscription of this.#workers.keys()) {
      const snapshot = this.#newest(subscription)
      if (snapshot !== null) snapshots.push(JSON.parse(snapshot))
    }
    return prometheus.AggregatorRegistry.aggregate(snapshots).metrics()
  }

  async close() {
    this.#closing.abort()
    await Promise.all([...this.#workers.keys()].map((subscription) => subscription.close()))
  }

  async open(addresses) {
    const there = await Promise.all(addresses.map((address) => this.#subscribe(address, false)))
    addresses.forEach((address, index) => void this.#follow(address, there[index]))
  }

  /** Reads the newest snapshot. Those between two scrapes are skipped and never copied. */
  #newest(subscription) {
    try {
      const message = subscription.tryReceive()
      if (message !== undefined) this.#workers.set(subscription, message)
    } catch {
      // The worker has just exited. Its last snapshot still counts for this scrape.
    }
    return this.#workers.get(subscription) ?? null
  }

  async #follow(address, first) {
    for (let subscription = first; !this.#closing.signal.aborted; subscription = null) {
      subscription ??= await this.#subscribe(address, true)
      if (subscription === null) continue
      await subscription.closed
      this.#workers.delete(subscription)
      await subscription.close()
    }
  }

  async #subscribe(address, wait) {
    const signal = wait ? this.#closing.signal : undefined
    try {
      const options = { ...this.#options, delivery: 'latest', from: 'latest', wait, signal }
      const subscription = await subscribe(address, options)
      this.#workers.set(subscription, await subscription.receive())
      return subscription
    } catch (error) {
      // Without `wait`, there is no worker. Otherwise it is a refusal or a local error, which may be temporary.
      if (wait && !this.#closing.signal.aborted) {
        this.#refused(error)
        await new Promise((resolve) => setTimeout(resolve, AGAIN).unref())
      }
      return null
    }
  }
}
