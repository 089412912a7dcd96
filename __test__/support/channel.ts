// A channel over a fake binding, which records its calls and has the results that a test chooses.

import { internals } from './internals.js'
import type { Channel } from 'ringfence'

import { Ring } from './fake-ring.js'
import { RetainingRing } from './ring.js'

export interface Raw {
  readonly role: string
  readonly peer: { pid: number; uid: number }
  readonly capacity: number
  readonly maxMessageSize: number
  readonly maxAtOnce: number
  operate(operation: number, ...given: unknown[]): unknown
}

interface Settings {
  busyPollMicros: number
  allowHalfOpen: boolean
  values: null
}

interface Opening {
  address: string | null
  settings: Settings
}

/** Not exported by the package. */
export const { openChannel, openIncoming, prepareClose } = await internals<{
  openChannel(raw: Raw, opening: Opening): Channel
  openIncoming(raw: Raw, opening: Opening): Channel | { code: string; message: string }
  prepareClose(channel: Channel, linger: number): Promise<{ flushed: boolean; finish(): void }>
}>('channel/channel.js')
export const { ENDED, FAILED, REASONS, native } = await internals<{
  ENDED: number
  FAILED: number
  REASONS: (string | undefined)[]
  native: { operations(): string[] }
}>('native.js')
const names = native.operations()
export const { mergeInputOf } = await internals<{
  mergeInputOf(source: object): { readonly buffer: { readonly isWeak: boolean } } | undefined
}>('channel/sources.js')

export const HALF_OPEN: Settings = { busyPollMicros: 0, allowHalfOpen: true, values: null }

/** A fake binding of a channel, with results and recorded calls. */
export class Binding {
  readonly ring = new Ring(65_536)
  /** The messages of the peer. */
  readonly from = new RetainingRing()
  readonly peer = { pid: 1, uid: 2 }
  /** Results by the name of the call. Other calls go to the rings, or return 0. */
  answers: Record<string, unknown> = {
    stats: Array.from({ length: 6 }, () => 0),
    evidence: [],
  }
  onWakeup!: () => void
  #calls: string[] = []

  readonly raw: Raw = {
    role: 'host',
    peer: this.peer,
    capacity: this.ring.capacity,
    maxMessageSize: this.ring.maxMessageSize,
    maxAtOnce: this.ring.maxAtOnce,
    operate: (operation, ...given) => {
      const name = names[operation]!
      this.#calls.push(name)
      if (name === 'watch') this.onWakeup = given[0] as () => void
      if (name in this.answers) {
        const answer = this.answers[name]
        return typeof answer === 'function' ? (answer as (...all: unknown[]) => unknown)(...given) : answer
      }
      for (const fake of [this.ring, this.from] as unknown as Record<string, unknown>[])
        if (typeof fake[name] === 'function') return (fake[name] as (...all: unknown[]) => unknown).apply(fake, given)
      return 0
    },
  }

  /** The calls of these names since the last time. */
  newCalls(...of: string[]): string[] {
    return this.#calls.splice(0).filter((name) => of.includes(name))
  }

  /** The next call of that name fails with this error. */
  fail(name: string, code: string, message = 'as this test has it'): void {
    this.answers[name] = FAILED
    this.answers['failure'] = { code, message }
  }

  /** Ends the channel, and reports that on the line. */
  end(reason: string, how = 1): void {
    this.answers['listen'] = REASONS.indexOf(reason)
    this.answers['isLost'] = reason === 'lost' ? how : 0
    this.onWakeup()
  }
}

export function open(settings = HALF_OPEN): { binding: Binding; channel: Channel } {
  const binding = new Binding()
  const channel = openChannel(binding.raw, { address: null, settings })
  binding.newCalls()
  return { binding, channel }
}
