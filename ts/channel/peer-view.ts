import { signalOf } from '../endpoint/options.js'
import { aborted, fromFailure, type RingfenceError } from '../errors.js'
import { onAbort } from '../runtime/aborts.js'
import { Deferred, ignore } from '../runtime/deferred.js'
import { FAILED, type NativeChannel } from '../native.js'
import type { Evidence, Identity, WaitOptions } from '../types.js'

/** The errors that only `verify` reports. All others are the end of the channel or subscription, which its `closed` reports as well. */
const VERIFY_ONLY_ERRORS: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_PEER_REFUSED',
  'ERR_RINGFENCE_NO_SPACE',
  'ERR_RINGFENCE_HANDSHAKE_TIMEOUT',
  'ERR_RINGFENCE_UNSUPPORTED',
])

/** A verification that a caller awaits. */
interface Verification {
  resolve(identity: Identity): void
  /** If the error is an end, which `closed` reports as well, the rejection needs no handler. */
  reject(error: RingfenceError): void
}

/**
 * Runs a verification.
 *
 * @param options - The caller's. An abort ends the waiting; the verification continues, and its result counts.
 * @param start - Not called if the options are wrong, or their signal is aborted already.
 */
export function runVerification(
  options: WaitOptions | undefined,
  start: (verification: Verification) => void,
): Promise<Identity> {
  const verified = new Deferred<Identity>()
  try {
    const signal = signalOf(options)
    const removeAbortListener = signal === undefined ? ignore : onAbort(signal, () => verified.reject(aborted(signal)))
    start({
      resolve(identity) {
        removeAbortListener()
        verified.resolve(identity)
      },
      reject(error) {
        removeAbortListener()
        if (!VERIFY_ONLY_ERRORS.has(error.code)) verified.promise.catch(ignore)
        verified.reject(error)
      },
    })
  } catch (error) {
    verified.reject(error as Error)
  }
  return verified.promise
}

/** The peer at its last check, in the handshake or by `verify`. */
export class PeerView {
  peer: Identity
  readonly #native: Pick<NativeChannel, 'evidence' | 'verify' | 'failure'>
  /** Fetched on first use. */
  #handshakeEvidence: readonly Evidence[] | null = null
  #evidence: readonly Evidence[] | null = null

  constructor(native: Pick<NativeChannel, 'peer' | 'evidence' | 'verify' | 'failure'>) {
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
   * Checks the peer again.
   *
   * @param endError - The error after the end; `undefined` before it.
   * @param checkLine - Asks the core whether it has ended: the event loop may not have been notified yet.
   */
  verify(endError: () => RingfenceError | undefined, checkLine: () => void, options?: WaitOptions): Promise<Identity> {
    return runVerification(options, ({ resolve, reject }) => {
      const ended = endError()
      if (ended !== undefined) {
        reject(ended)
        return
      }
      const started = this.#native.verify((failure, verified) => {
        const endedSince = endError()
        // After the end, the result of the check no longer counts.
        if (verified !== null && endedSince === undefined) {
          this.peer = verified.identity
          this.#evidence = Object.freeze([...this.#initialEvidence(), ...verified.evidence])
          resolve(verified.identity)
          return
        }
        reject(failure === null ? endedSince! : fromFailure(failure))
        checkLine()
      })
      if (started === FAILED) reject(fromFailure(this.#native.failure()))
    })
  }
}
