// Channels that have come, and loops that wait for one: several loops share what comes, and each channel is one's alone.

import type { Channel } from './channel.js'
import type { RingfenceError } from './errors.js'

/** So many channels that nobody has taken may lie here. */
const UNCLAIMED = 16

interface Waiting {
  resolve(result: IteratorResult<Channel, undefined>): void
  reject(error: Error): void
}

export class Arrivals {
  /** Has newcomers wait, or taken in again. */
  readonly #pauseDoor: (paused: boolean) => void
  /** Nothing is passed over. Where that is not so, the last ones are kept. */
  #all: boolean
  #unclaimed: Channel[] = []
  #waiting: Waiting[] = []
  #paused = false
  #over = false
  /** Why it has ended by itself: told to whoever asks first. */
  #failure: RingfenceError | null = null

  constructor(all: boolean, pauseDoor: (paused: boolean) => void) {
    this.#all = all
    this.#pauseDoor = pauseDoor
  }

  /** A loop over what comes. From the first on, nothing is passed over. */
  iterator(): AsyncIterator<Channel, undefined> {
    this.#all = true
    return {
      next: () => this.#next(),
      return: () => Promise.resolve({ done: true, value: undefined }),
    }
  }

  #next(): Promise<IteratorResult<Channel, undefined>> {
    const value = this.#unclaimed.shift()
    if (value !== undefined) {
      this.#pause()
      return Promise.resolve({ done: false, value })
    }
    const failure = this.#failure
    if (failure !== null) {
      this.#failure = null
      return Promise.reject(failure)
    }
    if (this.#over) return Promise.resolve({ done: true, value: undefined })
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }))
  }

  add(channel: Channel): void {
    const waiting = this.#waiting.shift()
    if (waiting !== undefined) {
      waiting.resolve({ done: false, value: channel })
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
    this.#pauseDoor(paused)
  }

  /** It ends by itself: whoever has waited longest is told why, or whoever asks first. */
  fail(error: RingfenceError): void {
    const first = this.#waiting.shift()
    if (first === undefined) this.#failure = error
    else first.reject(error)
  }

  /** No more will come: whoever waits is told. */
  end(): void {
    this.#over = true
    for (const { resolve } of this.#waiting.splice(0)) resolve({ done: true, value: undefined })
  }

  /** Those that nobody has taken; nobody will. */
  discard(): Channel[] {
    return this.#unclaimed.splice(0)
  }
}
