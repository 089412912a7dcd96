// The calls of one channel, in both directions: those that this side makes, and those that it serves.
//
// Each request is answered exactly once, a cancelled one as well. So each side knows which answers are still to come, and any other answer is
// a violation of the protocol. Requests are numbered in the order in which they are sent.

import { RemoteError, RingfenceError, aborted, invalid } from '../errors.js'
import { callOptions } from '../endpoint/options.js'
import { fairness } from '../runtime/fairness.js'
import { ignore, promised } from '../runtime/deferred.js'
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
   * Sends a frame, after the messages and frames before it. Resolves once it is in the ring, and rejects if the channel has ended.
   *
   * @throws {@link RingfenceError} if the frame will not be sent
   */
  send(frame: Buffer): Promise<void>
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
export type Answer = (request: Buffer, context: CallContext) => Promise<Uint8Array>

/** A call that this side makes. */
class Call extends Place {
  id = -1
  /** Null once it was sent. */
  frame: Buffer | null
  readonly size: number
  /** The deadline, as of `timers.now`; infinite without one. */
  readonly due: number
  /** The caller has stopped waiting. Null until then. */
  resolve: ((reply: Buffer) => void) | null
  readonly reject: (error: Error) => void
  timer: NodeJS.Timeout | undefined
  forget: (() => void) | undefined

  constructor(frame: Buffer, due: number, resolve: (reply: Buffer) => void, reject: (error: Error) => void) {
    super()
    this.frame = frame
    this.size = frame.length
    this.due = due
    this.resolve = resolve
    this.reject = reject
  }
}

/** A request of the peer. */
class Request extends Place {
  readonly context: Context
  /** An answer was sent, so its outcome no longer counts. */
  isAnswered = false

  constructor(
    readonly id: number,
    readonly body: Buffer,
    remaining: number,
    peer: Identity,
  ) {
    super()
    this.context = new Context(remaining, peer)
  }

