// A process that ends by `process.exit` or an exception: Node tells no native library of it. What was promised to be in a ring is put
// there, and the files beside a path are removed. The peers see a process that has exited, as after a kill; a member leaves.

/** What is to be called as this process, or this worker thread, exits. */
interface AtExit {
  /** No promise is settled any more: a listener of 'exit' may still send. */
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
      // The others must be called all the same, and no caller is left to be told.
    }
  }
  calls.clear()
}

function add(calls: Set<() => void>, call: () => void): () => void {
  calls.add(call)
  return () => calls.delete(call)
}

/** Has `vacate` called as this process, or this worker thread, exits. Returns what takes that back. Keeps no process alive. */
export function atExit(address: string, vacate: () => void): () => void {
  // The kernel frees an abstract name.
  return address.startsWith('@') ? () => {} : add(atExitOfAll().vacate, vacate)
}

/** As {@link atExit}, for messages that were promised to be in the ring by then. */
export function flushAtExit(flush: () => void): () => void {
  return add(atExitOfAll().flush, flush)
}

/** Has the exit noticed from now on. A listener that is added while others are called is not called itself. */
export function noticeExit(): { readonly isExiting: boolean } {
  return atExitOfAll()
}
