// Unit tests of the stream of a channel: what it calls on its channel, and in which order. duplex.test.ts uses it with
// a peer.

import { internals } from './support/internals.js'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'

import test from 'ava'

import { turn } from './support/until.js'

interface Settings {
  allowHalfOpen?: boolean
  maxMessageSize?: number
  maxAtOnce?: number
}

/** A fake channel, as far as a stream uses one. */
class FakeChannel {
  readonly allowHalfOpen: boolean
  readonly maxMessageSize: number
  readonly maxAtOnce: number
  readonly calls: string[] = []
  readonly sent: Uint8Array[] = []
  /** The number of messages for which there is room. */
  room = Infinity
  #wakeSenders: (() => void)[] = []
  due: Promise<void> | null = null
  isClosed = false
  failure: Error | undefined
  /** The errors with which calls of these names reject. */
  readonly fails: { send?: Error; end?: Error; destroy?: Error; waitReadable?: Error } = {}
  readonly messages: Buffer[] = []
  waiting: { reader: object | null; wake(): void }[] = []
  #over = false

  // A stream uses these parts of a channel. Here one object is all of them.
  readonly native = this
  readonly queue = this
  readonly buffer = this

  constructor({ allowHalfOpen = false, maxMessageSize = 2 ** 30, maxAtOnce = 2 ** 29 }: Settings) {
    this.allowHalfOpen = allowHalfOpen
    this.maxMessageSize = maxMessageSize
    this.maxAtOnce = maxAtOnce
  }

