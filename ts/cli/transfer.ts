import { pipeline } from 'node:stream/promises'

import type { Channel } from '../channel/channel.js'
import { RingfenceError, type ErrorName } from '../errors.js'
import { join } from '../endpoint/pair.js'
import { connect } from '../endpoint/service.js'
import type { Closed, Options } from '../types.js'
import { asTimeout } from './exit.js'
import { write, written } from './output.js'
import { Progress } from './progress.js'
import { exposedError, requireOpen, openSource, readUntil, type Source } from './source.js'
import { openTarget } from './target.js'
import { printEvidence } from './text.js'

/** One run of a command at an address. */
export interface Run<RunOptions> {
  address: string
  /** Whether to print each check of the handshake. */
  evidence: boolean
  options: RunOptions
}

/** One run of `send` or `receive`. */
interface Transfer extends Run<Options> {
  /** Standard input or output if undefined. */
  file: string | undefined
}

/** Sends a file or standard input, and waits until the other side has everything. */
export async function send({ address, file, evidence, options }: Transfer): Promise<void> {
  // Before the handshake: a missing file must not involve the peer.
  const source = await openSource(file)
  try {
    const channel = await joinOrConnect(address, options, evidence)
    // Read from the start: if both sides sent and neither read, both would wait for room forever.
    const answer = channel.receive()
    await Promise.race([sendAll(channel, source, answer, file), rejectIfPeerSends(answer, address)])
  } finally {
    await source.close()
  }
}

async function sendAll(channel: Channel, source: Source, answer: Promise<unknown>, file?: string): Promise<void> {
  const size = await source.size()
  const progress = new Progress(size)
  try {
    const over = channel.closed.then((closed) => closeError(closed, 'the receiver has left'))
    for await (const chunk of readUntil(source, over)) {
      await channel.send(chunk)
      progress.add(chunk.length)
    }
    // The receiver must not accept a partial file, so this process exits without ending its sending.
    if (size !== undefined && progress.bytes < size) {
      throw new Error(`${file} has become shorter while it was sent: ${progress.bytes} bytes of ${size}`)
    }
    await channel.end()
    // The receiver ends its side once it has written everything. The channel then closes automatically.
    await answer.catch(() => {})
    const closed = await channel.closed
    // A receiver that disconnects without ending its side has not written everything.
    if (closed.reason !== 'closed')
      throw closeError(closed, 'the receiver left before it had confirmed that it has everything')
  } finally {
    progress.done()
  }
}

/** Rejects if the peer sends something. Must never resolve. The end of the channel is reported by {@link sendAll}. */
async function rejectIfPeerSends(answer: Promise<unknown>, address: string): Promise<never> {
  if ((await answer.catch(() => undefined)) !== undefined)
    throw new RingfenceError('PROTOCOL', `the process at ${address} sends as well, and neither would receive`)
  return new Promise(() => {})
}

/** The error for the end of a channel. */
function closeError({ reason }: Closed, lost: string): RingfenceError {
  if (reason === 'exposed') return exposedError()
  if (reason === 'corrupt')
    return new RingfenceError('RING_CORRUPT', 'the peer violated the protocol of the shared memory')
  return new RingfenceError('PEER_LOST', lost)
}

/** Receives to standard output, or to a file that appears once everything has arrived. */
export async function receive({ address, file, evidence, options }: Transfer): Promise<void> {
  if (file === undefined) requireOpen(1, 'output')
  const target = file === undefined ? undefined : await openTarget(file, options.signal)
  try {
    const channel = await joinPair(address, options, evidence)
    const progress = new Progress(undefined)
    try {
      const chunks = messages(channel, progress)
      // Before this side's end confirms to the sender that everything has arrived.
      if (target === undefined) await print(chunks)
      else {
        // The sink must close the file at its end. Otherwise the file would stay open, and a late failure would not be reported.
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

/** Connects to a receiver as one of a pair. If the address belongs to a service, connects to it as a collector. */
async function joinOrConnect(address: string, options: Options, evidence: boolean): Promise<Channel> {
  try {
    return await joinPair(address, options, evidence)
  } catch (error) {
    if (!hasCode(error, 'PROTOCOL')) throw error
    try {
      return withEvidence(await connect(address, { ...options, allowHalfOpen: true }), evidence)
    } catch (connectError) {
      // The process at the address is neither, or speaks another version.
      throw hasCode(connectError, 'PROTOCOL') ? error : connectError
    }
  }
}

function hasCode(error: unknown, name: ErrorName): boolean {
  return error instanceof RingfenceError && error.code === `ERR_RINGFENCE_${name}`
}

/** Joins a pair. The receiver's end confirms that everything is written, long after the sender's end, so half-open channels are allowed. */
async function joinPair(address: string, options: Options, evidence: boolean): Promise<Channel> {
  return withEvidence(
    await join(address, { ...options, allowHalfOpen: true }).catch(asTimeout(`no process connected to ${address}`)),
    evidence,
  )
}

function withEvidence(channel: Channel, evidence: boolean): Channel {
  if (evidence) printEvidence(`${channel.role}, peer is process ${channel.peer.pid}`, channel.evidence)
  return channel
}

/** Writes to standard output. After a failure, everything that arrived before it is still written. */
async function print(chunks: AsyncIterable<Uint8Array>): Promise<void> {
  try {
    for await (const chunk of chunks) await write([chunk])
  } finally {
    await written()
  }
}

/** The received messages. Does not end the channel at their end, since this side ends it only once everything is written. */
async function* messages(channel: Channel, progress: Progress): AsyncGenerator<Uint8Array> {
  const stream = channel.duplex()
  try {
    for await (const chunk of stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      progress.add(chunk.length)
      yield chunk
    }
  } catch (error) {
    // The stream reports a lost peer with the code of a socket error. Its cause is the channel's own error, which maps to an exit code.
    throw error instanceof Error && error.cause instanceof RingfenceError ? error.cause : error
  }
}
