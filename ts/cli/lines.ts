// Assembles whole lines from pieces.

/** Bytes of the longest line that is assembled. */
export const MAX_LINE = 64 << 20

const NEWLINE = 0x0a

/** The lines of one sender. */
export class Lines {
  /** The pieces of an unfinished line, in order. */
  #parts: Buffer[] = []
  #size = 0

  /** Bytes of the unfinished line. */
  get size(): number {
    return this.#size
  }

  /** Adds received bytes, and returns the lines that are now whole, if any. Keeps references to the bytes. */
  add(bytes: Buffer): Buffer[] {
    const end = bytes.lastIndexOf(NEWLINE) + 1
    const whole = end === 0 ? [] : [...this.#parts, bytes.subarray(0, end)]
    if (end > 0) {
      this.#parts = []
      this.#size = 0
    }
    if (end < bytes.length) {
      this.#parts.push(bytes.subarray(end))
      this.#size += bytes.length - end
    }
    return whole
  }

  /** Returns the unfinished line with a newline added; empty if there is none. */
  rest(): Buffer {
    const rest = this.#size === 0 ? [] : [...this.#parts, Buffer.of(NEWLINE)]
    this.#parts = []
    this.#size = 0
    return Buffer.concat(rest)
  }
}
