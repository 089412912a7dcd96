// Sources of a merge that a test fills, and the messages that a merge reads from them.

import type { Closed, Merge } from 'ringfence'

import { pattern } from './bytes.js'
import { fairness, afterTurn } from './clock.js'
import { internals } from './internals.js'
import { bufferOver, RetainingRing } from './ring.js'

/** The reasons of the binding. */
type GoneReason = 'closed' | 'lost' | 'corrupt' | 'exposed' | 'evicted'

/** A source of a merge that has only a ring. */
export class Source {
  readonly ring = new RetainingRing()
  readonly opened = bufferOver(this.ring)
  readonly buffer = this.opened.buffer
  reason: GoneReason = 'closed'
  /** The calls of `ref` and `unref`. */
  readonly refCalls: string[] = []
  #next = 0

  constructor(readonly name: string) {}

  ref(): this {
    this.refCalls.push('ref')
    return this
  }

  unref(): this {
    this.refCalls.push('unref')
    return this
  }

  /** Adds `count` messages of `length` bytes, and sends a wakeup if one was requested. */
  send(count = 1, length = 1000): this {
    for (let index = 0; index < count; index += 1) this.ring.push(pattern((this.#next += 1), length))
    return this.#wake()
  }

  end(reason: GoneReason = 'closed'): this {
    this.reason = reason
    this.ring.ended = true
    return this.#wake()
  }

  #wake(): this {
    if (this.buffer.isArmed) this.buffer.handleWakeup()
    return this
  }
}

interface Insides {
  registerSource(kind: (value: object) => object | undefined): void
  merge<S>(sources?: Iterable<S>): Merge<S>
  makePersistent(release: () => void): Merge<Source>
  allowEnd(merged: Merge<Source>, failure: Error | null): void
  native: { barrier(): object | null }
}

const load = internals<Insides>

/** Not exported by the package. */
export const [{ registerSource }, { merge, makePersistent, allowEnd }, { native }] = await Promise.all([
  load('channel/sources.js'),
  load('channel/merge.js'),
  load('native.js'),
])
const { closedFor } = await internals<{ closedFor(reason: GoneReason, peer: { pid: number }): Closed }>(
  'channel/resource.js',
)

registerSource((value) =>
  value instanceof Source
    ? { buffer: value.buffer, values: null, end: () => closedFor(value.reason, { pid: 7 }) }
    : undefined,
)

export type Merged = Merge<Source>

export const mergeOf = (...sources: Source[]) => merge(sources)
export const named = (...names: string[]) => names.map((name) => new Source(name))

/** The clock stands still, and is read once in 256 messages. */
export async function settleClock(): Promise<void> {
  await afterTurn()
  for (let looks = 0; looks < 10; looks += 1) fairness.readClock()
}

/** The sources of the next messages: `a3 b2` for three of one and two of another. */
export async function order(merged: Merged, count: number): Promise<string> {
  const names: string[] = []
  for (let index = 0; index < count; index += 1) names.push((await merged.receive())![0].name)
  return runLengths(names)
}

export function runLengths(names: string[]): string {
  const runs: [string, number][] = []
  for (const name of names) {
    const last = runs.at(-1)
    if (last?.[0] === name) last[1] += 1
    else runs.push([name, 1])
  }
  return runs.map(([name, count]) => `${name}${count}`).join(' ')
}

export function visits(merged: Merged, max?: number, each: (source: Source) => void = () => {}): string {
  const names: string[] = []
  const count = merged.receiveEach((_bytes, _offset, _length, source) => {
    names.push(source.name)
    each(source)
  }, max)
  if (count !== names.length) throw new Error(`${count} are not ${names.length}`)
  return runLengths(names)
}
