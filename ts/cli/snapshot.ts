// Validates the snapshots of observable processes, since a process of the same user may publish anything. The kernel attests the process's
// identity. Its statistics are self-reported; they are only checked to be numbers.

import { FIGURES } from '../channel/stats.js'
import { MOST_BEHIND, type Observed, type Snapshot } from '../runtime/observe.js'
import type { Identity } from '../types.js'

/** Maximum number of channels of one process, the same as in `observe`. */
const MOST = 500
/** Maximum number of characters of an address: a socket's has up to 107 bytes, plus the @. */
const LONGEST = 108

const ROLES: ReadonlySet<unknown> = new Set(['host', 'guest', 'publisher', 'subscriber'])

/** The figures that are numbers: a snapshot has no others. */
const { refused: _, sources: _none, ...NUMBERS } = FIGURES
const FIGURE_NAMES = Object.keys(NUMBERS) as (keyof typeof NUMBERS)[]

/**
 * Parses a snapshot. The process and user ids come from the identity that the kernel attested.
 *
 * @throws {Error} if the message is not a valid snapshot
 */
export function snapshotIn(message: Buffer, { pid, uid, executable }: Identity): Snapshot {
  const told = JSON.parse(message.toString()) as Record<string, unknown> | null
  const { at, channels, executable: path } = told ?? {}
  if (!isFigure(at) || !Array.isArray(channels) || typeof path !== 'string') throw new Error('no figures')
  return {
    pid,
    uid,
    executable: executable?.path ?? path.slice(0, 4096),
    // Whole milliseconds, so that dividing by a difference of two yields a finite number.
    at: Math.round(at),
    channels: channels.slice(0, MOST).map(observedIn),
    more: Math.max(0, channels.length - MOST),
  }
}

/** Copies only known properties. */
function observedIn(told: unknown): Observed {
  if (typeof told !== 'object' || told === null) throw new Error('no figures')
  const { id, address, peer, role, behind, ...rest } = told as Record<string, unknown>
  const isKnown = isFigure(id) && isNullOr(address, isAddress) && isNullOr(peer, isFigure) && ROLES.has(role)
  if (!isKnown) throw new Error('no figures')
  const observed = { id, address, peer, role } as Observed
  if (behind !== undefined) observed.behind = behindIn(behind)
  for (const figure of FIGURE_NAMES) {
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
