// The input of `send` and `publish`: a file, a FIFO or standard input.

import { constants, fstatSync, readFileSync, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import type { Readable } from 'node:stream'

import { RingfenceError } from '../errors.js'
import { UsageError } from './exit.js'
import { isFifo, readFifo } from './fifo.js'

const NAME_A_FILE = 'name a FILE (/dev/null where that is meant)'

/** Bytes read from a file at a time. */
const CHUNK = 256 * 1024

/** The data to send. */
export interface Source {
  /** The number of bytes, if known. */
  size(): Promise<number | undefined>
  read(): Readable
  close(): Promise<void>
}

/** Opens a source. Call it before any handshake: a missing or unreadable file must not involve a peer. */
export async function openSource(path: string | undefined): Promise<Source> {
  const size = async () => undefined
  if (path === undefined) {
    requireOpen(0, 'input')
    return { size, read: () => process.stdin, close: async () => {} }
  }
  if (await isFifo(path)) {
    const fifo = readFifo(path)
    return { size, read: () => fifo, close: async () => void fifo.destroy() }
  }
  const file = await open(path, 'r')
  // Opening a directory succeeds, and only the first read fails.
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
 * Reads a source to its end.
 *
 * @param over - Resolves once the destination has ended. If it resolves with an error, reading fails with it, and does not wait for
 *   standard input.
 */
export async function* readUntil(source: Source, over: Promise<Error | undefined>): AsyncGenerator<Buffer> {
  const stream = source.read()
  let reading = true
  void over.then((error) => {
    // Once the stream was read to its end, no handler is left for the error.
    if (reading && error !== undefined) stream.destroy(error)
  })
  try {
    yield* stream as AsyncIterable<Buffer>
  } finally {
    reading = false
  }
}

export function exposedError(): RingfenceError {
  return new RingfenceError('OBJECT_EXPOSED', 'another process tried to open the shared memory, which was wiped')
}

/**
 * Throws if a standard descriptor was closed when this process started. Node then opens /dev/null for reading and writing in its place:
 * received data would be lost, or an empty input would be sent. A shell's `>/dev/null` and `</dev/null` open it for only one of the two.
 */
export function requireOpen(fd: 0 | 1, what: 'input' | 'output', remedy = NAME_A_FILE): void {
  if (fstatSync(fd).rdev !== statSync('/dev/null').rdev) return
  const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0'
  if ((Number.parseInt(flags, 8) & constants.O_RDWR) === 0) return
  throw new UsageError(`standard ${what} is closed: ${remedy}`)
}
