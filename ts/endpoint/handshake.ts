import { Authorizer } from './authorize.js'
import { tellRefused } from '../runtime/diagnostics.js'
import { RingfenceError, aborted, fromFailure, invalid, orNoSpace, show } from '../errors.js'
import { rejection } from '../runtime/deferred.js'
import { atExit } from '../runtime/exit.js'
import { closeInspector } from '../runtime/harden.js'
import {
  native,
  withOperations,
  type Endpoints,
  type Failure,
  type Given,
  type Joining,
  type RawChannel,
} from '../native.js'
import { LONGEST_TIMER, timers } from '../runtime/timers.js'
import { channelSettings, checkOptions, type Call, type ChannelSettings } from './options.js'
import type { Options } from '../types.js'

// Runs one handshake from the call to its outcome: options, the policy's callback, abort and exit.

/** The state of a call that the object it makes needs. */
export interface Opening {
  /** The settings of the channel, or of each channel that is accepted. */
  settings: ChannelSettings
  signal: AbortSignal | undefined
  authorizer: Authorizer | undefined
}

/** The outcome of a handshake, as the binding makes it. */
type Native = RawChannel | { close(): void }

/** Like {@link runHandshake}, at an address. */
export function runHandshakeAt<Name extends keyof Endpoints, Made extends AsyncDisposable>(
  name: Name,
  address: string,
  options: Options,
  open: (raw: Endpoints[Name], opening: Opening) => Made,
): Promise<Made> {
  if (typeof address !== 'string') return Promise.reject(invalid(`address must be a string, not ${show(address)}`))
  const call = (...given: Given<Endpoints[Name]>) => native.begin(name, address, ...given)
  return runHandshake(name, call, options, open, address)
}

/**
 * Starts a call that the binding runs on its own thread and that can be cancelled. `open` makes the caller's result from the outcome.
 *
 * The caller must get this very promise. An abort or the end of `timeout` before it is settled rejects it and closes the outcome.
 */
export function runHandshake<Raw extends Native, Made extends AsyncDisposable>(
  name: Call,
  call: (...given: Given<Raw>) => Joining,
  options: Options,
  open: (raw: Raw, opening: Opening) => Made,
  address?: string,
): Promise<Made> {
  return new Promise<Made>((resolve, reject) => {
    const checked = checkOptions(name, options)
    const settings = channelSettings(options)
    const { signal, timeout } = options
    if (signal?.aborted) throw aborted(signal)
    if (checked.harden) closeInspector()
    const authorizer = Authorizer.of(options.policy)
    let late: RingfenceError | undefined
    const calledOff = () => (signal?.aborted ? aborted(signal) : late)
    const done = (failure: Failure | null, raw: Raw | null) => {
      signal?.removeEventListener('abort', cancel)
      timers.clearTimeout(timer)
      stay?.()
      if (raw === null) {
        const error = (failure?.code === 'ABORTED' && calledOff()) || fromFailure(failure, authorizer?.causeOf(failure))
        if (error.code === 'ERR_RINGFENCE_PEER_REFUSED') tellRefused(address ?? null, error)
        resolve(rejection(error))
        return
      }
      let made: Made | undefined
      try {
        throwIfAny(calledOff())
        made = open(raw, { settings, signal, authorizer })
        // A subscriber of a diagnostics channel may just have aborted the call.
        throwIfAny(calledOff())
        resolve(made)
      } catch (error) {
        // The peer must be notified now, not at the next garbage collection.
        if (made === undefined) closeNative(raw)
        else void made[Symbol.asyncDispose]()
        reject(error)
      }
    }
    const refused = (refusal: Failure) =>
      tellRefused(address ?? null, fromFailure(refusal, authorizer?.causeOf(refusal)))
    // There may be no thread for it, or no descriptor to cancel it by.
    const joining = orNoSpace(
      (reason) => `the handshake cannot be started: ${reason}`,
      () => call(checked, done, authorizer?.ask, name === 'join' ? refused : undefined),
    )
    if (authorizer !== undefined) authorizer.answer = (...answer) => joining.answer(...answer)
    const cancel = () => joining.cancel()
    const expire = () => {
      const text = `${name} did not succeed within its timeout of ${timeout} ms`
      late = new RingfenceError('TIMEOUT', text + adviceOnTimeout(name, options))
      cancel()
    }
    const timer = timeout === undefined ? undefined : timers.setTimeout(expire, Math.min(timeout, LONGEST_TIMER))
    // `connect` never binds.
    const stay = address === undefined || name === 'connect' ? undefined : atExit(address, () => joining.vacate())
    signal?.addEventListener('abort', cancel, { once: true })
  })
}

function adviceOnTimeout(name: Call, { wait }: Options): string {
  if (name === 'join') return '; does a partner join at the same address?'
  return wait ? '; without `wait` it fails at once, with the reason' : ''
}

function throwIfAny(error: Error | undefined): void {
  if (error !== undefined) throw error
}

function closeNative(raw: Native): void {
  if ('operate' in raw) withOperations(raw).close()
  else raw.close()
}
