// The calls of one channel, in both directions: those that this side makes, and those that it serves.
//
// Each request is answered exactly once, a cancelled one as well. So each side knows which answers are still to come, and any other answer is
// a violation of the protocol. Requests are numbered in the order in which they are sent.

import { RemoteError, RingfenceError, aborted, invalid } from '../errors.js'
import { callOptions } from '../endpoint/options.js'
import { fairness } from '../runtime/fairness.js'
import { Deferred, ignore, rejection, soon } from '../runtime/deferred.js'
import { onAbort } from '../runtime/aborts.js'
import { LONGEST_TIMER, timers } from '../runtime/timers.js'
import type { CallContext, CallOptions, Identity } from '../types.js'
import * as envelope from './envelope.js'
import { CANCEL, CANCELLED, ERROR, HEAD, LEAST, REPLY, REQUEST, type Frame } from './envelope.js'
import { Line, Place } from './line.js'

/** The most unanswered requests of a caller, and the most bytes of them together. A single one may be longer. Further calls wait. */
const MOST = 16 * 1024
const MOST_BYTES = 16 * 1024 * 1024

/** The server may learn late that answers are in the ring, so it tolerates this many times the caller's limits. */
const SLACK = 2

/** The functions of the channel that calls need. */
export interface CallsLink {
  readonly maxMessageSize: number
  readonly peer: Identity
  /**
   * Sends a frame, after the messages and frames before it. Returns null if it is certain to be in the ring in this turn of the program.
   * Otherwise returns a promise that resolves once it is there, and rejects if the channel has ended.
   *
   * @throws {@link RingfenceError} if the frame will not be sent
   */
  send(kind: number, id: number, remaining: number, body: Uint8Array): Promise<void> | null
  /** Reads frames from now on, also if the program receives no messages. */
  read(): void
  /** Reads the frames that are in the ring now. */
  readNow(): void
  /** Spins for the next request, with the option `busyPollMicros`. */
  poll(): void
  /** Ends this side's sending after the peer's, unless it is half-open. */
  endWithPeer(): void
}

/** Answers one request. */
export type Answer = (request: Buffer, context: CallContext) => Uint8Array | Promise<Uint8Array>

const EMPTY = Buffer.alloc(0)
const NO_OPTIONS: CallOptions = {}

/** A call that this side makes. */
class Call extends Place {
  id = -1
  /** Null once it was sent, or will not be. */
  body: Uint8Array | null
  /** Bytes of its frame. */
  readonly size: number
  /** The deadline, as of `timers.now`; infinite without one. */
  readonly due: number
  /** Settles the promise of the caller. Null once it is settled. */
  settle: ((reply: Buffer | Promise<never>) => void) | null
  timer: NodeJS.Timeout | undefined = undefined
  forget: (() => void) | undefined = undefined

  constructor(body: Uint8Array, due: number, settle: (reply: Buffer | Promise<never>) => void) {
    super()
    this.body = body
    this.size = HEAD + body.length
    this.due = due
    this.settle = settle
  }
}

/** A request of the peer. */
class Request extends Place {
  readonly context: Context
  /** Bytes of its frame. */
  readonly size: number
  /** An answer was sent, so its outcome no longer counts. */
  isAnswered = false

  constructor(
    readonly id: number,
    readonly body: Buffer,
    remaining: number,
    peer: Identity,
  ) {
    super()
    this.size = HEAD + body.length
    this.context = new Context(remaining, peer)
  }

  /** The program has transferred memory that this request shares with others. Node 20 allows that. */
  get isDetached(): boolean {
    return HEAD + this.body.length < this.size
  }
}

/** What `serve` was called with. */
interface Server {
  readonly answer: Answer
  readonly concurrency: number
  /** Called with each error that the answer throws, unless its caller has stopped waiting. */
  readonly thrown: (error: unknown) => void
  /** Settles the promise of `serve`. Null once it is settled. */
  served: { resolve(): void; reject(error: Error): void } | null
}

