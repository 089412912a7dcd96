import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import test, { type ExecutionContext } from 'ava'
import type { RingfenceError } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pattern, random } from './support/bytes.js'
import type { Kit } from './support/partner-process.js'
import { joinHere, pair, Partner } from './support/partner.js'
import { isPending } from './support/until.js'

/** All bytes of a stream. */
async function collect(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** A lost peer has the error code of a lost socket. */
function isLost(t: ExecutionContext, error: unknown, code: 'ECONNRESET' | 'EPIPE'): void {
  const { cause, ...fields } = error as NodeJS.ErrnoException & { cause: RingfenceError }
  t.deepEqual(fields as object, { code, syscall: code === 'EPIPE' ? 'write' : 'read' })
  t.is(cause.code, 'ERR_RINGFENCE_PEER_LOST')
  t.true((error as Error).message.endsWith(cause.message))
}

test.serial('50 MB pass in both directions at once, and each end ends the other side’s reading', async (t) => {
  const size = 50_000_000
  const { channel, partner } = await pair(t, { options: { allowHalfOpen: true } })
  const there = partner.run(async (kit, total: number) => {
    const { createHash: hash } = kit.require('node:crypto') as typeof import('node:crypto')
    const streams = kit.require('node:stream') as typeof import('node:stream')
    const { pipeline: pipe } = kit.require('node:stream/promises') as typeof import('node:stream/promises')
    const [sent, received] = [hash('sha256'), hash('sha256')]
    const source = function* () {
      const next = kit.bytes.random(7)
      for (let left = total; left > 0;) {
        const chunk = kit.bytes.pattern(left, Math.min(left, Math.ceil(next() ** 4 * 1_000_000)))
        left -= chunk.length
        sent.update(chunk)
        yield chunk
      }
    }
    const stream = kit.channel.duplex()
    const sink = new streams.Writable({
      write(chunk: Buffer, _encoding, done) {
        received.update(chunk)
        done()
      },
    })
    await Promise.all([pipe(streams.Readable.from(source(), { objectMode: false }), stream), pipe(stream, sink)])
    return { sent: sent.digest('hex'), received: received.digest('hex'), reason: (await kit.channel.closed).reason }
  }, size)

  const [sent, received] = [createHash('sha256'), createHash('sha256')]
  const next = random(8)
  const source = function* () {
    for (let left = size; left > 0;) {
      const chunk = pattern(left, Math.min(left, Math.ceil(next() ** 4 * 1_000_000)))
      left -= chunk.length
      sent.update(chunk)
      yield chunk
    }
  }
  let bytes = 0
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      received.update(chunk)
      done()
    },
  })
  const stream = channel.duplex()
  await Promise.all([pipeline(Readable.from(source(), { objectMode: false }), stream), pipeline(stream, sink)])
  const other = await there

  t.is(bytes, size)
  t.is(received.digest('hex'), other.sent)
  t.is(sent.digest('hex'), other.received)
  t.is(other.reason, 'closed')
  t.is((await channel.closed).reason, 'closed')
})

test.serial('end half-closes: the other direction stays open', async (t) => {
  const { channel, partner } = await pair(t, { there: { allowHalfOpen: true } })
  const stream = channel.duplex()
  stream.end('the last of this side')
  const there = await partner.run(async (kit) => {
    const texts = []
    for await (const message of kit.channel) texts.push(String(message))
    await kit.channel.send('still ')
    await kit.channel.send('going on')
    await kit.channel.end()
    return texts.join('')
  })
  t.is(there, 'the last of this side')
  t.is(String(await collect(stream)), 'still going on')
  t.is((await channel.closed).reason, 'closed')
})

test.serial('the peer’s end is the end of reading, and writing goes on', async (t) => {
  const { channel, partner } = await pair(t, { here: { allowHalfOpen: true } })
  await partner.run(async (kit) => {
    await kit.channel.send('all of it')
    await kit.channel.end()
  })
  const stream = channel.duplex()
  const chunks: Buffer[] = []
  stream.on('data', (chunk: Buffer) => chunks.push(chunk))
  await new Promise((resolve) => stream.on('end', resolve))
  t.is(String(Buffer.concat(chunks)), 'all of it')
  stream.write('an answer')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'an answer')
  stream.end()
  t.is((await channel.closed).reason, 'closed')
})

