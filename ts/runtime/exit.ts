// Work for the exit of a process by `process.exit` or an exception, of which Node does not notify native libraries. Messages are put into
// the rings, then the files beside a path are removed. The peers see a process that has exited, as after a kill; a member leaves.

/** The calls to make as this process, or this worker thread, exits. */
interface AtExit {
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
const ofAllCopies = process as { [AT_EXIT]?: AtExit }

/** Returns the shared state. The first call adds the listener of 'exit'. */
function atExitOfAll(): AtExit {
  const known = ofAllCopies[AT_EXIT]
  if (known !== undefined) return known
  const made: AtExit = { isExiting: false, flush: new Set(), vacate: new Set() }
  Object.defineProperty(process, AT_EXIT, { value: made })
  process.on('exit', () => {
    made.isExiting = true
    for (const calls of [made.flush, made.vacate]) callAll(calls)
  })
  return made
}

function callAll(calls: Set<() => void>): void {
  for (const call of calls) {
    try {
      call()
    } catch {
      // The other calls must still be made, and no caller is left to get the error.
    }
  }
  calls.clear()
}

function add(calls: Set<() => void>, call: () => void): () => void {
  calls.add(call)
  return () => calls.delete(call)
}

/** Calls `vacate` when this process or worker thread exits. Returns a function that cancels this. Does not keep the process alive. */
export function atExit(address: string, vacate: () => void): () => void {
  // The kernel frees an abstract name.
  return address.startsWith('@') ? () => {} : add(atExitOfAll().vacate, vacate)
}

/** Like {@link atExit}, for messages that are guaranteed to be in the ring before the exit. */
export function flushAtExit(flush: () => void): () => void {
  return add(atExitOfAll().flush, flush)
}

/** Listens for the exit. Must be called before it: Node does not call a listener that is added while 'exit' is emitted. */
export function noticeExit(): { readonly isExiting: boolean } {
  return atExitOfAll()
}
