// A send queue over a fake ring: calls of the binding, and the messages that the peer would get.

import type { Reservation, RingfenceError } from 'ringfence'

import { pattern } from './bytes.js'
import { internals } from './internals.js'

export type Fill = (bytes: Uint8Array, offset: number, length: number) => number

export interface Queue {
  readonly isEmpty: boolean
  readonly bufferedAmount: number
  stats(): { waits: number; waitedMicros: number }
  send(message: Uint8Array | string): Promise<void>
  trySend(message: Uint8Array | string): boolean
  fill(size: number, write: Fill): boolean
  reserve(size: number): Reservation | undefined
  waitWritable(size: number): Promise<void>
  drained(): Promise<void>
  linger(milliseconds: number, refusal: () => Error): Promise<void> | null
  handleWakeup(): void
  pump(): void
  stop(reason: () => Error, hasEnded: boolean): void
}

const { SendQueue } = await internals<{
  SendQueue: new (ring: Ring, eager: boolean, failed: (error: RingfenceError) => void) => Queue
}>('channel/send-queue.js')
export const { FAILED, FLAGS, HEADER, WHOLE } =
  await internals<Record<'FAILED' | 'FLAGS' | 'HEADER' | 'WHOLE', number>>('native.js')

/** The bytes of a message in the ring. */
export const recordOf = (length: number) => HEADER + Math.ceil(length / 8) * 8

/** A fake ring for a sender, which records its calls. */
export class Ring {
  readonly maxMessageSize = 1 << 30
  readonly received: Buffer[] = []
  readonly calls: string[] = []
  room: number
  /** The parts of a fragmented message so far. */
  parts: Buffer[] = []
  /** The size of the message that waits for a wakeup. */
  armedFor: number | null = null
  /** The next call of that name fails. */
  fails: string | null = null
  /** External memory is forbidden, as in Electron. */
  showsNothing = false
  /** Free bytes that are not guaranteed. */
  notGuaranteed = 0
  #reserved: ArrayBuffer | null = null

  constructor(
    readonly capacity: number,
    readonly maxAtOnce = capacity / 2,
  ) {
    this.room = capacity
  }

  get bytes(): number {
    return [...this.received, ...this.parts].reduce((sum, { length }) => sum + length, 0)
  }

  /** The calls since the last time. */
  newCalls(): string[] {
    return this.calls.splice(0)
  }

  #record(what: string): boolean {
    this.calls.push(what)
    const fails = this.fails !== null && what.startsWith(this.fails)
    if (fails) this.fails = null
    return fails
  }

  #put(message: Uint8Array): boolean {
    if (recordOf(message.length) > this.room) return false
    this.room -= recordOf(message.length)
    this.received.push(Buffer.from(message))
    return true
  }

  flush(arena: Uint8Array, from: number, to: number): number {
    if (this.#record('flush')) return FAILED
    const view = new DataView(arena.buffer, arena.byteOffset)
    let at = from
    while (at < to) {
      const length = view.getUint32(at, true)
      if (view.getUint32(at + 4, true) !== FLAGS) throw new Error('no record begins here')
      if (!this.#put(arena.subarray(at + HEADER, at + HEADER + length))) break
      at += recordOf(length)
    }
    return at - from
  }

  send(message: Uint8Array, written: number): number {
    if (this.#record('send') || message.length > this.maxMessageSize) return FAILED
    if (message.length <= this.maxAtOnce) return this.#put(message) ? WHOLE : 0
    let done = written
    while (done < message.length) {
      const most = Math.floor((this.room - HEADER) / 8) * 8
      const part = Math.min(message.length - done, this.maxAtOnce, most)
      if (part <= 0) return done
      this.room -= recordOf(part)
      this.parts.push(Buffer.from(message.subarray(done, done + part)))
      done += part
    }
    this.received.push(Buffer.concat(this.parts))
    this.parts = []
    return WHOLE
  }

  trySend(message: Uint8Array): number {
    return this.#record('trySend') || message.length > this.maxAtOnce ? FAILED : Number(this.#put(message))
  }

  hasRoom(size: number): number {
    return this.#record(`hasRoom ${size}`) ? FAILED : Number(this.#fits(size))
  }

  #fits(size: number): boolean {
    return Math.min(recordOf(size), this.capacity / 2) <= this.room
  }

  packedRoom(longest: number): number {
    return this.#record(`packedRoom ${longest}`) ? FAILED : Math.max(0, this.room - this.notGuaranteed)
  }

  armWriter(size: number): number {
    if (this.#record(`arm ${size}`)) return FAILED
    if (this.#fits(size)) return 0
    this.armedFor = size
    return 1
  }

  reserve(size: number): number | ArrayBuffer {
    if (this.#record(`reserve ${size}`) || size > this.maxAtOnce) return FAILED
    if (recordOf(size) > this.room) return 0
    if (size <= 4096 || this.showsNothing) return 1
    return (this.#reserved = new ArrayBuffer(size))
  }

  commit(length: number, scratch?: Uint8Array): number {
    if (this.#record(`commit ${length}`)) return FAILED
    this.#put((scratch ?? new Uint8Array(this.#reserved!)).subarray(0, length))
    return 0
  }

  cancel(): void {
    this.#record('cancel')
  }

  failure(): { code: string; message: string } {
    return { code: 'RING_CORRUPT', message: 'as this test has it' }
  }

  /** The peer reads `bytes` bytes, or everything. It sends a wakeup if that makes the requested room. */
  read(queue: Queue, bytes = this.capacity): void {
    this.room = Math.min(this.capacity, this.room + bytes)
    if (this.armedFor === null || !this.#fits(this.armedFor)) return
    this.armedFor = null
    queue.handleWakeup()
  }
}

export interface Opened {
  ring: Ring
  queue: Queue
  failures: RingfenceError[]
}

/** `ends`: the first failure ends the queue, like a channel. */
export function open(capacity: number, { maxAtOnce = capacity / 2, eager = false, ends = false } = {}): Opened {
  const ring = new Ring(capacity, maxAtOnce)
  const failures: RingfenceError[] = []
  const queue: Queue = new SendQueue(ring, eager, (error) => {
    failures.push(error)
    if (ends) queue.stop(() => error, true)
  })
  return { ring, queue, failures }
}

/** More turns than a queue checks on its own. */
export const MANY_TURNS = 30

/** Fills a ring except for `rest` bytes. */
export function fillBut(ring: Ring, queue: Queue, rest: number): void {
  while (ring.room > rest) queue.trySend(new Uint8Array(Math.min(ring.maxAtOnce, ring.room - rest - HEADER)))
  if (ring.room !== rest) throw new Error(`${ring.room} bytes are left`)
  ring.received.length = 0
  ring.newCalls()
}

/** This number of short messages. */
export const small = (count: number, size = 100) => Array.from({ length: count }, (_, number) => pattern(number, size))
