// Channels that no loop has taken yet, and loops that wait for one. Several loops share what comes; each channel goes to one of them.

import type { Channel } from '../channel/channel.js'
import type { RingfenceError } from '../errors.js'
import { loop } from '../channel/loops.js'
import { Waiters } from '../channel/waiters.js'

/** Channels that may wait here for a loop. */
const UNCLAIMED = 16

/** What takes all channels that come, in place of loops. */
export interface Taker {
  take(channel: Channel): void
  /** What a loop is told meanwhile. */
  refusal(): RingfenceError
}

export class AcceptQueue {
  /** Makes newcomers wait at the address, or lets them in again. */
  readonly #setPaused: (paused: boolean) => void
  /** A loop or the taker gets the channel now. */
  readonly #handedOut: (channel: Channel) => void
  /** No channel is dropped. Until a loop has begun, a membership keeps the last ones only. */
  #all: boolean
  #unclaimed: Channel[] = []
  readonly #waiters = new Waiters<Channel>()
  #taker: Taker | null = null
  /** Loops that have begun, and were neither left nor ended. */
  #loops = 0
  #paused = false
  #over = false
  /** Why the endpoint has ended by itself: the first loop that asks is told. */
  #failure: RingfenceError | null = null

  constructor(all: boolean, setPaused: (paused: boolean) => void, handedOut: (channel: Channel) => void) {
    this.#all = all
    this.#setPaused = setPaused
    this.#handedOut = handedOut
  }

  /** A loop over what comes. From its first `next` on it is under way, and no channel is dropped. */
  iterator(): AsyncIterator<Channel, undefined> {
    const own = loop(
      () => this.#now(),
      () => this.#waiters.add(),
    )
    let state: 'new' | 'under way' | 'over' = 'new'
    const begin = () => {
      if (state !== 'new') return
      state = 'under way'
      this.#loops += 1
      this.#all = true
    }
    const over = () => {
      if (state === 'under way') this.#loops -= 1
      state = 'over'
    }
    return {
      async next() {
        begin()
        try {
          const result = await own.next()
          if (result.done === true) over()
          return result
        } catch (error) {
          over()
          throw error
        }
      },
      return() {
        over()
        return own.return!()
      },
    }
  }

  /** Whether a loop is under way. */
  get hasLoop(): boolean {
    return this.#loops > 0
  }

  /** Hands all that waits and all that comes to the taker; to loops again, where there is none. */
  setTaker(taker: Taker | null): void {
    this.#taker = taker
    if (taker === null) return
    this.#waiters.fail(() => taker.refusal())
    // The taker may take itself back after each.
    while (this.#taker === taker && this.#unclaimed.length > 0) this.#take(taker, this.#unclaimed.shift()!)
    this.#pause()
  }

  #take(taker: Taker, channel: Channel): void {
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

  /** The endpoint has ended by itself: the loop that has waited longest is told why, else the first that asks. */
  fail(error: RingfenceError): void {
    const first = this.#waiters.shift()
    if (first === undefined) this.#failure = error
    else first.failed(error)
  }

  /** No more will come. */
  end(): void {
    this.#over = true
    this.#waiters.end()
  }

  /** Takes out what no loop has taken. */
  discard(): Channel[] {
    return this.#unclaimed.splice(0)
  }
}
