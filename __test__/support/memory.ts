// Detached memory, and failed allocations.

/**
 * Detaches memory that the engine must not transfer: a byte stream takes the memory of each chunk. From Node 21 on, memory
 * that must not be transferred is refused there too (false).
 */
export function detach(bytes: Uint8Array): boolean {
  try {
    void new ReadableStream({ type: 'bytes', start: (controller) => controller.enqueue(bytes) })
  } catch (error) {
    if (/not detachable/.test((error as Error).message)) return false
    throw error
  }
  return true
}

/** Runs a call in which allocations of more than `limit` bytes fail. */
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
