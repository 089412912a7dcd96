// The stream of a channel by itself: what it asks of its channel, and in which order. duplex.test.ts has one with a peer.

import { insideOf } from './support/inside.js'
import { once } from 'node:events'
import type { Duplex } from 'node:stream'

import test from 'ava'

import { turn } from './support/until.js'

interface Settings {
  allowHalfOpen?: boolean
  maxMessageSize?: number
}

/** What a stream sees of a channel. */
class Told {
  readonly allowHalfOpen: boolean
  readonly maxMessageSize: number
  readonly asked: string[] = []
  readonly sent: Uint8Array[] = []
  bufferedAmount = 0
  due: Promise<void> | null = null
  failure: Error | undefined
  /** What the calls of this name reject with. */
  readonly fails: { send?: Error; end?: Error; close?: Error; readable?: Error } = {}
  readonly messages: Buffer[] = []
  /** Readers that wait; how many did so at once. */
  waiting: (() => void)[] = []
  #over = false

  constructor({ allowHalfOpen = false, maxMessageSize = 2 ** 20 }: Settings) {
    this.allowHalfOpen = allowHalfOpen
    this.maxMessageSize = maxMessageSize
  }

  come(...messages: string[]): void {
    this.messages.push(...messages.map((message) => Buffer.from(message)))
    for (const wake of this.waiting.splice(0)) wake()
  }

  over(failure?: Error): void {
    this.failure = failure
    this.#over = true
    for (const wake of this.waiting.splice(0)) wake()
  }

  async send(message: Uint8Array): Promise<void> {
    if (this.fails.send !== undefined) throw this.fails.send
    this.sent.push(message)
  }

  tryReceive(): Buffer | null {
    return this.messages.shift() ?? null
  }

