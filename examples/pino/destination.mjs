// The destination of pino: a ring, out of which the collector takes the lines. What is in the ring outlives this process.
//
//     const log = pino(await ringDestination({ address: '/run/logs/collector.sock' }))

import { EventEmitter } from 'node:events'

import { connect } from 'ringfence'

/** Milliseconds between two attempts to find a collector again. */
const RETRY = 250
const asleep = new Int32Array(new SharedArrayBuffer(4))

/**
 * @param {object} options
 * @param {string} options.address - The collector's.
 * @param {number} [options.patience] - Milliseconds that a log call may wait for room in the ring, before its line goes to the
 * fallback (5,000).
 * @param {{ write(line: string): unknown }} [options.fallback] - Gets the lines for which there is no collector
 * (`process.stderr`, which writes before it returns).
 * All other options are those of `connect`.
 * @returns A destination for pino. It rejects where there is no collector, unless the option `wait` says to wait for it.
 */
export async function ringDestination({ address, patience = 5000, fallback = process.stderr, ...options }) {
  const channel = await connect(address, options)
  return new RingDestination(channel, {
    patience,
    fallback,
    again: () => connect(address, { ...options, wait: false }),
  })
}

class RingDestination extends EventEmitter {
  /** null while there is no collector. */
  #channel = null
  #patience
  #fallback
  #again
  #timer = null
  #ended = false
  /** The collector has not made room for as long as a call may wait: the next calls do not wait until it has. */
  #stuck = false

  constructor(channel, { patience, fallback, again }) {
    super()
    this.#patience = patience
    this.#fallback = fallback
    this.#again = again
    this.#adopt(channel)
  }

  /** The line is in the ring when this returns, or with the fallback. */
  write(line) {
    if (this.#channel === null || !this.#send(this.#channel, line)) this.#fallback.write(line)
    return true
  }

  /** There is nothing to flush: pino and its exit handlers call it all the same. */
  flushSync() {}

  flush(callback) {
    callback?.()
  }

  end() {
    if (this.#ended) return
    this.#ended = true
    clearTimeout(this.#timer)
    const channel = this.#channel
    this.#channel = null
    // What is in the ring stays readable to the collector.
    void Promise.resolve(channel?.close()).then(() => {
      this.emit('finish')
      this.emit('close')
    })
  }

  #adopt(channel) {
    // A program does not live for the sake of its log.
    channel.unref()
    this.#channel = channel
    this.#stuck = false
    // It knows a writer by its first message, and so can tell one that has logged nothing yet that it ends.
    channel.trySend('')
    // A collector that is stopped ends its side, which nothing else does: it waits then for what this side sends until its own end.
    const told = channel.waitReadable().catch(() => {})
    void Promise.race([told, channel.closed]).then(() => this.#leave(channel))
  }

  /** Whether it is in the ring. */
  #send(channel, line) {
    try {
      return channel.trySend(line) ? this.#moves() : this.#insist(channel, line)
    } catch (error) {
      // A line of more than half the ring cannot go at once; all else is the end of the channel.
      if (error.code !== 'ERR_RINGFENCE_MESSAGE_TOO_LARGE') this.#leave(channel)
      return false
    }
  }

  #moves() {
    this.#stuck = false
    return true
  }

  /** Waits for room as a write to a full pipe does, with the thread: a line that only waits in this process would be lost with it. */
  #insist(channel, line) {
    const until = this.#stuck ? 0 : performance.now() + this.#patience
    while (performance.now() < until) {
      Atomics.wait(asleep, 0, 0, 1)
      if (channel.trySend(line)) return true
    }
    this.#stuck = true
    return false
  }

  #leave(channel) {
    if (this.#channel !== channel) return
    this.#channel = null
    void channel.end()
    this.#search()
  }

  #search() {
    if (this.#ended) return
    this.#timer = setTimeout(async () => {
      try {
        const channel = await this.#again()
        if (this.#ended) await channel.close()
        else this.#adopt(channel)
      } catch {
        this.#search()
      }
    }, RETRY).unref()
  }
}
