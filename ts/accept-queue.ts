// Channels that have come, and loops that wait for one: several loops share what comes, and each channel is one's alone.

import type { Channel } from './channel.js'
import type { RingfenceError } from './errors.js'
import { loop } from './loops.js'
import { Waiters } from './waiters.js'

/** So many channels that nobody has taken may lie here. */
const UNCLAIMED = 16

export class AcceptQueue {
  /** Has newcomers wait, or taken in again. */
  readonly #pauseDoor: (paused: boolean) => void
  /** Nothing is passed over. Where that is not so, the last ones are kept. */
  #all: boolean
  #unclaimed: Channel[] = []
  readonly #waiters = new Waiters<Channel>()
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
    return loop(
      () => this.#now(),
      () => this.#waiters.add(),
    )
  }

  #now(): Channel | null | undefined {
    const channel = this.#unclaimed.shift()
    if (channel !== undefined) {
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
    const waiter = this.#waiters.shift()
    if (waiter !== undefined) {
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
    this.#pauseDoor(paused)
  }

  /** It ends by itself: whoever has waited longest is told why, or whoever asks first. */
  fail(error: RingfenceError): void {
    const first = this.#waiters.shift()
    if (first === undefined) this.#failure = error
    else first.failed(error)
  }

  /** No more will come: whoever waits is told. */
  end(): void {
    this.#over = true
    this.#waiters.end()
  }

  /** Those that nobody has taken; nobody will. */
  discard(): Channel[] {
    return this.#unclaimed.splice(0)
  }
}
