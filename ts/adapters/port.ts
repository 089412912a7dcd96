// A channel as a MessagePort, for libraries that communicate over one.

import { EventEmitter } from 'node:events'

import { makeBundle } from '../channel/attachments.js'
import type { ChannelCore } from '../channel/core.js'
import { decodeMessage, encodeMessage, type Codec } from './codec.js'
import { LINGER } from './duplex.js'
import { throwUncaught } from '../runtime/emit.js'
import { abortSignal } from '../endpoint/options.js'
import { RingfenceError, invalid, messageOf, show } from '../errors.js'
import { timers } from '../runtime/timers.js'
import type { Message } from '../types.js'

/** Bytes that may wait for a peer that does not read. `postMessage` cannot make its caller wait, so this limits the memory. */
const MAX_BUFFERED = 256 * 1024 * 1024

/** Milliseconds until the next attempt to read a message that there was no memory for. */
const RETRY_DELAY = 50

/** The errors of sending and receiving that the end of the channel reports as well. */
const CLOSE_ERRORS: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_CLOSED',
  'ERR_RINGFENCE_PEER_LOST',
  'ERR_RINGFENCE_OBJECT_EXPOSED',
  'ERR_RINGFENCE_RING_CORRUPT',
])

/** The events that a listener has stopped. The set keeps none of them, and so no message. */
const stopped = new WeakSet<Event>()

/** The events of a port. */
type PortEvent = 'message' | 'messageerror' | 'close'

/** The event that an event target dispatches: `data` is the message, or the error. */
export interface PortMessageEvent extends Event {
  readonly data: unknown
}

/** A listener for `addEventListener`. */
// oxlint-disable-next-line typescript/no-explicit-any -- as with an event target of the web's
export type PortEventListener = ((event: any) => void) | { handleEvent(event: any): void }

/** A listener of the emitter. */
// oxlint-disable-next-line typescript/no-explicit-any -- as an emitter of Node has it
type Listener = (...values: any[]) => void

/** A function that the emitter calls in place of an event listener. The emitter also finds and removes it by its `listener`. */
interface Wrapper extends Listener {
  listener?: PortEventListener
}

/** A function that the emitter calls in place of a handler. */
interface Handler extends Listener {
  handler: PortEventListener
}

/** Returns the items of a transfer list: an iterable, or the one in options. @throws {@link RingfenceError} INVALID_ARGUMENT for another value */
function transferred(transfer: unknown): unknown[] {
  let list = transfer ?? []
  if (typeof list === 'object' && !(Symbol.iterator in list)) list = (list as { transfer?: unknown }).transfer ?? []
  if (typeof list !== 'object' || !(Symbol.iterator in list))
    throw invalid(`a transfer list must be an array, not ${show(list)}`)
  return [...(list as Iterable<unknown>)]
}

/** The part of a channel's view that a port uses. */
interface PortChannel {
  readonly closed: Promise<unknown>
}

/** A channel as a MessagePort. `channel` is the view that the program made the port of. */
export class Port<C extends PortChannel> extends EventEmitter {
  readonly channel: C
  readonly #core: ChannelCore
  readonly #codec: Codec<unknown>
  /** The event being emitted, for all event listeners. */
  #event: Event | undefined
  readonly #handlers = new Map<PortEvent, Handler>()
  /** The event listeners that a signal removes, each with what stops watching the signal. */
  readonly #signalListeners = new Map<Wrapper, { event: string; unwatch(): void }>()
  /** 'message' has listeners. */
  #hasMessageListener = false
  /** The loop that waits for messages, while the port is started. */
  #loop: AsyncIterator<unknown, undefined> | null = null
  /** The loop has ended or failed: no further message follows. */
  #isFinished = false
  /** The channel has ended. */
  #hasEnded = false
  #hasRef = false
  /** Settles once the exceptions of listeners were raised; null if there are none. */
  #raising: Promise<void> | null = null
  #state: 'open' | 'closing' | 'closed' = 'open'

