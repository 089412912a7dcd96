// A fake binding: tests decide how its calls end.

import type { ExecutionContext } from 'ava'

import { rested } from './clock.js'
import { insideOf } from './inside.js'
import { Ring } from './ring.js'

export interface Failure {
  code: string
  message: string
}

/** A call in progress. */
export interface Begun {
  name: string
  address: string
  options: object
  /** The later calls on it. */
  asked: string[]
  /** Finishes the call. */
  done(failure: Failure | null, made: object | null): void
}

interface Insides {
  native: Record<string, unknown>
  FAILED: number
  REASONS: (string | null)[]
  openResources: Set<object>
  subscribe: typeof import('ringfence').subscribe
  publish: typeof import('ringfence').publish
  merge: typeof import('ringfence').merge
}

const inside = insideOf<Insides>

/** Not exported by the package, with public functions of the same copy: the package's main file is another copy. */
export const [{ native, FAILED, REASONS }, { openResources }, { subscribe }, { publish }, { merge }] =
  await Promise.all([
    inside('native.js'),
    inside('runtime/diagnostics.js'),
    inside('channel/subscription.js'),
    inside('endpoint/publisher.js'),
    inside('channel/merge.js'),
  ])

/** Replaces the calls of the binding, until the test is over. */
export function beginsHere(t: ExecutionContext): Begun[] {
  const { begin } = native
  const all: Begun[] = []
  native['begin'] = (name: string, address: string, options: object, done: Begun['done']) => {
    const asked: string[] = []
    all.push({ name, address, options, asked, done })
    const note = (what: string) => () => void asked.push(what)
    return { cancel: note('cancel'), vacate: note('vacate'), answer: note('answer') }
  }
  t.teardown(() => (native['begin'] = begin))
  return all
}

const aPeer = { pid: 7, uid: 8, gid: 9, executable: '/an/executable' }

/** A fake object of the binding that records its calls. */
class Noted {
  readonly asked: string[] = []

  disarm(): void {
    this.asked.push('disarm')
  }

  close(): void {
    this.asked.push('close')
  }

  since(): string[] {
    return this.asked.splice(0)
  }
}

/** Starts an endpoint over this fake object, which records the calls after that. */
export async function begun<Endpoint, Below extends Noted>(
  t: ExecutionContext,
  below: Below,
  begin: (address: string) => Promise<Endpoint>,
): Promise<Endpoint> {
  await rested()
  const all = beginsHere(t)
  const beginning = begin('@somewhere')
  await Promise.resolve()
  all[0]!.done(null, below)
  const endpoint = await beginning
  below.since()
  return endpoint
}

/** The fake object of a subscription: a ring, and a line. */
export class Subscribed extends Noted {
  readonly ring = new Ring()
  readonly capacity = 65_536
  readonly maxMessageSize = 8192
  /** The state of the line: the reason of the end, as an index of `REASONS`. */
  heard = 0
  watching = 0
  bell: () => void = () => {}
  /** Reports the result of the last check of the peer. */
  look: (failure: Failure | null, verified: object | null) => void = () => {}
  failing: Failure | null = null
  readonly figures = [300, 4, 0]

  constructor(
    readonly delivery: 'reliable' | 'best-effort' | 'latest' = 'reliable',
    readonly peer: object = aPeer,
  ) {
    super()
  }

  readonly pull = (into: Buffer, from: number, goesOn: number) => this.ring.pull(into, from, goesOn)
  readonly pullBusy = (into: Buffer, from: number, goesOn: number) => this.ring.pullBusy(into, from, goesOn)
  readonly gather = (into: Buffer) => this.ring.gather(into)
  readonly wake = () => this.ring.wake()
  readonly armReader = () => this.ring.armReader()
  readonly parkReader = () => this.ring.parkReader()
  readonly checkParked = () => this.ring.checkParked()
  readonly failure = () => this.failing ?? this.ring.failure()
  readonly hasMessage = () => {
    this.asked.push('has a message')
    return Number(this.ring.left > 0)
  }

  evidence(): object[] {
    this.asked.push('evidence')
    return [{ check: 'uid' }]
  }

