// Waiting for conditions that have no event.

import { setTimeout as pause } from 'node:timers/promises'

/** Checks repeatedly until the condition holds. The limit only ends a test that has failed. */
export async function until(condition: () => boolean | Promise<boolean>, what: string, limit = 60_000): Promise<void> {
  const end = performance.now() + limit
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`waited ${limit} ms in vain until ${what}`)
    await pause(2)
  }
}

/** Like {@link until}, but blocks the event loop: only other threads notice events. */
export function blockUntil(condition: () => boolean, what: string, limit = 60_000): void {
  const never = new Int32Array(new SharedArrayBuffer(4))
  const end = performance.now() + limit
  while (!condition()) {
    if (performance.now() > end) throw new Error(`waited ${limit} ms in vain until ${what}`)
    Atomics.wait(never, 0, 0, 2)
  }
}

/** The event loop turns once. */
export const turn = () => new Promise((resolve) => setImmediate(resolve))

export async function turns(count: number): Promise<void> {
  for (let number = 0; number < count; number += 1) await turn()
}

/** Whether a promise is still pending after everything that is due has run. */
export async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let pending = true
  const settled = () => {
    pending = false
  }
  promise.then(settled, settled)
  // Two turns of the event loop: the first one reads from the line.
  await turns(2)
  return pending
}

/** The value of a promise, or an error if it stays pending: for promises that would hang if the code is broken. */
export async function within<Value>(promise: Promise<Value>, what: string, limit = 60_000): Promise<Value> {
  let timer: NodeJS.Timeout | undefined
  const timedOut = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${limit} ms in vain for ${what}`)), limit)
  })
  try {
    return await Promise.race([promise, timedOut])
  } finally {
    clearTimeout(timer)
  }
}
