// Standard output: what has come is written there, and how far that is.

import { once } from 'node:events'
import { fstatSync, writeSync } from 'node:fs'
import { Writable } from 'node:stream'

/** null: it is no file. */
let file: Writable | null | undefined

/**
 * Where what has come is written. Node's own stream of a standard output that is a file takes one write that had no room for all of it
 * (write(2): a disk that gets full, RLIMIT_FSIZE) for the whole. This one writes the rest, or is told why it cannot.
 */
export function output(): Writable {
  if (file === undefined) file = fstatSync(1).isFile() ? new Writable({ write: writeToFile }) : null
  return file ?? process.stdout
}

/** At once, as Node does: a signal that ends this process loses nothing. */
function writeToFile(bytes: Buffer, _encoding: unknown, done: (error?: Error) => void): void {
  try {
    for (let at = 0; at < bytes.length;) at += writeSync(1, bytes, at)
    done()
  } catch (error) {
    done(error as Error)
  }
}

/** Writes parts, all of them before it waits. Resolves once there is room for more. */
export async function write(parts: Iterable<Uint8Array>): Promise<void> {
  let goesOn = true
  for (const part of parts) goesOn = output().write(part)
  if (!goesOn) await once(output(), 'drain')
}

/** Resolves once all is written. What waits for a slow reader would be lost where this process ended before. */
export function written(): Promise<void> {
  return new Promise((resolve, reject) => output().write('', (error) => (error ? reject(error) : resolve())))
}
