// The end of a process by `process.exit` or an exception, at which Node tells no native library anything: what would leave
// files beside a path is let go of here. The peers find that the process has exited, as after a kill.

/** What is to be let go of, of this thread: an environment has this module once. */
const open = new Set<() => void>()
let listens = false

/** Has `vacate` called where this process, or this worker thread, exits. Returns what takes that back. Keeps nothing alive. */
export function atExit(address: string, vacate: () => void): () => void {
  // An abstract name is the kernel's, which frees it.
  if (address.startsWith('@')) return () => {}
  // One listener for all: Node warns of more than ten.
  if (!listens) process.on('exit', vacateAll)
  listens = true
  open.add(vacate)
  return () => open.delete(vacate)
}

function vacateAll(): void {
  for (const vacate of open) {
    try {
      vacate()
    } catch {
      // The others are let go of all the same. There is nobody left to tell.
    }
  }
  open.clear()
}
