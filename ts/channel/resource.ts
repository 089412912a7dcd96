// The life cycle that all resources share.

import { EventEmitter } from 'node:events'
import { inspect } from 'node:util'

import { RingfenceError, messageOf, type ErrorName } from '../errors.js'
import { REASONS, type NativePeer } from '../native.js'
import { inThisContext } from '../runtime/context.js'
import { Deferred } from '../runtime/deferred.js'
import { emit } from '../runtime/emit.js'
import { printable } from '../runtime/printable.js'
import * as internal from '../runtime/symbols.js'
import { timers } from '../runtime/timers.js'
import type { GoneReason, Identity } from '../endpoint/peer.js'
import type { Closed } from '../types.js'

/** The event of every {@link Resource}. */
export interface ResourceEvents {
  /** Emitted once, after the end. */
  close: [closed: Closed]
}

/**
 * An object that stays open until this side closes it, or until it ends for another reason.
 *
 * An open resource keeps the process alive until {@link Resource.unref}. `await using` closes it. An error that a listener throws is an
 * uncaught exception, and affects no other listener and no later event.
 */
export abstract class Resource<Events extends ResourceEvents & Record<keyof Events, unknown[]>>
  extends EventEmitter<Events>
  implements AsyncDisposable
{
  /** The address at which it was opened; null for a line between parent and child, and for a merge. */
  readonly address: string | null
  /** Resolves once the resource has ended, with the reason. Never rejects. */
  readonly closed: Promise<Closed>

  readonly #ending = new Deferred<Closed>()
  #ended: Closed | null = null
  /** The resource that this one is a view of. It holds the state of both. */
  readonly #root: Resource<Events> | null
  /** The views that have listeners. A view without listeners may be collected before its root. */
  readonly #views = new Set<EventEmitter>()
  /** Calls listeners in the async context of the call that has made the resource, as a socket does, and not in that of a wakeup. */
  readonly #emit = inThisContext((name: string, args: unknown[]) => {
    for (const emitter of [this as EventEmitter, ...this.#views]) emit(emitter, name, ...args)
  })

  static {
    // 'removeListener' would not do: `removeAllListeners` also removes the listeners of that event.
    for (const name of ['on', 'addListener', 'prependListener', 'off', 'removeListener', 'removeAllListeners'] as const)
      Object.defineProperty(Resource.prototype, name, {
        configurable: true,
        writable: true,
        value(this: Resource<ResourceEvents>, ...args: unknown[]) {
          Reflect.apply(EventEmitter.prototype[name], this, args)
          if (this.#root === null) return this
          if (this.eventNames().length > 0) this.#root.#views.add(this)
          else this.#root.#views.delete(this)
          return this
        },
      })
  }

  /** @param from - The address; or the resource of which the new one is a view with values as messages. */
  protected constructor(from: string | null | Resource<Events>) {
    super()
    if (from instanceof Resource) {
      this.#root = from.#root ?? from
      this.address = from.address
      this.closed = from.closed
      return
    }
    this.#root = null
    this.address = from
    this.closed = this.#ending.promise
  }

  /** Flushes what was sent, ends cleanly and releases everything. Resolves once that is done. */
  abstract close(options?: object): Promise<void>

  /**
   * Drops everything that is not in the ring yet, and releases everything. With an error, `closed` has the reason 'failed' and this error.
   */
  abstract destroy(error?: Error): void

  /** Keeps the process alive while it is open, which is the default. */
  ref(): this {
    this[internal.keepAlive](true)
    return this
  }

  /** Lets the process exit while it is open. */
  unref(): this {
    this[internal.keepAlive](false)
    return this
  }

  /** @internal */
  protected abstract [internal.keepAlive](alive: boolean): void

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /**
   * The end; null while the resource is open.
   *
   * @internal
   */
  protected get [internal.ended](): Closed | null {
    return (this.#root ?? this).#ended
  }

  /**
   * Marks the resource as ended, resolves `closed`, and emits 'close' in a microtask. Only the first call counts.
   *
   * @internal
   */
  protected [internal.settle](closed: Closed): void {
    if (this.#ended !== null) return
    this.#ended = closed
    this.#ending.resolve(closed)
    timers.queueMicrotask(() => this[internal.notify]('close', ...([closed] as Events['close'])))
  }

  /**
   * Emits an event, here and on the views.
   *
   * @internal
   */
  protected [internal.notify]<Name extends keyof Events & string>(name: Name, ...args: Events[Name]): void {
    this.#emit(name, args)
  }

  /**
   * The role and the peer, which `util.inspect` shows between the address and the state.
   *
   * @internal
   */
  protected abstract [internal.summary](): string[]

  /** One line for `util.inspect` and `console.log`. */
  [inspect.custom](): string {
    const location = this.address === null ? '' : ` at ${printable(this.address)}`
    const reason = this[internal.ended]?.reason ?? 'open'
    const state = reason === 'open' || reason === 'closed' ? reason : `closed: ${reason}`
    return `<${[this.constructor.name + location, ...this[internal.summary](), state].join(', ')}>`
  }
}

/** The cause of a lost peer, indexed by the binding's answer to `isLost`; 0 if it is unknown, as to a publisher. */
const LOST_CAUSES = [
  'has ended, executes another program now, or has destroyed the channel',
  'has ended, or executes another program now',
  'has destroyed the channel, or closed it before everything was sent',
]

const END_ERRORS = {
  corrupt: ['RING_CORRUPT', 'the peer violated the protocol of the shared memory'],
  exposed: ['OBJECT_EXPOSED', 'another process tried to open the shared memory of one of the two sides: it was wiped'],
  evicted: [
    'EVICTED',
    'the publisher evicted this subscriber, which delayed it for longer than its `stall` allows: read faster, take a larger ' +
      "ring, or subscribe with the delivery 'best-effort' or 'latest'",
  ],
  refused: ['PEER_REFUSED', 'the peer no longer satisfies the policy'],
} as const

/** Returns the peer's name in messages. The number of a process in another pid namespace is 0. */
export function peerName({ pid }: Identity): string {
  return pid === 0 ? 'the peer' : `the peer, process ${pid},`
}

/** Returns the error of a lost peer. @param cause - An index of {@link LOST_CAUSES}. */
export function lostError(peer: Identity, cause: number): RingfenceError {
  const subject = `${peerName(peer)} ${LOST_CAUSES[cause]}`
  return new RingfenceError('PEER_LOST', `${subject}: its last messages may be missing; open a new channel to continue`)
}

/** Returns the end of a peer for the reason that the binding returns. @param cause - For `lostError`. */
export function closedFor(reason: GoneReason, peer: Identity, cause = 0): Closed {
  if (reason === 'closed') return { reason }
  if (reason === 'lost') return { reason, error: lostError(peer, cause) }
  const [code, message] = END_ERRORS[reason]
  return { reason, error: new RingfenceError(code, message) }
}

/** Returns the end of a channel or a subscription for the binding's answer to `listen`; null while it is open. */
export function closedFromStatus(status: number, native: Pick<NativePeer, 'isLost'>, peer: Identity): Closed | null {
  const reason = REASONS[status] ?? null
  return reason === null ? null : closedFor(reason, peer, native.isLost())
}

/** Returns the number and the name of what is counted. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`
}

/** Returns the end of a resource after `destroy(error)`. */
export function closedByDestroy(error: Error | null | undefined): Closed {
  // The callbacks of Node pass null if there is no error.
  if (error === undefined || error === null) return { reason: 'closed' }
  if (error instanceof RingfenceError) return { reason: 'failed', error }
  return { reason: 'failed', error: new RingfenceError('CLOSED', `destroyed: ${messageOf(error)}`, { cause: error }) }
}

/** Returns a function that makes an error like this one for each call, with the stack of that call. */
export function errorFactory(error: RingfenceError): () => RingfenceError {
  const name = error.code.replace('ERR_RINGFENCE_', '') as ErrorName
  return () => new RingfenceError(name, error.message, { cause: error })
}
