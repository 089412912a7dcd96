import { EventEmitter } from 'node:events'

import { AcceptQueue, tell } from './accept-queue.js'
import type { Authorizer } from './authorize.js'
import { aborted, runHandshakeAt, type Opening } from './handshake.js'
import { Channel, openArrived, openChannel } from './channel.js'
import { type RingfenceError, fromFailure, invalid, show } from './errors.js'
import { atExit } from './exit.js'
import { FAILED, native, type Failure, type RawChannel, type NativeListener } from './native.js'
import type { ConnectOptions, Options } from './types.js'

/** Only `listen` makes listeners. */
const KEY = Symbol('ringfence')
let make: (address: string, raw: NativeListener, opening: Opening) => Listener

/** What a {@link Listener} tells. */
export interface ListenerEvents {
  /** Somebody came and got no channel. The listener goes on. */
  refused: [refusal: RingfenceError]
  /** It listens no more, and the address is free: it was closed (null), or has ended by itself, and this is why. */
  close: [reason: RingfenceError | null]
}

/**
 * A service at its address.
 *
 * `for await (const channel of listener)` yields a channel for each agent that has passed; leaving the loop does not close
 * the listener, and several loops share what comes. An open listener keeps the process alive, as a `net.Server` does,
 * until {@link Listener.unref}.
 *
 * The event `refused` tells of everybody who came and got no channel: PEER_REFUSED with `check`, `wanted` and `found`,
 * HANDSHAKE_TIMEOUT, PROTOCOL, PEER_LOST, ADDRESS_OCCUPIED where the service is full, or what kept this process from it,
 * such as NO_SPACE; and with the `identity`, as much as was learned. What a listener of an event throws is an uncaught
 * exception, as with any emitter, and keeps no later event from being told.
 *
 * What nobody takes is bounded: once 16 channels lie here, newcomers wait at the address, and fail there at their own
 * deadline; at most 64 handshakes that are under way then still end in channels.
 */
export class Listener extends EventEmitter<ListenerEvents> implements AsyncIterable<Channel>, AsyncDisposable {
  /** Where it listens. */
  readonly address: string
  /**
   * Resolves once it listens no more: with null where it was closed, or with the reason where it has ended by itself, also
   * where nobody runs a loop. Never rejects.
   */
  readonly closed: Promise<RingfenceError | null>

  #resolveClosed!: (reason: RingfenceError | null) => void
  readonly #native: NativeListener
  readonly #authorizer: Authorizer | undefined
  readonly #busyPoll: number
  readonly #open = new Set<Channel>()
  readonly #acceptQueue: AcceptQueue
  #closed = false
  /** It needs not be closed any more where the process exits. */
  readonly #stay: () => void
  #signal: AbortSignal | undefined
  readonly #abort = () => void this.close()

  static {
    make = (...given) => new Listener(KEY, ...given)
  }

