import { LONGEST_TIMER, timers } from './timers.js'

/** A promise that other code keeps, or breaks. */
export interface Deferred {
  readonly promise: Promise<void>
  resolve(): void
  reject(error: Error): void
}

export function defer(): Deferred {
  const deferred = {} as { -readonly [Key in keyof Deferred]: Deferred[Key] }
  deferred.promise = new Promise((resolve, reject) => {
    deferred.resolve = resolve
    deferred.reject = reject
  })
  return deferred
}

/** Resolves once one of these has, or so many milliseconds have passed. */
export async function within(milliseconds: number, ...those: Promise<unknown>[]): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<void>((resolve) => {
    timer = timers.setTimeout(resolve, Math.min(milliseconds, LONGEST_TIMER))
  })
  await Promise.race([...those, late])
  timers.clearTimeout(timer)
}
