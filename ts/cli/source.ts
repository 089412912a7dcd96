// What is sent or published: a file, a FIFO or standard input.

import { constants, fstatSync, readFileSync, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import type { Readable } from 'node:stream'

import { RingfenceError } from '../errors.js'
import { UsageError } from './exit.js'
import { isFifo, readFifo } from './fifo.js'

const NAME_A_FILE = 'name a FILE (/dev/null where that is meant)'

/** Bytes read from a file at a time. */
const CHUNK = 256 * 1024

/** What is sent. */
export interface Source {
  /** Bytes, where that is known. */
  size(): Promise<number | undefined>
  read(): Readable
  close(): Promise<void>
}

/** Before any peer is met: a file that is missing, or cannot be read, is no concern of theirs. */
export async function openSource(path: string | undefined): Promise<Source> {
  const size = async () => undefined
  if (path === undefined) {
    mustBeOpen(0, 'input')
    return { size, read: () => process.stdin, close: async () => {} }
  }
  if (await isFifo(path)) {
    const fifo = readFifo(path)
    return { size, read: () => fifo, close: async () => void fifo.destroy() }
  }
  const file = await open(path, 'r')
  // A directory can be opened, and the first read of it fails.
  if ((await file.stat()).isDirectory()) {
    await file.close()
    throw new Error(`${path} is a directory: \`tar c ${path} | ringfence send …\` sends what is in it`)
  }
  return {
    size: async () => {
      const stat = await file.stat()
      return stat.isFile() ? stat.size : undefined
    },
    read: () => file.createReadStream({ highWaterMark: CHUNK }),
    close: () => file.close(),
  }
}

/**
 * What is read, to its end.
 *
 * @param over - Why nobody is there to have it any more, once that is so: standard input must not be waited for then.
 */
export async function* readUntil(source: Source, over: Promise<Error | undefined>): AsyncGenerator<Buffer> {
  const stream = source.read()
  let reading = true
  void over.then((why) => {
    // Of one that was read to its end the error would be told to nobody.
    if (reading && why !== undefined) stream.destroy(why)
  })
  try {
    yield* stream as AsyncIterable<Buffer>
  } finally {
    reading = false
  }
}

export function exposed(): RingfenceError {
  return new RingfenceError('OBJECT_EXPOSED', 'another process tried to open the shared memory, which was wiped')
}

/**
 * Node opens /dev/null, to read and to write, in place of a standard descriptor that is closed. What is received would be lost, and
 * nothing would be sent as if that was all. A shell's `>/dev/null` and `</dev/null` open it for one of the two.
 */
export function mustBeOpen(fd: 0 | 1, what: 'input' | 'output', remedy = NAME_A_FILE): void {
  if (fstatSync(fd).rdev !== statSync('/dev/null').rdev) return
  const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0'
  if ((Number.parseInt(flags, 8) & constants.O_RDWR) === 0) return
  throw new UsageError(`standard ${what} is closed: ${remedy}`)
}
