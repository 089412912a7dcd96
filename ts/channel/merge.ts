// Many to one: reads from many sources in turns, and waits for all of them at once.

import type { Subscription } from './subscription.js'
import type { Channel } from './channel.js'
import { WebStreams } from '../adapters/web.js'
import { RingfenceError, invalid, show, showSource } from '../errors.js'
import { fairness } from '../runtime/fairness.js'
import { batchLoop, loop, type Loop } from './loops.js'
import { FIRST, HEADER, MORE, native } from '../native.js'
import { checkReceiveEach, lingerOf, signalOf } from '../endpoint/options.js'
import { Resource, destroyedBy, repeat, type ResourceEvents } from './resource.js'
import { inletOf, type Inlet } from './sources.js'
import type { MergeStats } from './stats.js'
import { Place, TURN, Turns } from './turns.js'
import type { Closed, Message, WaitOptions, BatchOptions } from '../types.js'
import { Waiters, type Wait } from './waiters.js'
import { timers } from '../runtime/timers.js'

/** A source that a {@link Merge} can read. */
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export type MergeSource = Channel<any, any> | Subscription<any>

/** The messages of a source of a {@link Merge}. */
export type MessageOf<Source> = Source extends Channel<infer In, infer _> | Subscription<infer In> ? In : never

/** The events of a {@link Merge}. */
export interface MergeEvents<Source> extends ResourceEvents {
  /** A source has ended, and has left the merge after its last message. */
  disconnect: [source: Source, closed: Closed]
}

/** A {@link Visit} with the source as the last argument. */
export type MergeVisit<Source, In = Message> = [In] extends [Message]
  ? (bytes: Uint8Array, offset: number, length: number, source: Source) => void
  : (value: In, source: Source) => void

/** The number of empty sources that are checked after each turn, in each of the two lists (resting and armed). */
const LOOKS = 4

/** Only this package makes merges. */
const KEY = Symbol('ringfence')

const closedHere = () => new RingfenceError('CLOSED', 'the merge is closed')

/** A source of a merge, with its state there. */
class Entry<Source> extends Place {
  constructor(
    readonly source: Source,
    readonly inlet: Inlet,
  ) {
    super()
  }
}

/** Thrown by the visitor's wrapper to stop the visits of a source that has left the merge. */
const LEFT = Symbol('left')

let make: (letGo: (() => void) | null) => Merge<MergeSource>

/**
 * Makes a merge that stays open after all its sources have ended, until {@link letEnd}.
 *
 * @param letGo - Called when the program closes or destroys the merge.
 */
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export let makeHeld: (letGo: () => void) => Merge<any, any>

/** Lets a held merge end once its sources have ended. `failure`: the error for the first caller after that. */
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export let letEnd: (held: Merge<any, any>, failure: Error | null) => void

/**
 * Reads from many sources as one. Each message comes with its source, whose `peer` is proven.
 *
 * The sources take turns of about 16 KiB, so a source that floods does not delay the others. A source that was quiet has its turn next. The
 * messages of each source stay in order. A source that has ended leaves the merge after its last message, and the event `disconnect`
 * reports the reason. So does a source whose peer was lost or violated the protocol, without affecting the others. While a merge reads a
 * source, the source's own reading calls throw or reject with INVALID_ARGUMENT. Sending, verifying and closing it still work.
 *
 * `for await (const [source, message] of merge)` ends once every source has ended. Leaving the loop loses no message. Calls that wait are
 * served in order. `busyPollMicros` of a source has no effect on a merge.
 *
 * A merge without sources stays open, since {@link Merge.add} may add another. It ends when this side closes it; the one of
 * {@link Listener.messages} also ends once the listener has closed and the last channel has left.
 */
export class Merge<Source, In = Message> extends Resource<MergeEvents<Source>> implements AsyncIterable<[Source, In]> {
  readonly #entries = new Map<Source, Entry<Source>>()
  readonly #turns = new Turns<Entry<Source>>()
  readonly #waiters = new Waiters<[Source, In]>()
  /** Ends to report in the next microtask: a listener must not run while a message is on its way to its reader. */
  #untold: MergeEvents<Source>['disconnect'][] = []
  /** The sources and callers are attended to in the next microtask. */
  #scheduled = false
  /** The merge has or had a source. It is over once it has none again. */
  #hadOne = false
  #held: boolean
  /** The end of a merge that was held, once it has no sources; null for any other merge. */
  #verdict: Closed | null = null
  readonly #letGo: (() => void) | null
  /** The error of calls once this side has closed or destroyed the merge; null before. */
  #over: (() => RingfenceError) | null = null
  /** The call that was made last on all sources, and is made on each new one. */
  #keeping: 'ref' | 'unref' | null = null
  #streams: WebStreams<[Source, In], never> | null = null
  /** The error for the first caller after the merge is over. */
  #failure: Error | null = null
  /** The number of messages handed out, and their bytes. */
  #messages = 0
  #bytes = 0

