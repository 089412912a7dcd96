import type { EventEmitter } from 'node:events'
import { timers } from './timers.js'

/** What a listener throws must not keep others from being told, nor later events: it becomes an uncaught exception. */
export function emit(emitter: EventEmitter, name: string, ...what: unknown[]): void {
  throwLater(() => emitter.emit(name, ...what))
}

/** As {@link emit}, of any call of what the program has given. */
export function throwLater(call: () => void): void {
  try {
    call()
  } catch (error) {
    timers.nextTick(() => {
      throw error
    })
  }
}
