// A turn of the event loop that is waited for and keeps no process alive.

import { builtin } from '../native.js'
import { timers } from './timers.js'

/** What is posted here wakes the event loop, as long as something else keeps it going. */
let waker: { postMessage(nothing: null): void } | undefined

/**
 * Calls back once the event loop has turned; not at all where nothing else keeps the process alive. An immediate without a reference
 * alone is not enough: the loop would sleep before it, for as long as it has no other work.
 */
export function afterWeakTurn(call: () => void): NodeJS.Immediate {
  const immediate = timers.setImmediate(call).unref()
  waker ??= newWaker()
  waker.postMessage(null)
  return immediate
}

function newWaker() {
  const { port1, port2 } = new builtin.threads.MessageChannel()
  port2.on('message', () => {})
  port1.unref()
  port2.unref()
  return port1
}