  verify(look: Subscribed['look']): number {
    this.look = look
    return 0
  }

  watch(bell: () => void): number {
    this.bell = bell
    return this.watching
  }

  listen(): number {
    this.asked.push('listen')
    return this.heard
  }

  isLost(): number {
    return REASONS[this.heard] === 'lost' ? 1 : 0
  }

  keepAlive(alive: number): void {
    this.asked.push(`keep alive: ${alive}`)
  }

  sequence(unread: number): bigint {
    return BigInt(100 - unread)
  }

  lost(unread: number): bigint {
    return BigInt(5 + unread)
  }

  stats(): number[] {
    return this.figures
  }

  outlive(): void {
    this.asked.push('outlive')
  }
}

/** The fake object of a publisher. */
export class Published extends Noted {
  readonly capacity = 65_536
  readonly maxMessageSize = 8192
  readonly maxAtOnce = 8192
  /** The free bytes of the ring. */
  room = 65_536
  sent = 0
  armed = false
  events: unknown[] = []
  bell: () => void = () => {}
  roomBell: () => void = () => {}
  sealed: () => void = () => {}
  failing: Failure = { code: 'CLOSED', message: 'as the binding says' }
  /** The results of calls of these names. */
  readonly answers: { watch?: number; watchRoom?: number; seal?: number; send?: number } = {}
  ended = 0

  /** Adds events, and sends a wakeup. */
  tell(...events: unknown[]): void {
    this.events.push(...events)
    this.bell()
  }

  next(): unknown {
    return this.events.shift() ?? 0
  }

  flush(_arena: Uint8Array, from: number, to: number): number {
    this.asked.push('flush')
    if (this.answers.send !== undefined) return this.answers.send
    if (to - from > this.room) return 0
    this.room -= to - from
    this.sent += 1
    return to - from
  }

  send(message: Uint8Array): number {
    this.asked.push('send')
    if (this.answers.send !== undefined) return this.answers.send
    return message.length
  }

  trySend(message: Uint8Array): number {
    this.asked.push('trySend')
    if (this.answers.send !== undefined) return this.answers.send
    if (message.length + 8 > this.room) return 0
    this.room -= message.length + 8
    this.sent += 1
    return 1
  }

  hasRoom(size: number): number {
    return Number(size + 8 <= this.room)
  }

  packedRoom(): number {
    return 0
  }

  armWriter(size: number): number {
    this.armed = this.room < size + 8
    return Number(this.armed)
  }

  reserve(): number {
    return 0
  }

  watch(bell: () => void): number {
    this.bell = bell
    return this.answers.watch ?? 0
  }

  watchRoom(bell: () => void): number {
    this.roomBell = bell
    return this.answers.watchRoom ?? 0
  }

  seal(sealed: () => void): number {
    this.asked.push('seal')
    this.sealed = sealed
    return this.answers.seal ?? 0
  }

  listen(): number {
    this.asked.push('listen')
    return 0
  }

  reason(): number {
    return this.ended
  }

  sequence(): bigint {
    return BigInt(this.sent)
  }

  stats(): number[] {
    return [this.sent, 1000, 2, this.capacity - this.room, this.capacity, 0, 0]
  }

  failure(): Failure {
    return this.failing
  }

  keepAlive(alive: number): void {
    this.asked.push(`keep alive: ${alive}`)
  }

  end(): number {
    this.asked.push('end')
    return 0
  }

  vacate(): void {
    this.asked.push('vacate')
  }
}

/** A subscriber, as the binding reports it. */
export class Newcomer {
  readonly asked: string[] = []
  readonly peer = aPeer
  readonly delivery = 'reliable'
  look: (failure: Failure | null, identity: object | null) => void = () => {}
  answer = 0
  behind = 50

  constructor(readonly number: number) {}

  lag(): number {
    return this.behind
  }

  evidence(): object[] {
    this.asked.push('evidence')
    return [{ check: 'uid' }]
  }

  verify(look: Newcomer['look']): number {
    this.look = look
    return this.answer
  }

  disconnect(): void {
    this.asked.push('disconnect')
  }

  failure(): Failure {
    return { code: 'NO_SPACE', message: 'no thread' }
  }
}
