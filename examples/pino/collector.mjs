// Merges the lines of many writers into one file: whole lines, in order for each writer.
//
//     node collector.mjs ADDRESS FILE       SIGTERM or SIGINT: writes what was sent so far, and exits

import { once } from 'node:events'
import { closeSync, openSync, writeSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

import { listen } from 'ringfence'

/** The size of a write to the file, if that many bytes are available. */
const BLOCK = 64 << 10
/** Milliseconds that a stopped collector waits for writers that do not end. */
const PARTING = 5000

/**
 * Appends what the writers log to a file, until it is stopped.
 *
 * @param {string} address
 * @param {string} file - Created if it is missing.
 * @param {object} [options] - Those of `listen`, and
 * @param {AbortSignal} [options.stop] - Stops it: each writer is notified, and its messages up to then are written.
 * @param {() => void} [options.ready] - Called once writers can connect.
 * @returns {Promise<number>} The number of lines that were written.
 */
export async function collect(address, file, { stop, ready, ...options } = {}) {
  const block = new Block(openSync(file, 'a'), fail)
  const writers = new Set()
  let failure = null
  let lines = 0
  // A writer learns that this side has ended while it still sends.
  const listener = await listen(address, { ...options, allowHalfOpen: true }).catch((error) => {
    block.close()
    throw error
  })
  function fail(error) {
    failure ??= error
    void listener.close({ channels: 'close' })
  }
  const end = () => void part(listener, writers)
  if (stop?.aborted) end()
  else stop?.addEventListener('abort', end, { once: true })
  ready?.()
  try {
    for await (const [writer, line] of listener.messages()) {
      if (!writers.has(writer)) welcome(writer, writers, stop)
      // The first message of each writer is empty, and announces the writer.
      if (line.length === 0) continue
      block.add(line)
      lines += 1
    }
    block.flush()
  } finally {
    block.close()
    await listener.close({ channels: 'close' })
  }
  if (failure !== null) throw failure
  return lines
}

function welcome(writer, writers, stop) {
  writers.add(writer)
  void writer.closed.then(() => writers.delete(writer))
  if (stop?.aborted) void writer.end()
}

/** Ends this side for every writer, which then logs to its fallback and ends its own side. */
async function part(listener, writers) {
  await listener.close()
  for (const writer of writers) void writer.end()
  await setTimeout(PARTING, undefined, { ref: false })
  for (const writer of writers) void writer.close()
}

/** Lines to be written to a file after the event loop's turn, in as few calls as possible. */
class Block {
  #fd
  #bytes = Buffer.allocUnsafe(BLOCK)
  #used = 0
  #due = null
  #fail

  constructor(fd, fail) {
    this.#fd = fd
    this.#fail = fail
  }

  add(line) {
    if (this.#used + line.length > BLOCK) this.flush()
    if (line.length > BLOCK) {
      this.#write(line)
      return
    }
    line.copy(this.#bytes, this.#used)
    this.#used += line.length
    this.#due ??= setImmediate(() => this.#flushLater())
  }

  /** A slow or full disk blocks only this process, until the rings are full. */
  flush() {
    clearImmediate(this.#due)
    this.#due = null
    const used = this.#used
    this.#used = 0
    this.#write(this.#bytes.subarray(0, used))
  }

  #flushLater() {
    try {
      this.flush()
    } catch (error) {
      this.#fail(error)
    }
  }

  #write(bytes) {
    for (let at = 0; at < bytes.length;) at += writeSync(this.#fd, bytes, at)
  }

  close() {
    clearImmediate(this.#due)
    closeSync(this.#fd)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [address, file] = process.argv.slice(2)
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM']) void once(process, signal).then(() => stop.abort())
  const lines = await collect(address, file, { stop: stop.signal, ready: () => console.log('ready') })
  console.log(`${lines} lines`)
}