test.serial('empty chunks and empty messages are skipped, and end nothing', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = channel.duplex()
  await partner.run(async (kit) => {
    for (const text of ['', 'a', '', '', 'b', '']) await kit.channel.send(text)
    await kit.channel.end()
  })
  for (const text of ['', 'x', '', Buffer.alloc(0), 'y']) stream.write(text)
  stream.end('')
  t.is(String(await collect(stream)), 'ab')
  const there = partner.run(async (kit) => {
    const texts = []
    for await (const message of kit.channel) texts.push(String(message))
    return texts
  })
  // Writes may be joined.
  const texts = await there
  t.is(texts.join(''), 'xy')
  t.false(texts.includes(''))
})

test.serial('strings are written in the given encoding', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = channel.duplex()
  stream.write('ä€')
  stream.write('e282ac', 'hex')
  stream.end('ab', 'utf16le')
  const there = partner.run(async (kit) => {
    const chunks = []
    for await (const message of kit.channel) chunks.push(message)
    return Buffer.concat(chunks).toString('hex')
  })
  t.is(await there, `${Buffer.from('ä€').toString('hex')}e282ac61006200`)
})

test.serial('a chunk may be longer than the peer’s longest message', async (t) => {
  const { channel, partner } = await pair(t, { there: { maxMessageSize: 100 }, here: { capacity: 4096 } })
  const there = partner.run(async (kit) => {
    const chunks = []
    for await (const message of kit.channel) chunks.push(message)
    return { longest: Math.max(...chunks.map(({ length }) => length)), bytes: Buffer.concat(chunks) }
  })
  channel.duplex().end(pattern(0, 25_033))
  const { longest, bytes } = await there
  t.is(longest, 100)
  t.true(bytes.equals(pattern(0, 25_033)))
})

test.serial('a peer that does not read blocks the writer', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 65_536 } })
  const stream = channel.duplex()
  let written = 0
  const count = 64
  for (let number = 0; number < count; number += 1) {
    stream.write(pattern(number, 16_384), () => {
      written += 1
    })
  }
  await partner.run(() => {})
  t.true(await isPending(new Promise((resolve) => stream.once('drain', resolve))))
  t.true(stream.writableNeedDrain)
  t.true(written < 5, `${written} of ${count} chunks are through, four fill the ring`)
  const drained = new Promise((resolve) => stream.once('drain', resolve))
  const there = partner.run(async (kit, wanted: number) => {
    let bytes = 0
    while (bytes < wanted) bytes += (await kit.channel.receive())!.length
    return bytes
  }, count * 16_384)
  t.is(await there, count * 16_384)
  await drained
})

test.serial('a reader that does not read blocks the peer', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 65_536 } })
  const stream = channel.duplex()
  const first = await new Promise<Buffer>((resolve) => {
    stream.once('readable', () => resolve(stream.read(1) as Buffer))
    void partner.run(async (kit) => {
      kit.keep['all'] = (async () => {
        for (let number = 0; number < 64; number += 1) await kit.channel.send(kit.bytes.pattern(number, 16_384))
        kit.keep['through'] = true
        await kit.channel.end()
      })()
    })
  })
  t.is(first.length, 1)
  t.is(await partner.run((kit) => kit.keep['through']), undefined)
  t.is((await collect(stream)).length, 64 * 16_384 - 1)
})

test.serial(
  'data that was written before a destroy arrives, and then the end, even if there is no room yet',
  async (t) => {
    for (const [count, size] of [
      [2, 10],
      [2, 100_000],
      [40, 10_000],
      [1, 3_000_000],
    ] as const) {
      const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
      const stream = channel.duplex()
      const chunks = Array.from({ length: count }, (_, number) => pattern(number, size))
      for (const chunk of chunks) stream.write(chunk)
      stream.destroy()
      t.true(stream.destroyed)
      const there = await partner.run(async (kit) => {
        const found: Buffer[] = []
        for await (const chunk of kit.channel.duplex() as AsyncIterable<Buffer>) found.push(chunk)
        return { bytes: Buffer.concat(found), reason: (await kit.channel.closed).reason }
      })
      t.true(there.bytes.equals(Buffer.concat(chunks)), `${count} of ${size}`)
      t.is(there.reason, 'closed')
      t.is((await channel.closed).reason, 'closed')
    }
  },
)

