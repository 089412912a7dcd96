// A channel as a MessagePort, for libraries that communicate over one.

// oxlint-disable-next-line import/no-cycle -- types alone
import type { Channel, Quiet } from '../channel/channel.js'
import { decodeWith, encodeWith, type Codec } from './codec.js'
import { LINGER } from './duplex.js'
import { throwLater } from '../runtime/emit.js'
import { RingfenceError, invalid, show } from '../errors.js'
import { timers } from '../runtime/timers.js'

/** Bytes that may wait for a peer that does not read. `postMessage` cannot make its caller wait, so this limits the memory. */
const MOST_WAITING = 256 * 1024 * 1024

/** Milliseconds until the next attempt to read a message that there was no memory for. */
const PAUSE = 50

/** The errors of `send` that the end of the channel reports as well. */
const TOLD_BY_CLOSE: ReadonlySet<string> = new Set([
  'ERR_RINGFENCE_CLOSED',
  'ERR_RINGFENCE_PEER_LOST',
  'ERR_RINGFENCE_OBJECT_EXPOSED',
  'ERR_RINGFENCE_RING_CORRUPT',
])

/** The events of a port. */
export type PortEvent = 'message' | 'messageerror' | 'close'

/** The event that an event target dispatches: `data` is the message, or the error. */
export interface PortMessageEvent extends Event {
  readonly data: unknown
}

/** A listener for `on`. It gets the message itself, the error, or nothing. */
// oxlint-disable-next-line typescript/no-explicit-any -- it is what the other side has sent, and the listener says what it expects
export type PortListener = (value: any) => void

/** A listener for `addEventListener`. */
// oxlint-disable-next-line typescript/no-explicit-any -- as with an event target of the web's
export type PortEventListener = ((event: any) => void) | { handleEvent(event: any): void }

/** A channel with the interface of a Node `MessagePort`. */
export interface MessagePortLike {
  /**
   * Sends a value, in the order of the calls. Never waits. Does nothing after `close`, or once the peer is gone. If a value cannot be sent
   * because the program holds a reservation of the channel or is filling a message, 'messageerror' reports it.
   *
   * @param transfer - Nothing, or an empty list: memory cannot be transferred to another process.
   * @throws {@link RingfenceError} INVALID_ARGUMENT for a value that cannot be encoded, and for a list that is not empty;
   * MESSAGE_TOO_LARGE; NO_SPACE if 256 MiB are waiting because the peer does not read.
   */
  postMessage(value: unknown, transfer?: readonly unknown[] | { transfer?: readonly unknown[] }): void
  /** Adds a listener. A listener of 'message' starts the port, and keeps the process alive until it is removed. */
  on(event: PortEvent, listener: PortListener): this
  once(event: PortEvent, listener: PortListener): this
  off(event: PortEvent, listener: PortListener): this
  addListener(event: PortEvent, listener: PortListener): this
  removeListener(event: PortEvent, listener: PortListener): this
  removeAllListeners(event?: PortEvent): this
  listenerCount(event: PortEvent): number
  /** Does the same as `on`, for listeners that take an event. */
  addEventListener(
    event: string,
    listener: PortEventListener | null,
    options?: boolean | { once?: boolean; signal?: AbortSignal },
  ): void
  removeEventListener(event: string, listener: PortEventListener | null, options?: unknown): void
  onmessage: ((event: PortMessageEvent) => void) | null
  onmessageerror: ((event: PortMessageEvent) => void) | null
  onclose: ((event: Event) => void) | null
  /** Starts taking messages, even without a listener. */
  start(): void
  /** Closes the port. Earlier values are still sent, for at most 5 s if the peer does not read. Only 'close' is emitted after that. */
  close(): void
  ref(): void
  unref(): void
  hasRef(): boolean
  /** The underlying channel. */
  readonly channel: Channel<unknown, unknown>
}

/** A listener, and how it is called. */
interface Entry {
  readonly listener: PortListener | PortEventListener
  /** The listener takes an event instead of the value. */
  readonly takesEvent: boolean
  readonly once: boolean
  /** The listener was assigned to `onmessage` or a similar property. */
  readonly isHandler: boolean
  isRemoved: boolean
  /** Stops watching the signal that the listener was added with. */
  forget?: () => void
}

