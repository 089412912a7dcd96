// Many to one: reads from many sources in turns, and waits for all of them at once.

import type { Subscription } from './subscription.js'
import type { Channel } from './channel.js'
import { WebStreams } from '../adapters/web.js'
import { KEY, RingfenceError, invalid, show, showSource } from '../errors.js'
import { fairness } from '../runtime/fairness.js'
import { batchLoop, loop, type Loop } from './loops.js'
import { FIRST, HEADER, MORE, native } from '../native.js'
import { checkReceiveEach, lingerOf, signalOf } from '../endpoint/options.js'
import { Resource, closedByDestroy, counted, errorFactory, type ResourceEvents } from './resource.js'
import { mergeInputOf, type MergeInput } from './sources.js'
import type { MergeStats } from './stats.js'
import { ListNode, TURN, Turns } from './turns.js'
import type { Closed, Message, WaitOptions, BatchOptions } from '../types.js'
import { Waiters, type Wait } from './waiters.js'
import * as internal from '../runtime/symbols.js'
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
const EMPTY_CHECKS = 4

const closedError = () => new RingfenceError('CLOSED', 'the merge is closed')

/** A source of a merge, with its state there. */
class Entry<Source> extends ListNode {
  constructor(
    readonly source: Source,
    readonly input: MergeInput,
  ) {
    super()
  }
}

/** Thrown by the visitor's wrapper to stop the visits of a source. */
const STOP = Symbol('stop')

let make: (onClose: (() => void) | null) => Merge<MergeSource>

/**
 * Makes a merge that stays open after all its sources have ended, until {@link allowEnd}.
 *
 * @param onClose - Called when the program closes or destroys the merge.
 */
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export let makePersistent: (onClose: () => void) => Merge<any, any>

/** Lets a persistent merge end once its sources have ended. `failure`: the error for the first caller after that. */
// oxlint-disable-next-line typescript/no-explicit-any -- of whichever values
export let allowEnd: (merged: Merge<any, any>, failure: Error | null) => void

/**
 * Reads from many sources as one. Each message comes with its source, whose `peer` is proven.
 *
 * The sources take turns of about 16 KiB, so a source that floods does not delay the others. A source that was quiet has its turn next. The
 * messages of each source stay in order. A source that has ended leaves the merge after its last message, and the event `disconnect`
 * reports the reason. So does a source whose peer was lost or violated the protocol, without affecting the others. While a merge reads a
 * source, the source's own reading calls throw or reject with INVALID_ARGUMENT. Sending, verifying and closing it still work.
 *
 * `for await (const [source, message] of merge)` ends once every source has ended. Leaving the loop loses no message. Calls that wait are
 * served in order. Other ways to read fail until then, as with a {@link Channel}. `busyPollMicros` of a source has no effect on a merge.
 * `ref` and `unref` are called on each source, and on each that is added later.
 *
 * A merge without sources stays open, since {@link Merge.add} may add another. It ends when this side closes it; the one of
 * {@link Listener.messages} also ends once the listener has closed and the last channel has left.
 */
export class Merge<Source, In = Message> extends Resource<MergeEvents<Source>> implements AsyncIterable<[Source, In]> {
  readonly #entries = new Map<Source, Entry<Source>>()
  readonly #turns = new Turns<Entry<Source>>()
  readonly #waiters = new Waiters<[Source, In]>()
  /** Ends of sources that are not reported yet: the readers get the last messages first. */
  #unreported: MergeEvents<Source>['disconnect'][] = []
  /** The number of running calls of `receiveEach`. */
  #visitors = 0
  /** The sources and callers are attended to in the next microtask. */
  #scheduled = false
  /** The merge has or had a source. It is over once it has none again. */
  #hadSource = false
  #isPersistent: boolean
  /** The end of a merge that was persistent, once it has no sources; null for any other merge. */
  #pendingEnd: Closed | null = null
  readonly #onClose: (() => void) | null
  /** The error of calls once this side has closed or destroyed the merge; null before. */
  #makeEndError: (() => RingfenceError) | null = null
  /** The call that was made last on all sources, and is made on each new one. */
  #refMode: 'ref' | 'unref' | null = null
  #streams: WebStreams<[Source, In], never> | null = null
  /** The error for the first caller after the merge is over. */
  #failure: Error | null = null
  /** The number of messages handed out, and their bytes. */
  #messages = 0
  #bytes = 0

