// Fake processes that publish their statistics, and the subscriptions to them.

import type { ExecutionContext } from 'ava'

import { beginsHere, REASONS, Subscribed, type Begun } from './binding.js'
import { insideOf } from './inside.js'
import { process as onPaper, type Paper } from './paper-proc.js'
import { turns } from './until.js'

export type Figures = Record<string, unknown>

export const { observeAddress, MAX_SNAPSHOT } = await insideOf<{
  observeAddress(pid: number): string
  MAX_SNAPSHOT: number
}>('runtime/observe.js')

/** A process of this user that can be observed, with these lines in its map. */
export function observable(pid: number, lines: string[] = [], ...addresses: string[]): Paper {
  return { ...onPaper(pid, lines, observeAddress(pid), ...addresses), [`/proc/${pid}`]: { uid: process.geteuid!() } }
}

/** The fake subscription to the statistics of a process. */
export class Teller extends Subscribed {
  constructor(readonly pid: number) {
    super('latest', { pid, uid: 5, gid: 5, executable: { path: `/usr/bin/${pid}` } })
  }

  /** Publishes a snapshot. It has been read once this resolves. */
  async tell(at: number, ...channels: Figures[]): Promise<void> {
    await this.say(JSON.stringify({ executable: '/as/it/says', at, channels }))
  }

  async say(words: string): Promise<void> {
    this.ring.come(Buffer.from(words))
    this.bell()
    await turns(3)
  }

  /** The process exits. */
  async exit(): Promise<void> {
    this.ring.ended = true
    this.heard = REASONS.indexOf('lost')
    this.bell()
    await turns(3)
  }
}

/** Handshakes that start until the test is over. */
export class Handshakes {
  readonly all: Begun[]

  constructor(t: ExecutionContext) {
    this.all = beginsHere(t)
  }

  /** The processes that were asked and have not answered. */
  get asked(): number[] {
    return this.all.map(({ address }) => Number(address.slice(observeAddress(0).length - 1)))
  }

  /** Lets a process answer. Returns the subscription, over which it can publish. */
  async answer(pid: number, by = pid): Promise<Teller> {
    const teller = new Teller(by)
    this.#take(pid).done(null, teller)
    await turns(2)
    return teller
  }

  async fail(pid: number, code: string): Promise<void> {
    this.#take(pid).done({ code, message: 'as this test has it' }, null)
    await turns(2)
  }

  #take(pid: number): Begun {
    const at = this.asked.indexOf(pid)
    if (at < 0) throw new Error(`process ${pid} is not asked`)
    return this.all.splice(at, 1)[0]!
  }
}