/** A channel as a MessagePort: see {@link Channel.port}. */
export class Port implements MessagePortLike {
  readonly channel: Channel<unknown, unknown>
  /** The same channel, with bytes as messages. */
  readonly #raw: Channel
  readonly #codec: Codec<unknown>
  readonly #quiet: Quiet<Buffer>
  /**
   * Has no prototype, so that `toString` is not an event. The lists are never changed in place: a list may change while it is dispatched.
   */
  readonly #entries = Object.assign(Object.create(null) as object, {
    message: [],
    messageerror: [],
    close: [],
  }) as Record<PortEvent, readonly Entry[]>
  /** The loop that waits for messages, while the port is started. */
  #loop: AsyncIterator<unknown, undefined> | null = null
  /** The loop has ended or failed: no further message follows. */
  #isThrough = false
  /** The channel has ended. */
  #isOver = false
  #hasRef = false
  #state: 'open' | 'closing' | 'closed' = 'open'

  constructor(
    raw: Channel,
    codec: Codec<unknown>,
    quiet: Quiet<Buffer>,
    channel: Channel<unknown, unknown> = raw as never,
  ) {
    this.channel = channel
    this.#raw = raw
    this.#codec = codec
    this.#quiet = quiet
    channel.unref()
    void channel.closed.then(() => {
      this.#isOver = true
      this.#closeIfRead()
    })
  }

  postMessage(value: unknown, transfer?: readonly unknown[] | { transfer?: readonly unknown[] }): void {
    const list = Array.isArray(transfer)
      ? transfer
      : (transfer as { transfer?: readonly unknown[] } | undefined)?.transfer
    if (list !== undefined && list !== null && [...list].length > 0)
      throw invalid(
        'memory cannot be transferred to another process: post it without a transfer list, and it is copied',
      )
    if (this.#state !== 'open') return
    const message = encodeWith(this.#codec, value)
    this.#mustFit(message)
    this.#raw.send(message).catch((error: RingfenceError) => {
      // The end is reported by 'close'. Other errors must not go unnoticed.
      if (!TOLD_BY_CLOSE.has(error.code)) this.#emit('messageerror', error)
    })
  }

  /** Checks the size now: `send` would report it only later, when the caller can no longer handle it. */
  #mustFit(message: Uint8Array | string): void {
    const { maxMessageSize, bufferedAmount } = this.channel
    const size = Buffer.byteLength(message)
    if (size > maxMessageSize) {
      const what = `the message has ${size} bytes, and the peer takes ${maxMessageSize} (its maxMessageSize)`
      throw new RingfenceError('MESSAGE_TOO_LARGE', what)
    }
    if (bufferedAmount > MOST_WAITING) {
      const what = `the peer does not read: ${bufferedAmount} bytes that were posted before wait still`
      throw new RingfenceError('NO_SPACE', what)
    }
  }

  on(event: PortEvent, listener: PortListener): this {
    this.#add(event, listener, false, false)
    return this
  }

  once(event: PortEvent, listener: PortListener): this {
    this.#add(event, listener, false, true)
    return this
  }

  off(event: PortEvent, listener: PortListener): this {
    this.#removeListener(event, listener)
    return this
  }

  addListener(event: PortEvent, listener: PortListener): this {
    return this.on(event, listener)
  }

  removeListener(event: PortEvent, listener: PortListener): this {
    return this.off(event, listener)
  }

  removeAllListeners(event?: PortEvent): this {
    for (const name of event === undefined ? (Object.keys(this.#entries) as PortEvent[]) : [event])
      this.#remove(name, () => true)
    return this
  }

  listenerCount(event: PortEvent): number {
    return this.#entries[event]?.length ?? 0
  }

  addEventListener(
    event: string,
    listener: PortEventListener | null,
    options: boolean | { once?: boolean; signal?: AbortSignal } = {},
  ): void {
    const { once = false, signal } = (options ?? {}) as { once?: boolean; signal?: AbortSignal }
    if (listener === null || signal?.aborted) return
    const entry = this.#add(event as PortEvent, listener, true, once)
    if (entry === undefined || signal === undefined) return
    const abort = () => this.#remove(event as PortEvent, (other) => other === entry)
    signal.addEventListener('abort', abort, { once: true })
    entry.forget = () => signal.removeEventListener('abort', abort)
  }

  removeEventListener(event: string, listener: PortEventListener | null): void {
    this.#removeListener(event as PortEvent, listener)
  }

  get onmessage(): ((event: PortMessageEvent) => void) | null {
    return this.#handlerOf('message')
  }

  set onmessage(handler) {
    this.#handle('message', handler)
  }

  get onmessageerror(): ((event: PortMessageEvent) => void) | null {
    return this.#handlerOf('messageerror')
  }

  set onmessageerror(handler) {
    this.#handle('messageerror', handler)
  }

  get onclose(): ((event: Event) => void) | null {
    return this.#handlerOf('close')
  }

  set onclose(handler) {
    this.#handle('close', handler)
  }

  #handlerOf(event: PortEvent): PortListener | null {
    return (this.#entries[event].find(({ isHandler }) => isHandler)?.listener ?? null) as PortListener | null
  }

  /** Sets a handler. It takes the previous handler's place among the listeners. */
  #handle(event: PortEvent, handler: PortListener | null): void {
    if (typeof handler !== 'function') {
      this.#remove(event, ({ isHandler }) => isHandler)
      return
    }
    const entry: Entry = { listener: handler, takesEvent: true, once: false, isHandler: true, isRemoved: false }
    const entries = this.#entries[event]
    const before = entries.find(({ isHandler }) => isHandler)
    if (before === undefined) {
      this.#append(event, entry)
      return
    }
    before.isRemoved = true
    this.#entries[event] = entries.map((each) => (each === before ? entry : each))
  }

  /** Adds a listener. `undefined`: it was added before, or there is no such event. Node's port also adds each listener only once. */
  #add(
    event: PortEvent,
    listener: PortListener | PortEventListener,
    takesEvent: boolean,
    once: boolean,
  ): Entry | undefined {
    if (typeof listener !== 'function' && (!takesEvent || typeof listener !== 'object'))
      throw invalid(`a listener must be a function, not ${show(listener)}`)
    const entries = this.#entries[event]
    // As with any emitter, a program may listen for an event that is never emitted.
    if (entries === undefined || entries.some((entry) => !entry.isHandler && entry.listener === listener))
      return undefined
    const entry: Entry = { listener, takesEvent, once, isHandler: false, isRemoved: false }
    this.#append(event, entry)
    return entry
  }

  #append(event: PortEvent, entry: Entry): void {
    const entries = [...this.#entries[event], entry]
    this.#entries[event] = entries
    if (event !== 'message' || entries.length > 1) return
    this.ref()
    this.start()
  }

  #removeListener(event: PortEvent, listener: PortListener | PortEventListener | null): void {
    this.#remove(event, (entry) => !entry.isHandler && entry.listener === listener)
  }

  #remove(event: PortEvent, which: (entry: Entry) => boolean): void {
    const entries = this.#entries[event]
    if (entries === undefined || entries.length === 0) return
    this.#entries[event] = entries.filter((entry) => {
      if (!which(entry)) return true
      entry.isRemoved = true
      entry.forget?.()
      return false
    })
    if (event !== 'message' || this.#entries.message.length > 0) return
    this.unref()
    this.#stop()
    // The removed listener may be handling the last message now, and 'close' comes after it.
    if (this.#isOver) timers.queueMicrotask(() => this.#closeIfRead())
  }

  start(): void {
    if (this.#loop !== null || this.#state !== 'open') return
    const messages = this.#quiet.arrivals()
    this.#loop = messages
    this.#isThrough = false
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
        const { done } = await messages.next()
        if (this.#loop !== messages) return
        if (done) {
          // A port has no half-open state.
          this.#quiet.told()
          void this.channel.close({ linger: LINGER })
          break
        }
        const message = this.#raw.tryReceive()
        if (message !== undefined) this.#tellMessage(message)
      } catch (error) {
        this.#emit('messageerror', error)
        // Without memory for a message, it is still in the channel. Otherwise another reader has the channel, or the channel has ended.
        if ((error as RingfenceError).code !== 'ERR_RINGFENCE_NO_SPACE') break
        await new Promise((resolve) => timers.setTimeout(resolve, PAUSE))
      }
    }
    if (this.#loop !== messages) return
    this.#isThrough = true
    this.#closeIfRead()
  }

  #tellMessage(bytes: Buffer): void {
    let value: unknown
    try {
      value = decodeWith(this.#codec, bytes)
    } catch (error) {
      this.#emit('messageerror', error)
      return
    }
    this.#emit('message', value)
  }

  close(): void {
    if (this.#state !== 'open') return
    this.#state = 'closing'
    this.#stop()
    // The channel may have ended before. Unread messages then kept the port open.
    void this.channel.close({ linger: LINGER }).then(() => this.#tellClose())
  }

  /** Emits 'close' once the channel has ended and every message was dispatched. A stopped port does so after its next start. */
  #closeIfRead(): void {
    if (!this.#isOver) return
    if (this.#loop === null ? this.channel.readableEnded : this.#isThrough) this.#tellClose()
  }

  #tellClose(): void {
    if (this.#state === 'closed') return
    this.#state = 'closed'
    this.#stop()
    this.#emit('close', undefined)
    // Stop watching the signals, which may outlive many ports.
    for (const entries of Object.values(this.#entries)) for (const { forget } of entries) forget?.()
  }

  ref(): void {
    this.#hasRef = true
    this.channel.ref()
  }

  unref(): void {
    this.#hasRef = false
    this.channel.unref()
  }

  hasRef(): boolean {
    return this.#hasRef && this.#state === 'open'
  }

  /** Calls the current listeners, except those that are removed during the dispatch. */
  #emit(name: PortEvent, value: unknown): void {
    let event: Event | undefined
    for (const entry of this.#entries[name]) {
      if (entry.isRemoved) continue
      if (entry.once) this.#remove(name, (other) => other === entry)
      throwLater(() => {
        if (entry.takesEvent) {
          event ??= this.#eventOf(name, value)
          callWithEvent(this, entry.listener as PortEventListener, event)
        } else (entry.listener as PortListener).call(this, value)
      })
    }
  }

  #eventOf(name: PortEvent, value: unknown): Event {
    const event = name === 'close' ? new Event(name) : new MessageEvent(name, { data: value })
    for (const key of ['target', 'currentTarget', 'srcElement']) Object.defineProperty(event, key, { value: this })
    return event
  }
}

function callWithEvent(port: MessagePortLike, listener: PortEventListener, event: Event): void {
  if (typeof listener === 'function') listener.call(port, event)
  else listener.handleEvent(event)
}
