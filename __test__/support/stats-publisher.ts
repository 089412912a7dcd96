// Fake processes that publish their statistics, and the subscriptions to them.

import type { ExecutionContext } from 'ava'

import { captureHandshakes, REASONS, FakeSubscription, type StartedHandshake } from './binding.js'
import { internals } from './internals.js'
import { fakeProcess, type FakeFiles } from './fake-proc.js'
import { turns } from './until.js'

export type Figures = Record<string, unknown>

export const { observeAddress, MAX_SNAPSHOT } = await internals<{
  observeAddress(pid: number): string
  MAX_SNAPSHOT: number
}>('runtime/observe.js')

/** A process of this user that can be observed, with these lines in its map. */
export function observable(pid: number, lines: string[] = [], ...addresses: string[]): FakeFiles {
  return {
    ...fakeProcess(pid, lines, observeAddress(pid), ...addresses),
    [`/proc/${pid}`]: { uid: process.geteuid!() },
  }
}

/** The fake subscription to the statistics of a process. */
export class StatsPublisher extends FakeSubscription {
  constructor(readonly pid: number) {
    super('latest', { pid, uid: 5, gid: 5, executable: { path: `/usr/bin/${pid}` } })
  }

  /** Publishes a snapshot. It has been read once this resolves. */
  async publish(at: number, ...channels: Figures[]): Promise<void> {
    await this.publishText(JSON.stringify({ executable: '/as/it/says', at, channels }))
  }

  async publishText(words: string): Promise<void> {
    this.ring.push(Buffer.from(words))
    this.onWakeup()
    await turns(3)
  }

  /** The process exits. */
  async exit(): Promise<void> {
    this.ring.ended = true
    this.endReason = REASONS.indexOf('lost')
    this.onWakeup()
    await turns(3)
  }
}

/** Handshakes that start until the test is over. */
export class Handshakes {
  readonly all: StartedHandshake[]

  constructor(t: ExecutionContext) {
    this.all = captureHandshakes(t)
  }

  /** The processes that were asked and have not answered. */
  get pending(): number[] {
    return this.all.map(({ address }) => Number(address.slice(observeAddress(0).length - 1)))
  }

  /** Lets a process answer. Returns the subscription, over which it can publish. */
  async answer(pid: number, by = pid): Promise<StatsPublisher> {
    const publisher = new StatsPublisher(by)
    this.#remove(pid).done(null, publisher)
    await turns(2)
    return publisher
  }

  async fail(pid: number, code: string): Promise<void> {
    this.#remove(pid).done({ code, message: 'as this test has it' }, null)
    await turns(2)
  }

  #remove(pid: number): StartedHandshake {
    const at = this.pending.indexOf(pid)
    if (at < 0) throw new Error(`process ${pid} is not asked`)
    return this.all.splice(at, 1)[0]!
  }
}
