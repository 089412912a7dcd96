// A fake ring with a receive buffer over it. It can produce states that a real peer reaches only rarely.

import { pattern } from './bytes.js'
import { internals } from './internals.js'

/** The codes of the binding's results. */
interface Answers {
  FAILED: number
  WHOLE: number
  ENDED: number
  MISMATCH: number
  TOO_LARGE: number
  FIRST: number
  MORE: number
  HEADER: number
}

type Visit = (bytes: Uint8Array, offset: number, length: number) => void

interface Wait {
  promise: Promise<Buffer | null>
  cancel(): void
}

/** The methods of a receive buffer that a channel, a subscription and a merge use. */
export interface Buffered {
  readonly isWeak: boolean
  readonly due: Promise<void> | null
  readonly isEnded: boolean
  readonly unread: number
  readonly received: { messages: number; bytes: number }
  readonly mayHaveLeftovers: boolean
  readonly isDrained: boolean
  readonly isFinished: boolean
  readonly isArmed: boolean
  keepAlive(alive: boolean): void
  ensureNotMerged(): void
  takeNow(reader: object | null): Buffer | null
  tryReceive(): Buffer | null
  nextNow(): Buffer | null | undefined
  receiveNow(): Buffer | null | undefined
  isReadableNow(reader?: object | null): boolean | undefined
  loopReadableNow(reader: object): true | null | undefined
  wait(takes: boolean, signal?: AbortSignal, reader?: object | null): Wait
  receiveEach(visit: Visit, max?: number): number
  handleWakeup(): void
  serve(now?: boolean): void
  keepLeftovers(release: () => void): void
  stop(why: () => Error): void
  close(why: () => Error): void
  attachMerge(notifications: () => void): void
  detachMerge(): void
  take(): Buffer | null
  hasMessage(): boolean
  visit(visit: Visit, max: number | undefined, bytes: number, round: number): number
  arm(): boolean
  park(): boolean
  checkParked(): boolean
}

interface Insides {
  ReceiveBuffer: new (
    ring: Ring,
    busy: boolean,
    owner: { failed(error: Error): void; handleEnd(): void; endWithPeer(): void },
  ) => Buffered
}

/** Not exported by the package. */
export const answers = await internals<Answers>('native.js')
const { ReceiveBuffer } = await internals<Insides>('channel/receive-buffer.js')
const { FAILED, WHOLE, ENDED, MISMATCH, TOO_LARGE, FIRST, MORE, HEADER } = answers

const recordSize = (length: number) => HEADER + ((length + 7) & ~7)

/** A ring whose reader gets copies of all messages, as in a subscription. */
export class Ring {
  /** The names of the calls. */
  calls: string[] = []
  /** The room in the buffer of each fetch. */
  rooms: number[] = []
  /** The number and the bytes of fetched messages. */
  fetched = { messages: 0, bytes: 0 }
  /** The peer waits for the room of fetched messages, and was not woken. */
  owesWake = false
  /** The peer has ended. */
  ended = false
  /** The error of the next calls. */
  failing: string | null = null
  /** A barrier is required between `park` and `checkParked`. */
  needsBarrier = true
  /** Called at each check that finds nothing. */
  onEmpty: () => void = () => {}
  /** Called before a long message is read. */
  onGather: () => void = () => {}
  protected messages: Buffer[] = []
  /** The bytes of the last message that have arrived. */
  #arrived = Infinity
  /** The number of messages left in this round of visits. */
  #round = Infinity

  push(...messages: Buffer[]): void {
    this.messages.push(...messages)
  }

  /** Adds the beginning of a long message. */
  begin(message: Buffer, bytes: number): void {
    this.push(message)
    this.#arrived = bytes
  }

  /** Adds the rest of it. */
  complete(): void {
    this.#arrived = Infinity
  }

  /** The next message is skipped: the publisher was faster. */
  overtake(by: Buffer): void {
    this.messages[0] = by
  }

  /** The calls since the last check. */
  newCalls(): string[] {
    return this.calls.splice(0)
  }

  get left(): number {
    return this.messages.length
  }

  pull(into: Buffer, from: number, round: number): number {
    this.calls.push(round === FIRST ? 'pull first' : round === MORE ? 'pull more' : 'pull')
    return this.#pull(into, from, round)
  }

  pullBusy(into: Buffer, from: number, round: number): number {
    this.calls.push('pull busily')
    return this.#pull(into, from, round)
  }

