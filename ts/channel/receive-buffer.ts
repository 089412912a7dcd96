// What has been read: fetched from the ring many messages at a time, and handed out one by one.
//
// One call into the binding copies as many records as fit into memory, and JavaScript walks them there. A visitor is shown a chunk,
// which is used anew. A caller that wants a Buffer gets one that is never written again: a long message has memory of its own,
// and short ones come in a block that they share. So a message that is kept keeps little besides.
//
// A program may take a block away with one of its messages (Node before 21 lets a stream of bytes do so, whatever it was told). Those
// that it has not asked for yet are not lost: they are held in the ring until the last of them is handed out.

import { RingfenceError, fromFailure, invalid } from '../errors.js'
import { fairness } from '../runtime/fairness.js'
import { Block, OWN, recordSize } from './block.js'
import { BufferView, allocate, allocateShared } from './memory.js'
import { ENDED, FAILED, FIRST, HEADER, LARGE, MORE, OTHER, WHOLE, type NativeReader } from '../native.js'
import type { Received } from './stats.js'
import { Waiters, type Wait } from './waiters.js'
import { afterWeakTurn } from '../runtime/weak-turn.js'
import { timers } from '../runtime/timers.js'

/** Bytes of the chunk: what one call carries at most. */
const CHUNK = 128 * 1024
/** The same where they are copied from it. */
const NEAR = 32 * 1024
/** With less room than this, a chunk that visitors are looking at is left to them. */
const ROOM = 8 * 1024
/**
 * Bytes of messages that came several at a time, since the peer was last asked to ring: with so many, the next ones are likely on their
 * way, and some turns of the event loop are let pass before it is asked again. To ask costs both processes several microseconds, and so
 * does the bell. Messages that come one at a time are no such stream.
 */
const MUCH = 4 * 1024
/** Turns that are let pass so, with nothing found, before the peer is asked. */
const TURNS = 8
/** Memory for large messages that is kept for the next visit. */
const SCRATCH_KEPT = 16 * 1024 * 1024

/** What a wait for readability finds. */
const EMPTY = Buffer.alloc(0)
const NO_WORDS = new Uint32Array(0)

/** Looked up once, as in the send queue. */
const put = Uint8Array.prototype.set

export type Visit = (bytes: Uint8Array, offset: number, length: number) => void

export class ReceiveBuffer {
  readonly #native: NativeReader
  readonly #busy: boolean
  /** What visitors are shown, and how much of it is used. Empty before the first one, as a channel may have none. */
  #chunk: Buffer = EMPTY
  #chunkWords: Uint32Array = NO_WORDS
  #used = 0
  readonly #short = Block.short()
  readonly #long = Block.long()
  /** Where the next messages are put: what comes is mostly like what came. */
  #block = this.#short
  /** Bytes of one of the last messages. */
  #length = 0
  /** Where the unread records lie: the chunk, or a block's memory. */
  #memory: Buffer = this.#chunk
  #words: Uint32Array = this.#chunkWords
  /** The whole of that memory: blocks and chunks are at its beginning. */
  #whole = this.#chunkWords.buffer as ArrayBuffer
  /** They lie in a block: messages are handed out as they are. */
  #isOurs = true
  /** From here… */
  #at = 0
  /** …to here. */
  #end = 0
  /** Where those began that were fetched with them. */
  #start = 0
  /** The ring has them still. */
  #held = false
  /** The chunk's records were copied to here, up to there… */
  #copies: Buffer = EMPTY
  #copiesWhole = this.#whole
  #copied = 0
  /** …this many bytes further on than here. */
  #shift = 0
  /** The last message had memory of its own, and so has the next one, likely. */
  #far = false
  /** Messages were last read by visitors, so the next ones are likely to be as well. */
  #visited = false
  /** Visitors that are running: what they look at must not be written. */
  #visitors = 0
  /** A large message that is whole. */
  #large: Buffer | null = null
  /** A large message that is not. */
  #gathering: Buffer | null = null
  /** The large message has memory of its own. */
  #own = false
  #scratch: Buffer | null = null
  /** The peer has gone, and what it has left lies in the ring still: lets go of that, once nothing is left of it. */
  #letGo: (() => void) | null = null
  readonly #waiters = new Waiters<Buffer>()
  #armed = false
  /** See {@link MUCH}. */
  #streamed = 0
  /** Turns that were let pass since something was found. */
  #turns = 0
  /** A turn is let pass just now. */
  #turning = false
  /** No more will come from the ring: the end, or why. */
  #over: 'ended' | (() => RingfenceError) | null = null
  /** The source keeps no process alive: what it reads neither, however much comes. */
  #isWeak = false
  /** Those who wait are looked after once the event loop has turned. */
  #deferred = false
  readonly #failed: (error: RingfenceError) => void
  readonly #ended: () => void
  /** Told of events where a merge reads, and not the caller; null: the caller reads. */
  #merged: (() => void) | null = null
  /** The last visits ended since there was nothing more. */
  #dry = false
  readonly #told: () => void
  /** This side has closed the channel. */
  #closed = false
  /** Fetched messages that the close of this side has discarded. */
  #discarded = 0
  /** Messages that were handed out, and their bytes: counted here, since what was fetched may be discarded or taken away. */
  #messages = 0
  #bytes = 0

