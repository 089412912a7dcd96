// Waits for a turn of the event loop without keeping the process alive.

import { builtin } from '../native.js'
import { timers } from './timers.js'

/** A message posted here wakes the event loop, as long as something else keeps the loop alive. */
let waker: { postMessage(value: null): void } | undefined

/**
 * Calls back once the event loop has turned. Never calls back if nothing else keeps the process alive. An unreferenced immediate alone is
 * not enough: the loop would sleep before it for as long as it has no other work.
 */
export function setWeakImmediate(callback: () => void): NodeJS.Immediate {
  const immediate = timers.setImmediate(callback).unref()
  waker ??= makeWaker()
  waker.postMessage(null)
  return immediate
}

function makeWaker() {
  const { port1, port2 } = new builtin.threads.MessageChannel()
  port2.on('message', () => {})
  port1.unref()
  port2.unref()
  return port1
}
