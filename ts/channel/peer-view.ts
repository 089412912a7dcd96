import { signalOf } from '../endpoint/options.js'
import { aborted, fromFailure, type RingfenceError } from '../errors.js'
import { onAbort } from '../runtime/aborts.js'
import { Deferred, ignore } from '../runtime/deferred.js'
import { FAILED, type Failure, type NativePeer, type Verified } from '../native.js'
import type { Evidence, Identity, WaitOptions } from '../types.js'

/** The errors that only `verify` reports. All others are the end of the channel or subscription, which its `closed` reports as well. */
const VERIFY_ONLY_ERRORS: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_PEER_REFUSED',
  'ERR_RINGFENCE_NO_SPACE',
  'ERR_RINGFENCE_HANDSHAKE_TIMEOUT',
  'ERR_RINGFENCE_UNSUPPORTED',
])

type CheckedPeer = Pick<NativePeer, 'peer' | 'evidence' | 'verify' | 'failure'>

/** The peer at its last check, in the handshake or by `verify`. */
export class PeerView {
  peer: Identity
  readonly #native: CheckedPeer
  /** Fetched on first use. */
  #handshakeEvidence: readonly Evidence[] | null = null
  #evidence: readonly Evidence[] | null = null

  constructor(native: CheckedPeer) {
    this.#native = native
    this.peer = native.peer
  }

  /** Every check of the handshake, and those of the last `verify`. */
  get evidence(): readonly Evidence[] {
    return (this.#evidence ??= this.#initialEvidence())
  }

  #initialEvidence(): readonly Evidence[] {
    return (this.#handshakeEvidence ??= Object.freeze(this.#native.evidence()))
  }

  /**
   * Checks the peer again. A rejection with an end, which `closed` reports as well, needs no handler.
   *
   * @param endError - The error after the end; `undefined` before it.
   * @param checkLine - Asks the core whether it has ended: the event loop may not have been notified yet.
   * @param options - The caller's. An abort ends the waiting; the check continues, and its result counts.
   */
  verify(endError: () => RingfenceError | undefined, checkLine: () => void, options?: WaitOptions): Promise<Identity> {
    const verified = new Deferred<Identity>()
    let removeAbortListener = ignore
    const reject = (error: RingfenceError) => {
      removeAbortListener()
      if (!VERIFY_ONLY_ERRORS.has(error.code)) verified.promise.catch(ignore)
      verified.reject(error)
    }
    const done = (failure: Failure | null, result: Verified | null) => {
      const ended = endError()
      // After the end, the result of the check no longer counts.
      if (result !== null && ended === undefined) {
        this.peer = result.identity
        // A publisher gets none with the result.
        if (result.evidence.length > 0) this.#evidence = Object.freeze([...this.#initialEvidence(), ...result.evidence])
        removeAbortListener()
        verified.resolve(result.identity)
        return
      }
      // The core may have dropped the ended channel, and no longer know why it has ended.
      const error =
        failure === null || (ended !== undefined && failure.code === 'CLOSED') ? ended : fromFailure(failure)
      reject(error!)
      checkLine()
    }
    try {
      const signal = signalOf(options)
      if (signal !== undefined) removeAbortListener = onAbort(signal, () => verified.reject(aborted(signal)))
      const ended = endError()
      if (ended !== undefined) reject(ended)
      else if (this.#native.verify(done) === FAILED) reject(fromFailure(this.#native.failure()))
    } catch (error) {
      verified.reject(error as Error)
    }
    return verified.promise
  }
}
