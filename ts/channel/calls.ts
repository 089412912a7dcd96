// The calls of one channel, in both directions: those that this side makes, and those that it serves.
//
// Each request is answered exactly once, a cancelled one as well. So each side knows which answers are still to come, and any other answer is
// a violation of the protocol. Requests are numbered in the order in which they are sent.

import { RemoteError, RingfenceError, aborted, invalid } from '../errors.js'
import { callOptions } from '../endpoint/options.js'
import { inThisContext } from '../runtime/context.js'
import { fairness } from '../runtime/fairness.js'
import { Deferred, ignore, rejection, runInMicrotask } from '../runtime/deferred.js'
import { onAbort } from '../runtime/aborts.js'
import { atDeadline, timers } from '../runtime/timers.js'
import type { CallContext, CallOptions, Identity } from '../types.js'
import { ById } from './by-id.js'
import * as envelope from './envelope.js'
import { CANCEL, CANCELLED, ERROR, HEAD, MIN_MESSAGE_SIZE, REPLY, REQUEST, type Frame } from './envelope.js'
import { LinkedList, ListNode } from './linked-list.js'

/** The most unanswered requests of a caller, and the most bytes of them together. A single one may be longer. Further calls wait. */
const MAX_CALLS = 16 * 1024
const MAX_CALL_BYTES = 16 * 1024 * 1024

/** The server may learn late that answers are in the ring, so it tolerates this many times the caller's limits. */
const SLACK = 2

/** The functions of the channel that calls need. */
export interface CallTransport {
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
class Call extends ListNode {
  id = -1
  /** Null once it was sent, or will not be. */
  body: Uint8Array | null
  /** Bytes of its frame. */
  readonly size: number
  /** The deadline, as of `timers.now`; infinite without one. */
  readonly expiresAt: number
  /** Settles the promise of the caller. Null once it is settled. */
  settle: ((reply: Buffer | Promise<never>) => void) | null
  clearTimer: (() => void) | undefined = undefined
  removeAbortListener: (() => void) | undefined = undefined

  constructor(body: Uint8Array, expiresAt: number, settle: (reply: Buffer | Promise<never>) => void) {
    super()
    this.body = body
    this.size = HEAD + body.length
    this.expiresAt = expiresAt
    this.settle = settle
  }
}

/** A request of the peer. */
class Request extends ListNode {
  readonly context: CallContext
  /** Bytes of its frame. */
  readonly size: number
  /** An answer was sent, so its outcome no longer counts. */
  isAnswered = false
  /** The deadline, as of `timers.now`. */
  readonly #expiresAt: number
  /** Made on first use: most handlers do not need it. */
  #controller: AbortController | null = null
  /** Aborts the signal. Its listeners run in the async context of the handler. */
  #abortSignal: ((reason: RingfenceError) => void) | null = null
  #clearTimer: (() => void) | undefined
  #reason: RingfenceError | null = null

  /** Dropped when the handler is called: a handler may keep its context, which holds the request. */
  #body: Buffer

  constructor(
    readonly id: number,
    body: Buffer,
    remaining: number,
    peer: Identity,
  ) {
    super()
    this.#body = body
    this.size = HEAD + body.length
    this.#expiresAt = remaining === 0 ? Infinity : timers.now() + remaining
    this.context = new Context(this, remaining === 0 ? undefined : timers.date() + remaining, peer)
  }

