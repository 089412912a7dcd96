import { fromFailure, invalid } from './errors.js'
import { native, type Failure } from './native.js'

/**
 * Closes this process, for as long as it runs, to other processes of the same user: no /proc/PID/mem, no ptrace, no
 * copying of descriptors (pidfd_getfd), no core file, and SIGUSR1 does not open the inspector any more. May be called at
 * any time and more than once; on the main thread, which alone knows who listens to signals. Root may still do anything.
 *
 * The executable of a process that is closed cannot be looked up by a peer of the same user, so where a policy asks for
 * it, as the default does, call this after the channels are made, or use the option `harden` of `join`. A program that
 * listens to SIGUSR1 itself keeps it: its listener keeps the inspector shut.
 *
 * @throws {@link RingfenceError} INVALID_ARGUMENT where the inspector is open already; UNSUPPORTED
 */
export function harden(): void {
  closeInspector()
  must(native.harden())
}

/** Keeps the inspector shut. The rest of hardening may come later, within a handshake. */
export function closeInspector(): void {
  const url = inspectorUrl()
  if (url !== undefined) {
    throw invalid(
      `this process cannot be hardened: its inspector is open at ${url}, for whoever can connect there; ` +
        'start it without --inspect (see NODE_OPTIONS too), or call inspector.close() before',
    )
  }
  if (process.listenerCount('SIGUSR1') === 0) must(native.ignoreSigusr1())
}

function inspectorUrl(): string | undefined {
  try {
    return process.getBuiltinModule('node:inspector').url()
  } catch {
    // A runtime that was built without one.
    return undefined
  }
}

function must(failure: Failure | null): void {
  if (failure !== null) throw fromFailure(failure)
}
