// Whole lines, out of what comes in pieces.

/** Bytes of the longest line that is put together. */
export const LONGEST = 64 << 20

const NEWLINE = 0x0a

/** The lines of one sender. */
export class Lines {
  /** The beginning of a line, in the order in which it came. */
  #beginning: Buffer[] = []
  #size = 0

  /** Bytes of the line that has begun. */
  get size(): number {
    return this.#size
  }

  /** Takes what has come, and returns what is whole: nothing, or one or more lines. Keeps the bytes. */
  add(bytes: Buffer): Buffer[] {
    const end = bytes.lastIndexOf(NEWLINE) + 1
    const whole = end === 0 ? [] : [...this.#beginning, bytes.subarray(0, end)]
    if (end > 0) {
      this.#beginning = []
      this.#size = 0
    }
    if (end < bytes.length) {
      this.#beginning.push(bytes.subarray(end))
      this.#size += bytes.length - end
    }
    return whole
  }

  /** The line that has begun, with its newline; empty where there is none. */
  rest(): Buffer {
    const rest = this.#size === 0 ? [] : [...this.#beginning, Buffer.of(NEWLINE)]
    this.#beginning = []
    this.#size = 0
    return Buffer.concat(rest)
  }
}
