// The registry of sources for merges. Each class with messages registers here how a merge accesses them, so that neither side imports the
// other.

import type { ReceiveBuffer } from './receive-buffer.js'
import type { Values } from './values.js'
import type { Closed } from '../types.js'

/** The interface through which a merge reads a source. */
export interface MergeInput {
  /** The messages that the source has received. */
  readonly buffer: ReceiveBuffer
  /** Converts messages to values; null: the messages are bytes. */
  readonly values: Values<unknown> | null
  /** Returns the end of the source; only valid once no more messages will arrive. 'closed' also if the peer has only ended its sending. */
  end(): Closed
}

/** Returns the input of a value of one kind, or `undefined` for other values. */
type SourceKind = (value: object) => MergeInput | undefined

const sourceKinds: SourceKind[] = []

/** Adds a kind of source. */
export function registerSource(kind: SourceKind): void {
  sourceKinds.push(kind)
}

/** Returns the input of a value, or `undefined` if the value is not a source. */
export function mergeInputOf(value: unknown): MergeInput | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  for (const kind of sourceKinds) {
    const input = kind(value)
    if (input !== undefined) return input
  }
  return undefined
}
