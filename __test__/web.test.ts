// A channel as web streams.

import { readFile, writeFile } from 'node:fs/promises'
import { createReadStream, createWriteStream } from 'node:fs'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { ReadableStream, TransformStream, WritableStreamDefaultWriter } from 'node:stream/web'

import test, { type ExecutionContext } from 'ava'
import { publish, RingfenceError, type Channel, type Subscription } from 'ringfence'

import { abstractAddress, temporaryDirectory } from './support/address.js'
import { pattern } from './support/bytes.js'
import { pair, Partner } from './support/partner.js'
import { isPending, within, turns, until } from './support/until.js'

const lost = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_PEER_LOST' } as const

test.serial('one chunk for each message in both directions, with all operations of a web stream', async (t) => {
  const { channel, partner } = await pair(t)
  const there = partner.run(async (kit) => {
    const { readable, writable } = kit.channel
    const { TransformStream: Transform } = kit.require('node:stream/web') as typeof import('node:stream/web')
    const upper = new Transform<Uint8Array, string>({
      transform: (chunk, controller) => controller.enqueue(Buffer.from(chunk).toString().toUpperCase()),
    })
    await readable.pipeThrough(upper).pipeTo(writable)
    return (await kit.channel.closed).reason
  })
  const { readable, writable } = channel
  const writer = writable.getWriter()
  const sizes = [1, 0, 70_000, 5]
  for (const size of sizes) void writer.write('x'.repeat(size))
  void writer.write(Uint8Array.from([97]))
  void writer.write(new DataView(Uint8Array.from([98]).buffer))
  await writer.close()
  const found: string[] = []
  for await (const chunk of readable) found.push(Buffer.from(chunk).toString())
  t.deepEqual(found, [...sizes.map((size) => 'X'.repeat(size)), 'A', 'B'])
  t.is(await there, 'closed')
  t.is((await channel.closed).reason, 'closed')
})

for (const allowHalfOpen of [false, true]) {
  test.serial(
    `with allowHalfOpen: ${allowHalfOpen} the end of the readable ends this side if nothing uses the writable`,
    async (t) => {
      const { channel, partner } = await pair(t, { here: { allowHalfOpen } })
      await partner.run((kit) => kit.channel.end())
      const { readable } = channel
      t.is(await text(readable as never), '')
      if (allowHalfOpen) await channel.send('still here')
      else await t.throwsAsync(channel.send('late'), { code: 'ERR_RINGFENCE_CLOSED', message: /allowHalfOpen/ })
    },
  )
}

test.serial('a Response can have it as its body', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    for (const part of ['{"a":', '', '1}']) await kit.channel.send(part)
    await kit.channel.end()
  })
  t.deepEqual(await new Response(channel.readable as never).json(), { a: 1 })
})

test.serial('a write resolves once it is in the ring, and unread messages stay with the peer', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
  const { readable, writable } = channel
  const writer = writable.getWriter()
  await writer.write(pattern(0, 1000))
  const large = writer.write(pattern(1, 20_000))
  t.true(await isPending(large))
  const waiting = partner.run(async (kit) => {
    const sent = kit.channel.send(kit.bytes.pattern(2, 20_000))
    kit.keep['sent'] = sent
    return (
      (await kit.until.isPending(sent)) && [
        (await kit.channel.receive())!.length,
        (await kit.channel.receive())!.length,
      ]
    )
  })
  t.deepEqual(await waiting, [1000, 20_000])
  await large
  // One message is fetched ahead, since the end behind it is reported without a read.
  await partner.run((kit) => kit.keep['sent'] as Promise<void>)
  t.true(
    await partner.run((kit) => {
      kit.keep['sent'] = kit.channel.send(kit.bytes.pattern(3, 20_000))
      return kit.until.isPending(kit.keep['sent'] as Promise<void>)
    }),
    'nothing reads here',
  )
  const reader = readable.getReader()
  for (const number of [2, 3]) t.deepEqual(Buffer.from((await reader.read()).value!), pattern(number, 20_000))
  await partner.run((kit) => kit.keep['sent'] as Promise<void>)
})