/** The context of one request. */
class Context implements CallContext {
  readonly deadline: number | undefined
  readonly peer: Identity
  /** The deadline, as of `timers.now`. */
  readonly #due: number
  /** Made on first use: most handlers do not need it. */
  #controller: AbortController | null = null
  #timer: NodeJS.Timeout | undefined
  #reason: RingfenceError | null = null

  constructor(remaining: number, peer: Identity) {
    this.deadline = remaining === 0 ? undefined : timers.date() + remaining
    this.#due = remaining === 0 ? Infinity : timers.now() + remaining
    this.peer = peer
  }

  get signal(): AbortSignal {
    if (this.#controller === null) {
      this.#controller = new AbortController()
      const left = this.#due - timers.now()
      if (this.#reason !== null) this.#controller.abort(this.#reason)
      else if (left < Infinity) {
        this.#timer = timers.setTimeout(() => Context.abort(this, late()), Math.min(Math.max(left, 0), LONGEST_TIMER))
        this.#timer.unref()
      }
    }
    return this.#controller.signal
  }

  static isLate(context: Context): boolean {
    return (
      context.#due !== Infinity && (timers.now() >= context.#due || context.#reason?.code === 'ERR_RINGFENCE_TIMEOUT')
    )
  }

  static abort(context: Context, reason: RingfenceError): void {
    if (context.#reason !== null) return
    Context.finish(context)
    context.#reason = reason
    context.#controller?.abort(reason)
  }

  /** The request was answered. */
  static finish(context: Context): void {
    if (context.#timer !== undefined) timers.clearTimeout(context.#timer)
  }
}

const late = () => new RingfenceError('TIMEOUT', "the caller's deadline has passed")
const unanswered = () => new RingfenceError('TIMEOUT', 'the peer has not replied within the `timeout` of this call')
const given = () => new RingfenceError('ABORT_ERR', 'the caller has cancelled the call')

export class Calls {
  readonly #link: CallsLink
  /** Answered calls whose caller had stopped waiting. */
  lateReplies = 0

  /** Sent requests that were not answered, in the order of their numbers. */
  readonly #sent = new Map<number, Call>()
  #sentBytes = 0
  /** Calls whose caller waits for the answer. */
  #inFlight = 0
  /** Calls that wait until fewer are unanswered. */
  readonly #waiting = new Line<Call>()
  #nextCall = 0
  /** Why no more answers will arrive. */
  #over: (() => RingfenceError) | null = null
  #isEnded = false
  #isOrderly = false

  /** The peer's requests whose answers are not in the ring yet. */
  readonly #open = new Map<number, Request>()
  #openBytes = 0
  /** Requests whose handler was not called. */
  readonly #queued = new Line<Request>()
  #nextRequest = 0
  #server: Server | null = null
  #running = 0
  #scheduled = false
  /** The peer has ended its sending, so no more requests will arrive. */
  #isLast = false

  constructor(link: CallsLink) {
    this.#link = link
  }

  /** The number of calls of this side whose caller waits for the answer. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Whether frames must be read. */
  get isActive(): boolean {
    return this.#sent.size > 0 || (this.#server !== null && this.#server.served !== null)
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if the channel's messages are too short for calls */
  #mustFit(): void {
    const { maxMessageSize } = this.#link
    if (maxMessageSize < LEAST)
      throw invalid(`calls need a channel with a maxMessageSize of at least ${LEAST}, not ${maxMessageSize}`)
  }

  readOn(): void {
    this.#link.read()
  }

  // This side calls.

  /** @throws {@link RingfenceError} if the request is not sent */
  call(body: Uint8Array, options: CallOptions | undefined): Promise<Buffer> {
    this.#mustFit()
    const { timeout, signal } = options === undefined ? NO_OPTIONS : callOptions(options)
    if (this.#over !== null) throw this.#over()
    const due = timeout === undefined ? Infinity : timers.now() + timeout
    const reply = new Deferred<Buffer>()
    const call = new Call(body, due, reply.resolve)
    if (this.#waiting.isEmpty && this.#mayStart(call)) this.#start(call)
    else {
      call.body = Buffer.from(body)
      this.#waiting.push(call)
    }
    this.#inFlight += 1
    if (timeout !== undefined) {
      const expire = () => {
        // A reply that is in the ring at the deadline is in time, though the event loop has not read it.
        if (call.id >= 0) this.#link.readNow()
        this.#abandon(call, unanswered())
      }
      call.timer = timers.setTimeout(expire, Math.min(Math.ceil(timeout), LONGEST_TIMER))
      call.timer.unref()
    }
    if (signal !== undefined) call.forget = onAbort(signal, () => this.#abandon(call, aborted(signal)))
    this.#link.read()
    return reply.promise
  }

  #mayStart({ size }: Call): boolean {
    return isWithin(this.#sent.size, this.#sentBytes, size, 1)
  }

  /** @throws {@link RingfenceError} as `send` of the link */
  #start(call: Call): void {
    const id = this.#nextCall
    const remaining = call.due === Infinity ? 0 : envelope.toRemaining(call.due - timers.now())
    const sent = this.#link.send(REQUEST, id, remaining, call.body!)
    if (sent !== null) sent.catch((error: Error) => this.#unsent(call, error))
    this.#nextCall = id + 1
    call.id = id
    call.body = null
    this.#sent.set(id, call)
    this.#sentBytes += call.size
  }

  /** The request will never be in the ring. */
  #unsent(call: Call, error: Error): void {
    if (!this.#sent.delete(call.id)) return
    this.#sentBytes -= call.size
    if (call.settle !== null) this.#reject(call, error)
    this.#startWaiting()
  }

  #startWaiting(): void {
    for (let call = this.#waiting.first; call !== null && this.#mayStart(call); call = this.#waiting.first) {
      this.#waiting.shift()
      try {
        this.#start(call)
      } catch (error) {
        this.#reject(call, error as Error)
      }
    }
  }

  /** The caller stops waiting. */
  #abandon(call: Call, error: Error): void {
    if (call.settle === null) return
    this.#reject(call, error)
    if (this.#waiting.remove(call)) return
    try {
      this.#link.send(CANCEL, call.id, 0, EMPTY)
    } catch {
      // After this side's end, no cancellation can be sent.
    }
  }

  #reject(call: Call, error: Error): void {
    this.#settle(call, rejection(error))
  }

  /** The call has an outcome. */
  #settle(call: Call, outcome: Buffer | Promise<never>): void {
    const settle = call.settle!
    this.#inFlight -= 1
    call.settle = call.body = null
    if (call.timer !== undefined) timers.clearTimeout(call.timer)
    call.forget?.()
    settle(outcome)
  }

  #answered({ kind, id, body }: Frame): void {
    const call = this.#sent.get(id)
    const isPending = call !== undefined && call.settle !== null
    if (call === undefined || (isPending && kind === CANCELLED))
      throw envelope.corrupt(`an answer of kind ${kind} to call ${id}, which does not wait for it`)
    const error = kind === ERROR ? outcomeOf(call, new RemoteError(envelope.readError(body))) : null
    this.#sent.delete(id)
    this.#sentBytes -= call.size
    if (isPending) this.#settle(call, error === null ? body : rejection(error))
    else if (kind !== CANCELLED) this.lateReplies += 1
    this.#startWaiting()
  }

  // This side serves.

  serve(answer: Answer, concurrency: number, thrown: Server['thrown']): Promise<void> {
    this.#mustFit()
    if (this.#server !== null) throw invalid('the channel is served already: serve is called once')
    if (this.#isEnded) {
      if (this.#isOrderly) return Promise.resolve()
      const broken = Promise.reject(this.#over!())
      broken.catch(ignore)
      return broken
    }
    const promise = new Promise<void>((resolve, reject) => {
      this.#server = { answer, concurrency, thrown, served: { resolve, reject } }
    })
    // The end of the channel is reported by `closed` as well.
    promise.catch(ignore)
    this.#schedule()
    this.#link.read()
    return promise
  }

  #requested({ id, body, remaining }: Frame): void {
    if (id !== this.#nextRequest) throw envelope.corrupt(`request ${id} in place of ${this.#nextRequest}`)
    const request = new Request(id, body, remaining, this.#link.peer)
    if (!isWithin(this.#open.size, this.#openBytes, request.size, SLACK))
      throw envelope.corrupt(`${this.#open.size} requests of ${this.#openBytes} bytes are unanswered`)
    this.#nextRequest = id + 1
    this.#open.set(id, request)
    this.#openBytes += request.size
    this.#queued.push(request)
    this.#schedule()
  }

  #cancelled({ id }: Frame): void {
    if (id >= this.#nextRequest) throw envelope.corrupt(`request ${id} was cancelled before it was sent`)
    const request = this.#open.get(id)
    // The answer and the cancellation have crossed.
    if (request === undefined || request.isAnswered) return
    this.#queued.remove(request)
    this.#finish(request, CANCELLED, EMPTY, ignore)
    // Its listeners are the program.
    timers.queueMicrotask(() => Context.abort(request.context, given()))
  }

  /** Handlers are called in a microtask: a frame may arrive while the program is in another call. */
  #schedule(): void {
    if (this.#scheduled || this.#server === null) return
    this.#scheduled = true
    soon(this.#next)
  }

  readonly #next = (): void => {
    let isFirst = true
    const { concurrency } = this.#server!
    while (this.#running < concurrency) {
      const request = this.#queued.shift()
      if (request === null) break
      this.#running += 1
      this.#run(request)
      if (this.#queued.isEmpty) break
      // Handlers take longer than the frames that were counted before.
      if (isFirst) fairness.slower()
      isFirst = false
      fairness.spend()
      const due = fairness.dueWeakly
      if (due === null) continue
      void due.then(this.#next)
      return
    }
    this.#scheduled = false
    this.#endIfDone()
  }

  #run(request: Request): void {
    const { body, context } = request
    let reply: Uint8Array | Promise<Uint8Array>
    try {
      if (Context.isLate(context)) throw late()
      if (request.isDetached) throw invalid('the server has transferred the memory of this request')
      reply = this.#server!.answer(body, context)
    } catch (thrown) {
      this.#failed(request, thrown)
      return
    }
    if (!(reply instanceof Promise)) this.#returned(request, reply)
    else
      reply.then(
        (bytes) => this.#returned(request, bytes),
        (error: unknown) => this.#failed(request, error),
      )
  }

  #returned(request: Request, reply: Uint8Array): void {
    // Its signal is aborted, and the caller rejects.
    if (Context.isLate(request.context)) this.#failed(request, late())
    else this.#finish(request, REPLY, reply, this.#left)
  }

  #failed(request: Request, thrown: unknown): void {
    const isLate = Context.isLate(request.context)
    if (!isLate && !request.isAnswered) this.#server!.thrown(thrown)
    this.#finish(request, ERROR, this.#errorOf(isLate ? late() : thrown), this.#left)
  }

  #errorOf(thrown: unknown): Buffer {
    return envelope.makeError(thrown, this.#link.maxMessageSize)
  }

  /** A handler has returned, and its answer is in the ring, or never will be. */
  readonly #left = (): void => {
    this.#running -= 1
    // Spinning would delay other handlers.
    if (this.#running === 0 && this.#queued.isEmpty) this.#link.poll()
    if (!this.#queued.isEmpty) this.#schedule()
  }

  /** Sends the answer, unless there is one. `done` is called once the answer is in the ring, or never will be. */
  #finish(request: Request, kind: number, body: Uint8Array, done: () => void): void {
    // A handler that continues after a cancellation occupies its place until it returns.
    if (request.isAnswered) {
      done()
      return
    }
    request.isAnswered = true
    Context.finish(request.context)
    const sent = this.#send(kind, request.id, body)
    if (sent === null) this.#close(request, done)
    else void sent.then(() => this.#close(request, done))
  }

  /** Sends an answer, or why it cannot be sent. If that cannot be sent either, the channel has ended, or there is no memory. */
  #send(kind: number, id: number, body: Uint8Array): Promise<void> | null {
    const fail = (error: unknown) => (kind === ERROR ? null : this.#send(ERROR, id, this.#errorOf(error)))
    try {
      const sent = this.#link.send(kind, id, 0, body)
      return sent === null ? null : (sent.catch(fail) as Promise<void>)
    } catch (error) {
      return fail(error)
    }
  }

  #close(request: Request, done: () => void): void {
    if (this.#open.delete(request.id)) this.#openBytes -= request.size
    done()
    this.#endIfDone()
  }

  /** Ends `serve` once the peer has ended its sending and every request was answered. */
  #endIfDone(): void {
    const server = this.#server
    if (!this.#isLast || this.#open.size > 0 || server === null || server.served === null) return
    server.served.resolve()
    server.served = null
    this.#link.endWithPeer()
  }

  // Both.

  /** Handles a frame. @throws {@link RingfenceError} RING_CORRUPT if the peer violated the protocol */
  take(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): void {
    fairness.spend()
    // Frames that a peer left behind no longer have a call or handler.
    if (this.#isEnded) return
    const frame = envelope.readFrame(memory, words, at, length)
    if (frame.kind === REQUEST) this.#requested(frame)
    else if (frame.kind === CANCEL) this.#cancelled(frame)
    else this.#answered(frame)
  }

  /** The peer has ended its sending in an orderly way: no more answers and requests will arrive. */
  peerEnded(): void {
    this.#isLast = true
    this.#rejectAll(() => new RingfenceError('PEER_LOST', 'the peer has ended its sending, and has not answered'))
    this.#endIfDone()
  }

  /**
   * The channel has ended.
   *
   * @param isOrderly - By this side's close, or by the peer after it had sent everything.
   */
  end(why: () => RingfenceError, isOrderly: boolean): void {
    if (this.#isEnded) return
    this.#isEnded = true
    this.#isOrderly = isOrderly
    this.#rejectAll(why)
    for (const request of this.#queued.clear()) this.#open.delete(request.id)
    const running = [...this.#open.values()]
    // The listeners of their signals are the program, and this may be in the middle of a fetch.
    if (running.length > 0)
      timers.queueMicrotask(() => {
        for (const { context } of running) Context.abort(context, why())
      })
    const server = this.#server
    if (server === null || server.served === null) return
    if (isOrderly) server.served.resolve()
    else server.served.reject(why())
    server.served = null
  }

  #rejectAll(why: () => RingfenceError): void {
    this.#over ??= why
    const left = [...this.#sent.values(), ...this.#waiting.clear()]
    this.#sent.clear()
    this.#sentBytes = 0
    for (const call of left) if (call.settle !== null) this.#reject(call, why())
  }
}

/** The error of a call whose handler has failed. The deadline of the handler is that of the caller. */
function outcomeOf(call: Call, error: RemoteError): Error {
  // A timer may fire a millisecond early.
  return error.code === 'ERR_RINGFENCE_TIMEOUT' && timers.now() + 1 >= call.due ? unanswered() : error
}

/** Whether one more request may be unanswered. */
function isWithin(count: number, bytes: number, size: number, slack: number): boolean {
  return count === 0 || (count < slack * MOST && bytes + size <= slack * MOST_BYTES)
}
