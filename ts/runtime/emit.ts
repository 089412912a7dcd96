import type { EventEmitter } from 'node:events'
import { timers } from './timers.js'

/** Calls the listeners of an event. An error that one throws becomes an uncaught exception, and does not skip the others. */
export function emit(emitter: EventEmitter, name: string, ...what: unknown[]): void {
  for (const listener of emitter.rawListeners(name)) throwLater(() => Reflect.apply(listener, emitter, what))
}

/** Makes an uncaught exception of the error that a call throws. */
export function throwLater(call: () => void): void {
  try {
    call()
  } catch (error) {
    timers.nextTick(() => {
      throw error
    })
  }
}