  static {
    make = (onClose) => new Merge(KEY, onClose)
    makePersistent = make
    allowEnd = (merged, failure) => {
      merged.#isPersistent = false
      merged.#hadSource = true
      merged.#failure = failure
      merged.#pendingEnd = closedByDestroy(failure ?? undefined)
      merged.#schedule()
    }
  }

  private constructor(key: symbol, onClose: (() => void) | null) {
    if (key !== KEY) throw invalid('merges are made by merge')
    super(null)
    this.#isPersistent = onClose !== null
    this.#onClose = onClose
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
    if (this[internal.ended] !== null) throw closedError()
    if (this.#entries.has(source)) return this
    const input = mergeInputOf(source)
    if (input === undefined) throw invalid(`a merge reads channels and subscriptions, not ${showSource(source)}`)
    const entry = new Entry(source, input)
    // Called when the source was woken or has ended.
    input.buffer.attachMerge(() => {
      this.#turns.wake(entry)
      this.#schedule()
    })
    this.#entries.set(source, entry)
    this.#hadSource = true
    if (this.#refMode !== null) (source as MergeSource)[this.#refMode]()
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
    if (this.#makeEndError !== null) throw this.#makeEndError()
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
   * @throws {@link RingfenceError} CLOSED once the merge is closed; NO_SPACE as `receive` rejects; INVALID_ARGUMENT while a reader waits for
   * the message.
   */
  tryReceive(): [Source, In] | undefined {
    if (this.#waiters.first !== null) this.#waiters.ensureNoneOvertaken(this)
    return this.#tryReceive()
  }

  #tryReceive(): [Source, In] | undefined {
    if (this.#makeEndError !== null) throw this.#makeEndError()
    this.#turns.wakeAll()
    return this.#takeNext() ?? undefined
  }

  /** Whether every source has ended or was deleted, and everything was read; or this side has closed the merge. */
  get readableEnded(): boolean {
    return this.#wasRead && this.#failure === null && (this.#makeEndError ?? closedError) === closedError
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
    if (this.#waiters.first !== null) this.#waiters.ensureNoneOvertaken(this)
    if (this.#makeEndError !== null) throw this.#makeEndError()
    const turns = this.#turns
    turns.wakeAll()
    const visited = new Set<Entry<Source>>()
    const startedAt = timers.now()
    let count = 0
    let payloadBytes = 0
    this.#visitors += 1
    try {
      for (let entry = turns.next; entry !== null && count < (max ?? Infinity); entry = turns.next) {
        const current = entry
        const visitor = (bytes: Uint8Array, offset: number, length: number) => {
          count += 1
          payloadBytes += length
          const { values } = current.input
          if (values === null) (visit as MergeVisit<Source>)(bytes, offset, length, current.source)
          else (visit as MergeVisit<Source, unknown>)(values.decodeVisited(bytes, offset, length), current.source)
          // A visitor may delete the source or close the merge. If it waits for a message, the next one is its own.
          if (current.list === null || this.#waiters.hasConsumer) throw STOP
        }
        const round = visited.has(current) ? MORE : FIRST
        visited.add(current)
        this.#visit(current, visitor, max === undefined ? undefined : max - count, round)
        if (this.#waiters.hasConsumer) break
        if (max === undefined && fairness.exceedsBudget(startedAt, timers.now())) break
      }
    } finally {
      this.#visitors -= 1
      this.#messages += count
      this.#bytes += payloadBytes
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
    const { buffer } = entry.input
    try {
      buffer.visit(visitor, max, TURN, round)
    } catch (error) {
      this.#turns.end()
      if (error === STOP) return
      throw error
    }
    if (entry.list === null) return
    if (!buffer.isDrained) this.#turns.end()
    else if (buffer.isFinished) this.#leave(entry)
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

  async #waitReadable(signal?: AbortSignal, reader: object | null = this): Promise<boolean> {
    if (this.#makeEndError !== null) throw this.#makeEndError()
    const mustWait = this.#waiters.first !== null && this.#waiters.hasConsumerBefore(reader)
    fairness.spend(this.#isWeak)
    if (!mustWait && this.#due === null) {
      if (this.#hasNext()) return true
      if (this.#isOver) return this.#throwFailure() ?? false
    }
    return (await this.#wait(false, signal, reader).promise) !== null
  }

  /** A web stream with one chunk for each message, made on first use: see {@link Channel.readable}. `cancel()` closes the merge. */
  get readable(): ReadableStream<[Source, In]> {
    const source = {
      waitReadable: (reader: object | null) => this.#waitReadable(undefined, reader),
      tryReceive: () => this.#tryReceive(),
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
        poll: () => this.#nextNow(),
        pollMore: () => (this.#due === null ? this.#takeNext() : null),
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
    if (this[internal.ended] !== null) return
    const closed = closedByDestroy(error)
    this.#makeEndError = closed.error === undefined ? closedError : errorFactory(closed.error)
    for (const entry of [...this.#entries.values()]) this.#remove(entry)
    if (closed.error === undefined) this.#waiters.end()
    else this.#waiters.fail(this.#makeEndError)
    // 'close' is the last event.
    timers.queueMicrotask(() => this.#reportEnds())
    this[internal.settle](closed)
    this.#onClose?.()
  }

  /** @internal */
  protected [internal.keepAlive](alive: boolean): void {
    this.#refMode = alive ? 'ref' : 'unref'
    for (const source of this.#entries.keys()) (source as MergeSource)[this.#refMode]()
  }

  /** @internal */
  protected override [internal.summary](): string[] {
    return [counted(this.#entries.size, 'source')]
  }

  /** Whether no source keeps the process alive, so that reading does not either. False without sources: their end is always reported. */
  get #isWeak(): boolean {
    for (const { input } of this.#entries.values()) if (!input.buffer.isWeak) return false
    return this.#entries.size > 0
  }

  /** The turn of the event loop to await before more is handed out; null if none is due. */
  get #due(): Promise<void> | null {
    const due = fairness.weakDue
    return due === null || this.#isWeak ? due : fairness.due
  }

  /** Whether no more messages will arrive. */
  get #wasRead(): boolean {
    return this.#makeEndError !== null || (this.#hadSource && !this.#isPersistent && this.#entries.size === 0)
  }

  /** Whether readers may get that end. 'disconnect' is emitted for each source before. */
  get #isOver(): boolean {
    return this.#wasRead && (this.#makeEndError !== null || this.#unreported.length === 0)
  }

  #throwFailure(): void {
    const failure = this.#failure
    this.#failure = null
    if (failure !== null) throw failure
  }

  /** Returns a message if there is one, `undefined` if the caller must wait for it, `null` if none will arrive. */
  #receiveNow(): [Source, In] | null | undefined {
    if (!this.#waiters.isEmpty || this.#due !== null) return undefined
    const message = this.#takeNext()
    if (message !== null) return message
    if (!this.#isOver) return undefined
    this.#throwFailure()
    return null
  }

  /** Does the same, for a loop: it ends if this side has closed the merge. */
  #nextNow(): [Source, In] | null | undefined {
    if (this.#makeEndError === null) return this.#receiveNow()
    if (this.#makeEndError !== closedError) throw this.#makeEndError()
    return null
  }

  #wait(consumes: boolean, signal?: AbortSignal, reader: object | null = this): Wait<[Source, In]> {
    const wait = this.#waiters.add(signal, consumes, reader)
    // A visitor that receives gets a message even if the event loop is due. Otherwise its `receiveEach` would visit it.
    this.#serve(this.#visitors > 0)
    return wait
  }

  /** Takes the next message of the ready sources. */
  #takeNext(): [Source, In] | null {
    const turns = this.#turns
    for (let entry = turns.next; entry !== null; entry = turns.next) {
      let message: Buffer | null
      try {
        message = entry.input.buffer.take()
      } catch (error) {
        turns.end()
        throw error
      }
      if (message !== null) {
        this.#messages += 1
        this.#bytes += message.length
        if (turns.spend(message.length + HEADER)) turns.checkEmpty(EMPTY_CHECKS, needsTurn)
        const { values } = entry.input
        return [entry.source, (values === null ? message : values.decode(message)) as In]
      }
      this.#markEmpty(entry)
    }
    return null
  }

  /** Whether a ready source has something. */
  #hasNext(): boolean {
    const turns = this.#turns
    for (let entry = turns.next; entry !== null; entry = turns.next) {
      if (needsTurn(entry) && !entry.input.buffer.isFinished) return true
      this.#markEmpty(entry)
    }
    return false
  }

  #markEmpty(entry: Entry<Source>): void {
    const { buffer } = entry.input
    if (buffer.isFinished) this.#leave(entry)
    else this.#turns.markEmpty(entry, buffer.isArmed)
  }

  /** Removes a source that has ended and was read to its end. */
  #leave(entry: Entry<Source>): void {
    this.#remove(entry)
    // The reason is read after the source was released: reading it may end the channel, which notifies the channel's reader.
    if (this.#unreported.push([entry.source, entry.input.end()]) > 1) return
    // Readers get the last messages in microtasks, or in ticks if a stream is in between. All of them run before an immediate.
    timers.setImmediate(() => this.#reportEnds())
  }

  #reportEnds(): void {
    for (const end of this.#unreported.splice(0)) this[internal.notify]('disconnect', ...end)
    this.#update()
  }

  #remove(entry: Entry<Source>): void {
    this.#turns.remove(entry)
    this.#entries.delete(entry.source)
    entry.input.buffer.detachMerge()
  }

  /** Runs in a microtask, because the source is still in the middle of its own event. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    timers.queueMicrotask(() => {
      this.#scheduled = false
      this.#update()
    })
  }

  #update(): void {
    // A source that has ended leaves even if no caller reads the merge.
    for (const entry of this.#turns.ready) if (entry.input.buffer.isFinished) this.#leave(entry)
    this.#serve()
    if (this.#pendingEnd !== null && this.#isOver) this[internal.settle](this.#pendingEnd)
  }

  /**
   * Hands available messages to the waiting callers, and asks the sources for a wakeup if more callers wait.
   *
   * @param ignoresTurn - Make the first attempt even if the event loop is due. Further ones would let a flood of call frames stop it.
   */
  #serve(ignoresTurn = false): void {
    const find = (consumes: boolean) => (consumes ? this.#takeNext() : this.#hasNext() ? READABLE : null)
    for (;;) {
      const outcome = this.#waiters.serve(find, () => (ignoresTurn ? null : this.#due))
      if (outcome === null) return
      if (outcome !== 'none') {
        this.#arm()
        return this.#waiters.defer(outcome, () => this.#serve())
      }
      if (this.#isOver) return this.#endWaiters()
      if (!this.#arm()) return
      ignoresTurn = false
    }
  }

  /** Ends the waiting calls: no more messages will arrive. */
  #endWaiters(): void {
    const failure = this.#failure
    this.#failure = null
    if (failure !== null) this.#waiters.shift()!.reject(failure)
    this.#waiters.end()
  }

  /** Asks the peers of resting sources for a wakeup. Returns whether one of these sources has something already. */
  #arm(): boolean {
    const resting = this.#turns.resting
    if (resting.length === 0) return false
    armAll(resting.map((entry) => entry.input))
    let isAnyReady = false
    for (const entry of resting) {
      if (entry.input.buffer.isArmed) this.#turns.rest(entry, true)
      else {
        this.#turns.wake(entry)
        isAnyReady = true
      }
    }
    return isAnyReady
  }
}

/** The value of a wait that only checks for readability. */
const READABLE = [null, null] as never

/** Asks the peers of all sources for a wakeup. Each source needs a memory barrier between two checks, and one barrier serves all. */
function armAll(inputs: MergeInput[]): void {
  if (inputs.length === 1) {
    inputs[0]!.buffer.arm()
    return
  }
  let needsBarrier = false
  for (const { buffer } of inputs) if (buffer.park()) needsBarrier = true
  // If the shared barrier fails, each source arms separately and reports its own failure.
  const armsSingly = needsBarrier && native.barrier() !== null
  for (const { buffer } of inputs) {
    if (armsSingly) buffer.arm()
    else buffer.checkParked()
  }
}

/** Whether a source needs a turn: it has a message, has ended, or has a message that there is no memory for. */
function needsTurn(entry: Entry<unknown>): boolean {
  const { buffer } = entry.input
  try {
    return buffer.hasMessage() || buffer.isFinished
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
