// Standard output. All commands write to it through this module.

import { once } from 'node:events'
import { fstatSync, writeSync } from 'node:fs'
import { Writable } from 'node:stream'

/** null if standard output is not a regular file. */
let file: Writable | null | undefined

/**
 * The stream of standard output. For a file, Node's own stream treats a partial write (a full disk, RLIMIT_FSIZE) as a complete one. This
 * stream writes the remainder, or fails with the reason.
 */
export function output(): Writable {
  if (file === undefined) file = fstatSync(1).isFile() ? new Writable({ write: writeToFile }) : null
  return file ?? process.stdout
}

/** Writes synchronously, like Node, so that a signal that terminates this process loses nothing. */
function writeToFile(bytes: Buffer, _encoding: unknown, done: (error?: Error) => void): void {
  try {
    for (let at = 0; at < bytes.length;) at += writeSync(1, bytes, at)
    done()
  } catch (error) {
    done(error as Error)
  }
}

/** Writes text for people or programs. A failed write ends the process: see ts/cli.ts. */
export function print(text: string): void {
  output().write(text)
}

export function printJson(value: unknown, indent = 2): void {
  print(`${JSON.stringify(value, null, indent)}\n`)
}

/** Writes all parts before it waits. Resolves once there is room for more. */
export async function write(parts: Iterable<Uint8Array>): Promise<void> {
  let hasRoom = true
  for (const part of parts) hasRoom = output().write(part)
  if (!hasRoom) await once(output(), 'drain')
}

/** Resolves once everything is written. An earlier exit would lose output that waits for a slow reader. */
export function written(): Promise<void> {
  return new Promise((resolve, reject) => output().write('', (error) => (error ? reject(error) : resolve())))
}
