// Validates the snapshots of observable processes, since a process of the same user may publish anything. The kernel attests the process's
// identity. Its statistics are self-reported; they are only checked to be numbers.

import { FIGURES } from '../channel/stats.js'
import { MAX_ENTRIES, MAX_LAGGING, type Observed, type Snapshot } from '../runtime/observe.js'
import type { Identity } from '../types.js'

/** Maximum number of characters of an address: a socket's has up to 107 bytes, plus the @. */
const MAX_ADDRESS = 108

const ROLES: ReadonlySet<unknown> = new Set(['host', 'guest', 'publisher', 'subscriber'])

/** The figures that are numbers: a snapshot has no others. */
const { refused: _, sources: _none, ...NUMBERS } = FIGURES
const FIGURE_NAMES = Object.keys(NUMBERS) as (keyof typeof NUMBERS)[]

/**
 * Parses a snapshot. The process and user ids come from the identity that the kernel attested.
 *
 * @throws {Error} if the message is not a valid snapshot
 */
export function parseSnapshot(message: Buffer, { pid, uid, executable }: Identity): Snapshot {
  const parsed = JSON.parse(message.toString()) as Record<string, unknown> | null
  const { at, channels, executable: path } = parsed ?? {}
  if (!isFigure(at) || !Array.isArray(channels) || typeof path !== 'string') throw new Error('no figures')
  return {
    pid,
    uid,
    executable: executable?.path ?? path.slice(0, 4096),
    // Whole milliseconds, so that dividing by a difference of two yields a finite number.
    at: Math.round(at),
    channels: channels.slice(0, MAX_ENTRIES).map(parseObserved),
    more: Math.max(0, channels.length - MAX_ENTRIES),
  }
}

/** Copies only known properties. */
function parseObserved(entry: unknown): Observed {
  if (typeof entry !== 'object' || entry === null) throw new Error('no figures')
  const { id, address, peer, role, behind, ...rest } = entry as Record<string, unknown>
  const isValid = isFigure(id) && isNullOr(address, isAddress) && isNullOr(peer, isFigure) && ROLES.has(role)
  if (!isValid) throw new Error('no figures')
  const observed = { id, address, peer, role } as Observed
  if (behind !== undefined) observed.behind = parseBehind(behind)
  for (const figure of FIGURE_NAMES) {
    const value = rest[figure]
    if (value === undefined) continue
    if (!isFigure(value)) throw new Error('no figures')
    observed[figure] = value
  }
  return observed
}

function parseBehind(entries: unknown): [number, number][] {
  if (!Array.isArray(entries)) throw new Error('no figures')
  return entries.slice(0, MAX_LAGGING).map((entry: unknown) => {
    const [pid, lag] = Array.isArray(entry) ? (entry as unknown[]) : []
    if (!isFigure(pid) || !isFigure(lag)) throw new Error('no figures')
    return [pid, lag]
  })
}

function isFigure(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value <= Number.MAX_SAFE_INTEGER
}

function isAddress(value: unknown): value is string {
  return typeof value === 'string' && value.length <= MAX_ADDRESS
}

function isNullOr(value: unknown, isValid: (value: unknown) => boolean): boolean {
  return value === null || isValid(value)
}
