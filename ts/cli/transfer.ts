import { pipeline } from 'node:stream/promises'

import { cutOff, type Channel } from '../channel/channel.js'
import { RingfenceError, type ErrorName } from '../errors.js'
import { join } from '../endpoint/pair.js'
import { connect } from '../endpoint/service.js'
import type { CloseReason, Options } from '../types.js'
import { write, written } from './output.js'
import { Progress } from './progress.js'
import { exposed, mustBeOpen, openSource, readUntil, type Source } from './source.js'
import { openTarget } from './target.js'
import { evidenceTable } from './text.js'

/** One run of the command line. */
export interface Transfer {
  address: string
  /** Standard input or output where left out. */
  file: string | undefined
  evidence: boolean
  options: Options
}

/** Sends a file, or standard input, and waits until the other side has all of it. */
export async function send({ address, file, evidence, options }: Transfer): Promise<void> {
  // Before the handshake: a file that is missing is no concern of the peer.
  const source = await openSource(file)
  try {
    const channel = await meetOrConnect(address, options, evidence)
    // Asked for at once: of two that send, neither would read, and both would wait for room for ever.
    const answer = channel.receive()
    await Promise.race([sendAll(channel, source, answer, file), mustNotSend(answer, address)])
  } finally {
    await source.close()
  }
}

async function sendAll(channel: Channel, source: Source, answer: Promise<unknown>, file?: string): Promise<void> {
  const size = await source.size()
  const progress = new Progress(size)
  try {
    const over = channel.closed.then((reason) => endedBy(reason, 'the receiver has left'))
    for await (const chunk of readUntil(source, over)) {
      await channel.send(chunk)
      progress.add(chunk.length)
    }
    // The receiver is not to take it for the whole: this process ends without having ended its sending.
    if (size !== undefined && progress.bytes < size) {
      throw new Error(`${file} has become shorter while it was sent: ${progress.bytes} bytes of ${size}`)
    }
    await channel.end()
    // The receiver ends its side once it has written everything; then the channel closes by itself.
    await answer
    const reason = await channel.closed
    // One that closes without that has not.
    if (reason !== 'closed' || cutOff(channel) !== undefined)
      throw endedBy(reason, 'the receiver left before it had said that it has everything')
  } finally {
    progress.done()
  }
}

/** Rejects where the peer sends something. Never resolves. */
async function mustNotSend(answer: Promise<unknown>, address: string): Promise<never> {
  if ((await answer) !== undefined)
    throw new RingfenceError('PROTOCOL', `the process at ${address} sends as well, and neither would receive`)
  return new Promise(() => {})
}

/** What the end of a channel is told as. */
function endedBy(reason: CloseReason, lost: string): RingfenceError {
  if (reason === 'exposed') return exposed()
  if (reason === 'corrupt') return new RingfenceError('RING_CORRUPT', 'the peer has spoilt the shared memory')
  return new RingfenceError('PEER_LOST', lost)
}

/** Receives into a file, which is there once all has come, or to standard output. */
export async function receive({ address, file, evidence, options }: Transfer): Promise<void> {
  if (file === undefined) mustBeOpen(1, 'output')
  const target = file === undefined ? undefined : await openTarget(file, options.signal)
  try {
    const channel = await meet(address, options, evidence)
    const progress = new Progress(undefined)
    try {
      const chunks = messages(channel, progress)
      // Before the sender is told that all is here.
      if (target === undefined) await print(chunks)
      else {
        // It closes the file: one whose stream does not would never be closed, and a later failure never told.
        await pipeline(chunks, target.sink)
        await target.keep()
      }
      await channel.end()
    } finally {
      progress.done()
    }
  } finally {
    await target?.close()
  }
}

/** A receiver, as one of a pair; where a service stands at the address, that is a collector. */
async function meetOrConnect(address: string, options: Options, evidence: boolean): Promise<Channel> {
  try {
    return await meet(address, options, evidence)
  } catch (error) {
    if (!is(error, 'PROTOCOL')) throw error
    try {
      return shown(await connect(address, { ...options, allowHalfOpen: true }), evidence)
    } catch (other) {
      // What stands there is neither, or speaks another version.
      throw is(other, 'PROTOCOL') ? error : other
    }
  }
}

function is(error: unknown, name: ErrorName): boolean {
  return error instanceof RingfenceError && error.code === `ERR_RINGFENCE_${name}`
}

/** The receiver says that all is written by its own end, long after the sender's: so neither ends because the other has. */
async function meet(address: string, options: Options, evidence: boolean): Promise<Channel> {
  const channel = await join(address, { ...options, allowHalfOpen: true }).catch((error: unknown) => {
    const late = error instanceof RingfenceError && error.code === 'ABORT_ERR'
    throw late ? new RingfenceError('TIMEOUT', `no process came to ${address} in time`, { cause: error }) : error
  })
  return shown(channel, evidence)
}

function shown(channel: Channel, evidence: boolean): Channel {
  if (evidence)
    process.stderr.write(`${channel.role}, peer is process ${channel.peer.pid}\n${evidenceTable(channel.evidence)}\n`)
  return channel
}

/** Writes to standard output. Where that fails in the middle, what has come by then is there. */
async function print(chunks: AsyncIterable<Uint8Array>): Promise<void> {
  try {
    for await (const chunk of chunks) await write([chunk])
  } finally {
    await written()
  }
}

/** The stream of the channel would close it once it has ended; what ends it is what has been written. */
async function* messages(channel: Channel, progress: Progress): AsyncGenerator<Uint8Array> {
  const stream = channel.duplex()
  try {
    for await (const chunk of stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      progress.add(chunk.length)
      yield chunk
    }
  } catch (error) {
    // A lost peer has the code of a socket there; the cause is the channel's own error, which has an exit code.
    throw error instanceof Error && error.cause instanceof RingfenceError ? error.cause : error
  }
}