  async readable(): Promise<boolean> {
    this.asked.push('readable')
    if (this.fails.readable !== undefined) throw this.fails.readable
    while (this.messages.length === 0 && !this.#over) await new Promise<void>((resolve) => this.waiting.push(resolve))
    return this.messages.length > 0
  }

  async end(withPeer: boolean): Promise<void> {
    this.asked.push(withPeer ? 'end with the peer' : 'end')
    if (this.fails.end !== undefined) throw this.fails.end
  }

  async close(): Promise<void> {
    this.asked.push('close')
    this.over()
    if (this.fails.close !== undefined) throw this.fails.close
  }

  cutOff(): Error | undefined {
    return this.failure
  }
}

interface Insides {
  toDuplex(channel: Told): Duplex
}

/** What the package does not export. */
const { toDuplex } = await insideOf<Insides>('duplex.js')

function streamOf(settings: Settings = {}): { told: Told; stream: Duplex; asked: () => string[] } {
  const told = new Told(settings)
  // What was asked since the last look, but for whether there is more.
  const asked = () => told.asked.splice(0).filter((what) => what !== 'readable')
  return { told, stream: toDuplex(told), asked }
}

const sizes = (told: Told) => told.sent.map((message) => message.length)

const written = (stream: Duplex, chunk: Uint8Array) =>
  new Promise<void>((resolve, reject) => {
    stream.write(chunk, (error) => (error ? reject(error) : resolve()))
  })

test('a chunk is sent in pieces that the peer takes, and that are not too long to be read meanwhile', async (t) => {
  const piece = 256 * 1024
  for (const [maxMessageSize, length, expected] of [
    [10, 0, []],
    [10, 9, [9]],
    [10, 10, [10]],
    [10, 11, [10, 1]],
    [10, 30, [10, 10, 10]],
    [2 ** 30, piece, [piece]],
    [2 ** 30, piece + 1, [piece, 1]],
  ] as const) {
    const { told, stream } = streamOf({ maxMessageSize })
    const chunk = Buffer.from(Array.from({ length }, (_, index) => index & 0xff))
    await written(stream, chunk)
    t.deepEqual(sizes(told), [...expected])
    t.true(Buffer.concat(told.sent).equals(chunk))
    stream.destroy()
  }
})

test('a write, and an end, that the channel refuses is the error of the stream', async (t) => {
  for (const call of ['send', 'end'] as const) {
    const { told, stream, asked } = streamOf()
    told.fails[call] = new Error(`no ${call}`)
    const failed = once(stream, 'error')
    if (call === 'send') stream.write('x')
    else stream.end()
    t.deepEqual(await failed, [told.fails[call]])
    t.is(asked().at(-1), 'close')
  }
})

test('what comes is read in order, and nothing of an empty message', async (t) => {
  const { told, stream, asked } = streamOf({ allowHalfOpen: true })
  told.come('one', '', 'two')
  const found: string[] = []
  stream.on('data', (chunk: Buffer) => found.push(String(chunk)))
  await turn()
  told.come('')
  told.come('three', '')
  await turn()
  t.deepEqual(found, ['one', 'two', 'three'])
  const ended = once(stream, 'end')
  told.over()
  await ended
  t.deepEqual(asked(), [], 'this side may send on')
})

test('one wait for more is under way at a time', async (t) => {
  const { told, stream } = streamOf()
  stream.on('data', () => {})
  for (let round = 0; round < 3; round += 1) {
    await turn()
    stream.read(0)
    stream.read(0)
    await turn()
    t.is(told.waiting.length, 1)
    told.come('x')
  }
  stream.destroy()
})

test('a reader that has enough leaves the rest to the channel, and goes on later', async (t) => {
  const { told, stream } = streamOf()
  const large = 'x'.repeat(stream.readableHighWaterMark)
  told.come('first', large, 'third', 'fourth')
  stream.read(0)
  await turn()
  t.deepEqual(told.messages.map(String), ['third', 'fourth'])
  // What it has room for again may come within the call.
  let read = String(stream.read())
  await turn()
  for (let more: unknown = stream.read(); more !== null; more = stream.read()) read += String(more)
  t.true(read === `first${large}thirdfourth`)
  stream.destroy()
})

test('a stream that the event loop is to have a turn before waits for that, and takes nothing if it is destroyed meanwhile', async (t) => {
  for (const destroyed of [false, true]) {
    const { told, stream } = streamOf()
    let go!: () => void
    told.due = new Promise((resolve) => {
      go = resolve
    })
    told.come('one')
    const found: string[] = []
    stream.on('data', (chunk: Buffer) => found.push(String(chunk)))
    await turn()
    t.deepEqual(found, [])
    if (destroyed) stream.destroy()
    told.due = null
    go()
    await turn()
    t.deepEqual(found, destroyed ? [] : ['one'])
    t.is(told.messages.length, destroyed ? 1 : 0)
    stream.destroy()
  }
})

test('a peer that was cut off is an error once everything before it was read', async (t) => {
  const failure = new Error('cut off')
  for (const isSlow of [false, true]) {
    const { told, stream } = streamOf()
    told.come('one')
    const found: string[] = []
    stream.on('error', (error) => found.push(error.message))
    stream.on('end', () => found.push('end'))
    if (isSlow) {
      stream.read(0)
      await turn()
      told.over(failure)
      stream.read(0)
      await turn()
      t.deepEqual(found, [], 'one is not read yet')
      t.is(String(stream.read()), 'one')
    } else {
      stream.on('data', (chunk: Buffer) => found.push(String(chunk)))
      await turn()
      told.over(failure)
    }
    await turn()
    t.deepEqual(found, isSlow ? ['cut off'] : ['one', 'cut off'])
  }
})

test('a read that fails destroys the stream with its error', async (t) => {
  const { told, stream, asked } = streamOf()
  told.fails.readable = new Error('no memory')
  const failed = once(stream, 'error')
  stream.read(0)
  t.deepEqual(await failed, [told.fails.readable])
  t.deepEqual(asked(), ['close'])
})

test('an end says whether it is since the peer has ended', async (t) => {
  for (const allowHalfOpen of [false, true]) {
    const own = streamOf({ allowHalfOpen })
    own.stream.end()
    await once(own.stream, 'finish')
    t.deepEqual(own.asked(), ['end'], 'of its own accord')
    own.stream.destroy()

    const { told, stream, asked } = streamOf({ allowHalfOpen })
    told.over()
    stream.resume()
    await once(stream, 'end')
    if (allowHalfOpen) {
      await turn()
      t.deepEqual(asked(), [])
      stream.end()
    }
    await once(stream, 'finish')
    t.is(asked()[0], allowHalfOpen ? 'end' : 'end with the peer')
    stream.destroy()
  }
})

test('a stream that is destroyed ends its side first where it was read to its end, and nothing waits to be sent', async (t) => {
  for (const [allowHalfOpen, isRead, bufferedAmount, error, expected] of [
    [false, true, 0, null, ['end with the peer', 'close']],
    [true, true, 0, null, ['close']],
    [false, false, 0, null, ['close']],
    [false, true, 1, null, ['close']],
    [false, true, 0, new Error('enough'), ['close']],
  ] as const) {
    const { told, stream, asked } = streamOf({ allowHalfOpen })
    told.bufferedAmount = bufferedAmount
    // The stream must not have come to end its own side before.
    const closed = new Promise((resolve) => stream.once('close', resolve))
    stream.on('error', () => {})
    if (isRead) {
      told.over()
      stream.prependListener('end', () => stream.destroy(error ?? undefined))
      stream.resume()
    } else stream.destroy(error ?? undefined)
    await closed
    t.deepEqual(asked(), [...expected])
  }
})

test('what closing the channel fails with is the error, unless there is one already', async (t) => {
  for (const error of [undefined, new Error('enough')]) {
    const { told, stream } = streamOf()
    told.fails.close = new Error('no close')
    const failed = once(stream, 'error')
    stream.destroy(error)
    t.deepEqual(await failed, [error ?? told.fails.close])
  }
})
