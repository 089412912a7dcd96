import { RingfenceError, invalid, ok } from '../errors.js'
import { builtin, native } from '../native.js'

/**
 * Makes this process inaccessible to other processes of the same user for as long as it runs: no /proc/PID/mem, no ptrace, no copying of
 * descriptors (pidfd_getfd), no core file, and SIGUSR1 no longer opens the inspector. May be called at any time and more than once. Must
 * be called on the main thread: only that knows the listeners of signals and whether the inspector is open. Root is not restricted.
 *
 * A peer of the same user cannot look up the executable of a hardened process. If a policy checks it, as the default does, call this after
 * the channels are made, or use the option `harden` of `join`. If the program listens to SIGUSR1 itself, its listener stays, and also keeps
 * the inspector closed.
 *
 * @throws {@link RingfenceError} INVALID_ARGUMENT if the inspector is already open, or in a worker thread; UNSUPPORTED, also if the runtime
 * does not report whether its inspector is open
 */
export function harden(): void {
  closeInspector()
  ok<null>(native.harden())
}

/** Keeps the inspector closed. The other steps of hardening may follow later, within a handshake. */
export function closeInspector(): void {
  if (!builtin.threads.isMainThread) {
    throw invalid(
      'a worker thread cannot harden the process: it sees neither the inspector nor the listeners of SIGUSR1',
    )
  }
  const url = openInspector()
  if (url !== undefined) {
    throw invalid(
      `this process cannot be hardened: its inspector is open at ${url}, for every process that can connect there; ` +
        'start it without --inspect (see NODE_OPTIONS too), or call inspector.close() before',
    )
  }
  if (process.listenerCount('SIGUSR1') === 0) ok<null>(native.ignoreSigusr1())
}

/** The URL of the open inspector. Throws if the runtime does not report it, since the process then cannot be hardened. */
function openInspector(): string | undefined {
  // This runtime was built without an inspector.
  if (process.features.inspector === false) return undefined
  try {
    return builtin.inspector.url()
  } catch (error) {
    const reason = 'this process cannot be hardened: it does not report whether its inspector is open'
    throw new RingfenceError('UNSUPPORTED', reason, { cause: error })
  }
}