test.serial('a peer that was cut off errors the readable after all messages, and the writable', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    await kit.channel.send('one')
    await kit.channel.send('two')
  })
  const { readable, writable } = channel
  const writer = writable.getWriter()
  await partner.kill()
  await t.throwsAsync(writer.closed, lost)
  await t.throwsAsync(writer.write('late'), lost)
  const reader = readable.getReader()
  t.is(String(Buffer.from((await reader.read()).value!)), 'one')
  t.is(String(Buffer.from((await reader.read()).value!)), 'two')
  await t.throwsAsync(reader.read(), lost)
})

const leave: [string, (streams: Pick<Channel, 'readable' | 'writable'>) => Promise<void>][] = [
  ['cancel of the readable', ({ readable }) => readable.cancel(new Error('enough'))],
]
for (const [title, deed] of leave) {
  test.serial(`${title} closes the channel`, async (t) => {
    const { channel, partner } = await pair(t)
    await deed(channel)
    t.is((await channel.closed).reason, 'closed')
    t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'closed')
  })
}

test.serial('abort of the writable destroys the channel', async (t) => {
  const { channel, partner } = await pair(t)
  const reason = new Error('enough')
  await channel.writable.abort(reason)
  t.like(await channel.closed, { reason: 'failed', error: { cause: reason } })
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'lost')
})

test.serial('a cancel during a read ends that read, and the peer sees the close', async (t) => {
  const { channel, partner } = await pair(t)
  const { readable } = channel
  const reader = readable.getReader()
  const waiting = reader.read()
  await until(async () => isPending(waiting), 'it waits')
  await reader.cancel()
  t.true((await waiting).done)
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'closed')
})

test.serial('an abort while a write waits for room closes the channel, and ends that wait', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
  const writer = channel.writable.getWriter()
  const waiting = writer.write(pattern(0, 20_000))
  t.true(await isPending(waiting))
  writer.closed.catch(() => {})
  const aborted = writer.abort(new Error('enough'))
  await t.throwsAsync(within(waiting, 'the write'), { code: 'ERR_RINGFENCE_CLOSED' })
  await within(aborted, 'the abort')
  t.is((await channel.closed).reason, 'failed')
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'lost')
})

test.serial('an abort while the end waits for room closes the channel, and ends that wait', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
  const writer = channel.writable.getWriter()
  const sent = channel.send(pattern(0, 20_000))
  const ended = writer.close()
  t.true(await isPending(ended))
  await within(writer.abort(new Error('enough')), 'the abort')
  await ended
  await t.throwsAsync(sent, { code: 'ERR_RINGFENCE_CLOSED' })
  t.is((await channel.closed).reason, 'failed')
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'lost')
})

test.serial('a pipe that is aborted by a signal closes the channel', async (t) => {
  const { channel, partner } = await pair(t)
  const controller = new AbortController()
  const { readable } = channel
  const piping = readable.pipeTo(new TransformStream<Uint8Array>().writable, { signal: controller.signal })
  controller.abort()
  t.is(await piping.catch((error: Error) => error.name), 'AbortError')
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'closed')
})

test.serial('a writer that is closed ends this side once the readable has ended, and not before', async (t) => {
  const { channel, partner } = await pair(t)
  const { readable, writable } = channel
  const write = async (chunk: string) => {
    const writer = writable.getWriter()
    const written = writer.write(chunk)
    writer.releaseLock()
    await written
  }
  await write('one')
  // This process has now handled everything that was due.
  await partner.run(async (kit) => kit.channel.send((await kit.channel.receive())!))
  const reader = readable.getReader()
  t.is(String(Buffer.from((await reader.read()).value!)), 'one')
  const holds = writable.getWriter()
  await partner.run((kit) => kit.channel.end())
  t.true((await reader.read()).done)
  holds.releaseLock()
  await write('two')
  t.deepEqual(await partner.run(async (kit) => [String(await kit.channel.receive()), await kit.channel.receive()]), [
    'two',
    undefined,
  ])
})

