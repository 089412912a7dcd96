import { KEY, invalid } from '../errors.js'
import type { NativeSubscriber } from '../native.js'
import { Deferred, ignore } from '../runtime/deferred.js'
import { PeerView } from '../channel/peer-view.js'
import type { SubscriberStats } from '../channel/stats.js'
import type { Closed, Delivery, Evidence, Identity, WaitOptions } from '../types.js'

/** Makes the handle of a subscriber. Only publishers call it. */
export let makeSubscriber: (native: NativeSubscriber, flush: () => void) => Subscriber

/** Marks a subscriber as disconnected. */
export let closeSubscriber: (subscriber: Subscriber, closed: Closed) => void

/** A subscriber, as its publisher sees it. */
export class Subscriber {
  /** The delivery that the subscriber chose. */
  readonly delivery: Delivery
  /** Resolves with the reason once the subscriber has disconnected. Never rejects. */
  readonly closed: Promise<Closed>

  readonly #native: NativeSubscriber
  /** Publishes messages that were sent and for which there is room. */
  readonly #flush: () => void
  readonly #view: PeerView
  #isGone = false
  readonly #ending = new Deferred<Closed>()

  static {
    makeSubscriber = (native, flush) => new Subscriber(KEY, native, flush)
    closeSubscriber = (subscriber, closed) => {
      subscriber.#isGone = true
      subscriber.#ending.resolve(closed)
    }
  }

  private constructor(key: symbol, native: NativeSubscriber, flush: () => void) {
    if (key !== KEY) throw invalid('subscribers are made by a publisher')
    this.#native = native
    this.#flush = flush
    this.#view = new PeerView({
      peer: native.peer,
      evidence: () => native.evidence(),
      failure: () => native.failure(),
      verify: (done) => native.verify((failure, identity) => done(failure, identity && { identity, evidence: [] })),
    })
    this.delivery = native.delivery
    this.closed = this.#ending.promise
  }

  /** The subscriber's identity at the last check: in the handshake or by {@link Subscriber.verify}. */
  get peer(): Identity {
    return this.#view.peer
  }

  /** All checks of the handshake, in order. */
  get evidence(): readonly Evidence[] {
    return this.#view.evidence
  }

  /**
   * The number of bytes that the subscriber has not read; 0 once it has disconnected.
   *
   * @example
   * ```js
   * for (const subscriber of publisher.subscribers) console.log(subscriber.stats().lag)
   * ```
   */
  stats(): SubscriberStats {
    this.#flush()
    return { lag: this.#isGone ? 0 : this.#native.lag() }
  }

  /**
   * Checks the subscriber's process against the publisher's policy again. Does not call `authorize` again.
   *
   * @example
   * ```js
   * for (const subscriber of publisher.subscribers) await subscriber.verify()
   * ```
   *
   * @returns The subscriber's current identity. Rejects with PEER_REFUSED, and disconnects the subscriber, if it no longer satisfies the
   * policy or cannot be checked; PEER_LOST if its process has exited; CLOSED once it has disconnected; NO_SPACE if no thread can be started
   * for the check; HANDSHAKE_TIMEOUT if its executable cannot be read within `handshakeTimeout`. A rejection because it has disconnected
   * never counts as unhandled, as with {@link Channel.verify}.
   */
  verify(options?: WaitOptions): Promise<Identity> {
    return this.#view.verify(() => undefined, ignore, options)
  }

  /**
   * Disconnects the subscriber, with the reason 'closed' on both sides. Resolves once the end was reported, which does not wait for the
   * subscriber: it can still read the messages published before. Until it has, it occupies a slot, and a reliable subscriber can delay the
   * publisher for up to `stall`.
   *
   * @example
   * ```js
   * for (const subscriber of publisher.subscribers)
   *   if (subscriber.stats().lag > 1e6) await subscriber.disconnect()
   * ```
   */
  async disconnect(): Promise<void> {
    this.#flush()
    if (this.#isGone) return
    this.#native.disconnect()
    await this.closed
  }
}
