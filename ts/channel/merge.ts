// Many to one: reads from many sources, in turns, and waits for all of them at once.

import { EventEmitter } from 'node:events'

import type { Subscription } from './subscription.js'
import type { Channel } from './channel.js'
import { WebStreams } from '../adapters/web.js'
import { emit } from '../runtime/emit.js'
import { RingfenceError, invalid, show, showSource } from '../errors.js'
import { fairness } from '../runtime/fairness.js'
import { batchLoop, loop, type Loop } from './loops.js'
import { FIRST, HEADER, MORE, native } from '../native.js'
import { checkReceiveEach, readerSignal } from '../endpoint/options.js'
import { inletOf, type Inlet } from './sources.js'
import type { MergeStats } from './stats.js'
import { Place, TURN, Turns } from './turns.js'
import type { CloseReason, GoneReason, Message, WaitOptions, BatchOptions } from '../types.js'
import { Waiters, type Wait } from './waiters.js'
import { timers } from '../runtime/timers.js'

/** What a {@link Merge} reads. */
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export type MergeSource = Channel<any, any> | Subscription<any>

/** What a source of a {@link Merge} hands out. */
export type MessageOf<Source> = Source extends Channel<infer In, infer _> | Subscription<infer In> ? In : never

/** Why a source has ended: no channel is evicted. */
export type EndOf<Source> = Source extends Subscription<never> ? GoneReason : CloseReason

/** What a {@link Merge} tells. */
export interface MergeEvents<Source> {
  /** A source has ended, and has left the merge after its last message. */
  end: [source: Source, reason: EndOf<Source>]
}

/** As {@link Visit}, with the source first. */
export type MergeVisit<Source, In = Message> = [In] extends [Message]
  ? (source: Source, bytes: Uint8Array, offset: number, length: number) => void
  : (source: Source, value: In) => void

/** Of the sources that have nothing, so many of each kind are looked at after each turn. */
const LOOKS = 4

/** Only this package makes merges. */
const KEY = Symbol('ringfence')

const closedHere = () => new RingfenceError('CLOSED', 'the merge is closed')

/** One source in a merge. */
class Entry<Source> extends Place {
  readonly source: Source
  readonly inlet: Inlet

  constructor(source: Source, inlet: Inlet) {
    super()
    this.source = source
    this.inlet = inlet
  }
}

/** Thrown by a visitor's wrapper, to end the visits of a source that has left. */
const LEFT = Symbol('left')

let make: (held: boolean) => Merge

/** A merge that goes on though all its sources have ended, until {@link letEnd}. */
export let makeHeld: () => Merge<Channel>

/** Has a held merge end once its sources have. `failure`: what the first that asks is told then. */
export let letEnd: (held: Merge<Channel>, failure: Error | null) => void

/**
 * Reads from many sources as one: each message comes with the source that it is of, whose `peer` is proven.
 *
 * The sources take turns of about 16 KiB, so that one that floods holds up no other; one that was quiet has its turn next. The
 * messages of each source stay in their order. A source that has ended leaves by itself, after its last message, and the event
 * `end` tells why; also one whose peer has lied ('corrupt'), which costs the others nothing. While a merge reads a source, the
 * source's own reading calls throw or reject with INVALID_ARGUMENT; it can send, be verified and be closed as ever.
 *
 * `for await (const [source, message] of merge)` ends once every source has ended; leaving the loop loses no message. What a listener of
 * an event throws is an uncaught exception. Several calls that wait are served in their order. `busyPollMicros` of a source has no
 * effect on a merge.
 */
