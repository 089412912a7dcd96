// `publish` and `subscribe`: lines or chunks from one process to many.

import { once } from 'node:events'

import { STALL } from '../endpoint/handshake.js'
import { publish as bind, type Publisher } from '../endpoint/publisher.js'
import { subscribe as connect } from '../channel/subscription.js'
import type { Subscriber } from '../endpoint/subscriber.js'
import { settledWithin } from '../runtime/deferred.js'
import { RingfenceError } from '../errors.js'
import type { PublishOptions, SubscribeOptions } from '../types.js'
import { asTimeout } from './exit.js'
import { write, written } from './output.js'
import { requireOpen, openSource, readUntil } from './source.js'
import { printMessage, printEvidence } from './text.js'
import type { Run } from './transfer.js'

/** One run of `publish`. */
interface Publishing extends Run<PublishOptions> {
  /** Standard input if undefined. */
  file: string | undefined
  /** Bytes of a chunk; if undefined, messages are lines. */
  raw: number | undefined
  /** The number of subscribers to wait for before the first message. */
  audience: number
}

/** One run of `subscribe`. */
interface Subscribing extends Run<SubscribeOptions> {
  /** The number of messages after which it ends. */
  count: number
  /** Whether messages are written without a newline after each. */
  raw: boolean
}

const NEWLINE = 0x0a

/**
 * Publishes each line or chunk. Ends once every reliable subscriber has read the last message, or after `stall`. Published messages stay
 * readable after this process has exited, so a slower subscriber loses nothing.
 */
export async function publish({ address, file, raw, audience, evidence, options }: Publishing): Promise<void> {
  const source = await openSource(file)
  try {
    const publisher = await bind(address, options)
    let [published, hasAudience] = [0, false]
    publisher.on('connection', (subscriber) => {
      hasAudience = true
      if (evidence) printEvidence(`subscriber is process ${subscriber.peer.pid}`, subscriber.evidence)
    })
    publisher.on('disconnect', ({ peer }, { reason }) => {
      if (reason === 'evicted') printMessage(`process ${peer.pid} was too slow, and was evicted`)
    })
    publisher.on('refused', (refusal) => printMessage(refusal.message))
    await waitForAudience(audience, publisher)
    const input = readUntil(
      source,
      publisher.closed.then(({ error }) => error),
    )
    const messages = raw === undefined ? lines(input, publisher.maxMessageSize) : chunks(input, raw)
    for await (const message of messages) {
      await publisher.send(message)
      published += 1
    }
    await finish(publisher, options.stall ?? STALL)
    if (published > 0 && !hasAudience)
      printMessage(
        `no process has subscribed: no message (of ${published}) reached a subscriber; --audience 1 waits for a subscriber`,
      )
  } finally {
    await source.close()
  }
}

/** Waits for `audience` subscribers, or until the publisher has closed: then no subscriber can connect any longer. */
async function waitForAudience(audience: number, publisher: Publisher): Promise<void> {
  let isClosed = false
  const closed = publisher.closed.then(({ error }) => {
    isClosed = true
    if (error !== undefined) throw error
  })
  closed.catch(() => {})
  while (!isClosed && publisher.subscribers.length < audience)
    await Promise.race([once(publisher, 'connection'), closed])
}

async function finish(publisher: Publisher, stall: number): Promise<void> {
  // Starts before the publisher's own time, after which it has no subscribers left to name.
  const haveRead = settledWithin(stall, reliableHaveRead(publisher))
  await publisher.end()
  await haveRead
  for (const { peer } of reliableSubscribers(publisher))
    printMessage(`process ${peer.pid} has not read everything after ${stall / 1000} s; it can still read the remainder`)
  await publisher.close()
  const { error } = await publisher.closed
  if (error !== undefined) throw error
}

/** Resolves once each reliable subscriber has read everything or has disconnected. */
async function reliableHaveRead(publisher: Publisher): Promise<void> {
  while (reliableSubscribers(publisher).length > 0) await once(publisher, 'disconnect')
}

function reliableSubscribers(publisher: Publisher): Subscriber[] {
  return publisher.subscribers.filter(({ delivery }) => delivery === 'reliable')
}

/** Whole lines without their newline. Bytes after the last newline, if any, are a line too. */
export async function* lines(input: AsyncIterable<Buffer>, longest: number): AsyncGenerator<Buffer> {
  let parts: Buffer[] = []
  let length = 0
  const add = (part: Buffer) => {
    length += part.length
    if (length > longest)
      throw new RingfenceError(
        'MESSAGE_TOO_LARGE',
        `a line has more than ${longest} bytes, which is what a message may have here: take a larger --capacity (a message is at ` +
          'most an eighth of it), or --raw',
      )
    parts.push(part)
  }
  for await (const chunk of input) {
    let at = 0
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, at)) {
      add(chunk.subarray(at, end))
      yield parts.length === 1 ? parts[0]! : Buffer.concat(parts)
      parts = []
      length = 0
      at = end + 1
    }
    if (at < chunk.length) add(chunk.subarray(at))
  }
  if (length > 0) yield Buffer.concat(parts)
}

/** Pieces of at most `size` bytes, as soon as they arrive, so that output of a terminal or a log is not delayed. */
async function* chunks(input: AsyncIterable<Buffer>, size: number): AsyncGenerator<Buffer> {
  for await (const chunk of input) for (let at = 0; at < chunk.length; at += size) yield chunk.subarray(at, at + size)
}

/** Writes each message to standard output, until the publisher has ended or `count` messages have arrived. */
export async function subscribe({ address, count, raw, evidence, options }: Subscribing): Promise<void> {
  requireOpen(1, 'output', 'open it (>/dev/null where that is meant)')
  await using subscription = await connect(address, options).catch(asTimeout(`no process published at ${address}`))
  if (evidence) printEvidence(`publisher is process ${subscription.peer.pid}`, subscription.evidence)
  let left = count
  const newline = Buffer.from('\n')
  try {
    while (left > 0) {
      const message = await subscription.receive()
      if (message === undefined) break
      left -= 1
      // A single write keeps the lines of several writers to one pipe whole.
      await write([raw ? message : Buffer.concat([message, newline])])
    }
  } finally {
    // Messages that arrived before a failure must still be written.
    await written()
  }
  const { lost } = subscription
  if (lost > 0n) printMessage(`${lost} messages were skipped`)
}
