// The registry of sources for merges. Each class with messages registers here how a merge accesses them, so that neither side imports the
// other.

import type { ReceiveBuffer } from './receive-buffer.js'
import type { Values } from './values.js'
import type { Closed } from '../types.js'

/** The interface through which a merge reads a source. */
export interface Inlet {
  /** The messages that the source has received. */
  readonly buffer: ReceiveBuffer
  /** Converts messages to values; null: the messages are bytes. */
  readonly values: Values<unknown> | null
  /** Returns the end of the source; only valid once no more messages will arrive. 'closed' also if the peer has only ended its sending. */
  end(): Closed
}

/** Returns the inlet of a value of one kind, or `undefined` for other values. */
type Kind = (value: object) => Inlet | undefined

const kinds: Kind[] = []

/** Adds a kind of source. */
export function registerSource(kind: Kind): void {
  kinds.push(kind)
}

/** Returns the inlet of a value, or `undefined` if the value is not a source. */
export function inletOf(value: unknown): Inlet | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  for (const kind of kinds) {
    const inlet = kind(value)
    if (inlet !== undefined) return inlet
  }
  return undefined
}