  private constructor(key: symbol, address: string, raw: NativeListener, opening: Opening) {
    super()
    if (key !== KEY) throw invalid('listeners are made by listen')
    const { options, signal, authorizer } = opening
    this.address = address
    this.#native = raw
    this.#authorizer = authorizer
    this.#busyPoll = options.busyPoll ?? 0
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
    this.#acceptQueue = new AcceptQueue(true, (paused) => raw.pause(paused ? 1 : 0))
    if (raw.watch(() => this.#hear()) === FAILED) {
      const error = fromFailure(raw.failure())
      raw.close()
      throw error
    }
    this.#stay = atExit(address, () => raw.close())
    this.#signal = signal
    signal?.addEventListener('abort', this.#abort, { once: true })
  }

  /** Channels that are open now, those that nobody has taken yet included. */
  get size(): number {
    return this.#open.size
  }

  [Symbol.asyncIterator](): AsyncIterator<Channel, undefined> {
    return this.#acceptQueue.iterator()
  }

  /**
   * Listens no more. Channels that were taken go on ('keep'), or are closed ('close'). Those that nobody has taken are
   * closed either way, and their agents see that, as does whoever has a handshake under way. Loops over the listener end.
   *
   * @returns A promise that resolves once the address is free, and closed channels have let go of everything.
   */
  async close(options: { channels?: 'keep' | 'close' } = {}): Promise<void> {
    if (typeof options !== 'object' || options === null)
      throw invalid(`options must be an object, not ${show(options)}`)
    const { channels = 'keep' } = options
    if (channels !== 'keep' && channels !== 'close') {
      throw invalid(`channels must be 'keep' or 'close', not ${show(channels)}`)
    }
    const unclaimed = this.#finish(null)
    const leaving = channels === 'close' ? [...this.#open] : unclaimed
    await Promise.all(leaving.map((channel) => channel.close()))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** An open listener keeps the process alive (which it does from the start). */
  ref(): this {
    this.#native.keepAlive(1)
    return this
  }

  /** An open listener does not keep the process alive. */
  unref(): this {
    this.#native.keepAlive(0)
    return this
  }

  /** There is news. */
  #hear(): void {
    while (!this.#closed) {
      const arrival = this.#native.accept()
      if (arrival === FAILED) {
        this.#fail(fromFailure(this.#native.failure()))
        return
      }
      if (typeof arrival === 'number') return
      if ('role' in arrival) this.#admit(arrival)
      else this.#refuse(arrival)
    }
  }

  #admit(raw: RawChannel): void {
    const channel = openArrived(raw, this.#busyPoll)
    if (!(channel instanceof Channel)) {
      this.#refuse(channel)
      return
    }
    this.#open.add(channel)
    void channel.closed.then(() => this.#open.delete(channel))
    this.#acceptQueue.add(channel)
  }

  #refuse(failure: Failure): void {
    tell(this, 'refused', fromFailure(failure, this.#authorizer?.causeOf(failure)))
  }

  /** The door has ended by itself. */
  #fail(error: RingfenceError): void {
    this.#acceptQueue.fail(error)
    for (const channel of this.#finish(error)) void channel.close()
  }

  /** Closes, once. Returns the channels that nobody will take any more. */
  #finish(reason: RingfenceError | null): Channel[] {
    if (this.#closed) return []
    this.#closed = true
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#stay()
    this.#native.close()
    this.#acceptQueue.end()
    this.#resolveClosed(reason)
    queueMicrotask(() => tell(this, 'close', reason))
    return this.#acceptQueue.discard()
  }
}

/**
 * Binds an address for a service. Agents connect there with {@link connect}, each gets a channel and memory of its own, and
 * what they have agreed on is that of {@link join}. Where somebody has the address it rejects with ADDRESS_OCCUPIED, or
 * waits for it with the option `wait`; a socket that a dead service has left is taken over. The mode and the group of a path
 * are set before anybody can reach it. Anybody on this host may connect to an abstract name, or take it first.
 *
 * Handshakes run side by side, on threads of their own, each with the deadline of `timeout`. The signal closes the
 * listener, as that of `net.Server` does: loops over it end.
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} INVALID_ARGUMENT, ADDRESS_INVALID, ADDRESS_OCCUPIED, NO_SPACE, ABORTED, UNSUPPORTED
 */
export function listen(address: string, options: Options = {}): Promise<Listener> {
  return runHandshakeAt('listen', native.listen, address, options, (raw, opening) => {
    const { signal } = opening
    if (signal?.aborted) {
      raw.close()
      throw aborted(signal)
    }
    return make(address, raw, opening)
  })
}

/**
 * Connects to the service at an address, which it never binds. A process may connect several times, and gets a channel
 * each time.
 *
 * Where nobody listens it rejects with PEER_LOST, and where the service is full with ADDRESS_OCCUPIED; with the option
 * `wait` it waits for the service to come, and for a seat. What waiting does not mend is ADDRESS_INVALID: a directory
 * that is missing, a socket that this process may not connect to.
 *
 * At most 16 handshakes of one process with one address are under way at a time; the others wait for their turn, and
 * `timeout` counts from there. A process cannot connect to a service of its own (ADDRESS_OCCUPIED).
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link join}
 */
export function connect(address: string, options: ConnectOptions = {}): Promise<Channel> {
  return runHandshakeAt('connect', native.connect, address, options, (raw, { options: { busyPoll } }) =>
    openChannel(raw, busyPoll ?? 0),
  )
}
