// Standard output: every command writes there through this module alone.

import { once } from 'node:events'
import { fstatSync, writeSync } from 'node:fs'
import { Writable } from 'node:stream'

/** null: standard output is no file. */
let file: Writable | null | undefined

/**
 * The stream of standard output. If it is a file, Node's own stream takes a partial write (a disk that gets full, RLIMIT_FSIZE) for a
 * whole one. This stream writes the remainder, or fails with the reason.
 */
export function output(): Writable {
  if (file === undefined) file = fstatSync(1).isFile() ? new Writable({ write: writeToFile }) : null
  return file ?? process.stdout
}

/** Writes at once, as Node does: a signal that ends this process loses nothing. */
function writeToFile(bytes: Buffer, _encoding: unknown, done: (error?: Error) => void): void {
  try {
    for (let at = 0; at < bytes.length;) at += writeSync(1, bytes, at)
    done()
  } catch (error) {
    done(error as Error)
  }
}

/** Writes text for people or programs. A write that fails ends the process: see ts/cli.ts. */
export function print(text: string): void {
  output().write(text)
}

/** Writes parts, all of them before it waits. Resolves once there is room for more. */
export async function write(parts: Iterable<Uint8Array>): Promise<void> {
  let goesOn = true
  for (const part of parts) goesOn = output().write(part)
  if (!goesOn) await once(output(), 'drain')
}

/** Resolves once everything is written: an exit before that would lose what waits for a slow reader. */
export function written(): Promise<void> {
  return new Promise((resolve, reject) => output().write('', (error) => (error ? reject(error) : resolve())))
}