  static {
    make = (letGo) => new Merge(KEY, letGo)
    makeHeld = make
    letEnd = (held, failure) => {
      held.#held = false
      held.#hadOne = true
      held.#failure = failure
      held.#verdict = destroyedBy(failure ?? undefined)
      held.#schedule()
    }
  }

  private constructor(key: symbol, letGo: (() => void) | null) {
    if (key !== KEY) throw invalid('merges are made by merge')
    super(null)
    this.#held = letGo !== null
    this.#letGo = letGo
  }

  /** The messages handed out so far, over all current and former sources. The visits of a `receiveEach` count when it returns. */
  stats(): MergeStats {
    return { sources: this.#entries.size, messagesReceived: this.#messages, bytesReceived: this.#bytes }
  }

  /** The current sources, in the order in which they were added. */
  get sources(): readonly Source[] {
    return [...this.#entries.keys()]
  }

  /**
   * Adds a source. A source that is already in this merge is left unchanged. One that has ended leaves at once.
   *
   * @example
   * ```js
   * listener.on('connection', (channel) => inbox.add(channel))
   * ```
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for a value that is not a source, or a source that another merge or a waiting call
   * reads; CLOSED once the merge is closed.
   */
  add(source: Source): this {
    if (this.ended !== null) throw closedHere()
    if (this.#entries.has(source)) return this
    const inlet = inletOf(source)
    if (inlet === undefined) throw invalid(`a merge reads channels and subscriptions, not ${showSource(source)}`)
    const entry = new Entry(source, inlet)
    inlet.buffer.lend(() => this.#told(entry))
    this.#entries.set(source, entry)
    this.#hadOne = true
    if (this.#keeping !== null) (source as MergeSource)[this.#keeping]()
    this.#turns.wake(entry)
    this.#schedule()
    return this
  }

  /** Removes a source, which stays open and keeps its unread messages. Returns whether it was in this merge. */
  delete(source: Source): boolean {
    const entry = this.#entries.get(source)
    if (entry === undefined) return false
    this.#remove(entry)
    this.#schedule()
    return true
  }

  /** Whether a source is in this merge. */
  has(source: Source): boolean {
    return this.#entries.has(source)
  }

  /**
   * Receives the next message, with its source.
   *
   * @example
   * ```js
   * const next = await inbox.receive()
   * if (next !== undefined) console.log(next[0].peer.pid, String(next[1]))
   * ```
   *
   * @returns `undefined` if every source has ended or was deleted, and everything was read. A merge that never had a source waits for one.
   * Rejects with CLOSED once the merge is closed (calls that already wait resolve with `undefined`); AbortError if the signal is aborted,
   * which loses no message; NO_SPACE if there is no memory for the message, which is tried again in its source's next turn.
   */
  async receive(options?: WaitOptions): Promise<[Source, In] | undefined> {
    const signal = signalOf(options)
    if (this.#over !== null) throw this.#over()
    let message = this.#receiveNow()
    if (message === undefined) message = await this.#wait(true, signal).promise
    return message ?? undefined
  }

  /**
   * Receives the next message if there is one now, with its source.
   *
   * @example
   * ```js
   * for (let next; (next = inbox.tryReceive()) !== undefined;) console.log(String(next[1]))
   * ```
   *
   * @returns `undefined` if there is none.
   * @throws {@link RingfenceError} CLOSED once the merge is closed; NO_SPACE as `receive` rejects.
   */
  tryReceive(): [Source, In] | undefined {
    if (this.#over !== null) throw this.#over()
    this.#turns.wakeAll()
    return this.#take() ?? undefined
  }

  /** Whether every source has ended or was deleted, and everything was read; or this side has closed the merge. */
  get readableEnded(): boolean {
    return this.#isOver && this.#failure === null && (this.#over ?? closedHere) === closedHere
  }

  /**
   * Visits the messages that are available now, of each source in turns. Messages that arrive during the call are left to the next call.
   * The bytes are valid during the visit, and must not be transferred.
   *
   * @example
   * ```js
   * let bytes = 0
   * while (await inbox.waitReadable()) inbox.receiveEach((memory, offset, length) => (bytes += length))
   * ```
   *
   * @param visit - If it throws, the error is passed on: the current message counts as visited, and the others stay unread.
   * @param max - The maximum number of messages, however long that takes. By default, visits stop after about 2 ms, and the other messages
   * stay unread.
   * @returns The number of visited messages.
   * @throws {@link RingfenceError} CLOSED once the merge is closed; otherwise as {@link Channel.receiveEach}, except that a source's end
   * does not throw.
   */
  receiveEach(visit: MergeVisit<Source, In>, max?: number): number {
    checkReceiveEach(visit, max)
    if (this.#over !== null) throw this.#over()
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
          if (values === null) (visit as MergeVisit<Source>)(bytes, offset, length, own.source)
          else (visit as MergeVisit<Source, unknown>)(values.decodeShown(bytes, offset, length), own.source)
          // A visitor may delete the source or close the merge.
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

  /** Runs one turn of a source. */
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
   * Waits until a message is available.
   *
   * @returns `false` if every source has ended or was deleted, and everything was read. Rejects as {@link Merge.receive}.
   */
  async waitReadable(options?: WaitOptions): Promise<boolean> {
    return this.#waitReadable(signalOf(options))
  }

  async #waitReadable(signal?: AbortSignal, reader?: object | null): Promise<boolean> {
    if (this.#over !== null) throw this.#over()
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
   * Yields arrays of at least one and at most `max` available messages. Meant for fast loops: it needs one promise for each array instead
   * of one for each message.
   *
   * @example
   * for await (const messages of inbox.batches()) for (const message of messages) handle(message)
   *
   * @throws {@link RingfenceError} INVALID_ARGUMENT for wrong options; an AbortError if the signal is aborted already
   */
  batches(options?: BatchOptions): Loop<[Source, In][]> {
    return batchLoop<[Source, In], [Source, In]>(
      {
        now: () => this.#nextNow(),
        more: () => (this.#due === null ? this.#take() : null),
        wait: (reader, signal) => this.#wait(true, signal, reader),
        decode: (message) => message,
      },
      options,
    )
  }

  [Symbol.asyncIterator](): Loop<[Source, In]> {
    return loop(
      () => this.#nextNow(),
      (reader) => this.#wait(true, undefined, reader),
    )
  }

  /**
   * Removes every source, which stays open. Waiting calls resolve as at the end, and loops over the merge end. A merge has nothing to flush.
   *
   * @returns Rejects with INVALID_ARGUMENT for wrong options.
   */
  async close(options: { linger?: number | undefined } = {}): Promise<void> {
    lingerOf(options)
    this.#end()
  }

  /** Like {@link Merge.close}. With an error, waiting calls and loops reject with it. */
  destroy(error?: Error): void {
    this.#end(error)
  }

  #end(error?: Error): void {
    if (this.ended !== null) return
    const closed = destroyedBy(error)
    this.#over = closed.error === undefined ? closedHere : repeat(closed.error)
    for (const entry of [...this.#entries.values()]) this.#remove(entry)
    if (closed.error === undefined) this.#waiters.end()
    else this.#waiters.fail(this.#over)
    this.settle(closed)
    this.#letGo?.()
  }

  /** Calls `ref` of every source, and of each that is added later. */
  ref(): this {
    return this.#keep('ref')
  }

  /** Calls `unref` of every source, and of each that is added later. */
  unref(): this {
    return this.#keep('unref')
  }

  #keep(keeping: 'ref' | 'unref'): this {
    this.#keeping = keeping
    for (const source of this.#entries.keys()) (source as MergeSource)[keeping]()
    return this
  }

  /** @internal */
  protected override summary(): string[] {
    const { size } = this.#entries
    return [size === 1 ? '1 source' : `${size} sources`]
  }

  /** Whether no source keeps the process alive, so that reading does not either. False without sources: their end is always reported. */
  get #isWeak(): boolean {
    for (const { inlet } of this.#entries.values()) if (!inlet.buffer.isWeak) return false
    return this.#entries.size > 0
  }

  /** The turn of the event loop to await before more is handed out; null if none is due. */
  get #due(): Promise<void> | null {
    const due = fairness.dueWeakly
    return due === null || this.#isWeak ? due : fairness.due
  }

  /** Whether no more messages will arrive. */
  get #isOver(): boolean {
    return this.#over !== null || (this.#hadOne && !this.#held && this.#entries.size === 0 && this.#untold.length === 0)
  }

  #throwFailure(): void {
    const failure = this.#failure
    this.#failure = null
    if (failure !== null) throw failure
  }

  /** Returns a message if there is one, `undefined` if the caller must wait for it, `null` if none will arrive. */
  #receiveNow(): [Source, In] | null | undefined {
    if (!this.#waiters.isEmpty || this.#due !== null) return undefined
    const message = this.#take()
    if (message !== null) return message
    if (!this.#isOver) return undefined
    this.#throwFailure()
    return null
  }

  /** Does the same, for a loop: it ends if this side has closed the merge. */
  #nextNow(): [Source, In] | null | undefined {
    if (this.#over === null) return this.#receiveNow()
    if (this.#over !== closedHere) throw this.#over()
    return null
  }

  #wait(takes: boolean, signal?: AbortSignal, reader: object | null = this): Wait<[Source, In]> {
    const wait = this.#waiters.add(signal, takes, reader)
    this.#serve()
    return wait
  }

  /** Takes the next message of the ready sources. */
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

  /** Whether a ready source has something. */
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

  /** Removes a source that has ended and was read to its end. */
  #leave(entry: Entry<Source>): void {
    this.#remove(entry)
    // The reason is read after the source was released: reading it may end the channel, which notifies the channel's reader.
    this.#untold.push([entry.source, entry.inlet.end()])
    this.#schedule()
  }

  #remove(entry: Entry<Source>): void {
    this.#turns.remove(entry)
    this.#entries.delete(entry.source)
    entry.inlet.buffer.giveBack()
  }

  /** Called when a source was woken or has ended. */
  #told(entry: Entry<Source>): void {
    this.#turns.wake(entry)
    this.#schedule()
  }

  /** Runs in a microtask, because the source is still in the middle of its own event. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    timers.queueMicrotask(() => {
      this.#scheduled = false
      this.#attend()
    })
  }

  #attend(): void {
    // A source that has ended leaves even if no caller reads the merge.
    for (const entry of this.#turns.ready) if (entry.inlet.buffer.isThrough) this.#leave(entry)
    for (const end of this.#untold.splice(0)) this.tell('disconnect', ...end)
    this.#serve()
    if (this.#verdict !== null && this.#isOver) this.settle(this.#verdict)
  }

  /** Hands available messages to the waiting callers, and asks the sources for a wakeup if more callers wait. */
  #serve(): void {
    const find = (takes: boolean) => (takes ? this.#take() : this.#has() ? THERE : null)
    for (;;) {
      const left = this.#waiters.serve(find, () => this.#due)
      if (left === null) return
      if (left !== 'none') {
        this.#arm()
        return this.#waiters.defer(left, () => this.#serve())
      }
      if (this.#isOver) return this.#tellOver()
      if (!this.#arm()) return
    }
  }

  /** Ends the waiting calls: no more messages will arrive. */
  #tellOver(): void {
    const failure = this.#failure
    this.#failure = null
    if (failure !== null) this.#waiters.shift()!.failed(failure)
    this.#waiters.end()
  }

  /** Asks the peers of resting sources for a wakeup. Returns whether one of these sources has something already. */
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

/** The value of a wait that only checks for readability. */
const THERE = [null, null] as never

/** Asks the peers of all sources for a wakeup. Each source needs a memory barrier between two checks, and one barrier serves all. */
function armAll(inlets: Inlet[]): void {
  if (inlets.length === 1) {
    inlets[0]!.buffer.arm()
    return
  }
  let barrier = false
  for (const { buffer } of inlets) if (buffer.park()) barrier = true
  // If the shared barrier fails, each source arms separately and reports its own failure.
  const single = barrier && native.barrier() !== null
  for (const { buffer } of inlets) {
    if (single) buffer.arm()
    else buffer.lookParked()
  }
}

/** Whether a source needs a turn: it has a message, has ended, or has a message that there is no memory for. */
function hasSomething(entry: Entry<unknown>): boolean {
  const { buffer } = entry.inlet
  try {
    return buffer.hasMessage() || buffer.isThrough
  } catch {
    // The call that takes the message reports the error.
    return true
  }
}

/**
 * Reads from many channels as one: see {@link Merge}.
 *
 * @example
 * ```js
 * const merged = merge([first, second])
 * merged.on('disconnect', (channel, { reason }) => console.log(`process ${channel.peer.pid}: ${reason}`))
 * for await (const [channel, message] of merged) console.log(`process ${channel.peer.pid}: ${message}`)
 * ```
 *
 * @param channels - The initial sources. {@link Merge.add} adds more.
 * @throws {@link RingfenceError} INVALID_ARGUMENT for a value that is not a source, or a source that is already read. No source is added
 * then.
 */
export function merge<Source extends MergeSource = Channel | Subscription>(
  channels: Iterable<Source> = [],
): Merge<Source, MessageOf<Source>> {
  if (typeof channels !== 'object' || channels === null || !(Symbol.iterator in channels))
    throw invalid(`merge takes channels, as an array or another iterable, not ${show(channels)}`)
  const merged = make(null) as unknown as Merge<Source, MessageOf<Source>>
  try {
    for (const channel of channels) merged.add(channel)
  } catch (error) {
    void merged.close()
    throw error
  }
  return merged
}
