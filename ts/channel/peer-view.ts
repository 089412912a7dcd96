import { fromFailure, type RingfenceError } from '../errors.js'
import { FAILED, type NativeChannel } from '../native.js'
import type { Evidence, Identity } from '../types.js'

/** The errors that only `verify` reports. All others are the end of the channel or subscription, which its `closed` reports as well. */
const TOLD_BY_VERIFY: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_PEER_REFUSED',
  'ERR_RINGFENCE_NO_SPACE',
  'ERR_RINGFENCE_HANDSHAKE_TIMEOUT',
  'ERR_RINGFENCE_UNSUPPORTED',
])

/** A verification under way. */
export interface Verification {
  readonly promise: Promise<Identity>
  resolve(identity: Identity): void
  /** With an end, which `closed` reports as well, the rejection needs no handler. */
  reject(error: RingfenceError): void
}

export function beginVerification(): Verification {
  let resolve!: (identity: Identity) => void
  let fail!: (error: RingfenceError) => void
  const promise = new Promise<Identity>((found, failed) => {
    resolve = found
    fail = failed
  })
  const reject = (error: RingfenceError) => {
    if (!TOLD_BY_VERIFY.has(error.code)) promise.catch(() => {})
    fail(error)
  }
  return { promise, resolve, reject }
}

/** The peer as it was last looked at, in the handshake or by `verify`. */
export class PeerView {
  peer: Identity
  readonly #native: Pick<NativeChannel, 'evidence' | 'verify' | 'failure'>
  /** Fetched when it is first asked for. */
  #ofHandshake: readonly Evidence[] | null = null
  #evidence: readonly Evidence[] | null = null

  constructor(native: Pick<NativeChannel, 'peer' | 'evidence' | 'verify' | 'failure'>) {
    this.#native = native
    this.peer = native.peer
  }

  /** Every check of the handshake, and those of the last look. */
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
  verify(over: () => RingfenceError | undefined, hear: () => void): Promise<Identity> {
    const { promise, resolve, reject } = beginVerification()
    const ended = over()
    if (ended !== undefined) {
      reject(ended)
      return promise
    }
    const started = this.#native.verify((failure, verified) => {
      const endedMeanwhile = over()
      // After the end, the result of the check says nothing.
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
    return promise
  }
}
