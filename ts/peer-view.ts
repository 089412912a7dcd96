import { fromFailure, type RingfenceError } from './errors.js'
import { FAILED, type NativeChannel } from './native.js'
import type { Evidence, Identity } from './types.js'

/** What `verify` alone tells of. All else is the end of what it was called on, whose `closed` tells of it as well. */
const TOLD_BY_VERIFY: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_PEER_REFUSED',
  'ERR_RINGFENCE_NO_SPACE',
  'ERR_RINGFENCE_HANDSHAKE_TIMEOUT',
  'ERR_RINGFENCE_UNSUPPORTED',
])

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
   * Looks again. What only this call tells of is an unhandled rejection where the promise has no handler; the end is not.
   *
   * @param over - What a caller is told where it has ended; `undefined` while it has not.
   * @param hear - The core may have ended it, which the event loop may not have heard of yet.
   */
  verify(over: () => RingfenceError | undefined, hear: () => void): Promise<Identity> {
    let resolve!: (identity: Identity) => void
    let fail!: (error: RingfenceError) => void
    const looking = new Promise<Identity>((found, failed) => {
      resolve = found
      fail = failed
    })
    const reject = (error: RingfenceError) => {
      if (!TOLD_BY_VERIFY.has(error.code)) looking.catch(() => {})
      fail(error)
    }
    const ended = over()
    if (ended !== undefined) {
      reject(ended)
      return looking
    }
    const started = this.#native.verify((failure, verified) => {
      const endedMeanwhile = over()
      // Of what has ended nothing is told.
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
    return looking
  }
}