  get size(): number {
    return HEAD + this.body.length
  }
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
    return timers.now() >= context.#due || context.#reason?.code === 'ERR_RINGFENCE_TIMEOUT'
  }

  static abort(context: Context, reason: RingfenceError): void {
    if (context.#reason !== null) return
    Context.finish(context)
    context.#reason = reason
    context.#controller?.abort(reason)
  }

  /** The request was answered. */
  static finish(context: Context): void {
    timers.clearTimeout(context.#timer)
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
  #answer: Answer | null = null
  #concurrency = 0
  #thrown: (error: unknown) => void = ignore
  #running = 0
  #scheduled = false
  /** The peer has ended its sending, so no more requests will arrive. */
  #isLast = false
  #served: { resolve(): void; reject(error: Error): void } | null = null

  constructor(link: CallsLink) {
    this.#link = link
  }

  /** The number of calls of this side whose caller waits for the answer. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Whether frames must be read. */
  get isActive(): boolean {
    return this.#sent.size > 0 || this.#served !== null
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if the channel's messages are too short for calls */
  #mustFit(): void {
    const { maxMessageSize } = this.#link
    if (maxMessageSize < LEAST)
      throw invalid(`calls need a channel with a maxMessageSize of at least ${LEAST}, not ${maxMessageSize}`)
  }

  // This side calls.

  /** @param frame - The request's frame, which this call may keep. */
  call(frame: Buffer, options: CallOptions | undefined): Promise<Buffer> {
    this.#mustFit()
    const { timeout, signal } = callOptions(options)
    if (this.#over !== null) return Promise.reject(this.#over())
    const due = timeout === undefined ? Infinity : timers.now() + timeout
    return new Promise((resolve, reject) => {
      const call = new Call(frame, due, resolve, reject)
      if (!this.#waiting.isEmpty || !this.#mayStart(call)) this.#waiting.push(call)
      else this.#start(call)
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
    })
  }

  #mayStart({ size }: Call): boolean {
    return isWithin(this.#sent.size, this.#sentBytes, size, 1)
  }

  /** @throws {@link RingfenceError} as `send` of the link */
  #start(call: Call): void {
    const id = this.#nextCall
    const frame = call.frame!
    envelope.setId(frame, id)
    if (call.due !== Infinity) envelope.setRemaining(frame, call.due - timers.now())
    this.#link.send(frame).catch((error: Error) => this.#unsent(call, error))
    this.#nextCall = id + 1
    call.id = id
    call.frame = null
    this.#sent.set(id, call)
    this.#sentBytes += call.size
  }

  /** The request will never be in the ring. */
  #unsent(call: Call, error: Error): void {
    if (!this.#sent.delete(call.id)) return
    this.#sentBytes -= call.size
    if (call.resolve !== null) this.#reject(call, error)
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
    if (call.resolve === null) return
    this.#reject(call, error)
    if (this.#waiting.remove(call)) return
    // After this side's end, no cancellation can be sent.
    this.#send(envelope.makeFrame(CANCEL, call.id, 0)).catch(ignore)
  }

  #reject(call: Call, error: Error): void {
    this.#leave(call)
    call.reject(error)
  }

  /** The call has an outcome. */
  #leave(call: Call): void {
    this.#inFlight -= 1
    call.resolve = call.frame = null
    timers.clearTimeout(call.timer)
    call.forget?.()
  }

  /** Sends a frame that has no caller. */
  #send(frame: Buffer): Promise<void> {
    return promised(() => this.#link.send(frame))
  }

  #answered({ kind, id, body }: Frame): void {
    const call = this.#sent.get(id)
    const isPending = call !== undefined && call.resolve !== null
    if (call === undefined || (isPending && kind === CANCELLED))
      throw envelope.corrupt(`an answer of kind ${kind} to call ${id}, which does not wait for it`)
    const error = kind === ERROR ? outcomeOf(call, new RemoteError(envelope.readError(body))) : null
    this.#sent.delete(id)
    this.#sentBytes -= call.size
    const { resolve } = call
    if (resolve === null) {
      if (kind !== CANCELLED) this.lateReplies += 1
    } else if (error !== null) {
      this.#reject(call, error)
    } else {
      this.#leave(call)
      resolve(body)
    }
    this.#startWaiting()
  }

  // This side serves.

  /** @param thrown - Called with each error that the answer throws, unless its caller has stopped waiting. */
  serve(answer: Answer, concurrency: number, thrown: (error: unknown) => void): Promise<void> {
    this.#mustFit()
    if (this.#answer !== null) throw invalid('the channel is served already: serve is called once')
    if (this.#isEnded) {
      if (this.#isOrderly) return Promise.resolve()
      const broken = Promise.reject(this.#over!())
      broken.catch(ignore)
      return broken
    }
    this.#answer = answer
    this.#concurrency = concurrency
    this.#thrown = thrown
    const served = new Promise<void>((resolve, reject) => {
      this.#served = { resolve, reject }
    })
    // The end of the channel is reported by `closed` as well.
    served.catch(ignore)
    this.#schedule()
    this.#link.read()
    return served
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
    void this.#finish(request, envelope.makeFrame(CANCELLED, id, 0))
    // Its listeners are the program.
    timers.queueMicrotask(() => Context.abort(request.context, given()))
  }

  /** Handlers are called in a microtask: a frame may arrive while the program is in another call. */
  #schedule(): void {
    if (this.#scheduled || this.#answer === null) return
    this.#scheduled = true
    timers.queueMicrotask(() => {
      this.#scheduled = false
      this.#next()
    })
  }

  #next(): void {
    while (this.#running < this.#concurrency) {
      const request = this.#queued.shift()
      if (request === null) break
      this.#running += 1
      void this.#run(request)
    }
    this.#endIfDone()
  }

  async #run(request: Request): Promise<void> {
    const { id, body, context } = request
    let frame: Buffer
    try {
      if (Context.isLate(context)) throw late()
      const reply = await this.#answer!(body, context)
      // Its signal is aborted, and the caller rejects.
      if (Context.isLate(context)) throw late()
      frame = envelope.makeFrame(REPLY, id, reply.length)
      frame.set(reply, HEAD)
    } catch (thrown) {
      const isLate = Context.isLate(context)
      if (!isLate && !request.isAnswered) this.#thrown(thrown)
      frame = this.#errorOf(id, isLate ? late() : thrown)
    }
    // Spinning would delay other handlers.
    const polls = this.#running === 1 && this.#queued.isEmpty
    if (!request.isAnswered) await this.#finish(request, frame, polls)
    // A handler that continues after a cancellation occupies its place until it returns.
    this.#running -= 1
    this.#next()
  }

  #errorOf(id: number, thrown: unknown): Buffer {
    return envelope.makeError(id, thrown, this.#link.maxMessageSize)
  }

  /** Sends the answer, and then spins for the next request if `polls` is set. Resolves once the answer is in the ring, or never will be. */
  async #finish(request: Request, frame: Buffer, polls = false): Promise<void> {
    request.isAnswered = true
    Context.finish(request.context)
    try {
      const sent = this.#send(frame).catch((error: RingfenceError) => this.#send(this.#errorOf(request.id, error)))
      if (polls) this.#link.poll()
      await sent
    } catch {
      // The channel has ended.
    }
    if (!this.#open.delete(request.id)) return
    this.#openBytes -= request.size
    this.#endIfDone()
  }

  /** Ends `serve` once the peer has ended its sending and every request was answered. */
  #endIfDone(): void {
    if (!this.#isLast || this.#open.size > 0 || this.#served === null) return
    this.#served.resolve()
    this.#served = null
    this.#link.endWithPeer()
  }

  // Both.

  /** Handles a frame. @throws {@link RingfenceError} RING_CORRUPT if the peer violated the protocol */
  take(bytes: Buffer, isOwn: boolean): void {
    fairness.spend()
    // Frames that a peer left behind no longer have a call or handler.
    if (this.#isEnded) return
    const frame = envelope.readFrame(bytes, isOwn)
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
    if (isOrderly) this.#served?.resolve()
    else this.#served?.reject(why())
    this.#served = null
  }

  #rejectAll(why: () => RingfenceError): void {
    this.#over ??= why
    const left = [...this.#sent.values(), ...this.#waiting.clear()]
    this.#sent.clear()
    this.#sentBytes = 0
    for (const call of left) if (call.resolve !== null) this.#reject(call, why())
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
