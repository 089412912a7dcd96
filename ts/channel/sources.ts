// What a merge can read. Each class whose objects have messages registers here how a merge gets at them, so that neither imports the
// other.

import type { ReceiveBuffer } from './receive-buffer.js'
import type { Values } from './values.js'
import type { GoneReason } from '../types.js'

/** A merge's way into a source. */
export interface Inlet {
  /** What the source has received. */
  readonly buffer: ReceiveBuffer
  /** Makes values of its messages; null: they are bytes. */
  readonly values: Values<unknown> | null
  /** Why no more comes; to be asked once that is so. 'closed' as well where the peer has ended its sending alone. */
  reason(): GoneReason
}

/** The inlet of a value that is of one kind, else undefined. */
type Kind = (value: object) => Inlet | undefined

const kinds: Kind[] = []

/** Adds a kind of source. */
export function registerSource(kind: Kind): void {
  kinds.push(kind)
}

/** The inlet of a value; undefined for what is no source. */
export function inletOf(value: unknown): Inlet | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  for (const kind of kinds) {
    const inlet = kind(value)
    if (inlet !== undefined) return inlet
  }
  return undefined
}
