// Waiting for what has no event of its own.

import { setTimeout as pause } from 'node:timers/promises'

/** Looks again and again until something holds. The limit only ends a test that has failed. */
export async function until(holds: () => boolean | Promise<boolean>, what: string, limit = 60_000): Promise<void> {
  const end = performance.now() + limit
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`waited ${limit} ms in vain until ${what}`)
    await pause(2)
  }
}

/** As {@link until}, but the event loop stands still meanwhile: what comes is heard by other threads alone. */
export function standStillUntil(holds: () => boolean, what: string, limit = 60_000): void {
  const never = new Int32Array(new SharedArrayBuffer(4))
  const end = performance.now() + limit
  while (!holds()) {
    if (performance.now() > end) throw new Error(`waited ${limit} ms in vain until ${what}`)
    Atomics.wait(never, 0, 0, 2)
  }
}

/** The event loop turns once. */
export const turn = () => new Promise((resolve) => setImmediate(resolve))

export async function turns(count: number): Promise<void> {
  for (let number = 0; number < count; number += 1) await turn()
}

/** Whether a promise has settled by now, after everything that is due has run. */
export async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let pending = true
  const settled = () => {
    pending = false
  }
  promise.then(settled, settled)
  // Two turns of the event loop: what the line has brought is read in the first.
  await turns(2)
  return pending
}

/** What a promise brings, or an error where it brings nothing: for what hangs when it is broken. */
export async function soon<Value>(promise: Promise<Value>, what: string, limit = 60_000): Promise<Value> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${limit} ms in vain for ${what}`)), limit)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