test.serial('a writer that is released after the end, without a write, ends this side', async (t) => {
  const { channel, partner } = await pair(t)
  const writer = channel.writable.getWriter()
  const reader = channel.readable.getReader()
  await partner.run((kit) => kit.channel.end())
  t.true((await reader.read()).done)
  writer.releaseLock()
  t.is((await within(channel.closed, 'the end of both sides')).reason, 'closed')
  await t.throwsAsync(channel.send('late'), { code: 'ERR_RINGFENCE_CLOSED' })
})

test.serial('a pipe and a writer of its own end this side once they release the writable stream', async (t) => {
  for (const way of ['pipe', 'writer'] as const) {
    const { channel, partner } = await pair(t)
    let release: () => void
    if (way === 'pipe') {
      const source = new ReadableStream({ start: (controller) => (release = () => controller.close()) })
      void source.pipeTo(channel.writable as never, { preventClose: true })
    } else {
      const writer = new WritableStreamDefaultWriter(channel.writable as never)
      release = () => writer.releaseLock()
    }
    await partner.run((kit) => kit.channel.end())
    t.is(await text(channel.readable as never), '')
    t.true(channel.writable.locked)
    release!()
    t.is((await within(channel.closed, `the end after a ${way}`)).reason, 'closed')
  }
})

test.serial('a chunk that could not be sent keeps this side open no longer than its writer', async (t) => {
  const { channel, partner } = await pair(t, { options: { maxMessageSize: 1000 } })
  const writer = channel.writable.getWriter()
  await t.throwsAsync(writer.write(Buffer.alloc(1001)), { code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' })
  writer.releaseLock()
  await partner.run((kit) => kit.channel.end())
  t.is(await text(channel.readable as never), '')
  t.is((await within(channel.closed, 'the end')).reason, 'closed')
})

test.serial('chunks that wait when their writer is released are sent before this side ends', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
  const writer = channel.writable.getWriter()
  await partner.run((kit) => kit.channel.end())
  t.is(await text(channel.readable as never), '')
  const writes = ['a', 'b', 'c'].map((letter) => writer.write(letter.repeat(4000)))
  writer.releaseLock()
  // The peer reads nothing yet, so only a part is in the ring.
  await turns(5)
  const received = await partner.run(async (kit) => {
    const all: string[] = []
    for await (const message of kit.channel) all.push(`${String(message)[0]} ${message.length}`)
    return all
  })
  await Promise.all(writes)
  t.deepEqual(received, ['a 4000', 'b 4000', 'c 4000'])
  t.is((await within(channel.closed, 'the end of both sides')).reason, 'closed')
})

test.serial('a half-open channel is usable after a writer has released the writable stream', async (t) => {
  const { channel, partner } = await pair(t, { options: { allowHalfOpen: true } })
  await partner.run((kit) => kit.channel.end())
  t.is(await text(channel.readable as never), '')
  for (const message of ['one', 'two']) {
    const writer = channel.writable.getWriter()
    await writer.write(message)
    writer.releaseLock()
    await turns(3)
  }
  await channel.send('three')
  await channel.end()
  const received = await partner.run(async (kit) => {
    const all: string[] = []
    for await (const message of kit.channel) all.push(String(message))
    return all
  })
  t.deepEqual(received, ['one', 'two', 'three'])
  t.is((await channel.closed).reason, 'closed')
})

test.serial('a message that another reader has taken is not a chunk', async (t) => {
  const { channel, partner } = await pair(t)
  const reader = channel.readable.getReader()
  await partner.run((kit) => kit.channel.send('one'))
  await channel.waitReadable()
  const read = reader.read()
  t.is(String(channel.tryReceive()), 'one')
  await partner.run((kit) => kit.channel.send('two'))
  t.is(String(Buffer.from((await read).value!)), 'two')
})

test.serial('a reader that requests nothing takes nothing', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => kit.channel.send('for receive'))
  t.is(channel.readable, channel.readable)
  // This process has now handled everything that was due.
  await partner.run(() => {})
  t.is(String(await channel.receive()), 'for receive')
  await partner.run((kit) => kit.channel.end())
  t.is(await text(channel.readable as never), '')
})

