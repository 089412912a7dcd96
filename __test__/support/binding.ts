// A fake binding: tests decide how its calls end.

import type { ExecutionContext } from 'ava'

import { afterTurn } from './clock.js'
import { internals } from './internals.js'
import { Ring } from './ring.js'

export interface Failure {
  code: string
  message: string
}

/** A call in progress. */
export interface StartedHandshake {
  name: string
  address: string
  options: object
  /** The later calls on it. */
  calls: string[]
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

const inside = internals<Insides>

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
export function captureHandshakes(t: ExecutionContext): StartedHandshake[] {
  const { begin } = native
  const all: StartedHandshake[] = []
  native['begin'] = (name: string, address: string, options: object, done: StartedHandshake['done']) => {
    const calls: string[] = []
    all.push({ name, address, options, calls, done })
    const record = (what: string) => () => void calls.push(what)
    return { cancel: record('cancel'), vacate: record('vacate'), answer: record('answer') }
  }
  t.teardown(() => (native['begin'] = begin))
  return all
}

const aPeer = { pid: 7, uid: 8, gid: 9, executable: '/an/executable' }

/** A fake object of the binding that records its calls. */
class CallRecorder {
  readonly calls: string[] = []

  disarm(): void {
    this.calls.push('disarm')
  }

  close(): void {
    this.calls.push('close')
  }

  newCalls(): string[] {
    return this.calls.splice(0)
  }
}

/** Starts an endpoint over this fake object, which records the calls after that. */
export async function openOver<Endpoint, Below extends CallRecorder>(
  t: ExecutionContext,
  below: Below,
  begin: (address: string) => Promise<Endpoint>,
): Promise<Endpoint> {
  await afterTurn()
  const all = captureHandshakes(t)
  const opening = begin('@somewhere')
  await Promise.resolve()
  all[0]!.done(null, below)
  const endpoint = await opening
  below.newCalls()
  return endpoint
}

/** The fake object of a subscription: a ring, and a line. */
export class FakeSubscription extends CallRecorder {
  readonly ring = new Ring()
  readonly capacity = 65_536
  readonly maxMessageSize = 8192
  /** The state of the line: the reason of the end, as an index of `REASONS`. */
  endReason = 0
  watching = 0
  onWakeup: () => void = () => {}
  /** Reports the result of the last check of the peer. */
  onVerified: (failure: Failure | null, verified: object | null) => void = () => {}
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
    this.calls.push('has a message')
    return Number(this.ring.left > 0)
  }

  evidence(): object[] {
    this.calls.push('evidence')
    return [{ check: 'uid' }]
  }

  verify(onVerified: FakeSubscription['onVerified']): number {
    this.onVerified = onVerified
    return 0
  }

  watch(onWakeup: () => void): number {
    this.onWakeup = onWakeup
    return this.watching
  }

  listen(): number {
    this.calls.push('listen')
    return this.endReason
  }

  isLost(): number {
    return REASONS[this.endReason] === 'lost' ? 1 : 0
  }

  keepAlive(alive: number): void {
    this.calls.push(`keep alive: ${alive}`)
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
    this.calls.push('outlive')
  }
}

/** The fake object of a publisher. */
export class FakePublisher extends CallRecorder {
  readonly capacity = 65_536
  readonly maxMessageSize = 8192
  readonly maxAtOnce = 8192
  /** The free bytes of the ring. */
  room = 65_536
  sent = 0
  armed = false
  events: unknown[] = []
  onWakeup: () => void = () => {}
  onRoom: () => void = () => {}
  sealed: () => void = () => {}
  failing: Failure = { code: 'CLOSED', message: 'as the binding says' }
  /** The results of calls of these names. */
  readonly answers: { watch?: number; watchRoom?: number; seal?: number; send?: number } = {}
  ended = 0

  /** Adds events, and sends a wakeup. */
  emit(...events: unknown[]): void {
    this.events.push(...events)
    this.onWakeup()
  }

  next(): unknown {
    return this.events.shift() ?? 0
  }

  flush(_arena: Uint8Array, from: number, to: number): number {
    this.calls.push('flush')
    if (this.answers.send !== undefined) return this.answers.send
    if (to - from > this.room) return 0
    this.room -= to - from
    this.sent += 1
    return to - from
  }

  send(message: Uint8Array): number {
    this.calls.push('send')
    if (this.answers.send !== undefined) return this.answers.send
    return message.length
  }

  trySend(message: Uint8Array): number {
    this.calls.push('trySend')
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

  watch(onWakeup: () => void): number {
    this.onWakeup = onWakeup
    return this.answers.watch ?? 0
  }

  watchRoom(onWakeup: () => void): number {
    this.onRoom = onWakeup
    return this.answers.watchRoom ?? 0
  }

  seal(sealed: () => void): number {
    this.calls.push('seal')
    this.sealed = sealed
    return this.answers.seal ?? 0
  }

  listen(): number {
    this.calls.push('listen')
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
    this.calls.push(`keep alive: ${alive}`)
  }

  end(): number {
    this.calls.push('end')
    return 0
  }

  vacate(): void {
    this.calls.push('vacate')
  }
}

/** A subscriber, as the binding reports it. */
export class FakeSubscriber {
  readonly calls: string[] = []
  readonly peer = aPeer
  readonly delivery = 'reliable'
  onVerified: (failure: Failure | null, identity: object | null) => void = () => {}
  answer = 0
  behind = 50

  constructor(readonly number: number) {}

  lag(): number {
    return this.behind
  }

  evidence(): object[] {
    this.calls.push('evidence')
    return [{ check: 'uid' }]
  }

  verify(onVerified: FakeSubscriber['onVerified']): number {
    this.onVerified = onVerified
    return this.answer
  }

  disconnect(): void {
    this.calls.push('disconnect')
  }

  failure(): Failure {
    return { code: 'NO_SPACE', message: 'no thread' }
  }
}