  get signal(): AbortSignal {
    if (this.#controller === null) {
      const controller = (this.#controller = new AbortController())
      this.#abortSignal = inThisContext((reason) => controller.abort(reason))
      if (this.#reason !== null) controller.abort(this.#reason)
      else if (this.hasExpired) this.abort(deadlineError())
      else if (this.#expiresAt < Infinity)
        this.#clearTimer = atDeadline(this.#expiresAt, () => this.abort(deadlineError()))
    }
    return this.#controller.signal
  }

  get hasExpired(): boolean {
    return this.#expiresAt < Infinity && timers.now() >= this.#expiresAt
  }

  abort(reason: RingfenceError): void {
    if (this.#reason !== null) return
    this.clearTimer()
    this.#reason = reason
    this.#abortSignal?.(reason)
  }

  clearTimer(): void {
    this.#clearTimer?.()
  }

  /** Returns the body for the handler. @throws {@link RingfenceError} INVALID_ARGUMENT if its memory is gone */
  takeBody(): Buffer {
    const body = this.#body
    this.#body = EMPTY
    // The program has transferred memory that this request shares with others. Node 20 allows that.
    if (HEAD + body.length < this.size)
      throw invalid('the memory of this request was transferred by its receiver, which must transfer a copy')
    return body
  }
}

/** The part of a request that its handler gets. */
class Context implements CallContext {
  readonly #request: Request

  constructor(
    request: Request,
    readonly deadline: number | undefined,
    readonly peer: Identity,
  ) {
    this.#request = request
  }

  get signal(): AbortSignal {
    return this.#request.signal
  }
}

/** What `serve` was called with. */
interface Server {
  readonly answer: Answer
  readonly concurrency: number
  /** Called with each error that the answer throws, unless its caller has stopped waiting. */
  readonly onError: (error: unknown) => void
  /** Settles the promise of `serve`. Null once it is settled. */
  completion: { resolve(): void; reject(error: Error): void } | null
}

const deadlineError = () => new RingfenceError('TIMEOUT', "the caller's deadline has passed")
const timeoutError = () => new RingfenceError('TIMEOUT', 'the peer has not replied within the `timeout` of this call')
const cancelError = () => new RingfenceError('ABORT_ERR', 'the caller has cancelled the call')

export class Calls {
  readonly #transport: CallTransport
  /** Answered calls whose caller had stopped waiting. */
  lateReplies = 0

  /** Sent requests that were not answered. */
  readonly #sent = new ById<Call>()
  #sentBytes = 0
  /** The number of calls of this side whose caller waits for the answer. */
  inFlight = 0
  /** Calls that wait until fewer are unanswered. */
  readonly #queuedCalls = new LinkedList<Call>()
  #nextCall = 0
  /** Why no more answers will arrive. */
  #makeEndError: (() => RingfenceError) | null = null
  #isEnded = false
  #endedCleanly = false

  /** The peer's requests whose answers are not in the ring yet. */
  readonly #openRequests = new ById<Request>()
  #openBytes = 0
  /** Requests whose handler was not called. */
  readonly #queuedRequests = new LinkedList<Request>()
  #nextRequest = 0
  #server: Server | null = null
  #running = 0
  #scheduled = false
  /** The peer has ended its sending, so no more requests will arrive. */
  #peerHasEnded = false

  constructor(transport: CallTransport) {
    this.#transport = transport
  }

  /** Whether frames must be read. */
  get isActive(): boolean {
    return this.#sent.size > 0 || (this.#server !== null && this.#server.completion !== null)
  }

  /** @throws {@link RingfenceError} INVALID_ARGUMENT if the channel's messages are too short for calls */
  #checkMaxMessageSize(): void {
    const { maxMessageSize } = this.#transport
    if (maxMessageSize < MIN_MESSAGE_SIZE)
      throw invalid(`calls need a peer with a maxMessageSize of at least ${MIN_MESSAGE_SIZE}, not ${maxMessageSize}`)
  }

  scheduleRead(): void {
    this.#transport.read()
  }

  // This side calls.

  /** @throws {@link RingfenceError} if the request is not sent */
  call(body: Uint8Array, options: CallOptions | undefined): Promise<Buffer> {
    this.#checkMaxMessageSize()
    const { timeout, signal } = options === undefined ? NO_OPTIONS : callOptions(options)
    if (this.#makeEndError !== null) throw this.#makeEndError()
    const expiresAt = timeout === undefined ? Infinity : timers.now() + timeout
    const reply = new Deferred<Buffer>()
    const call = new Call(body, expiresAt, reply.resolve)
    if (this.#queuedCalls.isEmpty && this.#canStart(call)) this.#start(call)
    else {
      call.body = Buffer.from(body)
      this.#queuedCalls.push(call)
    }
    this.inFlight += 1
    if (timeout !== undefined) {
      const expire = () => {
        // A reply that is in the ring at the deadline is in time, though the event loop has not read it.
        if (call.id >= 0) this.#transport.readNow()
        this.#abandon(call, timeoutError())
      }
      call.clearTimer = atDeadline(expiresAt, expire)
    }
    if (signal !== undefined) call.removeAbortListener = onAbort(signal, () => this.#abandon(call, aborted(signal)))
    this.#transport.read()
    return reply.promise
  }

  #canStart({ size }: Call): boolean {
    return isWithinLimits(this.#sent.size, this.#sentBytes, size, 1)
  }

  /** @throws {@link RingfenceError} as `send` of the link */
  #start(call: Call): void {
    const id = this.#nextCall
    const remaining = call.expiresAt === Infinity ? 0 : envelope.toRemaining(call.expiresAt - timers.now())
    const sent = this.#transport.send(REQUEST, id, remaining, call.body!)
    if (sent !== null) sent.catch((error: Error) => this.#sendFailed(call, error))
    this.#nextCall = id + 1
    call.id = id
    call.body = null
    this.#sent.add(call)
    this.#sentBytes += call.size
  }

  /** The request will never be in the ring. */
  #sendFailed(call: Call, error: Error): void {
    if (!this.#sent.delete(call)) return
    this.#sentBytes -= call.size
    if (call.settle !== null) this.#reject(call, error)
    this.#startQueued()
  }

  #startQueued(): void {
    for (let call = this.#queuedCalls.first; call !== null && this.#canStart(call); call = this.#queuedCalls.first) {
      this.#queuedCalls.shift()
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
    if (this.#queuedCalls.remove(call)) return
    try {
      this.#transport.send(CANCEL, call.id, 0, EMPTY)
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
    this.inFlight -= 1
    call.settle = call.body = null
    call.clearTimer?.()
    call.removeAbortListener?.()
    settle(outcome)
  }

  #handleAnswer({ kind, id, body }: Frame): void {
    const call = this.#sent.get(id)
    const isPending = call !== undefined && call.settle !== null
    if (call === undefined || (isPending && kind === CANCELLED))
      throw envelope.protocolError(`an answer of kind ${kind} to call ${id}, which does not wait for it`)
    const error = kind === ERROR ? callError(call, new RemoteError(envelope.readError(body))) : null
    this.#sent.delete(call)
    this.#sentBytes -= call.size
    if (isPending) this.#settle(call, error === null ? body : rejection(error))
    else if (kind !== CANCELLED) this.lateReplies += 1
    this.#startQueued()
  }

  // This side serves.

  serve(answer: Answer, concurrency: number, onError: Server['onError']): Promise<void> {
    this.#checkMaxMessageSize()
    if (this.#server !== null) throw invalid('the channel is served already: serve is called once')
    if (this.#isEnded) {
      if (this.#endedCleanly) return Promise.resolve()
      const broken = Promise.reject(this.#makeEndError!())
      broken.catch(ignore)
      return broken
    }
    const promise = new Promise<void>((resolve, reject) => {
      this.#server = { answer, concurrency, onError, completion: { resolve, reject } }
    })
    // The end of the channel is reported by `closed` as well.
    promise.catch(ignore)
    this.#schedule()
    this.#transport.read()
    return promise
  }

  #handleRequest({ id, body, remaining }: Frame): void {
    if (id !== this.#nextRequest) throw envelope.protocolError(`request ${id} in place of ${this.#nextRequest}`)
    const request = new Request(id, body, remaining, this.#transport.peer)
    if (!isWithinLimits(this.#openRequests.size, this.#openBytes, request.size, SLACK))
      throw envelope.protocolError(`${this.#openRequests.size} requests of ${this.#openBytes} bytes are unanswered`)
    this.#nextRequest = id + 1
    this.#openRequests.add(request)
    this.#openBytes += request.size
    this.#queuedRequests.push(request)
    this.#schedule()
  }

  #handleCancel({ id }: Frame): void {
    if (id >= this.#nextRequest) throw envelope.protocolError(`request ${id} was cancelled before it was sent`)
    const request = this.#openRequests.get(id)
    // The answer and the cancellation have crossed.
    if (request === undefined || request.isAnswered) return
    this.#queuedRequests.remove(request)
    this.#sendAnswer(request, CANCELLED, EMPTY, ignore)
    // Its listeners are the program.
    timers.queueMicrotask(() => request.abort(cancelError()))
  }

  /** Handlers are called in a microtask: a frame may arrive while the program is in another call. */
  #schedule(): void {
    if (this.#scheduled || this.#server === null) return
    this.#scheduled = true
    runInMicrotask(this.#runQueued)
  }

  readonly #runQueued = (): void => {
    let isFirst = true
    const { concurrency } = this.#server!
    while (this.#running < concurrency) {
      const request = this.#queuedRequests.shift()
      if (request === null) break
      this.#running += 1
      this.#runHandler(request)
      if (this.#queuedRequests.isEmpty) break
      // Handlers take longer than the frames that were counted before.
      if (isFirst) fairness.resetStride()
      isFirst = false
      fairness.spend()
      const due = fairness.weakDue
      if (due === null) continue
      void due.then(this.#runQueued)
      return
    }
    this.#scheduled = false
    this.#endIfDone()
  }

  #runHandler(request: Request): void {
    let reply: Uint8Array | Promise<Uint8Array>
    try {
      if (request.hasExpired) throw deadlineError()
      reply = this.#server!.answer(request.takeBody(), request.context)
    } catch (thrown) {
      this.#handlerFailed(request, thrown)
      return
    }
    if (!(reply instanceof Promise)) this.#handlerReturned(request, reply)
    else
      reply.then(
        (bytes) => this.#handlerReturned(request, bytes),
        (error: unknown) => this.#handlerFailed(request, error),
      )
  }

  #handlerReturned(request: Request, reply: Uint8Array): void {
    // Its signal is aborted, and the caller rejects.
    if (request.hasExpired) this.#handlerFailed(request, deadlineError())
    else this.#sendAnswer(request, REPLY, reply, this.#handlerDone)
  }

  #handlerFailed(request: Request, thrown: unknown): void {
    const { hasExpired } = request
    if (!hasExpired && !request.isAnswered) this.#server!.onError(thrown)
    this.#sendAnswer(request, ERROR, this.#errorOf(hasExpired ? deadlineError() : thrown), this.#handlerDone)
  }

  #errorOf(thrown: unknown): Buffer {
    return envelope.makeError(thrown, this.#transport.maxMessageSize)
  }

  /** A handler has returned, and its answer is in the ring, or never will be. */
  readonly #handlerDone = (): void => {
    this.#running -= 1
    // Spinning would delay other handlers.
    if (this.#running === 0 && this.#queuedRequests.isEmpty) this.#transport.poll()
    if (!this.#queuedRequests.isEmpty) this.#schedule()
  }

  /** Sends the answer, unless there is one. `done` is called once the answer is in the ring, or never will be. */
  #sendAnswer(request: Request, kind: number, body: Uint8Array, done: () => void): void {
    // A handler that continues after a cancellation occupies its place until it returns.
    if (request.isAnswered) {
      done()
      return
    }
    request.isAnswered = true
    request.clearTimer()
    const sent = this.#send(kind, request.id, body)
    if (sent === null) this.#closeRequest(request, done)
    else void sent.then(() => this.#closeRequest(request, done))
  }

  /** Sends an answer, or why it cannot be sent. If that cannot be sent either, the channel has ended, or there is no memory. */
  #send(kind: number, id: number, body: Uint8Array): Promise<void> | null {
    const fail = (error: unknown) => (kind === ERROR ? null : this.#send(ERROR, id, this.#errorOf(error)))
    try {
      const sent = this.#transport.send(kind, id, 0, body)
      return sent === null ? null : (sent.catch(fail) as Promise<void>)
    } catch (error) {
      return fail(error)
    }
  }

  #closeRequest(request: Request, done: () => void): void {
    if (this.#openRequests.delete(request)) this.#openBytes -= request.size
    done()
    this.#endIfDone()
  }

  /** Ends `serve` once the peer has ended its sending and every request was answered. */
  #endIfDone(): void {
    const server = this.#server
    if (!this.#peerHasEnded || this.#openRequests.size > 0 || server === null || server.completion === null) return
    server.completion.resolve()
    server.completion = null
    this.#transport.endWithPeer()
  }

  // Both.

  /** Handles a frame. @throws {@link RingfenceError} RING_CORRUPT if the peer violated the protocol */
  handleFrame(memory: ArrayBuffer, words: Uint32Array, at: number, length: number): void {
    fairness.spend()
    // Frames that a peer left behind no longer have a call or handler.
    if (this.#isEnded) return
    const frame = envelope.readFrame(memory, words, at, length)
    if (frame.kind === REQUEST) this.#handleRequest(frame)
    else if (frame.kind === CANCEL) this.#handleCancel(frame)
    else this.#handleAnswer(frame)
  }

  /** The peer has ended its sending in an orderly way: no more answers and requests will arrive. */
  peerEnded(): void {
    this.#peerHasEnded = true
    this.#rejectAll(() => new RingfenceError('PEER_LOST', 'the peer has ended its sending, and has not answered'))
    this.#endIfDone()
  }

  /**
   * The channel has ended.
   *
   * @param isClean - By this side's close, or by the peer after it had sent everything.
   */
  end(reason: () => RingfenceError, isClean: boolean): void {
    if (this.#isEnded) return
    this.#isEnded = true
    this.#endedCleanly = isClean
    this.#rejectAll(reason)
    for (const request of this.#queuedRequests.clear()) this.#openRequests.delete(request)
    const running = this.#openRequests.values()
    // The listeners of their signals are the program, and this may be in the middle of a fetch.
    if (running.length > 0)
      timers.queueMicrotask(() => {
        for (const request of running) request.abort(reason())
      })
    const server = this.#server
    if (server === null || server.completion === null) return
    if (isClean) server.completion.resolve()
    else server.completion.reject(reason())
    server.completion = null
  }

  #rejectAll(reason: () => RingfenceError): void {
    this.#makeEndError ??= reason
    const calls = [...this.#sent.values(), ...this.#queuedCalls.clear()]
    this.#sent.clear()
    this.#sentBytes = 0
    for (const call of calls) if (call.settle !== null) this.#reject(call, reason())
  }
}

/** The error of a call whose handler has failed. The deadline of the handler is that of the caller. */
function callError(call: Call, error: RemoteError): Error {
  return error.code === 'ERR_RINGFENCE_TIMEOUT' && timers.now() >= call.expiresAt ? timeoutError() : error
}

/** Whether one more request may be unanswered. */
function isWithinLimits(count: number, bytes: number, size: number, slack: number): boolean {
  return count === 0 || (count < slack * MAX_CALLS && bytes + size <= slack * MAX_CALL_BYTES)
}