  /**
   * @param failed - Told what the binding's calls say.
   * @param ended - Told once the peer has said that no more will come, and everything was fetched.
   * @param told - Told each time that a caller that wanted a message is told so.
   */
  constructor(
    native: NativeReader,
    busy: boolean,
    failed: (error: RingfenceError) => void,
    ended: () => void,
    told: () => void,
  ) {
    this.#native = native
    this.#busy = busy
    this.#failed = failed
    this.#ended = ended
    this.#told = told
  }

  /** Whether a turn of the event loop that is waited for keeps the process alive. */
  keepAlive(alive: boolean): void {
    // What a peer has left is no more than a ring, and is read to its end.
    this.#isWeak = !alive && this.#over === null && this.#letGo === null
  }

  /** Whether what it reads keeps no process alive. */
  get isWeak(): boolean {
    return this.#isWeak
  }

  /** What is waited for before more is handed out; null: nothing. */
  get due(): Promise<void> | null {
    return this.#isWeak ? fairness.dueWeakly : fairness.due
  }

  /** Whether no more will come, and all was read. */
  get isEnded(): boolean {
    try {
      if (this.#has(false) || this.#over === null) return false
    } catch (error) {
      // There is a message, and no memory for it: the call that receives it tells.
      if (isShortage(error)) return false
      throw error
    }
    this.#tellIfEnded()
    return true
  }

  #hasUnread(): boolean {
    return this.#at < this.#end || this.#large !== null
  }

  /** Whether there is something to read; looks into the ring where nothing has been fetched. */
  #has(spin: boolean): boolean {
    if (this.#native.hasMessage !== undefined) return this.#hasUnread() || this.#look(this.#native.hasMessage())
    return this.#hasUnread() || (this.#visited ? this.#fetchToShow(spin) : this.#fetch(spin, 1))
  }

