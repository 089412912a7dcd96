import { signalOf } from '../endpoint/options.js'
import { aborted, fromFailure, type RingfenceError } from '../errors.js'
import { onAbort } from '../runtime/aborts.js'
import { Deferred, ignore } from '../runtime/deferred.js'
import { FAILED, type NativeChannel } from '../native.js'
import type { Evidence, Identity, WaitOptions } from '../types.js'

/** The errors that only `verify` reports. All others are the end of the channel or subscription, which its `closed` reports as well. */
const TOLD_BY_VERIFY: ReadonlySet<string> = new Set([
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
    const forget = signal === undefined ? ignore : onAbort(signal, () => verified.reject(aborted(signal)))
    start({
      resolve(identity) {
        forget()
        verified.resolve(identity)
      },
      reject(error) {
        forget()
        if (!TOLD_BY_VERIFY.has(error.code)) verified.promise.catch(ignore)
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
  #ofHandshake: readonly Evidence[] | null = null
  #evidence: readonly Evidence[] | null = null

  constructor(native: Pick<NativeChannel, 'peer' | 'evidence' | 'verify' | 'failure'>) {
    this.#native = native
    this.peer = native.peer
  }

  /** Every check of the handshake, and those of the last `verify`. */
  get evidence(): readonly Evidence[] {
    return (this.#evidence ??= this.#evidenceOfHandshake())
  }

  #evidenceOfHandshake(): readonly Evidence[] {
    return (this.#ofHandshake ??= Object.freeze(this.#native.evidence()))
  }

  /**
   * Checks the peer again.
   *
   * @param over - The error after the end; `undefined` before it.
   * @param hear - Asks the core whether it has ended: the event loop may not have been notified yet.
   */
  verify(over: () => RingfenceError | undefined, hear: () => void, options?: WaitOptions): Promise<Identity> {
    return runVerification(options, ({ resolve, reject }) => {
      const ended = over()
      if (ended !== undefined) {
        reject(ended)
        return
      }
      const started = this.#native.verify((failure, verified) => {
        const endedMeanwhile = over()
        // After the end, the result of the check no longer counts.
        if (verified !== null && endedMeanwhile === undefined) {
          this.peer = verified.identity
          this.#evidence = Object.freeze([...this.#evidenceOfHandshake(), ...verified.evidence])
          resolve(verified.identity)
          return
        }
        reject(failure === null ? endedMeanwhile! : fromFailure(failure))
        hear()
      })
      if (started === FAILED) reject(fromFailure(this.#native.failure()))
    })
  }
}
