// Memory that a program takes away, and memory that is not there.

/**
 * Detaches, whatever the engine was told: a stream of bytes takes the memory of what is put into it. From Node 21 on what is
 * not to be transferred is refused there too (false).
 */
export function takeAway(bytes: Uint8Array): boolean {
  try {
    void new ReadableStream({ type: 'bytes', start: (controller) => controller.enqueue(bytes) })
  } catch (error) {
    if (/not detachable/.test((error as Error).message)) return false
    throw error
  }
  return true
}

/** Runs a call in which whatever needs more memory than so many bytes has none. */
export function withoutMemory<Result>(call: () => Result, limit = 0): Result {
  const real = Buffer.allocUnsafeSlow
  Buffer.allocUnsafeSlow = (size) => {
    if (size > limit) throw new RangeError('Array buffer allocation failed')
    return real(size)
  }
  try {
    return call()
  } finally {
    Buffer.allocUnsafeSlow = real
  }
}