/** Makes the partner echo messages, and end after this side. */
function echoes(t: ExecutionContext) {
  return pair(t).then(async (both) => {
    const done = both.partner.run(async (kit) => kit.channel.readable.pipeTo(kit.channel.writable))
    return { ...both, done }
  })
}

test.serial('pipeline takes a channel as its source, and its writable stream as its destination', async (t) => {
  const directory = temporaryDirectory(t)
  const [from, to] = [path.join(directory, 'from'), path.join(directory, 'to')]
  const bytes = pattern(0, 1_000_000)
  await writeFile(from, bytes)
  const { channel, done } = await echoes(t)
  // The types of Node know no web streams in a pipeline. From 24 on, Node takes the promise `closed` of a destination for a closed stream.
  const source = channel as unknown as NodeJS.ReadableStream
  const destination = channel.writable as unknown as NodeJS.WritableStream
  await Promise.all([pipeline(createReadStream(from), destination), pipeline(source, createWriteStream(to))])
  t.true((await readFile(to)).equals(bytes))
  await done
})

test.serial('a channel is a pair of streams for pipeThrough', async (t) => {
  const { channel, done } = await echoes(t)
  const source = new ReadableStream<string>({
    start(controller) {
      for (const part of ['one', 'two']) controller.enqueue(part)
      controller.close()
    },
  })
  t.is(await text(source.pipeThrough(channel as never) as never), 'onetwo')
  await done
})

test.serial('pipeline fails with PEER_LOST if the peer is killed', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => kit.channel.send('one'))
  const to = path.join(temporaryDirectory(t), 'to')
  const piping = pipeline(channel as unknown as NodeJS.ReadableStream, createWriteStream(to))
  await partner.kill()
  await t.throwsAsync(within(piping, 'the pipeline'), lost)
})

test.serial('closed of a reader settles without a read', async (t) => {
  const ends = await pair(t, { here: { allowHalfOpen: true } })
  const reader = ends.channel.readable.getReader()
  t.true(await isPending(reader.closed))
  await ends.partner.run((kit) => kit.channel.send('one'))
  t.is(String(Buffer.from((await reader.read()).value!)), 'one')
  await ends.partner.run((kit) => kit.channel.end())
  await within(reader.closed, 'the end')

  const killed = await pair(t)
  const other = killed.channel.readable.getReader()
  await killed.partner.kill()
  await t.throwsAsync(within(other.closed, 'the end'), lost)
})

test.serial('a publisher, its subscriptions and a merge have streams', async (t) => {
  const address = abstractAddress()
  await using publisher = await publish(address)
  const partner = await Partner.start(t)
  await partner.run(async (kit, where) => {
    const subscribed = () => kit.ringfence.subscribe(where)
    kit.keep['subscriptions'] = await Promise.all([subscribed(), subscribed(), subscribed()])
  }, address)
  const reading = partner.run(async (kit) => {
    const [first, second, third] = kit.keep['subscriptions'] as Subscription[]
    const { text: textOf } = kit.require('node:stream/consumers') as typeof import('node:stream/consumers')
    const texts = [await textOf(first!.readable as never), await textOf(second!.stream())]
    const merged = kit.ringfence.merge([third!]).readable as unknown as AsyncIterable<[unknown, Buffer]>
    for await (const [source, message] of merged) texts.push(`${source === third} ${String(message)}`)
    return texts
  })
  const writer = publisher.writable.getWriter()
  await writer.write('one')
  await writer.write('two')
  await writer.close()
  t.deepEqual(await within(reading, 'the end'), ['onetwo', 'onetwo', 'true one', 'true two'])
})
