// Readers: batches, iterators, and the limit of one reader at a time.

import test from 'ava'
import { merge, RingfenceError, structured, type Channel } from 'ringfence'

import { pair } from './support/partner.js'
import { isPending, within } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const

test.serial('batches yields available messages, at most max, and ends', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    for (let number = 0; number < 5; number += 1) await kit.channel.send(String(number))
    await kit.channel.end()
  })
  const batches: string[][] = []
  for await (const messages of channel.batches({ max: 2 })) batches.push(messages.map(String))
  t.true(batches.every(({ length }) => length >= 1 && length <= 2))
  t.deepEqual(batches.flat(), ['0', '1', '2', '3', '4'])
  for (const max of [0, -1, 1.5, 'all']) t.throws(() => channel.batches({ max: max as number }), invalid)
  t.throws(() => channel.batches({ most: 1 } as object), invalid)
})

test.serial('batches of a merge and of values; a message that cannot be decoded fails alone', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    const values = kit.channel.with(kit.ringfence.structured())
    await values.send(1)
    await values.send(2)
    await kit.channel.send('no value')
    await values.send(3)
  })
  const loop = channel.with(structured<number>()).batches()
  const read: number[] = []
  while (read.length < 2) read.push(...((await loop[Symbol.asyncIterator]().next()).value as number[]))
  t.deepEqual(read, [1, 2])
  await t.throwsAsync(loop[Symbol.asyncIterator]().next(), { code: 'ERR_RINGFENCE_MALFORMED' })
  await partner.run((kit) => kit.channel.end())
  const merged: [Channel, string][] = []
  for await (const messages of merge([channel]).batches())
    for (const [source, message] of messages) merged.push([source, String(message.length > 0)])
  t.deepEqual(merged, [[channel, 'true']])
})

test.serial('a signal ends the waiting of batches', async (t) => {
  const { channel, partner } = await pair(t)
  const over = new AbortController()
  const waiting = channel.batches({ signal: over.signal })[Symbol.asyncIterator]().next()
  t.true(await isPending(waiting))
  over.abort()
  await t.throwsAsync(waiting, { name: 'AbortError' })
  t.throws(() => channel.batches({ signal: over.signal }), { name: 'AbortError' })
  await partner.run((kit) => kit.channel.send('kept'))
  t.is(String(await channel.receive()), 'kept')
})

test.serial('an iterator is iterable, and its disposal leaves the loop', async (t) => {
  const { channel, partner } = await pair(t)
  const iterator = channel[Symbol.asyncIterator]() as AsyncIterableIterator<Buffer> & AsyncDisposable
  t.is(iterator[Symbol.asyncIterator](), iterator)
  const waiting = iterator.next()
  await iterator[Symbol.asyncDispose]()
  t.true((await waiting).done)
  await partner.run((kit) => kit.channel.send('kept'))
  t.is(String(await channel.receive()), 'kept')
})

const readers: Record<string, (channel: Channel) => Promise<unknown>> = {
  receive: (channel) => channel.receive(),
  waitReadable: (channel) => channel.waitReadable(),
  'a loop': (channel) => channel[Symbol.asyncIterator]().next(),
  batches: (channel) => channel.batches()[Symbol.asyncIterator]().next(),
  'a web stream': (channel) => channel.readable.getReader().read(),
  'a duplex': (channel) =>
    new Promise((resolve, reject) => channel.duplex().once('data', resolve).once('error', reject)),
}

for (const first of ['receive', 'a loop', 'batches', 'a web stream', 'a duplex'])
  test.serial(`${first} is the only reader while it waits`, async (t) => {
    const { channel, partner } = await pair(t)
    const waiting = readers[first]!(channel)
    t.true(await isPending(waiting))
    for (const [second, read] of Object.entries(readers)) {
      // All these calls together are one reader, and a channel has one web stream.
      if (second === first && (first === 'receive' || first === 'a web stream')) continue
      if (first === 'receive' && second === 'waitReadable') continue
      if (second === 'a duplex') continue
      await t.throwsAsync(within(read(channel), second), { ...invalid, message: /one place/ }, second)
    }
    await partner.run((kit) => kit.channel.send('for the first'))
    t.truthy(await within(waiting, 'the message'))
  })

test.serial('a duplex fails beside a waiting call, and a loop that was left is no reader', async (t) => {
  const { channel, partner } = await pair(t)
  const iterator = channel[Symbol.asyncIterator]()
  const left = iterator.next()
  await iterator.return!()
  t.true((await left).done)
  const waiting = channel.receive()
  t.true(await isPending(waiting))
  await partner.run((kit) => kit.channel.send('for receive'))
  t.is(String(await waiting), 'for receive')

  const merged = merge([channel])
  const loop = merged[Symbol.asyncIterator]()
  const next = loop.next()
  await t.throwsAsync(merged.receive(), { ...invalid, message: /one place/ })
  await loop.return!()
  t.true((await next).done)
  await merged.close()

  const last = channel.receive()
  await t.throwsAsync(within(readers['a duplex']!(channel), 'the duplex'), { ...invalid, message: /one place/ })
  t.true(await isPending(last), 'the failed stream leaves the channel to its reader')
  await partner.run((kit) => kit.channel.send('for the reader'))
  t.is(String(await last), 'for the reader')
})
