// Messages over a byte stream: a length in an aligned word, so that payloads stay aligned, then the payload.

import { Reader, add } from './work.mjs'

export const PREFIX = 8

/** Calls `visit(sum)` for each complete message in the chunks. */
export class Frames {
  #reader = new Reader()
  #visit
  #rest = Buffer.alloc(0)
  #kept = 0

  constructor(visit) {
    this.#visit = visit
  }

  push(chunk) {
    let at = 0
    if (this.#kept > 0) {
      at = this.#complete(chunk)
      if (at < 0) return
    }
    // The remainder of a short read is walked from aligned memory: byte by byte would be slower than a copy.
    if (((chunk.byteOffset + at) & 7) !== 0 && chunk.length > at) {
      chunk = Buffer.from(new Uint8Array(chunk.subarray(at)).buffer)
      at = 0
    }
    while (chunk.length - at >= PREFIX) {
      const size = chunk.readUInt32LE(at)
      if (chunk.length - at - PREFIX < size) break
      this.#visit(this.#reader.sum(chunk, at + PREFIX, size))
      at += PREFIX + size
    }
    if (at < chunk.length) this.#keep(chunk, at, chunk.length)
  }

  #keep(chunk, from, to) {
    const need = this.#kept + to - from
    if (this.#rest.length < need) {
      // Aligned, and with room for the whole message if its length is known: a long message arrives in many chunks.
      const size =
        this.#kept >= 4 ? this.#rest.readUInt32LE(0) : to - from >= 4 && this.#kept === 0 ? chunk.readUInt32LE(from) : 0
      const grown = Buffer.from(new ArrayBuffer(Math.max(need, size + PREFIX, 1024)))
      this.#rest.copy(grown, 0, 0, this.#kept)
      this.#rest = grown
    }
    chunk.copy(this.#rest, this.#kept, from, to)
    this.#kept = need
  }

  /** Completes the message of an earlier chunk. Returns the offset of the next message, -1 if there is none. */
  #complete(chunk) {
    let at = 0
    if (this.#kept < PREFIX) {
      at = Math.min(PREFIX - this.#kept, chunk.length)
      this.#keep(chunk, 0, at)
      if (this.#kept < PREFIX) return -1
    }
    const missing = PREFIX + this.#rest.readUInt32LE(0) - this.#kept
    const to = Math.min(at + missing, chunk.length)
    this.#keep(chunk, at, to)
    if (to - at < missing) return -1
    this.#visit(this.#reader.sum(this.#rest, PREFIX, this.#kept - PREFIX))
    this.#kept = 0
    return to
  }
}

/** A queue of arrived items, which callers await. */
export class Inbox {
  #there = []
  #waiting = null

  put = (one) => {
    if (this.#waiting === null) this.#there.push(one)
    else {
      const resolve = this.#waiting
      this.#waiting = null
      resolve(one)
    }
  }

  take() {
    if (this.#there.length > 0) return Promise.resolve(this.#there.shift())
    return new Promise((resolve) => {
      this.#waiting = resolve
    })
  }
}

/** The number of messages in flight over a transport that queues without limit. The reader grants half of them at a time. */
export class Credit {
  #half
  #tell
  #taken = 0
  #wake = null

  /** `tell(count)` sends a grant to the other side. */
  constructor(window, tell) {
    this.left = Math.max(2, window)
    this.#half = this.left >> 1
    this.#tell = tell
  }

  grant(count) {
    this.left += count
    this.#wake?.()
    this.#wake = null
  }

  took() {
    if (++this.#taken < this.#half) return
    this.#tell(this.#taken)
    this.#taken = 0
  }

  some() {
    return new Promise((resolve) => {
      this.#wake = resolve
    })
  }
}

/** Sums up the messages that a socket receives. */
export function sinkOf(socket) {
  const sink = new Sink()
  const frames = new Frames(sink.put)
  socket.on('data', (chunk) => frames.push(chunk))
  return sink
}

/** Counts sums until the end of a stretch. Outside of a stretch they go to the inbox. */
export class Sink {
  inbox = new Inbox()
  #left = 0
  #total = 0
  #done = null

  put = (sum) => {
    if (this.#left === 0) {
      this.inbox.put(sum)
      return
    }
    this.#total = add(this.#total, sum)
    if (--this.#left === 0) this.#done(this.#total)
  }

  expect(count) {
    this.#left = count
    this.#total = 0
    return new Promise((resolve) => {
      this.#done = resolve
    })
  }
}
