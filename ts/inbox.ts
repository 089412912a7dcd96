// What has been read: fetched from the ring many messages at a time, and handed out one by one.
//
// One call into the binding copies as many records as fit into a chunk of memory, and JavaScript walks them there.
// Whoever wants a Buffer gets a view of the chunk, which is then never written again; a visitor's chunk is used anew.

import { fromFailure, type RingfenceError } from './errors.js'
import { ENDED, FAILED, HEADER, LARGE, WHOLE, type NativeChannel } from './native.js'
import type { Turns } from './turns.js'

/** Bytes of a chunk: what one call carries at most. */
const CHUNK = 128 * 1024
/** With less room than this, a chunk that others hold parts of is left to them. */
const ROOM = 8 * 1024
/** Memory for large messages that is kept for the next visit. */
const SCRATCH_KEPT = 16 * 1024 * 1024

export type Visit = (bytes: Uint8Array, offset: number, length: number) => void

/** Somebody who waits. */
interface Waiting {
  /** Takes a message; or only wants to know that there is one. */
  takes: boolean
  found(message: Buffer | null): void
  failed(error: Error): void
}

/** What was left when the peer had gone: records, or one large message. */
interface Kept {
  bytes: Buffer
  packed: boolean
}

export class Inbox {
  readonly #native: NativeChannel
  readonly #busy: boolean
  #chunk: Buffer = Buffer.allocUnsafeSlow(CHUNK)
  #words = new Uint32Array(this.#chunk.buffer)
  /** The chunk's records that nobody has read yet: from here… */
  #at = 0
  /** …to here. */
  #end = 0
  /** Somebody holds a part of the chunk. */
  #held = false
  /** Messages were last read by visitors: whoever waits will look at the next that way as well. */
  #visited = false
  /** Visitors that are running: what they look at must not be written. */
  #visitors = 0
  /** A large message that is whole. */
  #large: Buffer | null = null
  /** A large message that is not. */
  #gathering: Buffer | null = null
  /** The large message's memory belongs to nobody else. */
  #own = false
  #scratch: Buffer | null = null
  #kept: Kept[] = []
  #waiting: Waiting[] = []
  #armed = false
  /** No more will come from the ring: the end, or why. */
  #over: 'ended' | (() => RingfenceError) | null = null
  readonly #loop: Turns
  readonly #failed: (error: RingfenceError) => void
  readonly #ended: () => void

  /**
   * @param failed - Told what the binding's calls say.
   * @param ended - Told once the peer has said that no more will come, and everything was fetched.
   */
  constructor(
    native: NativeChannel,
    busy: boolean,
    loop: Turns,
    failed: (error: RingfenceError) => void,
    ended: () => void,
  ) {
    this.#native = native
    this.#busy = busy
    this.#loop = loop
    this.#failed = failed
    this.#ended = ended
  }

  /** Whether no more will come, and all was read. */
  get isEnded(): boolean {
    return !this.#has(false) && this.#over !== null
  }