  /** The peer reads: there is room for `count` more messages. */
  makeRoom(count = Infinity): void {
    this.room += count
    for (const wake of this.#wakeSenders.splice(0)) wake()
  }

  push(...messages: string[]): void {
    this.messages.push(...messages.map((message) => Buffer.from(message)))
    for (const { wake } of this.waiting.splice(0)) wake()
  }

  over(failure?: Error): void {
    this.failure = failure
    this.#over = true
    for (const { wake } of this.waiting.splice(0)) wake()
  }

  trySend(message: Uint8Array): boolean {
    if (this.fails.send !== undefined) throw this.fails.send
    if (message.length > Math.min(this.maxMessageSize, this.maxAtOnce)) throw new Error('the message is too long')
    if (this.room === 0) return false
    this.room -= 1
    this.sent.push(message)
    return true
  }

  async send(message: Uint8Array): Promise<void> {
    while (!this.trySend(message)) await new Promise<void>((resolve) => this.#wakeSenders.push(resolve))
  }

  takeNow(): Buffer | null {
    return this.messages.shift() ?? null
  }

  async waitReadable(_signal: undefined, reader: object | null): Promise<boolean> {
    this.calls.push('waitReadable')
    if (this.fails.waitReadable !== undefined) throw this.fails.waitReadable
    while (this.messages.length === 0 && !this.#over)
      await new Promise<void>((wake) => this.waiting.push({ reader, wake }))
    if (this.messages.length === 0 && this.failure !== undefined) throw this.failure
    return this.messages.length > 0
  }

  async end(afterPeer: boolean): Promise<void> {
    this.calls.push(afterPeer ? 'end with the peer' : 'end')
    if (this.fails.end !== undefined) throw this.fails.end
  }

  destroy(): void {
    this.calls.push('destroy')
    this.over()
    this.fails.send ??= new Error('the channel is closed')
    this.makeRoom(0)
    if (this.fails.destroy !== undefined) throw this.fails.destroy
  }

  keepAlive(alive: boolean): void {
    this.calls.push(alive ? 'ref' : 'unref')
  }
}

interface Insides {
  toDuplex(channel: FakeChannel): Duplex
}

/** Not exported by the package. */
const { toDuplex } = await internals<Insides>('adapters/duplex.js')

function streamOf(settings: Settings = {}): { fake: FakeChannel; stream: Duplex; calls: () => string[] } {
  const fake = new FakeChannel(settings)
  // The calls since the last check, except waits for messages.
  const calls = () => fake.calls.splice(0).filter((what) => what !== 'waitReadable')
  return { fake, stream: toDuplex(fake), calls }
}

const sizes = (fake: FakeChannel) => fake.sent.map((message) => message.length)

const written = (stream: Duplex, chunk: Uint8Array) =>
  new Promise<void>((resolve, reject) => {
    stream.write(chunk, (error) => (error ? reject(error) : resolve()))
  })

test('a chunk is sent in pieces that are neither too long for the peer nor for a turn of the event loop', async (t) => {
  const piece = 256 * 1024
  const large = 2 ** 30
  for (const [maxMessageSize, maxAtOnce, length, expected] of [
    [10, large, 0, []],
    [10, large, 9, [9]],
    [10, large, 10, [10]],
    [10, large, 11, [10, 1]],
    [10, large, 30, [10, 10, 10]],
    [large, 10, 11, [10, 1]],
    [large, large, piece, [piece]],
    [large, large, piece + 1, [piece, 1]],
  ] as const) {
    for (const room of [Infinity, 0, 1]) {
      const { fake, stream } = streamOf({ maxMessageSize, maxAtOnce })
      fake.room = room
      const chunk = Buffer.from(Array.from({ length }, (_, index) => index & 0xff))
      const through = written(stream, chunk)
      if (room === Infinity) t.deepEqual(sizes(fake), [...expected], 'they are sent within the call')
      await turn()
      fake.makeRoom()
      await through
      t.deepEqual(sizes(fake), [...expected])
      t.true(Buffer.concat(fake.sent).equals(chunk))
      stream.destroy()
    }
  }
})

test('waiting writes are combined, and split if necessary', async (t) => {
  for (const [sent, expected] of [
    [[1, 2, 3], [6]],
    [
      [5, 5, 1],
      [10, 1],
    ],
    [
      [5, 6, 1],
      [5, 7],
    ],
    [
      [3, 25, 3],
      [3, 10, 10, 5, 3],
    ],
    [[0, 0], []],
    [
      [10, 10],
      [10, 10],
    ],
  ] as const) {
    const { fake, stream } = streamOf({ maxMessageSize: 10 })
    stream.cork()
    const chunks = sent.map((length, number) => Buffer.alloc(length, number + 1))
    const through = Promise.all(chunks.map((chunk) => written(stream, chunk)))
    t.deepEqual(sizes(fake), [])
    stream.uncork()
    t.deepEqual(sizes(fake), [...expected])
    t.true(Buffer.concat(fake.sent).equals(Buffer.concat(chunks)))
    await through
    stream.destroy()
  }
})

test('data written before a destroy is sent, wherever it waits, and then the end', async (t) => {
  const ways: Record<string, (stream: Duplex, fake: FakeChannel) => unknown> = {
    'there is room': (stream) => {
      stream.write('a')
      stream.write('b')
    },
    'there is room for one': (stream, fake) => {
      fake.room = 1
      for (const text of ['a', 'b']) stream.write(text)
    },
    'there is no room': (stream, fake) => {
      fake.room = 0
      for (const text of ['a', '', 'b']) stream.write(text)
    },
    'there is no room, and the first waits alone': (stream, fake) => {
      fake.room = 0
      stream.write('ab')
    },
    'it is corked': (stream) => {
      stream.cork()
      stream.cork()
      for (const text of ['a', 'b']) stream.write(text)
    },
    'it is corked, and there is no room': (stream, fake) => {
      fake.room = 0
      stream.write('a')
      stream.cork()
      stream.write('b')
    },
    'it was ended': (stream, fake) => {
      fake.room = 0
      stream.write('a')
      stream.end('b')
    },
  }
  for (const [what, write] of Object.entries(ways)) {
    const { fake, stream, calls } = streamOf()
    const text = () => Buffer.concat(fake.sent).toString()
    stream.on('error', (error) => t.fail(`${what}: ${error.message}`))
    stream.on('drain', () => t.fail(`${what}: a destroyed stream asks for more`))
    write(stream, fake)
    const closed = once(stream, 'close')
    stream.destroy()
    t.true(stream.destroyed)
    stream.write('late')
    for (let number = 0; number < 2; number += 1) {
      await turn()
      if (text() !== 'ab') t.deepEqual(calls(), [], `${what}: it waits for room`)
      fake.makeRoom(1)
    }
    await closed
    t.is(text(), 'ab', what)
    t.deepEqual(calls(), ['end', 'destroy'], what)
  }
})

test('a write that cannot be sent after a destroy gets the error', async (t) => {
  const { fake, stream, calls } = streamOf()
  fake.room = 0
  const errors: (string | undefined)[] = []
  for (const text of ['a', 'b', 'c']) stream.write(text, (error) => errors.push(error?.message))
  stream.destroy()
  fake.fails.send = new Error('the peer is gone')
  fake.makeRoom()
  await once(stream, 'close')
  // The first write was passed on before the stream was destroyed.
  t.deepEqual(errors, [undefined, 'the peer is gone', 'the peer is gone'])
  t.deepEqual(calls(), ['destroy'])
  t.is(fake.sent.length, 0)
})

test('a stream that is written to without a pause lets the event loop turn', async (t) => {
  const { stream } = streamOf()
  let turned = 0
  let over = false
  void (async () => {
    for (; !over; turned += 1) await turn()
  })()
  // The stream yields after two milliseconds of writing.
  for (let count = 0; turned < 3 && count < 300_000; count += 1) await written(stream, Buffer.alloc(10))
  over = true
  t.true(turned > 2, `it turned ${turned} times`)
  stream.destroy()
})

test('a write or an end that the channel refuses is the error of the stream', async (t) => {
  for (const call of ['send', 'end'] as const) {
    const { fake, stream, calls } = streamOf()
    fake.fails[call] = new Error(`no ${call}`)
    const failed = once(stream, 'error')
    if (call === 'send') stream.write('x')
    else stream.end()
    t.deepEqual(await failed, [fake.fails[call]])
    t.is(calls().at(-1), 'destroy')
  }
})

test('messages are read in order, and empty ones are skipped', async (t) => {
  const { fake, stream, calls } = streamOf({ allowHalfOpen: true })
  fake.push('one', '', 'two')
  const found: string[] = []
  stream.on('data', (chunk: Buffer) => found.push(String(chunk)))
  await turn()
  fake.push('')
  fake.push('three', '')
  await turn()
  t.deepEqual(found, ['one', 'two', 'three'])
  const ended = once(stream, 'end')
  fake.over()
  await ended
  t.deepEqual(calls(), [], 'this side may send on')
})

test('only one wait for messages is pending at a time', async (t) => {
  const { fake, stream } = streamOf()
  stream.on('data', () => {})
  for (let round = 0; round < 3; round += 1) {
    await turn()
    stream.read(0)
    stream.read(0)
    await turn()
    t.is(fake.waiting.filter(({ reader }) => reader === stream).length, 1)
    fake.push('x')
  }
  stream.destroy()
})

test('a full read buffer leaves messages in the channel, and reading goes on later', async (t) => {
  const { fake, stream } = streamOf()
  const large = 'x'.repeat(stream.readableHighWaterMark)
  fake.push('first', large, 'third', 'fourth')
  stream.read(0)
  await turn()
  t.deepEqual(fake.messages.map(String), ['third', 'fourth'])
  // The stream may fetch more within the call of `read`.
  let read = String(stream.read())
  await turn()
  for (let more: unknown = stream.read(); more !== null; more = stream.read()) read += String(more)
  t.true(read === `first${large}thirdfourth`)
  stream.destroy()
})

test('a stream that yields to the event loop reads nothing in the meantime, and nothing at all if it is destroyed', async (t) => {
  for (const destroyed of [false, true]) {
    const { fake, stream } = streamOf()
    let go!: () => void
    fake.due = new Promise((resolve) => {
      go = resolve
    })
    fake.push('one')
    const found: string[] = []
    stream.on('data', (chunk: Buffer) => found.push(String(chunk)))
    await turn()
    t.deepEqual(found, [])
    if (destroyed) stream.destroy()
    fake.due = null
    go()
    await turn()
    t.deepEqual(found, destroyed ? [] : ['one'])
    t.is(fake.messages.length, destroyed ? 1 : 0)
    stream.destroy()
  }
})

test('a peer that was cut off is an error once everything before it was read', async (t) => {
  const failure = Object.assign(new Error('cut off'), { code: 'ERR_RINGFENCE_PEER_LOST' })
  for (const isSlow of [false, true]) {
    const { fake, stream } = streamOf()
    fake.push('one')
    const found: string[] = []
    stream.on('error', (error) => found.push(error.message))
    stream.on('end', () => found.push('end'))
    if (isSlow) {
      stream.read(0)
      await turn()
      fake.over(failure)
      stream.read(0)
      await turn()
      t.deepEqual(found, [], 'one is not read yet')
      t.is(String(stream.read()), 'one')
    } else {
      stream.on('data', (chunk: Buffer) => found.push(String(chunk)))
      await turn()
      fake.over(failure)
    }
    await turn()
    t.deepEqual(found, isSlow ? ['read ECONNRESET: cut off'] : ['one', 'read ECONNRESET: cut off'])
  }
})

test('a paused stream ends, if all was read', async (t) => {
  const { fake, stream } = streamOf()
  fake.push('one')
  await once(stream, 'data')
  stream.pause()
  fake.over()
  await once(stream, 'end')
  t.true(stream.isPaused())
})

test('a stream that is not read has the end, clean or not, if the program listens and no message is left', async (t) => {
  const failure = Object.assign(new Error('cut off'), { code: 'ERR_RINGFENCE_PEER_LOST' })
  for (const [lost, event] of [
    [undefined, 'end'],
    [failure, 'error'],
  ] as const) {
    const { fake, stream } = streamOf()
    const found: string[] = []
    for (const each of ['end', 'error']) stream.on(each, () => found.push(each))
    await turn()
    fake.over(lost)
    await new Promise((resolve) => stream.on('close', resolve))
    t.deepEqual(found, [event])
  }
  for (const [messages, listens] of [
    [[], false],
    [['one'], true],
  ] as const) {
    const { fake, stream } = streamOf()
    if (listens) stream.on('error', () => {})
    fake.push(...messages)
    fake.over(failure)
    await turn()
    t.is(stream.errored, null)
    t.is(fake.messages.length, messages.length)
    await t.throwsAsync(stream.toArray(), { code: 'ECONNRESET' } as object)
  }
})

test('a stream that is not read stays open while a merge reads its channel, or there is no memory for a message', async (t) => {
  for (const code of ['ERR_RINGFENCE_INVALID_ARGUMENT', 'ERR_RINGFENCE_NO_SPACE']) {
    const { fake, stream } = streamOf()
    stream.on('error', (error) => t.fail(error.message))
    fake.fails.waitReadable = Object.assign(new Error('not now'), { code })
    await turn()
    t.deepEqual(fake.calls, ['waitReadable'])
    await written(stream, Buffer.from('x'))
    t.is(fake.sent.length, 1)
    stream.destroy()
  }
})

test('this side closing the channel ends the stream, also one that is not read', async (t) => {
  for (const isRead of [true, false]) {
    const { fake, stream } = streamOf()
    fake.fails.waitReadable = new Error('closed')
    fake.isClosed = true
    stream.on('error', (error) => t.fail(error.message))
    if (isRead) stream.resume()
    await once(stream, 'end')
    t.is(stream.errored, null)
  }
})

test('a read that fails destroys the stream with its error', async (t) => {
  const { fake, stream, calls } = streamOf()
  fake.fails.waitReadable = new Error('no memory')
  const failed = once(stream, 'error')
  stream.read(0)
  t.deepEqual(await failed, [fake.fails.waitReadable])
  t.deepEqual(calls(), ['destroy'])
})

test('an end says whether it follows the end of the peer', async (t) => {
  for (const allowHalfOpen of [false, true]) {
    const own = streamOf({ allowHalfOpen })
    own.stream.end()
    await once(own.stream, 'finish')
    t.deepEqual(own.calls(), ['end'], 'of its own accord')
    own.stream.destroy()

    const { fake, stream, calls } = streamOf({ allowHalfOpen })
    fake.over()
    stream.resume()
    await once(stream, 'end')
    if (allowHalfOpen) {
      await turn()
      t.deepEqual(calls(), [])
      stream.end()
    }
    await once(stream, 'finish')
    t.is(calls()[0], allowHalfOpen ? 'end' : 'end with the peer')
    stream.destroy()
  }
})

test('a destroyed stream ends its side, unless it has an error', async (t) => {
  for (const [allowHalfOpen, isRead, error, expected] of [
    [false, true, null, ['end with the peer', 'destroy']],
    [true, true, null, ['end', 'destroy']],
    [false, false, null, ['end', 'destroy']],
    [false, true, new Error('enough'), ['destroy']],
    [false, false, new Error('enough'), ['destroy']],
  ] as const) {
    const { fake, stream, calls } = streamOf({ allowHalfOpen })
    // The stream must not have ended its own side before.
    const closed = new Promise((resolve) => stream.once('close', resolve))
    stream.on('error', () => {})
    if (isRead) {
      fake.over()
      stream.prependListener('end', () => stream.destroy(error ?? undefined))
      stream.resume()
    } else stream.destroy(error ?? undefined)
    await closed
    t.deepEqual(calls(), [...expected])
  }
})

test('an idle stream reports that, each time that it becomes idle', async (t) => {
  // Neither the timer of a stream nor a channel over a fake binding keeps the process alive.
  const alive = setInterval(() => {}, 60_000)
  t.teardown(() => clearInterval(alive))
  const { fake, stream } = streamOf()
  let count = 0
  const first = new Promise((resolve) => stream.once('timeout', resolve))
  t.is(
    (stream as unknown as Socket).setTimeout(20, () => (count += 1)),
    stream as never,
  )
  await first
  t.is(count, 1)
  for (const act of [() => stream.write('x'), () => (stream.resume(), fake.push('y'))]) {
    const again = new Promise((resolve) => stream.once('timeout', resolve))
    act()
    await again
  }
  t.is(count, 1, 'the listener is for one time, as with a socket')
  stream.on('timeout', () => t.fail('it has no timeout'))
  const other = streamOf().stream as unknown as Socket
  other.setTimeout(1)
  ;(stream as unknown as Socket).setTimeout(0)
  other.setTimeout(20)
  await once(other, 'timeout')
  stream.write('x')
  ;(stream as unknown as Socket).setTimeout(1)
  stream.destroy()
  other.setTimeout(20)
  await once(other, 'timeout')
  other.destroy()
})

test('a stream has the methods that HTTP agents call on a socket', (t) => {
  const { fake, stream, calls } = streamOf()
  const socket = stream as unknown as Socket
  t.is(socket.setKeepAlive(true, 1000).setNoDelay(true).ref().unref(), socket)
  t.deepEqual(calls(), ['ref', 'unref'])
  t.deepEqual(fake.sent, [])
  stream.destroy()
})

test('a stream has the state of a socket', async (t) => {
  const states = ({ stream, fake }: ReturnType<typeof streamOf>) => {
    const socket = stream as unknown as Socket
    const ended = new Promise((resolve) => stream.on('end', resolve))
    return {
      state: () => socket.readyState,
      end: () => void socket.end(),
      async over() {
        fake.over()
        stream.resume()
        await ended
      },
    }
  }
  const writer = states(streamOf({ allowHalfOpen: true }))
  t.is(writer.state(), 'open')
  await writer.over()
  t.is(writer.state(), 'writeOnly')
  writer.end()
  t.is(writer.state(), 'closed')
  const reader = states(streamOf({ allowHalfOpen: true }))
  reader.end()
  t.is(reader.state(), 'readOnly')
  await reader.over()
  t.is(reader.state(), 'closed')
})

test('a stream counts its bytes as a socket does', async (t) => {
  const { fake, stream } = streamOf()
  const socket = stream as unknown as Socket
  const counts = () => [socket.bytesRead, socket.bytesWritten]
  t.deepEqual(counts(), [0, 0])
  await written(stream, Buffer.alloc(3))
  t.deepEqual(counts(), [0, 3])
  fake.room = 0
  const last = ['ab', 'ä'].map((text) => written(stream, Buffer.from(text)))
  stream.cork()
  stream.write('e282ac', 'hex')
  t.deepEqual(counts(), [0, 10], 'with those that wait')
  stream.uncork()
  fake.makeRoom()
  await Promise.all(last)
  t.deepEqual(counts(), [0, 10])
  fake.push('one', '', 'three')
  stream.resume()
  await turn()
  t.deepEqual(counts(), [8, 10])
  stream.destroy()
  await once(stream, 'close')
  t.deepEqual(counts(), [8, 10])
})

test('destroySoon destroys a stream once it has sent everything', async (t) => {
  for (const before of [() => {}, (stream: Duplex) => stream.end(), (stream: Duplex) => stream.destroy()]) {
    const { fake, stream, calls } = streamOf()
    fake.room = 0
    stream.write('last')
    before(stream)
    ;(stream as unknown as Socket).destroySoon()
    const closed = once(stream, 'close')
    await turn()
    t.deepEqual(calls(), [])
    fake.makeRoom()
    await closed
    t.is(Buffer.concat(fake.sent).toString(), 'last')
    t.is(calls().at(-1), 'destroy')
  }
  const { stream } = streamOf()
  stream.end()
  await once(stream, 'finish')
  ;(stream as unknown as Socket).destroySoon()
  await once(stream, 'close')
  t.is(stream.errored, null)
})

test('an error of closing the channel is the error of the stream, unless there is one already', async (t) => {
  for (const error of [undefined, new Error('enough')]) {
    const { fake, stream } = streamOf()
    fake.fails.destroy = new Error('no destroy')
    const failed = once(stream, 'error')
    stream.destroy(error)
    t.deepEqual(await failed, [error ?? fake.fails.destroy])
  }
})
