import type { Codec } from '../adapters/codec.js'
import { Values } from '../channel/values.js'
import { Authorizer } from './authorize.js'
import { inThisContext } from '../runtime/context.js'
import { reportRefused } from '../runtime/diagnostics.js'
import { RingfenceError, aborted, fromFailure, invalid, orThrowNoSpace, show } from '../errors.js'
import { rejection } from '../runtime/deferred.js'
import { atExit } from '../runtime/exit.js'
import { closeInspector } from '../runtime/harden.js'
import {
  native,
  withOperations,
  type Endpoints,
  type Failure,
  type HandshakeArgs,
  type Joining,
  type RawChannel,
} from '../native.js'
import { LONGEST_TIMER, timers } from '../runtime/timers.js'
import { checkOptions, type Call } from './options.js'
import type { AttachmentOptions, Options } from '../types.js'

// Runs one handshake from the call to its outcome: options, the policy's callback, abort and exit.

/** The default of `stall`, in milliseconds. */
export const STALL = 5000

/** The options that a channel keeps in JavaScript. */
export interface ChannelSettings {
  /** Microseconds that a wait may spin. */
  readonly busyPollMicros: number
  /** This side continues to send after the peer has ended its sending. */
  readonly allowHalfOpen: boolean
  /** Milliseconds for which a subscriber may delay its publisher. */
  readonly stall: number
  /** Converts between messages and values; null: messages are bytes. */
  readonly values: Values<unknown> | null
  /** The attachments that this side accepts. */
  readonly attachments?: AttachmentOptions | undefined
}

/** The settings in options that were already checked. */
export function channelSettings(
  options: Options & { codec?: Codec<unknown> | undefined; stall?: number | undefined },
): ChannelSettings {
  const { busyPollMicros = 0, allowHalfOpen = false, stall = STALL, codec, attachments } = options
  return { busyPollMicros, allowHalfOpen, stall, values: codec === undefined ? null : new Values(codec), attachments }
}

/** The state of a call that the object it makes needs. */
export interface Opening {
  /** null for a line between parent and child. */
  address: string | null
  /** The settings of the channel, or of each channel that is accepted. */
  settings: ChannelSettings
  signal: AbortSignal | undefined
  /** Converts a failure to an error, whose cause is what the policy's callback has thrown. */
  errorOf(failure: Failure | null): RingfenceError
}

/** The outcome of a handshake, as the binding makes it. */
type Native = RawChannel | { close(): void }

/** Like {@link runHandshake}, at an address. */
export function runHandshakeAt<Name extends keyof Endpoints, Opened extends AsyncDisposable>(
  name: Name,
  address: string,
  options: Options,
  open: (raw: Endpoints[Name], opening: Opening) => Opened,
): Promise<Opened> {
  if (typeof address !== 'string') return Promise.reject(invalid(`address must be a string, not ${show(address)}`))
  const call = (...args: HandshakeArgs<Endpoints[Name]>) => native.begin(name, address, ...args)
  return runHandshake(name, call, options, open, address)
}

/**
 * Starts a call that the binding runs on its own thread and that can be cancelled. `open` makes the caller's result from the outcome.
 *
 * The caller must get this very promise. An abort or the end of `timeout` before it is settled rejects it and closes the outcome.
 */
export function runHandshake<Raw extends Native, Opened extends AsyncDisposable>(
  name: Call,
  call: (...args: HandshakeArgs<Raw>) => Joining,
  options: Options,
  open: (raw: Raw, opening: Opening) => Opened,
  address: string | null = null,
): Promise<Opened> {
  return new Promise<Opened>((resolve, reject) => {
    const checked = checkOptions(name, options)
    const settings = channelSettings(options)
    const { signal, timeout } = options
    if (signal?.aborted) throw aborted(signal)
    if (checked.harden) closeInspector()
    const authorizer = Authorizer.of(options.policy)
    const errorOf = errorsWith(authorizer)
    let timeoutError: RingfenceError | undefined
    const cancelError = () => (signal?.aborted ? aborted(signal) : timeoutError)
    const throwIfCancelled = () => {
      const error = cancelError()
      if (error !== undefined) throw error
    }
    // The opened resource belongs to the async context of this call.
    const finish = inThisContext((failure: Failure | null, raw: Raw | null) => {
      signal?.removeEventListener('abort', cancel)
      timers.clearTimeout(timer)
      cancelExit?.()
      if (raw === null) {
        const error = (failure?.code === 'ABORTED' && cancelError()) || errorOf(failure)
        if (error.code === 'ERR_RINGFENCE_PEER_REFUSED') reportRefused(address, error)
        resolve(rejection(error))
        return
      }
      let opened: Opened | undefined
      try {
        throwIfCancelled()
        opened = open(raw, { address, settings, signal, errorOf })
        // A subscriber of a diagnostics channel may just have aborted the call.
        throwIfCancelled()
        resolve(opened)
      } catch (error) {
        // The peer must be notified now, not at the next garbage collection.
        if (opened === undefined) closeNative(raw)
        else void opened[Symbol.asyncDispose]()
        reject(error)
      }
    })
    const refused = (refusal: Failure) => reportRefused(address, errorOf(refusal))
    // There may be no thread for it, or no descriptor to cancel it by.
    const joining = orThrowNoSpace(
      (reason) => `the handshake cannot be started: ${reason}`,
      () => call(checked, finish, authorizer?.ask, name === 'join' ? refused : undefined),
    )
    if (authorizer !== undefined) authorizer.answer = joining.answer.bind(joining)
    const cancel = () => joining.cancel()
    const expire = () => {
      const message = `${name} did not succeed within its timeout of ${timeout} ms`
      timeoutError = new RingfenceError('TIMEOUT', message + adviceOnTimeout(name, options))
      cancel()
    }
    const timer = timeout === undefined ? undefined : timers.setTimeout(expire, Math.min(timeout, LONGEST_TIMER))
    // `connect` never binds.
    const cancelExit = address === null || name === 'connect' ? undefined : atExit(address, () => joining.vacate())
    signal?.addEventListener('abort', cancel, { once: true })
  })
}

/** An endpoint keeps the result as long as it is open. Made here, so that it keeps nothing else of the handshake alive. */
function errorsWith(authorizer: Authorizer | undefined): Opening['errorOf'] {
  return (failure) => fromFailure(failure, authorizer?.causeOf(failure))
}

function adviceOnTimeout(name: Call, { wait }: Options): string {
  if (name === 'join') return '; does a partner join at the same address?'
  return wait ? '; without `wait` it fails at once, with the reason' : ''
}

function closeNative(raw: Native): void {
  if ('operate' in raw) withOperations(raw).close()
  else raw.close()
}
