// Work for the exit of a process by `process.exit` or an exception, of which Node does not notify native libraries. Messages are put into
// the rings, then the files beside a path are removed. The peers see a process that has exited, as after a kill; a member leaves.

/** The calls to make as this process, or this worker thread, exits. */
interface ExitWork {
  /** Whether the exit has started. Promises no longer settle, but another listener of 'exit' may still send. */
  isExiting: boolean
  /** Puts messages into rings. */
  readonly flush: Set<() => void>
  /** Frees addresses, which ends a membership's channel. */
  readonly vacate: Set<() => void>
}

/**
 * Shared by all copies of this package. A program may load a new copy for each of its tests, and Node warns about more than ten
 * listeners.
 */
const AT_EXIT: unique symbol = Symbol.for('ringfence.atExit')
const shared = process as { [AT_EXIT]?: ExitWork }

/** Returns the shared state. The first call adds the listener of 'exit'. */
function exitWork(): ExitWork {
  const existing = shared[AT_EXIT]
  if (existing !== undefined) return existing
  const work: ExitWork = { isExiting: false, flush: new Set(), vacate: new Set() }
  Object.defineProperty(process, AT_EXIT, { value: work })
  process.on('exit', () => {
    work.isExiting = true
    for (const callbacks of [work.flush, work.vacate]) runAll(callbacks)
  })
  return work
}

function runAll(callbacks: Set<() => void>): void {
  for (const callback of callbacks) {
    try {
      callback()
    } catch {
      // The other calls must still be made, and no caller is left to get the error.
    }
  }
  callbacks.clear()
}

function add(callbacks: Set<() => void>, callback: () => void): () => void {
  callbacks.add(callback)
  return () => callbacks.delete(callback)
}

/** Calls `vacate` when this process or worker thread exits. Returns a function that cancels this. Does not keep the process alive. */
export function atExit(address: string, vacate: () => void): () => void {
  // The kernel frees an abstract name.
  return address.startsWith('@') ? () => {} : add(exitWork().vacate, vacate)
}

/** Like {@link atExit}, for messages that are guaranteed to be in the ring before the exit. */
export function flushAtExit(flush: () => void): () => void {
  return add(exitWork().flush, flush)
}

/** Listens for the exit. Must be called before it: Node does not call a listener that is added while 'exit' is emitted. */
export function watchExit(): { readonly isExiting: boolean } {
  return exitWork()
}