  #pull(into: Buffer, from: number, round: number): number {
    this.rooms.push(into.length - from)
    if (round === FIRST) this.#round = this.left
    if (round === MORE && this.#round === 0) {
      this.owesWake = false
      return 0
    }
    const before = this.left
    const answer = this.put(into.subarray(from), 0, Infinity)
    if (round !== 0) this.#round -= before - this.left
    this.owesWake = answer > 0 && round !== 0
    return answer
  }

  /** Complete records of messages of these lengths. */
  protected put(into: Buffer, least: number, most: number): number {
    if (this.failing !== null) return FAILED
    if (this.left === 0) return this.#nothing()
    let used = 0
    while (this.left > 0) {
      const message = this.messages[0]!
      const { length } = message
      const fits = length >= least && length <= most && used + recordSize(length) <= into.length
      if (!fits || (this.left === 1 && this.#arrived < length)) return used === 0 ? TOO_LARGE - length : used
      into.writeUInt32LE(length, used)
      into.writeUInt32LE(3, used + 4)
      // The bytes between a message and the next one may be anything.
      into.fill(0xaa, used + HEADER, used + recordSize(length))
      into.set(message, used + HEADER)
      used += recordSize(length)
      this.#count(this.messages.shift()!)
    }
    return used
  }

  #count(message: Buffer): void {
    this.fetched.messages += 1
    this.fetched.bytes += message.length
  }

  #nothing(): number {
    this.onEmpty()
    return this.ended ? ENDED : 0
  }

  attachments(): never[] {
    return []
  }

  gather(into: Buffer): number {
    this.calls.push('gather')
    this.onGather()
    if (this.failing !== null) return FAILED
    const [message] = this.messages
    if (message === undefined) return this.#nothing()
    const { length } = message
    if (length > into.length) return MISMATCH
    const there = this.left === 1 ? Math.min(this.#arrived, length) : length
    into.set(message.subarray(0, there))
    if (there < length) return this.ended ? ENDED : there
    this.#count(this.messages.shift()!)
    return length === into.length ? WHOLE : TOO_LARGE - length
  }

  wake(): void {
    this.calls.push('wake')
    this.owesWake = false
  }

  armReader(): number {
    this.calls.push('arm')
    return this.#armed()
  }

  parkReader(): number {
    this.calls.push('park')
    return this.failing === null ? Number(this.needsBarrier) : FAILED
  }

  checkParked(): number {
    this.calls.push('look')
    return this.#armed()
  }

  #armed(): number {
    if (this.failing !== null) return FAILED
    const there = this.left > 1 || (this.left === 1 && this.#arrived === Infinity)
    return there || this.ended ? 0 : 1
  }

  failure(): { code: string; message: string } {
    return { code: this.failing!, message: 'as the ring says' }
  }
}

/** A ring that holds fetched messages for its reader, as in a channel. */
export class RetainingRing extends Ring {
  /** The messages of the last fetch. The peer cannot use their room yet. */
  retained: Buffer[] = []

  override pull(into: Buffer, from: number, round: number): number {
    this.retained = []
    return super.pull(into, from, round)
  }

  override pullBusy(into: Buffer, from: number, round: number): number {
    this.retained = []
    return super.pullBusy(into, from, round)
  }

  pullRetained(into: Buffer, from: number, least: number, most: number, retainSingle: number): number {
    this.calls.push(retainSingle === 0 ? 'fetch' : 'fetch to look')
    return this.#pull(into, from, least, most, retainSingle)
  }

  pullRetainedBusy(into: Buffer, from: number, least: number, most: number, retainSingle: number): number {
    this.calls.push(retainSingle === 0 ? 'fetch busily' : 'fetch to look, busily')
    return this.#pull(into, from, least, most, retainSingle)
  }

  #pull(into: Buffer, from: number, least: number, most: number, retainSingle: number): number {
    this.rooms.push(into.length - from)
    this.owesWake = false
    this.retained = []
    const before = [...this.messages]
    const answer = this.put(into.subarray(from), least, most)
    const count = before.length - this.left
    if (answer > 0 && (count > 1 || retainSingle !== 0)) this.retained = before.slice(0, count)
    return answer
  }

  pullAgain(into: Buffer, skipped: number): number {
    this.calls.push('fetch again')
    let at = 0
    const rest = this.retained.filter((message) => (at += recordSize(message.length)) > skipped)
    if (rest.length === 0) throw new Error('nothing is held')
    const later = this.messages
    const { messages, bytes } = this.fetched
    this.messages = rest
    const answer = this.put(into, 0, Infinity)
    this.fetched = { messages, bytes }
    // A message that did not fit is the next one.
    if (this.messages.length > 0) throw new Error('there was room for all of it')
    this.messages = later
    return answer
  }

  release(): void {
    this.calls.push('release')
    this.retained = []
  }
}

/** A ring from which only the newest message is read. */
export class LatestRing extends Ring {
  readonly delivery = 'latest'

  override push(...messages: Buffer[]): void {
    this.messages = [messages.at(-1)!]
  }

  hasMessage(): number {
    this.calls.push('has')
    if (this.failing !== null) return FAILED
    return this.left > 0 ? 1 : this.ended ? ENDED : 0
  }
}

export interface Opened<Kind extends Ring> {
  ring: Kind
  buffer: Buffered
  /** The notifications of the owner of the buffer. */
  notifications: string[]
}

export function bufferOver<Kind extends Ring>(ring: Kind, busy = false): Opened<Kind> {
  const notifications: string[] = []
  const buffer = new ReceiveBuffer(ring, busy, {
    failed: (error) => void notifications.push((error as Error & { code: string }).code.slice('ERR_RINGFENCE_'.length)),
    handleEnd: () => void notifications.push('no more comes'),
    endWithPeer: () => void notifications.push('the end is told'),
  })
  return { ring, buffer, notifications }
}

/** Messages by number, of one length each. */
export function patterns(first: number, ...lengths: number[]): Buffer[] {
  return lengths.map((length, index) => pattern(first + index, length))
}

/** The available messages, as visitors see them. */
export function visitAll(buffer: Buffered, max?: number): Buffer[] {
  const visits: Buffer[] = []
  buffer.receiveEach((bytes, offset, length) => visits.push(Buffer.from(bytes.subarray(offset, offset + length))), max)
  return visits
}

/** The rings of which every message is read. */
export const kinds = [RetainingRing, Ring] as const

export const codeOf = (name: string) => ({ code: name === 'ABORT_ERR' ? name : `ERR_RINGFENCE_${name}` })