  /**
   * Fetches what is there, to be handed out. `alone` of 0: the first message is handed out at once.
   *
   * @throws {@link RingfenceError} NO_SPACE where there is no memory for a message, which stays where it is.
   */
  #fetch(spin: boolean, alone: number): boolean {
    if (this.#native.pullHeld === undefined) return this.#fetchToCopy(spin)
    if (this.#over !== null) return false
    if (this.#gathering !== null) return this.#gather()
    let block = this.#block
    // One that was never used is made once there is a message.
    if (block.used > 0) block.makeRoom(this.#length)
    const { used, least, most } = block
    let answer =
      spin && this.#busy
        ? this.#native.pullHeldBusy!(block.memory, used, least, most, alone)
        : this.#native.pullHeld(block.memory, used, least, most, alone)
    const length = LARGE - answer
    if (length >= 0 && length <= OWN) {
      // It is of the other kind, or does not fit.
      this.#block = block = length > this.#short.most ? this.#long : this.#short
      block.makeRoom(length)
      answer = this.#native.pullHeld(block.memory, block.used, block.least, block.most, alone)
    }
    if (answer <= 0) return this.#fetchOther(answer, true)
    this.#useBlock(block, answer)
    this.#held = alone === 1 || answer > recordSize(this.#length)
    return true
  }

  /** So many bytes of records have come to a block. */
  #useBlock(block: Block, bytes: number): void {
    this.#memory = block.memory
    this.#words = block.words
    this.#whole = block.whole
    this.#isOurs = true
    this.#start = this.#at = block.used
    this.#end = block.used += bytes
    this.#length = block.words[this.#at >>> 2]!
    this.#found(bytes)
  }

  /** So many bytes of records have come. */
  #found(bytes: number): void {
    this.#turns = 0
    if (bytes > recordSize(this.#words[this.#at >>> 2]!)) this.#streamed += bytes
  }

  /**
   * As {@link #fetch}, to be shown to visitors. `goesOn`: the caller is a visitor, who will fetch until nothing is there, or wake the
   * peer.
   */
  #fetchToShow(spin: boolean, goesOn = 0): boolean {
    if (this.#over !== null) return false
    if (this.#gathering !== null) return this.#gather()
    if (this.#visitors === 0) {
      // A visitor has transferred it elsewhere: it has taken nothing along, since all was read.
      if (this.#chunk.length === 0) this.#useChunk(newChunk())
      this.#used = 0
    } else if (this.#chunk.length - this.#used < ROOM) {
      this.#useChunk(newChunk())
    }
    let answer =
      spin && this.#busy
        ? this.#native.pullBusy(this.#chunk, this.#used, goesOn)
        : this.#native.pull(this.#chunk, this.#used, goesOn)
    if (answer <= LARGE && this.#used > 0 && LARGE - answer + HEADER <= CHUNK) {
      // It may fit an empty chunk.
      this.#useChunk(newChunk())
      answer = this.#native.pull(this.#chunk, 0, goesOn)
    }
    if (answer <= 0) return this.#fetchOther(answer, this.#visitors > 0)
    this.#useShown(answer)
    return true
  }

  /**
   * As {@link #fetch}, from a ring that holds nothing for this reader: a message is copied out of the chunk before it is handed out,
   * and those behind it.
   */
  #fetchToCopy(spin: boolean): boolean {
    if (this.#visitors > 0) return this.#fetchToShow(spin)
    if (this.#over !== null) return false
    if (this.#gathering !== null) return this.#gather()
    if (this.#chunk.length === 0) this.#useChunk(newChunk())
    // What is copied twice is to stay in the processor's cache, and what is longer is not copied twice.
    const into = this.#chunk.subarray(0, this.#far ? HEADER + OWN : NEAR)
    const answer = spin && this.#busy ? this.#native.pullBusy(into, 0, 0) : this.#native.pull(into, 0, 0)
    this.#far = answer <= LARGE
    if (answer <= 0) return this.#fetchOther(answer, true)
    this.#used = 0
    this.#useShown(answer)
    return true
  }

  /** So many bytes of records have come to the chunk. */
  #useShown(bytes: number): void {
    this.#memory = this.#chunk
    this.#words = this.#chunkWords
    this.#isOurs = this.#held = false
    this.#at = this.#copied = this.#used
    this.#end = this.#used += bytes
    this.#found(bytes)
  }

  #useChunk(chunk: Buffer): void {
    this.#chunk = chunk
    this.#chunkWords = new Uint32Array(chunk.buffer)
    this.#used = 0
  }

  /** No records have come: a large message begins, or nothing is there. `own`: it goes into memory that can be given away. */
  #fetchOther(answer: number, own: boolean): boolean {
    if (answer > LARGE) return this.#nothing(answer)
    this.#gathering = this.#memoryFor(LARGE - answer, own)
    return this.#gather()
  }

  /** The peer is told that everything that was fetched is read. */
  #release(): void {
    this.#held = false
    this.#native.release!()
  }

  /**
   * The memory of the unread messages was transferred elsewhere. Where they came in a block, they are fetched once more.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT where a visitor has done so, and they are lost.
   */
  #fetchAgain(): boolean {
    const bytes = this.#end - this.#at
    if (this.#held) {
      const passed = this.#at - this.#start
      const block = this.#block
      block.memory = EMPTY
      block.makeRoom(this.#length)
      const answer = this.#native.pullAgain!(block.memory.subarray(0, bytes), passed)
      if (answer > 0) {
        this.#useBlock(block, answer)
        this.#start -= passed
        return true
      }
      this.#at = this.#end
      return this.#fetchOther(answer, true)
    }
    this.#at = this.#end
    this.#useChunk(newChunk())
    throw invalid(
      'a visitor has transferred the memory that it was shown, and with it ' +
        `${bytes} bytes of messages that came behind its own: copy what is to be transferred`,
    )
  }

  /** Memory for a large message. */
  #memoryFor(size: number, own: boolean): Buffer {
    this.#own = own
    if (own) return allocate(size, 'a message')
    if (this.#scratch === null || this.#scratch.length < size) {
      this.#scratch = null
      const scratch = allocate(size, 'a message')
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
      return true
    }
    if (answer <= LARGE) {
      // Another one, which is shorter: a subscriber that waits for none was overtaken.
      this.#large = this.#gathering!.subarray(0, LARGE - answer)
      this.#gathering = null
      return true
    }
    if (answer === OTHER) {
      this.#gathering = null
      return this.#own ? this.#fetch(false, 0) : this.#fetchToShow(false)
    }
    return this.#nothing(answer)
  }

  #nothing(answer: number): false {
    if (answer === ENDED) {
      this.#over = 'ended'
      // The rest of a message that was under way will not come; no call was promised it.
      this.#gathering = null
      this.#ended()
    } else if (answer === FAILED) {
      const error = fromFailure(this.#native.failure())
      this.#over = () => error
      this.#failed(error)
    }
    if (this.#over !== null) this.#leaveRing()
    return false
  }

  /** Whether there is a message, which is not fetched yet. */
  #look(answer: number): boolean {
    if (this.#over !== null) return false
    return answer > 0 ? true : this.#nothing(answer)
  }

  /** Messages that were fetched and not handed out, those included that this side's close has discarded. */
  get unread(): number {
    let count = this.#discarded + (this.#large === null ? 0 : 1)
    for (let at = this.#at; at < this.#end;) {
      const length = this.#words[at >>> 2]
      // The memory was transferred elsewhere.
      if (length === undefined) break
      count += 1
      at += recordSize(length)
    }
    return count
  }

  /** The messages that were handed out so far, and their bytes. Running visits count when they end. */
  get received(): Received {
    return { messages: this.#messages, bytes: this.#bytes }
  }

  #count(messages: number, bytes: number): void {
    this.#messages += messages
    this.#bytes += bytes
  }

  #leaveRing(): void {
    const letGo = this.#letGo
    this.#letGo = null
    letGo?.()
  }

  /** The next message, in memory of the caller's own. */
  #take(spin: boolean): Buffer | null {
    this.#visited = false
    if (this.#at === this.#end) {
      if (this.#large === null && !this.#fetch(spin, 0)) return null
      if (this.#large !== null) return this.#takeLarge(this.#large)
    }
    const at = this.#at
    const length = this.#words[at >>> 2]
    if (length === undefined) return this.#fetchAgain() ? this.#take(spin) : null
    const start = at + HEADER
    const end = start + length
    const message = this.#isOurs ? new BufferView(this.#whole, start, length) : this.#copy(start, end)
    this.#at = (end + 7) & ~7
    this.#count(1, length)
    if (this.#at === this.#end && this.#held) this.#release()
    fairness.spend(this.#isWeak)
    return message
  }

  #takeLarge(large: Buffer): Buffer {
    const message = this.#own ? large : copyOf(large)
    this.#large = null
    this.#count(1, large.length)
    fairness.spend(this.#isWeak)
    return message
  }

  /** A message of the chunk, in memory that is not shown to visitors. */
  #copy(start: number, end: number): Buffer {
    const length = end - start
    if (length > OWN) {
      this.#far = true
      return copyOf(this.#memory.subarray(start, end))
    }
    // Where the copy was transferred elsewhere, what has been handed out went with it; the rest is copied anew.
    if (start > this.#copied || this.#copies.length === 0) this.#copyRun(start - HEADER, length)
    return new BufferView(this.#copiesWhole, start - this.#shift, length)
  }

  /** Copies the record at `at` to a block, and those that follow, as far as they fit and are to be there. */
  #copyRun(at: number, length: number): void {
    const block = length > this.#short.most ? this.#long : this.#short
    block.makeRoom(length)
    const { memory, used, least, most } = block
    const last = Math.min(this.#end, at + memory.length - used)
    const words = this.#words
    let to = at + recordSize(length)
    while (to < last) {
      const next = words[to >>> 2]!
      const end = to + recordSize(next)
      if (end > last || next < least || next > most) break
      to = end
    }
    put.call(memory, this.#memory.subarray(at, to), used)
    block.used = used + to - at
    this.#copies = memory
    this.#copiesWhole = block.whole
    this.#shift = at - used
    this.#copied = to
  }

  /** Whether more may come, for a caller that has found nothing. @throws the reason, if that is no orderly end. */
  #isOpen(): boolean {
    if (this.#over === null) return true
    if (this.#over !== 'ended') throw this.#over()
    return false
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if a merge reads: a direct read would take what the merge is to hand out. */
  mustBeFree(): void {
    if (this.#merged !== null) throw merged()
  }

  /** The next message, if there is one now. Its caller learns of the end elsewhere. */
  takeNow(): Buffer | null {
    this.mustBeFree()
    const message = this.#take(false)
    if (message === null) this.#isOpen()
    return message
  }

  tryReceive(): Buffer | null {
    const message = this.takeNow()
    if (message === null) this.#tellIfEnded()
    return message
  }

  /** The caller has found nothing: if none will come, it knows that now. */
  #tellIfEnded(): void {
    if (this.#over === 'ended') this.#told()
  }

  /** As {@link receiveNow}, for a loop: it ends where this side has closed the channel. */
  nextNow(): Buffer | null | undefined {
    return this.#closed ? null : this.receiveNow()
  }

  /** A message if there is one, `undefined` if one must be waited for, `null` if none will come. */
  receiveNow(): Buffer | null | undefined {
    this.mustBeFree()
    if (this.#closed) this.#isOpen()
    if (!this.#waiters.isEmpty || this.due !== null) return undefined
    const message = this.#take(true)
    if (message !== null) return message
    if (this.#isOpen()) return undefined
    this.#told()
    return null
  }

  /** As {@link isReadableNow}, for a loop: it ends if this side has closed the channel. */
  arrivedNow(): boolean | undefined {
    return this.#closed ? false : this.isReadableNow()
  }

  isReadableNow(): boolean | undefined {
    this.mustBeFree()
    fairness.spend(this.#isWeak)
    if (this.#closed) this.#isOpen()
    if (this.due !== null) return undefined
    if (this.#has(true)) return true
    return this.#isOpen() ? undefined : false
  }

  /** Waits for a message (`takes`), or until there is one; called once `receiveNow` has found none. */
  wait(takes: boolean, signal?: AbortSignal): Wait<Buffer> {
    const wait = this.#waiters.add(signal, takes)
    // A visitor that reads gets the message after its own, also where the event loop is due: its drain would visit that one otherwise.
    this.serve(this.#visitors > 0)
    return wait
  }

  /** @param max - Undefined: no more than the event loop can spare the time for. */
  receiveEach(visit: Visit, max: number | undefined): number {
    this.mustBeFree()
    const count = this.#visit(visit, max, Infinity, FIRST)
    if (count === 0 && max !== 0 && !this.#isOpen()) this.#tellIfEnded()
    return count
  }

  /**
   * Visits what is there.
   *
   * @param bytes - No further message is visited once so many have been.
   * @param fetched - `FIRST`, or `MORE` where the round began in an earlier call.
   */
  #visit(visit: Visit, max: number | undefined, bytes: number, fetched: number): number {
    const most = max ?? Infinity
    let count = 0
    let payload = 0
    /** Messages until the next look at the clock; where that has been looked at, the first time. */
    let left = fairness.stride
    let began = 0
    let goesOn = false
    let dry = false
    this.#visited = true
    this.#visitors += 1
    try {
      while (count < most && bytes > 0) {
        if (this.#at === this.#end) {
          // Between two visits of the outermost visitor the chunk is not looked at.
          this.#visitors -= 1
          let there: boolean
          try {
            there = this.#large !== null || this.#fetchToShow(false, fetched)
          } catch (error) {
            // The caller must learn of its visits first. The next call finds the message again.
            if (count > 0 && isShortage(error)) break
            throw error
          } finally {
            this.#visitors += 1
          }
          goesOn = there
          fetched = MORE
          dry = !there
          if (dry) break
        }
        const large = this.#large
        if (large !== null) {
          this.#large = null
          count += 1
          payload += large.length
          left -= 1
          bytes -= large.length + HEADER
          visit(large, 0, large.length)
        } else {
          const memory = this.#memory
          const words = this.#words
          const start = this.#at
          // Small integers, as long as nothing is limited: `most` and `bytes` are numbers of another kind to the engine where they are
          // infinite, and what is made of them is converted for each message.
          let end = this.#end
          if (bytes < end - start) end = start + bytes
          let stop = count + left
          if (most < stop) stop = most
          const begin = count
          let at = start
          while (at < end && count < stop) {
            const length = words[at >>> 2]
            if (length === undefined) {
              this.#fetchAgain()
              break
            }
            const next = at + HEADER + ((length + 7) & ~7)
            this.#at = next
            count += 1
            payload += length
            visit(memory, at + HEADER, length)
            at = next
            // A visitor that reads, itself, may have changed all of this.
            if (this.#at !== next || this.#memory !== memory) break
          }
          left -= count - begin
          bytes -= at - start
        }
        if (left <= 0) {
          const now = fairness.look(this.#isWeak)
          left = fairness.stride
          if (began === 0) began = now
          else if (max === undefined && fairness.isLong(began, now)) break
        }
      }
    } finally {
      this.#visitors -= 1
      this.#count(count, payload)
      if (this.#held && this.#at === this.#end) this.#release()
      if (goesOn) this.#native.wake()
    }
    this.#dry = dry
    return count
  }

  /** The peer has rung. */
  awake(): void {
    this.#armed = false
    this.serve()
  }

  /** Gives what is there to the callers that wait, and has the peer ring for the rest. `now`: also where the event loop is due. */
  serve(now = false): void {
    if (this.#merged !== null) {
      this.#merged()
      return
    }
    for (let waiter = this.#waiters.first; waiter !== undefined; waiter = this.#waiters.first) {
      const due = now ? null : this.due
      if (due !== null) {
        this.#defer(due)
        return
      }
      let message: Buffer | null = null
      let there = false
      try {
        if (waiter.takes) message = this.#take(false)
        else there = this.#has(false)
      } catch (error) {
        // The error is this one's: the others are told what they find.
        if (this.#waiters.remove(waiter)) waiter.failed(error as Error)
        continue
      }
      if (message !== null || there) {
        this.#waiters.shift()
        waiter.found(message ?? EMPTY)
        continue
      }
      if (this.#over !== null) {
        this.#tellEnd()
        return
      }
      if (this.#armed || this.#looksAgain()) return
      const armed = this.#native.armReader()
      if (armed === FAILED) this.#nothing(FAILED)
      else this.#armed = armed === 1
    }
  }

  /** Whether this side looks once more, by itself, before it has the peer ring. */
  #looksAgain(): boolean {
    if (this.#turning) return true
    if (this.#streamed < MUCH || this.#turns >= TURNS) {
      this.#streamed = this.#turns = 0
      return false
    }
    this.#turns += 1
    this.#turning = true
    if (this.#isWeak) afterWeakTurn(this.#turn)
    else timers.setImmediate(this.#turn)
    return true
  }

  readonly #turn = (): void => {
    this.#turning = false
    this.serve()
  }

  #defer(due: Promise<void>): void {
    if (this.#deferred) return
    this.#deferred = true
    void due.then(() => {
      this.#deferred = false
      this.serve()
    })
  }

  /** No more will come for the callers that wait. */
  #tellEnd(): void {
    const over = this.#over!
    // The binding may know that this side has cut the peer off before it has been told here: that is an end as any close.
    if (over === 'ended' || over().code === 'ERR_RINGFENCE_CLOSED') {
      if (over === 'ended' && this.#waiters.hasTaker) this.#told()
      this.#waiters.end()
    } else this.#waiters.fail(over)
  }

  /**
   * The peer has gone. What it has left is read where it lies, when it is asked for: a copy would take as much memory as the peer
   * likes. `letGo` is called once, when nothing is left, or it may not be read any more.
   */
  outlive(letGo: () => void): void {
    this.#letGo = letGo
    this.#armed = this.#isWeak = false
    this.serve()
    try {
      // Where nothing is left, that is known at once.
      if (this.#over === null) this.#has(false)
    } catch (error) {
      // There is a message, and no memory for it: the call that receives it tells.
      if (!isShortage(error)) throw error
    }
    if (this.#over !== null) this.#leaveRing()
  }

  /** Whether something may be left of a peer that has gone. */
  get outlives(): boolean {
    return this.#letGo !== null
  }

  /** The channel has ended: what was not fetched before will not come. Where that is no end, `why` says so. */
  stop(why: () => RingfenceError): void {
    this.#over ??= why
    this.#isWeak = false
    this.serve()
  }

  /** This side has closed the channel: pending calls end, and later calls fail with the reason. */
  close(why: () => RingfenceError): void {
    this.#closed = true
    this.#discarded = this.unread
    this.#over = 'ended'
    this.#at = this.#end = 0
    this.#held = false
    this.#large = this.#gathering = null
    this.#tellEnd()
    this.#over = why
    this.#leaveRing()
    this.#merged?.()
  }

  // From here on: what a merge reads by.

  /**
   * A merge reads from now on, and not the caller.
   *
   * @param told - Called when there may be something to read, or no more will come. It must not read at once.
   * @throws {@link RingfenceError} INVALID_ARGUMENT where it is read already.
   */
  lend(told: () => void): void {
    this.mustBeFree()
    if (!this.#waiters.isEmpty || this.#visitors > 0)
      throw invalid('the source is being read: a merge takes it once no call waits for its messages')
    this.#merged = told
  }

  /** The caller reads again. */
  giveBack(): void {
    this.#merged = null
  }

  /** The next message; null where there is none now, or none will come ({@link isThrough}). @throws as {@link #fetch} */
  take(): Buffer | null {
    return this.#take(false)
  }

  /** Whether there is something to read. @throws as {@link #fetch} */
  hasMessage(): boolean {
    return this.#has(false)
  }

  /** As {@link receiveEach}, as far as `bytes`; `round` is `FIRST`, or `MORE` for a round that has begun. Does not tell the end. */
  visit(visit: Visit, max: number | undefined, bytes: number, round: number): number {
    return this.#visit(visit, max, bytes, round)
  }

  /** Whether the last {@link visit} ended since there was nothing more, or nothing more of its round. */
  get isDry(): boolean {
    return this.#dry
  }

  /** Whether it is known that no more will come, and all was read. Does not look into the ring. */
  get isThrough(): boolean {
    return this.#over !== null && !this.#hasUnread()
  }

  /** Whether the peer will ring once there is something to read. */
  get isArmed(): boolean {
    return this.#armed
  }

  /** Has the peer ring once there is something. Whether that is so: where not, there is something, or no more will come. */
  arm(): boolean {
    return this.#armBy(this.#native.armReader())
  }

  /** The first half of {@link arm}, for a merge that arms many. Whether a barrier must be made before the second. */
  park(): boolean {
    const answer = this.#native.parkReader()
    if (answer === FAILED) this.#nothing(FAILED)
    return answer === 1
  }

  /** The second half of {@link arm}. */
  lookParked(): boolean {
    return this.#over === null && this.#armBy(this.#native.lookParked())
  }

  #armBy(answer: number): boolean {
    if (answer === FAILED) this.#nothing(FAILED)
    else this.#armed = answer === 1
    return this.#armed
  }
}

function merged(): RingfenceError {
  return invalid('a merge reads this source: delete it there, or close the merge, before it is read directly')
}

function newChunk(): Buffer {
  return allocateShared(CHUNK, 'what is received')
}

function copyOf(message: Buffer): Buffer {
  const copy = allocate(message.length, 'a message')
  put.call(copy, message)
  return copy
}

function isShortage(error: unknown): boolean {
  return error instanceof RingfenceError && error.code === 'ERR_RINGFENCE_NO_SPACE'
}
