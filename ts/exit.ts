// A process that ends by `process.exit` or an exception: Node tells no native library of it, so the files beside a path are
// removed here. The peers see a process that has exited, as after a kill; a member leaves.

/** What is to be called, of this thread: an environment loads this module once. */
const open = new Set<() => void>()
let listens = false

/** Has `vacate` called as this process, or this worker thread, exits. Returns what takes that back. Keeps no process alive. */
export function atExit(address: string, vacate: () => void): () => void {
  // The kernel frees an abstract name.
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
      // The others must be called all the same, and no caller is left to be told.
    }
  }
  open.clear()
}
