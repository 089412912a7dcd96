import { RingfenceError, fromFailure, invalid } from '../errors.js'
import { builtin, native, type Failure } from '../native.js'

/**
 * Closes this process, for as long as it runs, to other processes of the same user: no /proc/PID/mem, no ptrace, no
 * copying of descriptors (pidfd_getfd), no core file, and SIGUSR1 does not open the inspector any more. May be called at
 * any time and more than once; on the main thread, which alone knows who listens to signals and whether the inspector is
 * open. Root may still do anything.
 *
 * The executable of a process that is closed cannot be looked up by a peer of the same user, so where a policy asks for
 * it, as the default does, call this after the channels are made, or use the option `harden` of `join`. A program that
 * listens to SIGUSR1 itself keeps it: its listener keeps the inspector shut.
 *
 * @throws {@link RingfenceError} INVALID_ARGUMENT where the inspector is open already, or in a worker thread; UNSUPPORTED,
 * also where the runtime does not tell whether its inspector is open
 */
export function harden(): void {
  closeInspector()
  must(native.harden())
}

/** Keeps the inspector closed. The rest of hardening may come later, within a handshake. */
export function closeInspector(): void {
  if (!builtin.threads.isMainThread) {
    throw invalid('a worker thread cannot harden the process: it sees neither the inspector nor who listens to SIGUSR1')
  }
  const url = openInspector()
  if (url !== undefined) {
    throw invalid(
      `this process cannot be hardened: its inspector is open at ${url}, for every process that can connect there; ` +
        'start it without --inspect (see NODE_OPTIONS too), or call inspector.close() before',
    )
  }
  if (process.listenerCount('SIGUSR1') === 0) must(native.ignoreSigusr1())
}

/** The address of the open inspector. A process that cannot tell whether it is open cannot be hardened. */
function openInspector(): string | undefined {
  // This runtime was built without an inspector.
  if (process.features.inspector === false) return undefined
  try {
    return builtin.inspector.url()
  } catch (error) {
    const reason = 'this process cannot be hardened: it does not tell whether its inspector is open'
    throw new RingfenceError('UNSUPPORTED', reason, { cause: error })
  }
}

function must(failure: Failure | null): void {
  if (failure !== null) throw fromFailure(failure)
}