test.serial('a destroyed stream waits some seconds for a peer that does not read, and then cuts it off', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const stream = channel.duplex()
  await partner.stop()
  const errors: (Error | null | undefined)[] = []
  for (const number of [1, 2]) stream.write(pattern(number, 50_000), (error) => errors.push(error))
  stream.destroy()
  await once(stream, 'close')
  t.is((errors.at(-1) as RingfenceError).code, 'ERR_RINGFENCE_CLOSED')
  t.is(channel.bufferedAmount, 0)
  partner.resume()
  const there = partner.run(async (kit) => {
    for await (const chunk of kit.channel.duplex() as AsyncIterable<Buffer>) void chunk
  })
  await t.throwsAsync(there, { code: 'ECONNRESET' } as object)
})

test.serial('an HTTP server that ends its response and closes has sent all of it, however long it is', async (t) => {
  // A server does not touch the connection in the call that gets its request, and destroys it in a later one.
  for (const [size, later] of [10, 100_000, 5_000_000].flatMap(
    (each) =>
      [
        [each, 'nextTick'],
        [each, 'setImmediate'],
      ] as const,
  )) {
    const { channel, partner } = await pair(t, { there: { capacity: 65_536 } })
    await partner.run(
      async (kit, length: number, when: typeof later) => {
        const http = kit.require('node:http') as typeof import('node:http')
        const server = http.createServer((_request, response) => {
          response.end(kit.bytes.pattern(0, length))
          const close = () => void server.close()
          if (when === 'nextTick') process.nextTick(close)
          else setImmediate(close)
        })
        // A server that is not listening does not close its connections.
        await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
        server.emit('connection', kit.channel.duplex())
      },
      size,
      later,
    )
    const stream = channel.duplex()
    const asked = request({ createConnection: () => stream, path: '/' })
    asked.end()
    const [response] = (await once(asked, 'response')) as [IncomingMessage]
    t.true((await collect(response)).equals(pattern(0, size)), `${size}, ${later}`)
    if (!stream.closed) await once(stream, 'close')
    t.is((await channel.closed).reason, 'closed')
  }
})

test.serial('an exception of a listener is an uncaught exception, and the stream goes on', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 4096 } })
  const there = partner.run(async (kit) => {
    const uncaught: string[] = []
    process.on('uncaughtException', (error, origin) => uncaught.push(`${error.message}, ${origin}`))
    const stream = kit.channel.duplex()
    const fail = (what: string) => () => {
      throw new Error(what)
    }
    const bytes: Buffer[] = []
    stream.on('data', (chunk: Buffer) => {
      bytes.push(chunk)
      if (bytes.length < 3) throw new Error(`data ${bytes.length}`)
    })
    stream.on('close', fail('close'))
    stream.on('error', (error) => bytes.push(Buffer.from(String(error))))
    const closed = new Promise((resolve) => stream.prependListener('close', () => resolve(null)))
    stream.write(kit.bytes.pattern(0, 100_000), fail('written'))
    await closed
    await kit.until.turns(2)
    return { uncaught, bytes: Buffer.concat(bytes), reason: (await kit.channel.closed).reason }
  })
  const chunks = Array.from({ length: 5 }, (_, number) => pattern(number, 1000))
  for (const chunk of chunks) await channel.send(chunk)
  for (let got = 0; got < 100_000;) got += (await channel.receive())!.length
  await channel.end()
  t.is(await channel.receive(), undefined)
  const { uncaught, bytes, reason } = await there
  t.true(bytes.equals(Buffer.concat(chunks)))
  t.is(reason, 'closed')
  // `written` may come before or after the second chunk.
  t.deepEqual(
    [...uncaught].sort(),
    ['close', 'data 1', 'data 2', 'written'].map((what) => `${what}, uncaughtException`),
  )
})

test.serial('an exception of a listener of drain, end, finish or readable is an uncaught exception', async (t) => {
  for (const event of ['drain', 'end', 'finish', 'readable']) {
    const { channel, partner } = await pair(t, { there: { capacity: 4096 } })
    await partner.run((kit, name: string) => {
      kit.keep['uncaught'] = new Promise((resolve) =>
        process.on('uncaughtException', (error, origin) => resolve(`${error.message}, ${origin}`)),
      )
      const stream = kit.channel.duplex()
      if (name !== 'readable') stream.resume()
      stream.on(name, () => {
        throw new Error(name)
      })
      stream.write(kit.bytes.pattern(0, 100_000))
    }, event)
    // The ring is full now. If this side read earlier, all of the write could fit, and no 'drain' would follow.
    for (let got = 0; got < 100_000;) got += (await channel.receive())!.length
    // A stream that ends emits no 'drain' either.
    if (event !== 'drain') await channel.end()
    t.is(await partner.run((kit) => kit.keep['uncaught']), `${event}, uncaughtException`)
  }
})

