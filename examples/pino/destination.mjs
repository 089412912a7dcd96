// A destination for pino: a ring that the collector reads. Lines in the ring outlive this process.
//
//     const log = pino(await ringDestination({ address: '/run/logs/collector.sock' }))

import { EventEmitter } from 'node:events'

import { connect } from 'ringfence'

/** Milliseconds between two attempts to reconnect to a collector. */
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
 * @returns A destination for pino. Rejects if there is no collector, unless the option `wait` is set.
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
  /** A call has waited for `patience` without getting room. Until there is room, further calls do not wait. */
  #stuck = false

  constructor(channel, { patience, fallback, again }) {
    super()
    this.#patience = patience
    this.#fallback = fallback
    this.#again = again
    this.#adopt(channel)
  }

  /** When this returns, the line is in the ring, or was written to the fallback. */
  write(line) {
    if (this.#channel === null || !this.#send(this.#channel, line)) this.#fallback.write(line)
    return true
  }

  /** Does nothing: there is nothing to flush. pino and its exit handlers call it. */
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
    // The collector can still read the lines in the ring.
    void Promise.resolve(channel?.close()).then(() => {
      this.emit('finish')
      this.emit('close')
    })
  }

  #adopt(channel) {
    // The log must not keep the program alive.
    channel.unref()
    this.#channel = channel
    this.#stuck = false
    // The first message announces this writer, so that the collector can notify it of its end even before the first line.
    channel.trySend('')
    // Only a stopped collector ends its side. It then reads until this side has ended.
    const readable = channel.waitReadable().catch(() => {})
    void Promise.race([readable, channel.closed]).then(() => this.#leave(channel))
  }

  /** Returns whether the line is in the ring. */
  #send(channel, line) {
    try {
      return channel.trySend(line) ? this.#moves() : this.#insist(channel, line)
    } catch (error) {
      // A line of more than half the ring cannot be sent in one piece. Any other error is the end of the channel.
      if (error.code !== 'ERR_RINGFENCE_MESSAGE_TOO_LARGE') this.#leave(channel)
      return false
    }
  }

  #moves() {
    this.#stuck = false
    return true
  }

  /** Blocks the thread until there is room, like a write to a full pipe: a line that is queued in this process would be lost with it. */
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
