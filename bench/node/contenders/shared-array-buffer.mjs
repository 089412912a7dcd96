// A ring in a SharedArrayBuffer between two threads of one process: what JavaScript can do without a native addon if trust and address
// space are shared.

import { LONG, add, fill, sum } from '../work.mjs'

// Indices of the control words. Positions and flags are on separate cache lines.
const TAIL = 0
const READER_ASLEEP = 32
const HEAD = 64
const WRITER_ASLEEP = 96
const CONTROL = 128
/** The mark of a record that pads the end of the ring if the next one would not fit. */
const SKIP = -1
/** Empty polls before a thread sleeps. */
const PATIENCE = 200

function copy(target, to, source, from, count) {
  if (count >= LONG) target.set(source.subarray(from, from + count), to)
  else for (let i = 0; i < count; i++) target[to + i] = source[from + i]
}

/** One direction. Positions count words and wrap with their 32 bits. */
class Ring {
  /** @param spare - Words of a message that is filled before it is copied into the ring, and read after it was copied out of it. */
  constructor(shared, spare) {
    this.spare = spare
    this.control = new Int32Array(shared, 0, CONTROL)
    this.words = new Float64Array(shared, CONTROL * 4)
    this.mask = this.words.length - 1
    this.tail = Atomics.load(this.control, TAIL)
    this.head = Atomics.load(this.control, HEAD)
    this.seen = this.tail
    this.freed = this.head
  }

  static bytes(capacity) {
    return CONTROL * 4 + capacity
  }

  #wait(flag, position, value, patience) {
    for (let i = 0; i < patience; i++) if (Atomics.load(this.control, position) !== value) return
    Atomics.store(this.control, flag, 1)
    if (Atomics.load(this.control, position) === value) Atomics.wait(this.control, position, value)
    Atomics.store(this.control, flag, 0)
  }

  #publish(position, value, flag) {
    Atomics.store(this.control, position, value)
    if (Atomics.load(this.control, flag) !== 0) Atomics.notify(this.control, position)
  }

  push(count, n, patience = PATIENCE) {
    const { words, mask } = this
    const size = words.length
    let need = count + 1
    const at = this.tail & mask
    const skip = at + need > size ? size - at : 0
    need += skip
    while (size - ((this.tail - this.freed) | 0) < need) {
      const freed = Atomics.load(this.control, HEAD)
      if (freed === this.freed) this.#wait(WRITER_ASLEEP, HEAD, freed, patience)
      else this.freed = freed
    }
    if (skip > 0) words[at] = SKIP
    const start = skip > 0 ? 0 : at
    words[start] = count
    if (this.spare === undefined) fill(words, start + 1, count, n)
    else {
      fill(this.spare, 0, count, n)
      copy(words, start + 1, this.spare, 0, count)
    }
    this.tail = (this.tail + need) | 0
    this.#publish(TAIL, this.tail, READER_ASLEEP)
  }

  pull(patience = PATIENCE) {
    const { words, mask } = this
    for (;;) {
      while (this.head === this.seen) {
        this.seen = Atomics.load(this.control, TAIL)
        if (this.head === this.seen) this.#wait(READER_ASLEEP, TAIL, this.seen, patience)
      }
      const at = this.head & mask
      const count = words[at]
      if (count === SKIP) {
        this.head = (this.head + words.length - at) | 0
        continue
      }
      if (this.spare !== undefined) copy(this.spare, 0, words, at + 1, count)
      const total = this.spare === undefined ? sum(words, at + 1, count) : sum(this.spare, 0, count)
      this.head = (this.head + count + 1) | 0
      this.#publish(HEAD, this.head, WRITER_ASLEEP)
      return total
    }
  }
}

const threads = (id, note, isCopied, takes) => ({
  id,
  version: 'JavaScript',
  note,
  threads: true,
  takes,
  async open({ side, job, port }) {
    let shared
    if (side === 'a') {
      let capacity = job.capacity
      while (capacity < 4 * job.size) capacity *= 2
      shared = [0, 1].map(() => new SharedArrayBuffer(Ring.bytes(capacity)))
      port.postMessage(shared)
    } else {
      shared = await new Promise((resolve) => port.once('message', resolve))
    }
    port.unref()
    const words = job.size / 8
    const rings = shared.map((memory) => new Ring(memory, isCopied ? new Float64Array(words) : undefined))
    const [out, back] = side === 'a' ? rings : rings.reverse()
    const patience = job.measure === 'rtt-polled' ? Infinity : job.measure === 'rtt-parked' ? 0 : PATIENCE
    return {
      blocks: true,
      async produce(count) {
        for (let n = 0; n < count; n++) out.push(words, n)
      },
      async consume(count) {
        let total = 0
        for (let n = 0; n < count; n++) total = add(total, back.pull())
        return total
      },
      // Synchronous: an await between two polls would dominate the measured time.
      roundTrips(count, sent, received) {
        for (let n = 0; n < count; n++) {
          sent()
          out.push(words, n, patience)
          received(back.pull(patience), n)
        }
      },
      echo(count) {
        let total = 0
        for (let n = 0; n < count; n++) {
          total = add(total, back.pull(patience))
          out.push(words, n, patience)
        }
        return total
      },
      close: () => port.close(),
    }
  },
})

export const sharedArrayBuffer = threads(
  'shared-array-buffer',
  'two threads of one process, a ring of records written and read in place; parked: Atomics.wait',
  false,
  () => null,
)

/** The upper bound for sides that share only the ring and copy messages out of it, so that the other side cannot change them. */
export const copied = threads(
  'copied',
  'limit: two threads; a message is filled, copied into the same ring, copied out of it and read',
  true,
  (measure) => (measure === 'one' ? null : 'one-way only'),
)
