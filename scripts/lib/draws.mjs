// Pseudorandom numbers that a seed reproduces.

/** A generator with this seed (mulberry32). */
export function draws(seed) {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
  const below = (most) => Math.floor(next() * most)
  return { below, between: (low, high) => low + below(high - low + 1), pick: (list) => list[below(list.length)] }
}
