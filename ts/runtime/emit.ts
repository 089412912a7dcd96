import type { EventEmitter } from 'node:events'
import { timers } from './timers.js'

/** Calls the listeners of an event. An error thrown by one becomes an uncaught exception, and the other listeners are still called. */
export function emit(emitter: EventEmitter, name: string, ...args: unknown[]): void {
  for (const listener of emitter.rawListeners(name)) throwUncaught(() => Reflect.apply(listener, emitter, args))
}

/** Makes the call. Turns an error that it throws into an uncaught exception, and returns `false` then. */
export function throwUncaught(call: () => void): boolean {
  try {
    call()
    return true
  } catch (error) {
    timers.nextTick(() => {
      throw error
    })
    return false
  }
}
