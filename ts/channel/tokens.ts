// The tokens of one channel, and the loops that read them.

import { fromFailure, invalid, show } from '../errors.js'
import { loop } from './loops.js'
import { ENDED, FAILED, type NativeChannel } from '../native.js'
import type { TokenStats } from './stats.js'
import { fairness } from '../runtime/fairness.js'
import { Waiters, type Wait } from './waiters.js'

const MAX_TOKEN = 2n ** 64n - 1n

/** Converts a caller's token to 64 bits. */
export function toToken(token: bigint | number): bigint {
  if (typeof token === 'bigint' && token >= 0n && token <= MAX_TOKEN) return token
  if (Number.isSafeInteger(token) && token >= 0) return BigInt(token)
  throw invalid(
    `a token must be a bigint from 0 to 2^64 - 1, or a whole number from 0 to 2^53 - 1, not ${show(token)}` +
      (typeof token === 'bigint' ? 'n' : ''),
  )
}

export class Tokens {
  readonly #native: NativeChannel
  readonly #waiters = new Waiters<bigint>()
  #isWatching = false
  /** The channel keeps no process alive, so reading its tokens does not either. */
  #isWeak = false
  /** No more tokens will arrive from the binding. */
  #hasEnded = false
  /** The tokens that were unread when the channel ended, the next one last. */
  #leftovers: bigint[] = []
  #sent = 0
  #received = 0

  constructor(native: NativeChannel) {
    this.#native = native
  }

  stats(): TokenStats {
    return {
      tokensSent: this.#sent,
      tokensReceived: this.#received,
      tokensStray: this.#native.strayTokens(),
      tokensDropped: this.#native.droppedTokens(),
    }
  }

  /** Counts a token that was sent. */
  countSent(): void {
    this.#sent += 1
  }

  /** Sets whether awaiting a turn of the event loop keeps the process alive. */
  keepAlive(alive: boolean): void {
    this.#isWeak = !alive && !this.#hasEnded
  }

  /** The turn of the event loop to await before more is handed out; null if none is due. */
  get #due(): Promise<void> | null {
    return this.#isWeak ? fairness.weakDue : fairness.due
  }

  iterate(): AsyncIterator<bigint, undefined> {
    return loop(
      () => this.#poll(),
      () => this.#wait(),
    )
  }

  #poll(): bigint | null | undefined {
    fairness.spend(this.#isWeak)
    return !this.#waiters.isEmpty || this.#due !== null ? undefined : this.#take()
  }

  #wait(): Wait<bigint> {
    const wait = this.#waiters.add()
    const due = this.#due
    if (due === null) this.#watch()
    else
      void due.then(() => {
        this.#serve()
        if (!this.#waiters.isEmpty) this.#watch()
      })
    return wait
  }

  /** Returns a token if there is one, `undefined` if one may arrive, `null` if none will. */
  #take(): bigint | null | undefined {
    if (this.#hasEnded) return this.#leftovers.pop() ?? null
    const token = this.#native.token()
    if (typeof token === 'bigint') {
      this.#received += 1
      return token
    }
    if (token !== ENDED) return undefined
    this.#hasEnded = true
    return null
  }

  #watch(): void {
    if (this.#isWatching) return
    if (this.#native.watchTokens(() => this.#handleReadable()) === FAILED) {
      const error = fromFailure(this.#native.failure())
      this.#waiters.fail(() => error)
      return
    }
    this.#isWatching = true
  }

  /** Called when there is a token, or no more will arrive. */
  #handleReadable(): void {
    if (!this.#waiters.isEmpty) {
      this.#serve()
      return
    }
    // No loop takes the token, so the binding would call back repeatedly.
    this.#isWatching = false
    this.#native.unwatchTokens()
  }

  #serve(): void {
    while (!this.#waiters.isEmpty) {
      const token = this.#take()
      if (token === undefined) return
      this.#waiters.shift()!.resolve(token)
    }
  }

  /** Keeps the tokens that have arrived, to be handed out: the channel has ended. */
  stop(): void {
    this.#serve()
    const leftovers: bigint[] = []
    for (let token = this.#take(); typeof token === 'bigint'; token = this.#take()) leftovers.push(token)
    this.#leftovers = leftovers.reverse()
    this.close()
  }

  /** Drops unread tokens. */
  close(): void {
    this.#hasEnded = true
    this.#isWeak = false
    this.#native.endTokens()
    this.#serve()
  }
}
