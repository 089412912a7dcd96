/** The callbacks that wait for a signal, and the listener that calls them. */
interface Group {
  readonly callbacks: Set<() => void>
  readonly listener: () => void
}

const groups = new WeakMap<AbortSignal, Group>()

/**
 * Calls back once the signal is aborted. Returns a function that removes the callback.
 *
 * A signal has one listener for all callbacks: to add or remove a listener takes time proportional to their number, and a program may pass
 * one signal to thousands of calls.
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const group = groups.get(signal) ?? open(signal)
  group.callbacks.add(callback)
  return () => {
    if (!group.callbacks.delete(callback) || group.callbacks.size > 0) return
    signal.removeEventListener('abort', group.listener)
    groups.delete(signal)
  }
}

function open(signal: AbortSignal): Group {
  const callbacks = new Set<() => void>()
  const listener = () => {
    groups.delete(signal)
    for (const callback of callbacks) callback()
  }
  const group = { callbacks, listener }
  groups.set(signal, group)
  signal.addEventListener('abort', listener, { once: true })
  return group
}
