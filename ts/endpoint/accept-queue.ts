// Queues channels that no loop has taken yet, and loops that wait for one. Several loops share the channels; each goes to one loop.

import type { RingfenceError } from '../errors.js'
import { loop } from '../channel/loops.js'
import { Waiters } from '../channel/waiters.js'

/** Channels that may wait here for a loop. */
const UNCLAIMED = 16

/** Receives all channels instead of the loops. */
export interface Taker<Channel> {
  take(channel: Channel): void
  /** The error for a loop that asks for a channel while the taker is set. */
  refusal(): RingfenceError
}

export class AcceptQueue<Channel> {
  /** Lets clients wait at the address, or accepts them again. */
  readonly #setPaused: (paused: boolean) => void
  /** Called when a loop or the taker gets a channel. */
  readonly #handedOut: (channel: Channel) => void
  /** Whether no channel may be dropped. Until its first loop starts, a membership keeps only the last channels. */
  #all: boolean
  #unclaimed: Channel[] = []
  readonly #waiters = new Waiters<Channel>()
  #taker: Taker<Channel> | null = null
  /** Loops that are in progress. */
  readonly #loops = new Set<object>()
  #paused = false
  #over = false
  /** The error that ended the endpoint. The first loop that asks gets it. */
  #failure: RingfenceError | null = null

  constructor(all: boolean, setPaused: (paused: boolean) => void, handedOut: (channel: Channel) => void) {
    this.#all = all
    this.#setPaused = setPaused
    this.#handedOut = handedOut
  }

  /** A loop over the channels. From its first `next` on it counts as in progress, and no channel is dropped. */
  iterator(): AsyncIterator<Channel, undefined> {
    const own = loop(
      () => this.#now(),
      () => this.#waiters.add(),
    )
    let isOver = false
    const over = () => {
      isOver = true
      this.#loops.delete(own)
    }
    const next = async () => {
      if (!isOver) {
        this.#loops.add(own)
        this.#all = true
      }
      try {
        const result = await own.next()
        if (result.done === true) over()
        return result
      } catch (error) {
        over()
        throw error
      }
    }
    return {
      next,
      return() {
        over()
        return own.return()
      },
    }
  }

  /** Whether a loop is in progress. */
  get hasLoop(): boolean {
    return this.#loops.size > 0
  }

  /** Hands all queued and all later channels to the taker. `null` hands later channels to loops again. */
  setTaker(taker: Taker<Channel> | null): void {
    this.#taker = taker
    if (taker === null) return
    this.#waiters.fail(() => taker.refusal())
    // The taker may remove itself after each channel.
    while (this.#taker === taker && this.#unclaimed.length > 0) this.#take(taker, this.#unclaimed.shift()!)
    this.#pause()
  }

  #take(taker: Taker<Channel>, channel: Channel): void {
    taker.take(channel)
    this.#handedOut(channel)
  }

  #now(): Channel | null | undefined {
    if (this.#taker !== null && !this.#over) throw this.#taker.refusal()
    const channel = this.#unclaimed.shift()
    if (channel !== undefined) {
      this.#handedOut(channel)
      this.#pause()
      return channel
    }
    const failure = this.#failure
    if (failure !== null) {
      this.#failure = null
      throw failure
    }
    return this.#over ? null : undefined
  }

  add(channel: Channel): void {
    if (this.#taker !== null) {
      this.#take(this.#taker, channel)
      return
    }
    const waiter = this.#waiters.shift()
    if (waiter !== undefined) {
      this.#handedOut(channel)
      waiter.found(channel)
      return
    }
    this.#unclaimed.push(channel)
    if (!this.#all && this.#unclaimed.length > UNCLAIMED) this.#unclaimed.shift()
    this.#pause()
  }

  #pause(): void {
    const paused = this.#all && this.#unclaimed.length >= UNCLAIMED
    if (paused === this.#paused) return
    this.#paused = paused
    this.#setPaused(paused)
  }

  /** Reports the error that ended the endpoint to the loop that has waited longest, else to the first that asks. */
  fail(error: RingfenceError): void {
    const first = this.#waiters.shift()
    if (first === undefined) this.#failure = error
    else first.failed(error)
  }

  /** No more channels will arrive. */
  end(): void {
    this.#over = true
    this.#waiters.end()
  }

  /** Removes and returns the channels that no loop has taken. */
  discard(): Channel[] {
    return this.#unclaimed.splice(0)
  }
}