export class Merge<Source extends MergeSource = Channel | Subscription, In = Message>
  extends EventEmitter<MergeEvents<Source>>
  implements AsyncIterable<[Source, In]>, AsyncDisposable
{
  readonly #entries = new Map<Source, Entry<Source>>()
  readonly #turns = new Turns<Entry<Source>>()
  readonly #waiters = new Waiters<[Source, In]>()
  /** Ends that are to be told in the next microtask: a listener must not run while a message is on its way to its reader. */
  #untold: MergeEvents<Source>['end'][] = []
  /** It is looked after in the next microtask. */
  #scheduled = false
  /** Those who wait are looked after once the event loop has turned. */
  #deferred = false
  /** There is, or was, a source: once there is none, it is over. */
  #hadOne = false
  #held: boolean
  #closed = false
  #streams: WebStreams<[Source, In], never> | null = null
  /** Told to the first that asks once it is over. */
  #failure: Error | null = null
  /** Messages that it has handed out, and their bytes. */
  #messages = 0
  #bytes = 0

  static {
    make = (held) => new Merge(KEY, held)
    makeHeld = () => make(true) as unknown as Merge<Channel>
    letEnd = (held, failure) => {
      held.#held = false
      held.#hadOne = true
      held.#failure = failure
      held.#schedule()
    }
  }

  /** @internal */
  constructor(key: symbol, held: boolean) {
    super()
    if (key !== KEY) throw invalid('merges are made by merge')
    this.#held = held
  }

  /** The messages that it has handed out so far, over all sources that are or were in it. The visits of a `receiveEach` count when it returns. */
  stats(): MergeStats {
    return { sources: this.size, messagesReceived: this.#messages, bytesReceived: this.#bytes }
  }

  /** Sources in it. */
  get size(): number {
    return this.#entries.size
  }

  /**
   * Reads from a source as well. One that is in this merge already stays as it is; one that has ended leaves at once.
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for what is no source, and for one that another merge reads, or a call that waits;
   * CLOSED once the merge is closed.
   */
  add(source: Source): this {
    if (this.#closed) throw closedHere()
    if (this.#entries.has(source)) return this
    const inlet = inletOf(source)
    if (inlet === undefined) throw invalid(`a merge reads channels and subscriptions, not ${showSource(source)}`)
    const entry = new Entry(source, inlet)
    inlet.buffer.lend(() => this.#told(entry))
    this.#entries.set(source, entry)
    this.#hadOne = true
    this.#turns.wake(entry)
    this.#schedule()
    return this
  }

  /** Hands a source back, open: what it has not handed out is there to read. Whether it was in this merge. */
  delete(source: Source): boolean {
    const entry = this.#entries.get(source)
    if (entry === undefined) return false
    this.#remove(entry)
    this.#schedule()
    return true
  }

  /** Whether a source is in it. */
  has(source: Source): boolean {
    return this.#entries.has(source)
  }

  /**
   * The next message, and which source it is of.
   *
   * @returns null: every source has ended or was deleted, and everything was read. A merge that never had one waits for it.
   * Rejects with CLOSED once the merge is closed (a call that waits then is told null); AbortError by the signal, which loses nothing;
   * NO_SPACE where there is no memory for the message, which stays and is tried again in its source's next turn.
   */
  async receive(options?: WaitOptions): Promise<[Source, In] | undefined> {
    const signal = readerSignal(options)
    if (this.#closed) throw closedHere()
    let message = this.#receiveNow()
    if (message === undefined) message = await this.#wait(true, signal).promise
    return message ?? undefined
  }

  /**
   * Receives the next message if there is one now, with its source.
   *
   * @returns `undefined` if there is none.
   * @throws {@link RingfenceError} CLOSED once the merge is closed; NO_SPACE as `receive` rejects.
   */
  tryReceive(): [Source, In] | undefined {
    if (this.#closed) throw closedHere()
    this.#turns.wakeAll()
    return this.#take() ?? undefined
  }

  /** Whether every source has ended or was deleted, and everything was read. */
  get readableEnded(): boolean {
    return this.#isOver
  }

  /**
   * Visits the messages that are there now, of each source in turns. Messages that come in the meantime are left to the next call. The
   * bytes are valid during the visit, and must not be transferred elsewhere.
   *
   * @param visit - What it throws is passed on; the message has been visited then, and the rest stays.
   * @param max - At most so many, however long that takes. Left out, visits end after about 2 ms, and the rest stays.
   * @returns How many were visited.
   * @throws {@link RingfenceError} CLOSED once the merge is closed; else as {@link Channel.receiveEach}, but for the end of a source.
   */
  receiveEach(visit: MergeVisit<Source, In>, max?: number): number {
    checkReceiveEach(visit, max)
    if (this.#closed) throw closedHere()
    const turns = this.#turns
    turns.wakeAll()
    const begun = new Set<Entry<Source>>()
    const began = timers.now()
    let count = 0
    let payload = 0
    try {
      for (let entry = turns.next; entry !== null && count < (max ?? Infinity); entry = turns.next) {
        const own = entry
        const visitor = (bytes: Uint8Array, offset: number, length: number) => {
          count += 1
          payload += length
          const { values } = own.inlet
          if (values === null) (visit as MergeVisit<Source>)(own.source, bytes, offset, length)
          else (visit as MergeVisit<Source, unknown>)(own.source, values.decodeShown(bytes, offset, length))
          // A visitor may delete the source, or close the merge.
          if (own.line === null) throw LEFT
        }
        const round = begun.has(own) ? MORE : FIRST
        begun.add(own)
        this.#visit(own, visitor, max === undefined ? undefined : max - count, round)
        if (max === undefined && fairness.isLong(began, timers.now())) break
      }
    } finally {
      this.#messages += count
      this.#bytes += payload
    }
    return count
  }

  /** One turn of a source. */
  #visit(
    entry: Entry<Source>,
    visitor: (bytes: Uint8Array, offset: number, length: number) => void,
    max: number | undefined,
    round: number,
  ): void {
    const { buffer } = entry.inlet
    try {
      buffer.visit(visitor, max, TURN, round)
    } catch (error) {
      this.#turns.end()
      if (error === LEFT) return
      throw error
    }
    if (entry.line === null) return
    if (!buffer.isDry) this.#turns.end()
    else if (buffer.isThrough) this.#leave(entry)
    else this.#turns.rest(entry, buffer.isArmed)
  }

  /**
   * Waits until there is something to read.
   *
   * @returns false: every source has ended or was deleted, and everything was read. Rejects as {@link Merge.receive}.
   */
  async waitReadable(options?: WaitOptions): Promise<boolean> {
    return this.#waitReadable(readerSignal(options))
  }

  async #waitReadable(signal?: AbortSignal, reader?: object | null): Promise<boolean> {
    if (this.#closed) throw closedHere()
    fairness.spend(this.#isWeak)
    if (this.#due === null && this.#has()) return true
    if (this.#due === null && this.#isOver) return this.#throwFailure() ?? false
    return (await this.#wait(false, signal, reader).promise) !== null
  }

  /** A web stream with one chunk for each message, made on first use: see {@link Channel.readable}. `cancel()` closes the merge. */
  get readable(): ReadableStream<[Source, In]> {
    const source = {
      waitReadable: (reader: object | null) => this.#waitReadable(undefined, reader),
      tryReceive: () => this.tryReceive(),
      close: () => this.close(),
    }
    return (this.#streams ??= new WebStreams<[Source, In], never>(source, null)).readable
  }

  /**
   * Yields arrays of messages: at least one, and at most `max` of those that are there. For loops that want speed: one promise for each
   * array, and not for each message.
   *
   * @example
   * for await (const messages of merge.batches()) for (const message of messages) handle(message)
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for wrong options; an AbortError if the signal is aborted already
   */
  batches(options?: BatchOptions): Loop<[Source, In][]> {
    return batchLoop<[Source, In], [Source, In]>(
      {
        now: () => (this.#closed ? null : this.#receiveNow()),
        more: () => (this.#due === null ? this.#take() : null),
        wait: (reader, signal) => this.#wait(true, signal, reader),
        decode: (message) => message,
      },
      options,
    )
  }

  [Symbol.asyncIterator](): Loop<[Source, In]> {
    return loop(
      () => (this.#closed ? null : this.#receiveNow()),
      (reader) => this.#wait(true, undefined, reader),
    )
  }

  /** Hands every source back, open. Calls that wait are told that no more will come. Loops over the merge end. */
  close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true
      for (const entry of [...this.#entries.values()]) this.#remove(entry)
      this.#waiters.end()
    }
    return Promise.resolve()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** No source keeps the process alive, and to read them does not either. That no source is left is told in any case. */
  get #isWeak(): boolean {
    for (const { inlet } of this.#entries.values()) if (!inlet.buffer.isWeak) return false
    return this.#entries.size > 0
  }

  /** What is waited for before more is handed out; null: nothing. */
  get #due(): Promise<void> | null {
    const due = fairness.dueWeakly
    return due === null || this.#isWeak ? due : fairness.due
  }

  /** No more will come. */
  get #isOver(): boolean {
    return this.#closed || (this.#hadOne && !this.#held && this.#entries.size === 0 && this.#untold.length === 0)
  }

  #throwFailure(): void {
    const failure = this.#failure
    this.#failure = null
    if (failure !== null) throw failure
  }

  /** A message if there is one, `undefined` if one must be waited for, `null` if none will come. */
  #receiveNow(): [Source, In] | null | undefined {
    if (!this.#waiters.isEmpty || this.#due !== null) return undefined
    const message = this.#take()
    if (message !== null) return message
    if (!this.#isOver) return undefined
    this.#throwFailure()
    return null
  }

  #wait(takes: boolean, signal?: AbortSignal, reader: object | null = this): Wait<[Source, In]> {
    const wait = this.#waiters.addReader(reader, signal, takes)
    this.#serve()
    return wait
  }

  /** The next message of those that are ready. */
  #take(): [Source, In] | null {
    const turns = this.#turns
    for (let entry = turns.next; entry !== null; entry = turns.next) {
      let message: Buffer | null
      try {
        message = entry.inlet.buffer.take()
      } catch (error) {
        turns.end()
        throw error
      }
      if (message !== null) {
        this.#messages += 1
        this.#bytes += message.length
        if (turns.spend(message.length + HEADER)) turns.lookAround(LOOKS, hasSomething)
        const { values } = entry.inlet
        return [entry.source, (values === null ? message : values.decode(message)) as In]
      }
      this.#foundEmpty(entry)
    }
    return null
  }

  /** Whether one of those that are ready has something. */
  #has(): boolean {
    const turns = this.#turns
    for (let entry = turns.next; entry !== null; entry = turns.next) {
      if (hasSomething(entry) && !entry.inlet.buffer.isThrough) return true
      this.#foundEmpty(entry)
    }
    return false
  }

  #foundEmpty(entry: Entry<Source>): void {
    const { buffer } = entry.inlet
    if (buffer.isThrough) this.#leave(entry)
    else this.#turns.foundEmpty(entry, buffer.isArmed)
  }

  /** A source has ended, and all was read. */
  #leave(entry: Entry<Source>): void {
    this.#remove(entry)
    // Asked once it has been handed back: the answer may be the channel's end, which tells its reader.
    this.#untold.push([entry.source, entry.inlet.reason() as EndOf<Source>])
    this.#schedule()
  }

  #remove(entry: Entry<Source>): void {
    this.#turns.remove(entry)
    this.#entries.delete(entry.source)
    entry.inlet.buffer.giveBack()
  }

  /** A source has rung, or has ended. */
  #told(entry: Entry<Source>): void {
    this.#turns.wake(entry)
    this.#schedule()
  }

  /** Later, since what has an event is in the middle of telling it. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    timers.queueMicrotask(() => {
      this.#scheduled = false
      this.#attend()
    })
  }

  #attend(): void {
    // Also without a reader: one that has ended leaves by itself.
    for (const entry of this.#turns.fresh) if (entry.inlet.buffer.isThrough) this.#leave(entry)
    for (const end of this.#untold.splice(0)) emit(this as EventEmitter, 'end', ...end)
    this.#serve()
  }

  /** Gives what is there to the callers that wait, and has the sources ring for the rest. */
  #serve(): void {
    for (let waiter = this.#waiters.first; waiter !== undefined; waiter = this.#waiters.first) {
      const due = this.#due
      if (due !== null) {
        this.#arm()
        this.#defer(due)
        return
      }
      let message: [Source, In] | null = null
      let there = false
      try {
        if (waiter.takes) message = this.#take()
        else there = this.#has()
      } catch (error) {
        // The error is this one's: the others are told what they find.
        if (this.#waiters.remove(waiter)) waiter.failed(error as Error)
        continue
      }
      if (message !== null || there) {
        this.#waiters.shift()
        waiter.found(message ?? THERE)
      } else if (this.#isOver) {
        this.#tellOver()
        return
      } else if (!this.#arm()) return
    }
  }

  /** No more will come for the callers that wait. */
  #tellOver(): void {
    const failure = this.#failure
    this.#failure = null
    if (failure !== null) this.#waiters.shift()!.failed(failure)
    this.#waiters.end()
  }

  #defer(due: Promise<void>): void {
    if (this.#deferred) return
    this.#deferred = true
    void due.then(() => {
      this.#deferred = false
      this.#serve()
    })
  }

  /** Has those ring that have nothing and would not. Whether one of them has something after all. */
  #arm(): boolean {
    const resting = this.#turns.resting
    if (resting.length === 0) return false
    armAll(resting.map((entry) => entry.inlet))
    let some = false
    for (const entry of resting) {
      if (entry.inlet.buffer.isArmed) this.#turns.rest(entry, true)
      else {
        this.#turns.wake(entry)
        some = true
      }
    }
    return some
  }
}

/** What a wait for readability finds. */
const THERE = [null, null] as never

/** Has the peers of all ring. Between two looks of each there must be a memory barrier, and one serves all of them. */
function armAll(inlets: Inlet[]): void {
  if (inlets.length === 1) {
    inlets[0]!.buffer.arm()
    return
  }
  let barrier = false
  for (const { buffer } of inlets) if (buffer.park()) barrier = true
  // Where it cannot be had, each fails by itself, and says so.
  const single = barrier && native.barrier() !== null
  for (const { buffer } of inlets) {
    if (single) buffer.arm()
    else buffer.lookParked()
  }
}

/** Whether its turn is worth having: also where it has ended, or has a message that there is no memory for. */
function hasSomething(entry: Entry<unknown>): boolean {
  const { buffer } = entry.inlet
  try {
    return buffer.hasMessage() || buffer.isThrough
  } catch {
    // The call that takes the message tells.
    return true
  }
}

/**
 * Reads from many channels as one: see {@link Merge}.
 *
 * @param channels - Those that are in it from the start; more may come by {@link Merge.add}.
 * @throws {@link RingfenceError} INVALID_ARGUMENT for what is no source, or is read already; then none of them is taken.
 */
export function merge<Source extends MergeSource = Channel | Subscription>(
  channels: Iterable<Source> = [],
): Merge<Source, MessageOf<Source>> {
  if (typeof channels !== 'object' || channels === null || !(Symbol.iterator in channels))
    throw invalid(`merge takes channels, as an array or another iterable, not ${show(channels)}`)
  const merged = make(false) as unknown as Merge<Source, MessageOf<Source>>
  try {
    for (const channel of channels) merged.add(channel)
  } catch (error) {
    void merged.close()
    throw error
  }
  return merged
}