test.serial('an uncaught exception of a listener ends the program before the next chunk', async (t) => {
  const { channel, partner } = await pair(t)
  partner.mayFail()
  await partner.run((kit) => {
    kit.channel.duplex().on('data', (chunk: Buffer) => {
      kit.channel.trySend(chunk)
      throw new Error('of the listener')
    })
  })
  // The stream waits for these messages.
  void channel.send('one')
  void channel.send('two')
  t.is((await partner.exited).code, 1)
  t.is(String(await channel.receive()), 'one')
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
})

test.serial('destroy closes the channel: the peer reads what was written, and then the end', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = channel.duplex()
  await new Promise((resolve) => stream.write('written', resolve))
  stream.destroy()
  t.is((await channel.closed).reason, 'closed')
  const there = await partner.run(async (kit) => [
    String(await kit.channel.receive()),
    await kit.channel.receive(),
    (await kit.channel.closed).reason,
  ])
  t.deepEqual(there, ['written', undefined, 'closed'])
})

test.serial('a stream that this side destroys has no end: what it has read is not complete', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = channel.duplex()
  await partner.run((kit) => kit.channel.send('part'))
  const sink = new Writable({ write: (_chunk, _encoding, done) => done(void setImmediate(() => stream.destroy())) })
  await t.throwsAsync(pipeline(stream, sink), { code: 'ERR_STREAM_PREMATURE_CLOSE' })
  await channel.closed
  t.false(stream.readableEnded)
})

test.serial('destroy with an error closes the channel, and the stream has the error', async (t) => {
  const { channel } = await pair(t, { here: { capacity: 4096 } })
  const stream = channel.duplex()
  const errors: Error[] = []
  stream.on('error', (error) => errors.push(error))
  stream.write(pattern(0, 100_000))
  const reason = new Error('enough')
  stream.destroy(reason)
  await new Promise((resolve) => stream.on('close', resolve))
  t.deepEqual(errors, [reason])
  t.like(await channel.closed, { reason: 'failed', error: { cause: reason } })
})

test.serial('a peer that was cut off is an error, after everything that it had written', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = channel.duplex()
  const chunks: Buffer[] = []
  const failed = new Promise((resolve) => stream.on('error', resolve))
  await partner.run(async (kit) => {
    for (let number = 0; number < 30; number += 1) await kit.channel.send(kit.bytes.pattern(number, 10_000))
  })
  await partner.kill()
  stream.on('data', (chunk: Buffer) => chunks.push(chunk))
  isLost(t, await failed, 'ECONNRESET')
  const wanted = Buffer.concat(Array.from({ length: 30 }, (_, number) => pattern(number, 10_000)))
  t.true(Buffer.concat(chunks).equals(wanted))
})

test.serial('a slow reader also gets everything that a peer had written before it was cut off', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = channel.duplex()
  await partner.run(async (kit) => {
    for (let number = 0; number < 30; number += 1) await kit.channel.send(kit.bytes.pattern(number, 1000))
  })
  const chunks: Buffer[] = []
  const error = await t.throwsAsync(async () => {
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      if (chunks.length === 0) await partner.kill()
      chunks.push(chunk)
      await new Promise((resolve) => setImmediate(resolve))
    }
  })
  isLost(t, error, 'ECONNRESET')
  const wanted = Buffer.concat(Array.from({ length: 30 }, (_, number) => pattern(number, 1000)))
  t.is(Buffer.concat(chunks).length, wanted.length)
  t.true(Buffer.concat(chunks).equals(wanted))
})

test.serial('writing to a lost peer is an error', async (t) => {
  for (const way of ['killed', 'closed'] as const) {
    const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
    const stream = channel.duplex()
    const failed = new Promise((resolve) => stream.on('error', resolve))
    stream.write(pattern(0, 100_000))
    if (way === 'killed') await partner.kill()
    else await partner.run((kit) => kit.channel.close())
    isLost(t, await failed, 'EPIPE')
  }
})

test.serial('a pipeline whose source is idle fails as soon as the peer is lost', async (t) => {
  const { channel, partner } = await pair(t)
  const copied = pipeline(new Readable({ read() {} }), channel.duplex())
  await Promise.all([partner.kill(), copied.catch((error: Error) => isLost(t, error, 'ECONNRESET'))])
  await t.throwsAsync(copied)
})

