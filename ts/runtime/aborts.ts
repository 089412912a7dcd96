/** The callbacks that wait for a signal, and the listener that calls them. */
interface AbortListeners {
  readonly callbacks: Set<() => void>
  readonly listener: () => void
}

const subscriptions = new WeakMap<AbortSignal, AbortListeners>()

/**
 * Calls back once the signal is aborted. Returns a function that removes the callback.
 *
 * A signal has one listener for all callbacks: to add or remove a listener takes time proportional to their number, and a program may pass
 * one signal to thousands of calls.
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const subscription = subscriptions.get(signal) ?? register(signal)
  subscription.callbacks.add(callback)
  return () => {
    if (!subscription.callbacks.delete(callback) || subscription.callbacks.size > 0) return
    signal.removeEventListener('abort', subscription.listener)
    subscriptions.delete(signal)
  }
}

function register(signal: AbortSignal): AbortListeners {
  const callbacks = new Set<() => void>()
  const listener = () => {
    subscriptions.delete(signal)
    for (const callback of callbacks) callback()
  }
  const subscription = { callbacks, listener }
  subscriptions.set(signal, subscription)
  signal.addEventListener('abort', listener, { once: true })
  return subscription
}
