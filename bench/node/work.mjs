// The work that every contender does: every eight bytes of a message are written by the sender as one double, and
// read and added up by the receiver. Doubles, because they are the widest numbers that JavaScript moves without
// allocating. Sums stay integers below 2^53 and are therefore exact.

const LIMIT = 2 ** 52
const CYCLE = 0x10000

/** Above this length, the built-in `fill` is faster than a loop. */
export const LONG = 32

/** Every word of message `n` is `(n mod 65536) + 1`: a lost, repeated or torn message changes the sum. */
export function fill(words, at, count, n) {
  const value = (n & (CYCLE - 1)) + 1
  const end = at + count
  if (count >= LONG) words.fill(value, at, end)
  else for (let i = at; i < end; i++) words[i] = value
}

/** Four independent sums, which the processor adds in parallel. */
export function sum(words, at, count) {
  let a = 0
  let b = 0
  let c = 0
  let d = 0
  let i = at
  const end = at + count
  for (const whole = end - 3; i < whole; i += 4) {
    a += words[i]
    b += words[i + 1]
    c += words[i + 2]
    d += words[i + 3]
  }
  for (; i < end; i++) a += words[i]
  return a + b + c + d
}

/** Adds modulo 2^52, so that no total is ever rounded. */
export function add(total, more) {
  const next = total + more
  return next < LIMIT ? next : next % LIMIT
}

/** Returns the sum of `count` messages of `size` bytes. */
export function expectedSum(size, count) {
  const cycles = BigInt(Math.floor(count / CYCLE))
  const rest = BigInt(count % CYCLE)
  const cycle = BigInt(CYCLE)
  const values = (cycles * cycle * (cycle + 1n)) / 2n + (rest * (rest + 1n)) / 2n
  return Number((values * BigInt(size / 8)) % BigInt(LIMIT))
}

/** The sum of one message whose number is `n`. */
export const messageSum = (size, n) => (size / 8) * ((n & (CYCLE - 1)) + 1)

/** A message to be filled anew before each send, as doubles and as the bytes that are sent. */
export function message(size) {
  const words = new Float64Array(size / 8)
  return { words, bytes: Buffer.from(words.buffer) }
}

/**
 * Makes messages for contenders that keep references to them: each has its own memory, small ones from Node's pool, large ones
 * from returned messages.
 */
export class Maker {
  #size
  #prefix
  #large
  #spare = []
  #buffer = null
  #words = null

  constructor(size, prefix = 0) {
    this.#size = size
    this.#prefix = prefix
    this.#large = size >= 16_384
  }

  /** Whether memory should be returned through `recycle`, if the contender reports when it is done with it. */
  get recycles() {
    return this.#large
  }

  make(n) {
    const bytes = this.#spare.pop() ?? Buffer.allocUnsafe(this.#size + this.#prefix)
    if (bytes.buffer !== this.#buffer) {
      this.#buffer = bytes.buffer
      this.#words = new Float64Array(bytes.buffer, 0, bytes.buffer.byteLength >>> 3)
    }
    fill(this.#words, (bytes.byteOffset + this.#prefix) / 8, this.#size / 8, n)
    if (this.#prefix > 0) bytes.writeUInt32LE(this.#size, 0)
    return bytes
  }

  recycle(bytes) {
    this.#spare.push(bytes)
  }
}

/**
 * Sums bytes at any offset. A new view for each message would cost more than a small message, and so would looking up
 * the underlying memory each time, so the last view is cached.
 */
export class Reader {
  #bytes = null
  #start = 0
  #buffer = null
  #words = null

  sum(bytes, offset, length) {
    if (bytes !== this.#bytes) this.#look(bytes)
    const at = this.#start + offset
    if ((at & 7) !== 0) return this.#unaligned(bytes, offset, length)
    return sum(this.#words, at / 8, length / 8)
  }

  #look(bytes) {
    this.#bytes = bytes
    this.#start = bytes.byteOffset
    const { buffer } = bytes
    if (buffer === this.#buffer) return
    this.#buffer = buffer
    this.#words = new Float64Array(buffer, 0, buffer.byteLength >>> 3)
  }

  #unaligned(bytes, offset, length) {
    const view = new DataView(bytes.buffer, bytes.byteOffset + offset, length)
    let total = 0
    for (let i = 0; i < length; i += 8) total += view.getFloat64(i, true)
    return total
  }
}

/** V8 has compiled the code of every contender after that many messages. */
const COMPILED = 10_000

/**
 * Runs stretches, the first of `count` messages, until one was long enough to touch every page, and all together to compile the loops;
 * that takes fewer messages if they are large. Returns the number of messages that take `seconds`.
 */
export async function warmedUp({ seconds: wanted }, count, stretch) {
  const enough = Math.min(Math.max(wanted / 2, 0.1), 0.5)
  let messages = 0
  let spent = 0
  for (;;) {
    const { seconds } = await stretch(count)
    messages += count
    spent += seconds
    const isCompiled = messages >= COMPILED || spent >= 2.5 * wanted
    if (seconds >= enough && isCompiled) return Math.ceil((count / seconds) * wanted)
    count = Math.ceil(count * Math.min(Math.max((1.3 * enough) / seconds, 1.5), 16))
  }
}

/** The `takes` of a contender that cannot poll. */
export const neverPolls = (measure) => (measure === 'rtt-polled' ? 'it does not poll' : null)

/** Nanoseconds on the clock that all processes of the machine share. */
export const now = () => Number(process.hrtime.bigint())