/** Ways in which a partner disappears without ending its sending. */
const cuts: Record<string, (kit: Kit) => unknown> = {
  'destroys the channel': (kit) => kit.channel.destroy(),
  'destroys its stream with an error': (kit) =>
    void kit.channel
      .duplex()
      .on('error', () => {})
      .destroy(new Error('broken off')),
  exits: () => void setImmediate(() => process.exit(0)),
}

for (const [what, cut] of Object.entries(cuts)) {
  test.serial(`a peer that ${what} is an error, after everything that it had written`, async (t) => {
    const { channel, partner } = await pair(t)
    partner.mayFail()
    await partner.run(async (kit) => {
      for (let number = 0; number < 30; number += 1) await kit.channel.send(kit.bytes.pattern(number, 10_000))
    })
    await partner.run(cut)
    const chunks: Buffer[] = []
    const error = await t.throwsAsync(async () => {
      for await (const chunk of channel.duplex() as AsyncIterable<Buffer>) chunks.push(chunk)
    })
    isLost(t, error, 'ECONNRESET')
    const wanted = Buffer.concat(Array.from({ length: 30 }, (_, number) => pattern(number, 10_000)))
    t.true(Buffer.concat(chunks).equals(wanted))
    t.is((await channel.closed).reason, 'lost')
  })
}

test.serial('a terminated worker is an error', async (t) => {
  const partner = await Partner.start(t)
  const address = abstractAddress()
  const joined = joinHere(t, address)
  await partner.run(async (kit, where: string) => {
    const { Worker } = kit.require('node:worker_threads') as typeof import('node:worker_threads')
    const worker = new Worker(
      `const { parentPort, workerData } = require('node:worker_threads')
       require(workerData.ringfence).join(workerData.where).then(async (channel) => {
         await channel.send('the beginning')
         parentPort.postMessage('sent')
       })`,
      { eval: true, workerData: { ringfence: kit.require.resolve('ringfence'), where } },
    )
    await new Promise((resolve) => worker.once('message', resolve))
    await worker.terminate()
  }, address)
  const channel = await joined
  const chunks: Buffer[] = []
  const error = await t.throwsAsync(async () => {
    for await (const chunk of channel.duplex() as AsyncIterable<Buffer>) chunks.push(chunk)
  })
  isLost(t, error, 'ECONNRESET')
  t.is(String(Buffer.concat(chunks)), 'the beginning')
})

test.serial('a loop over messages ends if the peer closes without an end, and closed reports it', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    await kit.channel.send('all of it')
    await kit.channel.close()
  })
  const texts = []
  for await (const message of channel) texts.push(String(message))
  t.deepEqual(texts, ['all of it'])
  t.is((await channel.closed).reason, 'closed')
})

test.serial(
  'a peer that ends and then closes is a clean end of reading, and so is a destroy after both ends',
  async (t) => {
    for (const way of ['close', 'destroy'] as const) {
      const { channel, partner } = await pair(t)
      const stream = channel.duplex()
      stream.on('error', (error) => t.fail(String(error)))
      await partner.run(async (kit, how: typeof way) => {
        if (how === 'close') {
          await kit.channel.send('all of it')
          await kit.channel.end()
          await kit.channel.close()
          return
        }
        const there = kit.channel.duplex()
        there.resume()
        await new Promise<void>((resolve) => there.end('all of it', resolve))
        kit.keep['over'] = new Promise((resolve) => there.on('end', resolve)).then(() => there.destroy())
      }, way)
      // Not with a loop, which would destroy the stream at its end.
      const chunks: Buffer[] = []
      stream.on('data', (chunk: Buffer) => chunks.push(chunk))
      await new Promise((resolve) => stream.on('end', resolve))
      t.is(String(Buffer.concat(chunks)), 'all of it')
      if (way === 'destroy') {
        stream.end()
        await partner.run(async (kit) => void (await kit.keep['over']))
      }
      t.is((await channel.closed).reason, 'closed')
    }
  },
)

test.serial('a pipeline that fails closes the channel', async (t) => {
  const { channel, partner } = await pair(t)
  const reason = new Error('the source is broken')
  const source = async function* () {
    yield 'the beginning'
    throw reason
  }
  const error = await t.throwsAsync(pipeline(source, channel.duplex()))
  t.is(error, reason)
  t.like(await channel.closed, { reason: 'failed', error: { cause: reason } })
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'lost')
})
