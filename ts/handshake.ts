import { Authorizer } from './authorize.js'
import { tellRefused } from './diagnostics.js'
import { RingfenceError, aborted, fromFailure, invalid, show } from './errors.js'
import { atExit } from './exit.js'
import { closeInspector } from './harden.js'
import { native, type Endpoints, type Failure, type Given, type Joining } from './native.js'
import { channelSettings, checkOptions, type Call, type ChannelSettings } from './options.js'
import type { Options } from './types.js'

// One handshake, from the call to what the binding has made: options, the policy's callback, abort, exit.

/** What is known when the binding has made something. */
export interface Opening {
  /** Of the channel, or of each channel that comes. */
  settings: ChannelSettings
  signal: AbortSignal | undefined
  authorizer: Authorizer | undefined
}

/** As {@link runHandshake}, at an address. */
export async function runHandshakeAt<Name extends keyof Endpoints, Made>(
  name: Name,
  address: string,
  options: Options,
  open: (raw: Endpoints[Name], opening: Opening) => Made,
): Promise<Made> {
  if (typeof address !== 'string') throw invalid(`address must be a string, not ${show(address)}`)
  const call = (...given: Given<Endpoints[Name]>) => native.begin(name, address, ...given)
  return runHandshake(name, call, options, open, address)
}

/** Starts a call that the binding runs on a thread of its own and that can be cancelled; `open` takes what it has made. */
export async function runHandshake<Raw, Made>(
  name: Call,
  call: (...given: Given<Raw>) => Joining,
  options: Options,
  open: (raw: Raw, opening: Opening) => Made,
  address?: string,
): Promise<Made> {
  const checked = checkOptions(name, options)
  const settings = channelSettings(options)
  const { signal } = options
  if (signal?.aborted) throw aborted(signal)
  if (checked.harden) closeInspector()
  const authorizer = Authorizer.of(options.policy)
  return new Promise<Made>((resolve, reject) => {
    const done = (failure: Failure | null, raw: Raw | null) => {
      signal?.removeEventListener('abort', cancel)
      stay?.()
      if (raw === null) {
        const calledOff = failure?.code === 'ABORTED' && signal?.aborted
        const error = calledOff ? aborted(signal) : fromFailure(failure, authorizer?.causeOf(failure))
        if (error.code === 'ERR_RINGFENCE_PEER_REFUSED') tellRefused(address ?? null, error)
        reject(error)
        return
      }
      try {
        resolve(open(raw, { settings, signal, authorizer }))
      } catch (error) {
        reject(error)
      }
    }
    const joining = start(call, checked, done, authorizer?.ask)
    if (authorizer !== undefined) authorizer.answer = (...answer) => joining.answer(...answer)
    const cancel = () => joining.cancel()
    // `connect` never binds.
    const stay = address === undefined || name === 'connect' ? undefined : atExit(address, () => joining.vacate())
    signal?.addEventListener('abort', cancel, { once: true })
  })
}

/** A handshake needs a thread, and a descriptor by which it is cancelled: without them it cannot start. */
function start<Raw>(call: (...given: Given<Raw>) => Joining, ...given: Given<Raw>): Joining {
  try {
    return call(...given)
  } catch (error) {
    if (error instanceof RingfenceError) throw error
    throw new RingfenceError('NO_SPACE', `the handshake cannot be started: ${(error as Error).message}`, {
      cause: error,
    })
  }
}
