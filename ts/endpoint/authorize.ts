import { messageOf, show } from '../errors.js'
import type { Failure } from '../native.js'
import { inThisContext } from '../runtime/context.js'
import type { Identity, Policy } from '../types.js'

type Decide = NonNullable<Policy['authorize']>

/** Answers of the binding's `answer`. */
const NO = 0
const YES = 1
const FAILED = 2

/** The maximum number of stored exceptions. A host makes no error for some clients that it refuses, so the oldest exceptions are dropped. */
const MAX_CAUSES = 256

/** Calls the policy's callback for the binding. Keeps the callback's exceptions as causes of the errors that follow. */
export class Authorizer {
  /** Receives the answers. Set once the handshake has started. */
  answer: ((id: number, verdict: number, found: string) => void) | undefined
  readonly #decide: Decide
  readonly #causes = new Map<number, unknown>()

  private constructor(policy: Policy, authorize: Decide) {
    this.#decide = (identity) => authorize.call(policy, identity)
  }

  /** `undefined` for a policy without a callback. */
  static of(policy: Policy | undefined): Authorizer | undefined {
    return policy?.authorize === undefined ? undefined : new Authorizer(policy, policy.authorize)
  }

  /** Called by the binding. Never throws. Runs in the async context of the call with the policy. */
  readonly ask = inThisContext((id: number, identity: Identity): void => {
    void this.#decideOn(id, identity)
  })

  async #decideOn(id: number, identity: Identity): Promise<void> {
    let found: string
    try {
      // A callback in plain JavaScript may return anything.
      const verdict: unknown = await this.#decide(identity)
      if (typeof verdict === 'boolean') {
        this.answer?.(id, verdict ? YES : NO, String(verdict))
        return
      }
      found = show(verdict)
      this.#setCause(id, new TypeError(`authorize must answer true or false, not ${found}`))
    } catch (error) {
      found = `an exception: ${messageOf(error)}`
      this.#setCause(id, error)
    }
    this.answer?.(id, FAILED, found)
  }

  #setCause(id: number, cause: unknown): void {
    this.#causes.set(id, cause)
    if (this.#causes.size > MAX_CAUSES) this.#causes.delete(this.#causes.keys().next().value as number)
  }

  /** The callback's exception, if that caused the failure. */
  causeOf(failure: Failure | null): unknown {
    const requestId = failure?.question
    if (requestId === undefined) return undefined
    const cause = this.#causes.get(requestId)
    this.#causes.delete(requestId)
    return cause
  }
}