  #hasUnread(): boolean {
    return this.#at < this.#end || this.#large !== null
  }

  /** Whether there is something to read; looks into the ring where nothing has been fetched. */
  #has(spin: boolean): boolean {
    return this.#hasUnread() || this.#fetch(!this.#visited, spin)
  }

  /**
   * Fetches what is there. `own`: a large message goes into memory that can be given away. `goesOn` of 1: the caller
   * will fetch until nothing is there, or wake the peer.
   */
  #fetch(own: boolean, spin: boolean, goesOn = 0): boolean {
    const kept = this.#kept.shift()
    if (kept !== undefined) {
      if (kept.packed) {
        this.#useChunk(kept.bytes)
        this.#end = kept.bytes.length
      } else {
        this.#large = kept.bytes
        this.#own = true
      }
      return true
    }
    if (this.#over !== null) return false
    if (this.#gathering !== null) return this.#gather()
    if (!this.#held && this.#visitors === 0) this.#at = this.#end = 0
    else if (this.#chunk.length - this.#end < ROOM) this.#useChunk(Buffer.allocUnsafeSlow(CHUNK))
    let answer =
      spin && this.#busy
        ? this.#native.pullBusy(this.#chunk, this.#end, goesOn)
        : this.#native.pull(this.#chunk, this.#end, goesOn)
    if (answer <= LARGE && this.#end > 0 && LARGE - answer + HEADER <= CHUNK) {
      // It may fit a chunk that nobody has begun.
      this.#useChunk(Buffer.allocUnsafeSlow(CHUNK))
      answer = this.#native.pull(this.#chunk, 0, goesOn)
    }
    if (answer > 0) {
      this.#at = this.#end
      this.#end += answer
      this.#loop.spend(answer)
      return true
    }
    if (answer > LARGE) return this.#nothing(answer)
    this.#gathering = this.#memory(LARGE - answer, own || this.#visitors > 0)
    return this.#gather()
  }

  #useChunk(chunk: Buffer): void {
    this.#chunk = chunk
    this.#words = new Uint32Array(chunk.buffer, chunk.byteOffset, chunk.length >>> 2)
    this.#at = this.#end = 0
    this.#held = false
  }

  /** Memory for a large message. */
  #memory(size: number, own: boolean): Buffer {
    this.#own = own
    if (own) return Buffer.allocUnsafeSlow(size)
    if (this.#scratch === null || this.#scratch.length < size) {
      const scratch = Buffer.allocUnsafeSlow(size)
      if (size <= SCRATCH_KEPT) this.#scratch = scratch
      return scratch
    }
    return this.#scratch.subarray(0, size)
  }

  #gather(): boolean {
    const answer = this.#native.gather(this.#gathering!)
    if (answer === WHOLE) {
      this.#large = this.#gathering
      this.#gathering = null
      this.#loop.spend(this.#large?.length ?? 0)
      return true
    }
    return answer >= 0 ? false : this.#nothing(answer)
  }

  #nothing(answer: number): false {
    if (answer === ENDED) {
      this.#over = 'ended'
      // The end of a message that was under way will not come: nobody was promised it.
      this.#gathering = null
      this.#ended()
    } else if (answer === FAILED) {
      const error = fromFailure(this.#native.failure())
      this.#over = () => error
      this.#failed(error)
    }
    return false
  }

  /** The next message, in memory of the caller's own. */
  #take(spin: boolean): Buffer | null {
    this.#visited = false
    if (this.#at === this.#end) {
      if (this.#large === null && !this.#fetch(true, spin)) return null
      const large = this.#large
      if (large !== null) {
        this.#large = null
        return this.#own ? large : Buffer.from(large)
      }
    }
    const start = this.#at + HEADER
    const end = start + this.#words[this.#at >>> 2]!
    this.#at = (end + 7) & ~7
    this.#held = true
    return this.#chunk.subarray(start, end)
  }

  /** What is told where there is nothing to read. `true`: nothing now. */
  #isOpen(): boolean {
    if (this.#over === null) return true
    if (this.#over !== 'ended') throw this.#over()
    return false
  }

  tryReceive(): Buffer | null {
    const message = this.#take(false)
    if (message === null) this.#isOpen()
    return message
  }

  /** A message if there is one, `undefined` if one must be waited for, `null` if none will come. */
  receiveNow(): Buffer | null | undefined {
    if (this.#waiting.length > 0) return undefined
    const message = this.#take(true)
    if (message !== null) return message
    return this.#isOpen() ? undefined : null
  }

  isReadableNow(): boolean | undefined {
    if (this.#has(true)) return true
    return this.#isOpen() ? undefined : false
  }

  /** Waits for a message (`takes`), or until there is one; called once `receiveNow` has found none. */
  wait(
    takes: boolean,
    signal: AbortSignal | undefined,
    aborted: (signal: AbortSignal) => Error,
  ): Promise<Buffer | null> {
    return new Promise((resolve, reject) => {
      const leave = () => signal?.removeEventListener('abort', abort)
      const waiting: Waiting = {
        takes,
        found(message) {
          leave()
          resolve(message)
        },
        failed(error) {
          leave()
          reject(error)
        },
      }
      const abort = () => {
        const index = this.#waiting.indexOf(waiting)
        if (index !== -1) this.#waiting.splice(index, 1)
        reject(aborted(signal!))
      }
      signal?.addEventListener('abort', abort, { once: true })
      this.#waiting.push(waiting)
      this.serve()
    })
  }

  drain(visit: Visit, max: number): number {
    let count = 0
    let goesOn = false
    this.#visited = true
    this.#visitors += 1
    try {
      while (count < max) {
        if (this.#at === this.#end) {
          // Nobody looks at the chunk between two visits of the outermost visitor.
          this.#visitors -= 1
          const there = this.#large !== null || this.#fetch(false, false, 1)
          this.#visitors += 1
          goesOn = there
          if (!there) {
            if (count === 0) this.#isOpen()
            break
          }
          const large = this.#large
          if (large !== null) {
            this.#large = null
            count += 1
            visit(large, 0, large.length)
            continue
          }
        }
        const chunk = this.#chunk
        const words = this.#words
        const end = this.#end
        let at = this.#at
        while (at < end && count < max) {
          const length = words[at >>> 2]!
          const next = at + HEADER + ((length + 7) & ~7)
          this.#at = next
          count += 1
          visit(chunk, at + HEADER, length)
          // A visitor that reads, itself, may have changed all of this.
          if (this.#at !== next || this.#chunk !== chunk) break
          at = next
        }
      }
    } finally {
      this.#visitors -= 1
      if (goesOn) this.#native.wake()
    }
    return count
  }

  /** The peer has rung. */
  awake(): void {
    this.#armed = false
    this.serve()
  }

  /** Gives whoever waits what is there, and has the peer ring for the rest. */
  serve(): void {
    while (this.#waiting.length > 0) {
      const waiting = this.#waiting[0]!
      const message = waiting.takes ? this.#take(false) : null
      if (message !== null || (!waiting.takes && this.#has(false))) {
        this.#waiting.shift()
        waiting.found(message ?? EMPTY)
        continue
      }
      if (this.#over !== null) {
        this.#waiting.shift()
        if (this.#over === 'ended') waiting.found(null)
        else waiting.failed(this.#over())
        continue
      }
      if (this.#armed) return
      const armed = this.#native.armReader()
      if (armed === FAILED) this.#nothing(FAILED)
      else this.#armed = armed === 1
    }
  }

  /** The peer has gone: fetches everything that it has left. */
  keepRest(): void {
    if (this.#over !== null) return
    if (this.#gathering !== null && !this.#gather() && this.#over === null) this.#gathering = null
    while (this.#over === null) {
      const chunk = Buffer.allocUnsafeSlow(CHUNK)
      let answer = this.#native.pull(chunk, 0, 0)
      if (answer > 0) {
        this.#kept.push({ bytes: chunk.subarray(0, answer), packed: true })
      } else if (answer <= LARGE) {
        const message = Buffer.allocUnsafeSlow(LARGE - answer)
        answer = this.#native.gather(message)
        if (answer === WHOLE) this.#kept.push({ bytes: message, packed: false })
        else this.#nothing(answer >= 0 ? ENDED : answer)
      } else {
        this.#nothing(answer === 0 ? ENDED : answer)
      }
    }
  }

  /** The channel has ended: what was not fetched before will not come. Where that is no end, `why` says so. */
  stop(why: () => RingfenceError): void {
    this.#over ??= why
    this.serve()
  }

  /** This side has closed the channel: whoever waits is told the end, and who comes later the reason. */
  close(why: () => RingfenceError): void {
    this.#over = 'ended'
    this.#at = this.#end = 0
    this.#large = this.#gathering = null
    this.#kept = []
    this.serve()
    this.#over = why
  }
}

/** What a wait for readability finds. */
const EMPTY = Buffer.alloc(0)
