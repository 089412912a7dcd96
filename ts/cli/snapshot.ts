// What a process tells of itself at its address for observers, as far as it can be believed: a process of the same user may publish
// anything there. Who it is, the kernel has said; its figures are its own word, and are numbers.

import { MOST_BEHIND, type Observed, type Snapshot } from '../runtime/observe.js'
import type { Identity } from '../types.js'

/** Channels of one process that are looked at: as many as one tells. */
const MOST = 500
/** Characters of an address: a socket's has at most 107 bytes, and the @. */
const LONGEST = 108

const ROLES: ReadonlySet<unknown> = new Set(['host', 'guest', 'publisher', 'subscriber'])

const FIGURES = [
  'messagesSent',
  'bytesSent',
  'messagesReceived',
  'bytesReceived',
  'waits',
  'waitedMicros',
  'wakeupsSent',
  'sleeps',
  'ringUsed',
  'ringCapacity',
  'queuedBytes',
  'open',
  'evicted',
  'lag',
  'lost',
] as const satisfies (keyof Observed)[]

/**
 * The snapshot in a message of a process, of which the kernel has said who it is.
 *
 * @throws {Error} for what is none.
 */
export function snapshotIn(message: Buffer, { pid, uid, executable }: Identity): Snapshot {
  const told = JSON.parse(message.toString()) as Record<string, unknown> | null
  const { at, channels, executable: path } = told ?? {}
  if (!isFigure(at) || !Array.isArray(channels) || typeof path !== 'string') throw new Error('no figures')
  return {
    pid,
    uid,
    executable: executable?.path ?? path.slice(0, 4096),
    // Whole milliseconds: what is divided by their difference stays a number.
    at: Math.round(at),
    channels: channels.slice(0, MOST).map(observedIn),
    more: Math.max(0, channels.length - MOST),
  }
}

/** Only what is known is taken over. */
function observedIn(told: unknown): Observed {
  if (typeof told !== 'object' || told === null) throw new Error('no figures')
  const { id, address, peer, role, behind, ...rest } = told as Record<string, unknown>
  const isKnown = isFigure(id) && isNullOr(address, isAddress) && isNullOr(peer, isFigure) && ROLES.has(role)
  if (!isKnown) throw new Error('no figures')
  const observed = { id, address, peer, role } as Observed
  if (behind !== undefined) observed.behind = behindIn(behind)
  for (const figure of FIGURES) {
    const value = rest[figure]
    if (value === undefined) continue
    if (!isFigure(value)) throw new Error('no figures')
    observed[figure] = value
  }
  return observed
}

function behindIn(told: unknown): [number, number][] {
  if (!Array.isArray(told)) throw new Error('no figures')
  return told.slice(0, MOST_BEHIND).map((one: unknown) => {
    const [pid, lag] = Array.isArray(one) ? (one as unknown[]) : []
    if (!isFigure(pid) || !isFigure(lag)) throw new Error('no figures')
    return [pid, lag]
  })
}

function isFigure(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value <= Number.MAX_SAFE_INTEGER
}

function isAddress(value: unknown): value is string {
  return typeof value === 'string' && value.length <= LONGEST
}

function isNullOr(value: unknown, is: (value: unknown) => boolean): boolean {
  return value === null || is(value)
}
