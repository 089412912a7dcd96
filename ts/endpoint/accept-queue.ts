// Queues channels that no loop has taken yet, and loops that wait for one. Several loops share the channels; each goes to one loop.

import type { RingfenceError } from '../errors.js'
import { loop } from '../channel/loops.js'
import { Waiters } from '../channel/waiters.js'

/** Channels that may wait here for a loop. */
const MAX_UNCLAIMED = 16

/** Receives all channels instead of the loops. */
export interface Consumer<Channel> {
  accept(channel: Channel): void
  /** The error for a loop that asks for a channel while a consumer is set. */
  refusal(): RingfenceError
}

export class AcceptQueue<Channel> {
  /** Lets clients wait at the address, or accepts them again. */
  readonly #setPaused: (paused: boolean) => void
  /** Called when a loop or the consumer gets a channel. */
  readonly #onHandedOut: (channel: Channel) => void
  /** Whether no channel may be dropped. Until its first loop starts, a membership keeps only the last channels. */
  #keepsAll: boolean
  #unclaimed: Channel[] = []
  readonly #waiters = new Waiters<Channel>()
  #consumer: Consumer<Channel> | null = null
  /** Loops that are in progress. */
  readonly #loops = new Set<object>()
  #paused = false
  /** No more channels will arrive. */
  hasEnded = false
  /** The error that ended the endpoint. The first loop that asks gets it. */
  #failure: RingfenceError | null = null

  constructor(keepsAll: boolean, setPaused: (paused: boolean) => void, onHandedOut: (channel: Channel) => void) {
    this.#keepsAll = keepsAll
    this.#setPaused = setPaused
    this.#onHandedOut = onHandedOut
  }

  /** A loop over the channels. From its first `next` on it counts as in progress, and no channel is dropped. */
  iterator(): AsyncIterator<Channel, undefined> {
    const channels = loop(
      () => this.#poll(),
      () => this.#waiters.add(),
    )
    let isFinished = false
    const finish = () => {
      isFinished = true
      this.#loops.delete(channels)
    }
    const next = async () => {
      if (!isFinished) {
        this.#loops.add(channels)
        this.#keepsAll = true
      }
      try {
        const result = await channels.next()
        if (result.done === true) finish()
        return result
      } catch (error) {
        finish()
        throw error
      }
    }
    return {
      next,
      return() {
        finish()
        return channels.return()
      },
    }
  }

  /** Whether a loop is in progress. */
  get hasLoop(): boolean {
    return this.#loops.size > 0
  }

  /** Hands all queued and all later channels to the consumer. `null` hands later channels to loops again. */
  setConsumer(consumer: Consumer<Channel> | null): void {
    this.#consumer = consumer
    if (consumer === null) return
    this.#waiters.fail(() => consumer.refusal())
    // The consumer may remove itself after each channel.
    while (this.#consumer === consumer && this.#unclaimed.length > 0) this.#handOver(consumer, this.#unclaimed.shift()!)
    this.#updatePause()
  }

  #handOver(consumer: Consumer<Channel>, channel: Channel): void {
    consumer.accept(channel)
    this.#onHandedOut(channel)
  }

  #poll(): Channel | null | undefined {
    if (this.#consumer !== null && !this.hasEnded) throw this.#consumer.refusal()
    const channel = this.#unclaimed.shift()
    if (channel !== undefined) {
      this.#onHandedOut(channel)
      this.#updatePause()
      return channel
    }
    const failure = this.#failure
    if (failure !== null) {
      this.#failure = null
      throw failure
    }
    return this.hasEnded ? null : undefined
  }

  add(channel: Channel): void {
    if (this.#consumer !== null) {
      this.#handOver(this.#consumer, channel)
      return
    }
    const waiter = this.#waiters.shift()
    if (waiter !== null) {
      this.#onHandedOut(channel)
      waiter.resolve(channel)
      return
    }
    this.#unclaimed.push(channel)
    if (!this.#keepsAll && this.#unclaimed.length > MAX_UNCLAIMED) this.#unclaimed.shift()
    this.#updatePause()
  }

  #updatePause(): void {
    const paused = this.#keepsAll && this.#unclaimed.length >= MAX_UNCLAIMED
    if (paused === this.#paused) return
    this.#paused = paused
    this.#setPaused(paused)
  }

  /** Reports the error that ended the endpoint to the loop that has waited longest, else to the first that asks. */
  fail(error: RingfenceError): void {
    const first = this.#waiters.shift()
    if (first === null) this.#failure = error
    else first.reject(error)
  }

  /** No more channels will arrive. */
  end(): void {
    this.hasEnded = true
    this.#waiters.end()
  }

  /** Removes and returns the channels that no loop has taken. */
  removeUnclaimed(): Channel[] {
    return this.#unclaimed.splice(0)
  }
}