  constructor(core: ChannelCore, codec: Codec<unknown>, channel: C) {
    super()
    this.channel = channel
    this.#core = core
    this.#codec = codec
    core.keepAlive(false)
    void channel.closed.then(() => {
      this.#hasEnded = true
      this.#closeIfRead()
    })
  }

  postMessage(value: unknown, transfer?: readonly unknown[] | { transfer?: readonly unknown[] | undefined }): void {
    // `undefined` is a message too, but a call without one is a mistake, as for Node's ports.
    if (arguments.length === 0) throw invalid('postMessage needs a message')
    if (transferred(transfer).length > 0)
      throw invalid(
        'neither memory nor a MessagePort can be transferred to another process: without a transfer list, memory is copied',
      )
    if (this.#state !== 'open') return
    const { message, options } = this.#encode(value)
    this.#checkSize(message)
    this.#core.queue.send(message, options).catch((error: RingfenceError) => {
      // The end is reported by 'close'. Other errors must not go unnoticed.
      if (!CLOSE_ERRORS.has(error.code)) this.emit('messageerror', error)
    })
  }

  /** Libraries recognize the error of a MessagePort by its name. */
  #encode(value: unknown): ReturnType<typeof encodeMessage> {
    try {
      const encoded = encodeMessage(this.#codec, value)
      // `send` would report a closed or foreign SealedBuffer only later, when the caller can no longer handle it.
      if (encoded.options !== undefined) makeBundle(encoded.options.attachments!)?.close()
      return encoded
    } catch (error) {
      if ((error as RingfenceError).code !== 'ERR_RINGFENCE_INVALID_ARGUMENT') throw error
      throw Object.assign(new DOMException(messageOf(error), 'DataCloneError'), { cause: error })
    }
  }

  /** Checks the size now: `send` would report it only later, when the caller can no longer handle it. */
  #checkSize(message: Uint8Array | string): void {
    const { maxMessageSize } = this.#core.native
    const { bufferedAmount } = this.#core.queue
    const size = Buffer.byteLength(message)
    if (size > maxMessageSize) {
      const text = `the message has ${size} bytes, and the peer takes ${maxMessageSize} (its maxMessageSize)`
      throw new RingfenceError('MESSAGE_TOO_LARGE', text)
    }
    if (bufferedAmount > MAX_BUFFERED) {
      const text = `the peer does not read: ${bufferedAmount} bytes of earlier messages are still waiting; \`send\` of the channel waits for it`
      throw new RingfenceError('NO_SPACE', text)
    }
  }

  override on(event: string | symbol, listener: Listener): this {
    return this.#add(super.on, event, listener)
  }

  override addListener(event: string | symbol, listener: Listener): this {
    return this.on(event, listener)
  }

  override once(event: string | symbol, listener: Listener): this {
    return this.#add(super.once, event, listener)
  }

  override prependListener(event: string | symbol, listener: Listener): this {
    return this.#add(super.prependListener, event, listener)
  }

  #add(add: EventEmitter['on'], event: string | symbol, listener: Listener): this {
    if (typeof listener !== 'function') throw invalid(`a listener must be a function, not ${show(listener)}`)
    if (!this.listeners(event).includes(listener)) {
      add.call(this, event, listener)
      this.#updateListening()
    }
    return this
  }

  override removeListener(event: string | symbol, listener: Listener): this {
    super.removeListener(event, listener)
    this.#updateListening()
    return this
  }

  override off(event: string | symbol, listener: Listener): this {
    return this.removeListener(event, listener)
  }

  override removeAllListeners(event?: string | symbol): this {
    if (event === undefined) super.removeAllListeners()
    else super.removeAllListeners(event)
    this.#updateListening()
    return this
  }

  /** Starts and stops the port with the listeners of 'message', and stops watching the signals of removed ones. */
  #updateListening(): void {
    for (const [wrapper, { event, unwatch }] of this.#signalListeners) if (!this.#isAdded(event, wrapper)) unwatch()
    const hasListener = this.listenerCount('message') > 0
    if (hasListener === this.#hasMessageListener) return
    this.#hasMessageListener = hasListener
    if (hasListener) {
      this.ref()
      this.start()
      return
    }
    this.unref()
    this.#stop()
    // The removed listener may be handling the last message now, and 'close' follows it.
    if (this.#hasEnded) timers.queueMicrotask(() => this.#closeIfRead())
  }

  #isAdded(event: string | symbol, listener: Listener): boolean {
    return this.rawListeners(event).includes(listener)
  }

  addEventListener(
    event: string,
    listener: PortEventListener | null,
    options: boolean | { once?: boolean | undefined; signal?: AbortSignal | undefined } = {},
  ): void {
    const { once = false, signal } = (options ?? {}) as { once?: boolean; signal?: AbortSignal }
    if (signal !== undefined) abortSignal('signal', signal)
    if (listener === null || signal?.aborted) return
    if (typeof listener !== 'function' && typeof listener !== 'object')
      throw invalid(`a listener must be a function or an object with handleEvent, not ${show(listener)}`)
    if (this.listeners(event).includes(listener as Listener)) return
    const wrapper: Wrapper = (value) => {
      if (once) this.removeListener(event, wrapper)
      this.#callWithEvent(listener, event, value)
    }
    wrapper.listener = listener
    this.on(event, wrapper)
    if (signal === undefined) return
    const abort = () => void this.removeListener(event, wrapper)
    signal.addEventListener('abort', abort, { once: true })
    const unwatch = () => {
      this.#signalListeners.delete(wrapper)
      signal.removeEventListener('abort', abort)
    }
    this.#signalListeners.set(wrapper, { event, unwatch })
  }

  removeEventListener(event: string, listener: PortEventListener | null): void {
    const wrapper = this.rawListeners(event).find((raw) => raw === listener || (raw as Wrapper).listener === listener)
    if (wrapper !== undefined) this.removeListener(event, wrapper as Listener)
  }

  declare onmessage: ((event: PortMessageEvent) => void) | null
  declare onmessageerror: ((event: PortMessageEvent) => void) | null
  declare onclose: ((event: Event) => void) | null

  static {
    for (const event of ['message', 'messageerror', 'close'] as const)
      Object.defineProperty(Port.prototype, `on${event}`, {
        configurable: true,
        get(this: Port<PortChannel>) {
          return this.#handlerOf(event)
        },
        set(this: Port<PortChannel>, handler: Listener | null) {
          this.#setHandler(event, handler)
        },
      })
  }

  #handlerOf(event: PortEvent): Listener | null {
    const added = this.#handlers.get(event)
    return added !== undefined && this.#isAdded(event, added) ? (added.handler as Listener) : null
  }

  /** Sets a handler. It takes the previous handler's place among the listeners. */
  #setHandler(event: PortEvent, handler: Listener | null): void {
    const previous = this.#handlers.get(event)
    if (typeof handler !== 'function') {
      if (previous !== undefined) this.removeListener(event, previous)
    } else if (previous !== undefined && this.#isAdded(event, previous)) previous.handler = handler
    else {
      const added: Handler = Object.assign((value: unknown) => this.#callWithEvent(added.handler, event, value), {
        handler,
      })
      this.#handlers.set(event, added)
      this.on(event, added)
    }
  }

  #callWithEvent(listener: PortEventListener, name: string, value: unknown): void {
    this.#event ??= this.#eventOf(name, value)
    if (typeof listener === 'function') listener.call(this, this.#event)
    else listener.handleEvent(this.#event)
  }

  #eventOf(name: string, value: unknown): Event {
    const event = name === 'close' ? new Event(name) : new MessageEvent(name, { data: value })
    for (const key of ['target', 'currentTarget', 'srcElement']) Object.defineProperty(event, key, { value: this })
    Object.defineProperty(event, 'stopImmediatePropagation', { value: () => void stopped.add(event) })
    return event
  }

  /** Calls the current listeners, except those that are removed during the dispatch, until one stops the event. */
  override emit(event: string | symbol, ...values: unknown[]): boolean {
    const outer = this.#event
    this.#event = undefined
    const listeners = this.rawListeners(event) as Listener[]
    for (const [index, listener] of listeners.entries()) {
      if (this.#event !== undefined && stopped.has(this.#event)) break
      if (index === 0 || this.#isAdded(event, listener))
        if (!throwUncaught(() => listener.apply(this, values))) this.#raising ??= this.#raised()
    }
    this.#event = outer
    return listeners.length > 0
  }

  async #raised(): Promise<void> {
    await new Promise<void>((resolve) => void timers.setImmediate(resolve))
    this.#raising = null
  }

  start(): void {
    if (this.#loop !== null || this.#state !== 'open') return
    const messages = this.#core.arrivals()
    this.#loop = messages
    this.#isFinished = false
    // The caller may add listeners first.
    timers.queueMicrotask(() => void this.#read(messages))
  }

  #stop(): void {
    const messages = this.#loop
    this.#loop = null
    void messages?.return!()
  }

  /** Takes a message from the channel only to dispatch it at once: the port may be stopped at any earlier moment. */
  async #read(messages: AsyncIterator<unknown, undefined>): Promise<void> {
    while (this.#loop === messages) {
      try {
        if (this.#raising !== null) {
          // The exception must be raised before the next message, as with a MessagePort. It may end the program.
          await this.#raising
          continue
        }
        const { done } = await messages.next()
        if (this.#loop !== messages) return
        if (done) {
          // A port has no half-open state.
          this.#core.endWithPeer()
          void this.#core.close(LINGER)
          break
        }
        const message = this.#core.buffer.tryReceive()
        if (message !== null) this.#emitMessage(message as Message)
      } catch (error) {
        const { code } = error as RingfenceError
        // Without memory for a message, it is still in the channel. Otherwise another reader has the channel, or the channel has ended,
        // which 'close' reports.
        const isRetried = code === 'ERR_RINGFENCE_NO_SPACE'
        if (isRetried || !(this.#hasEnded || CLOSE_ERRORS.has(code))) this.emit('messageerror', error)
        if (!isRetried) break
        await new Promise((resolve) => timers.setTimeout(resolve, RETRY_DELAY))
      }
    }
    if (this.#loop !== messages) return
    this.#isFinished = true
    this.#closeIfRead()
  }

  #emitMessage(bytes: Message): void {
    let value: unknown
    try {
      value = decodeMessage(this.#codec, bytes)
    } catch (error) {
      this.emit('messageerror', error)
      return
    }
    this.emit('message', value)
  }

  close(callback?: () => void): void {
    if (callback !== undefined) {
      if (typeof callback !== 'function') throw invalid(`close takes a function, not ${show(callback)}`)
      if (this.#state === 'closed') timers.queueMicrotask(callback)
      else this.once('close', () => callback())
    }
    if (this.#state !== 'open') return
    this.#state = 'closing'
    this.#stop()
    // The channel may have ended before. Unread messages then kept the port open.
    void this.#core.close(LINGER).then(() => this.#emitClose())
  }

  /** Emits 'close' once the channel has ended and every message was dispatched. A stopped port does so after its next start. */
  #closeIfRead(): void {
    if (!this.#hasEnded) return
    if (this.#loop === null ? this.#core.buffer.isRead : this.#isFinished) this.#emitClose()
  }

  #emitClose(): void {
    if (this.#state === 'closed') return
    this.#state = 'closed'
    this.#stop()
    this.emit('close')
    // The signals may outlive many ports.
    for (const { unwatch } of this.#signalListeners.values()) unwatch()
  }

  ref(): void {
    this.#hasRef = true
    this.#core.keepAlive(true)
  }

  unref(): void {
    this.#hasRef = false
    this.#core.keepAlive(false)
  }

  hasRef(): boolean {
    return this.#hasRef && this.#state === 'open'
  }
}
