// Standard output: what has come is written there, and how far that is.

import { once } from 'node:events'

/** Writes parts, all of them before it waits. Resolves once there is room for more. */
export async function write(parts: Iterable<Uint8Array>): Promise<void> {
  let goesOn = true
  for (const part of parts) goesOn = process.stdout.write(part)
  if (!goesOn) await once(process.stdout, 'drain')
}

/** Resolves once all is written. What waits for a slow reader would be lost where this process ended before. */
export function written(): Promise<void> {
  return new Promise((resolve) => process.stdout.write('', () => resolve()))
}
