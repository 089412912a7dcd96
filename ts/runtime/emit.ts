import type { EventEmitter } from 'node:events'
import { timers } from './timers.js'

/** Calls the listeners of an event. An error that one throws becomes an uncaught exception, and does not skip the others. */
export function emit(emitter: EventEmitter, name: string, ...what: unknown[]): void {
  for (const listener of emitter.rawListeners(name)) throwLater(() => Reflect.apply(listener, emitter, what))
}

/** Emits the events of one emitter on another as well, from the first listener there on. */
export function forward(from: EventEmitter, to: EventEmitter): void {
  const names = new Set<string | symbol>()
  to.on('newListener', (name: string | symbol) => {
    if (names.has(name) || name === 'newListener' || name === 'removeListener') return
    names.add(name)
    from.on(name, (...what: unknown[]) => emit(to, name as string, ...what))
  })
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
