import type { EventEmitter } from 'node:events'
import { timers } from './timers.js'

/** Calls the listeners of an event. An error thrown by one becomes an uncaught exception, and the other listeners are still called. */
export function emit(emitter: EventEmitter, name: string, ...what: unknown[]): void {
  for (const listener of emitter.rawListeners(name)) throwLater(() => Reflect.apply(listener, emitter, what))
}

/** Makes the call. Turns an error that it throws into an uncaught exception. */
export function throwLater(call: () => void): void {
  try {
    call()
  } catch (error) {
    timers.nextTick(() => {
      throw error
    })
  }
}
