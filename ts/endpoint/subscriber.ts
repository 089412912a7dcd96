import { fromFailure, RingfenceError } from '../errors.js'
import { FAILED, type NativeSubscriber } from '../native.js'
import { runVerification } from '../channel/peer-view.js'
import type { SubscriberStats } from '../channel/stats.js'
import type { Closed, Delivery, Evidence, Identity, WaitOptions } from '../types.js'

/** Only a publisher makes subscribers. */
const KEY = Symbol('ringfence')

/** Makes the handle of a subscriber; only a publisher calls it. */
export let makeSubscriber: (native: NativeSubscriber) => Subscriber

/** Marks a subscriber as disconnected. */
export let closeSubscriber: (subscriber: Subscriber, closed: Closed) => void

/** A subscriber of a publisher in this process. */
export class Subscriber {
  /** What it asked for. */
  readonly delivery: Delivery
  /** Resolves once it has disconnected, with the reason. Never rejects. */
  readonly closed: Promise<Closed>

  readonly #native: NativeSubscriber
  #peer: Identity
  #evidence: readonly Evidence[] | null = null
  #gone = false
  #resolveClosed!: (closed: Closed) => void

  static {
    makeSubscriber = (native) => new Subscriber(KEY, native)
    closeSubscriber = (subscriber, closed) => {
      subscriber.#gone = true
      subscriber.#resolveClosed(closed)
    }
  }

  private constructor(key: symbol, native: NativeSubscriber) {
    if (key !== KEY) throw new RingfenceError('INVALID_ARGUMENT', 'subscribers are made by a publisher')
    this.#native = native
    this.#peer = native.peer
    this.delivery = native.delivery
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
  }

  /** Who it was at the last look: when it came, or by {@link Subscriber.verify}. */
  get peer(): Identity {
    return this.#peer
  }

  /** Every check of its handshake, in order. */
  get evidence(): readonly Evidence[] {
    return (this.#evidence ??= Object.freeze(this.#native.evidence()))
  }

  /** The number of bytes that it has not read; 0 once it has disconnected. */
  stats(): SubscriberStats {
    return { lag: this.#gone ? 0 : this.#native.lag() }
  }

  /**
   * Looks at its process again, now, and compares with the publisher's policy (`authorize` is not asked again).
   *
   * @returns Who it is. Rejects with PEER_REFUSED where the policy does not hold any more, or this cannot be told: then it is let go of.
   * PEER_LOST where its process has ended; CLOSED once it has gone; NO_SPACE where there is no thread for the look; HANDSHAKE_TIMEOUT
   * where its executable cannot be read within `handshakeTimeout`. A rejection because it has gone is never an unhandled one, as with
   * {@link Channel.verify}.
   */
  verify(options?: WaitOptions): Promise<Identity> {
    return runVerification(options, ({ resolve, reject }) => {
      const started = this.#native.verify((failure, identity) => {
        if (identity === null) {
          reject(fromFailure(failure))
          return
        }
        this.#peer = identity
        resolve(identity)
      })
      if (started === FAILED) reject(fromFailure(this.#native.failure()))
    })
  }

  /**
   * Lets go of it: 'closed' on both sides. What was published before is still read there: until it is, a reliable one can hold the
   * publisher up, for its `stall`, and its seat is taken. Resolves once the publisher counts it no more.
   */
  async disconnect(): Promise<void> {
    if (this.#gone) return
    this.#native.disconnect()
    await this.closed
  }
}
