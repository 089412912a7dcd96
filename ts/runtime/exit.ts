// Work for the exit of a process by `process.exit` or an exception, of which Node notifies no native library: messages are put into the
// rings, then the files beside a path are removed. The peers see a process that has exited, as after a kill; a member leaves.

/** The calls to make as this process, or this worker thread, exits. */
interface AtExit {
  /** From here on no promise settles, but another listener of 'exit' may still send. */
  isExiting: boolean
  /** Puts messages into rings. */
  readonly flush: Set<() => void>
  /** Frees addresses, which ends a membership's channel. */
  readonly vacate: Set<() => void>
}

/** For all copies of this package, since a program may load it anew for each of its tests, and Node warns of more than ten listeners. */
const AT_EXIT: unique symbol = Symbol.for('ringfence.atExit')
const ofAllCopies = process as { [AT_EXIT]?: AtExit }

/** Listens from the first call on. */
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

/** Calls `vacate` as this process, or this worker thread, exits. Returns a function that cancels this. Keeps no process alive. */
export function atExit(address: string, vacate: () => void): () => void {
  // The kernel frees an abstract name.
  return address.startsWith('@') ? () => {} : add(atExitOfAll().vacate, vacate)
}

/** As {@link atExit}, for messages whose sender was promised that they are in the ring before the exit. */
export function flushAtExit(flush: () => void): () => void {
  return add(atExitOfAll().flush, flush)
}

/** Listens for the exit. To be called before it: Node does not call a listener that is added while others are called. */
export function noticeExit(): { readonly isExiting: boolean } {
  return atExitOfAll()
}
