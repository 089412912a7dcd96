// Messages that both sides can compute.

/** A reproducible random sequence: mulberry32. */
export function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** The bytes of message `number`. */
export function pattern(number: number, length: number): Buffer {
  const words = new Uint32Array((length + 3) >>> 2)
  let word = Math.imul(number + 1, 0x9e3779b1) >>> 0
  for (let index = 0; index < words.length; index += 1) {
    word = (Math.imul(word, 1664525) + 1013904223) >>> 0
    words[index] = word
  }
  return Buffer.from(words.buffer, 0, length)
}

/** A checksum that depends on every byte and its position. */
export function checksum(bytes: Uint8Array, offset = 0, length = bytes.length): number {
  let sum = length
  for (let at = offset; at < offset + length; at += 1) sum = (Math.imul(sum, 31) + bytes[at]!) >>> 0
  return sum
}
