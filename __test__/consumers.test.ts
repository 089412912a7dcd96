// Readers: batches, iterators, and the limit of one reader at a time.

import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import { merge, RingfenceError, structured, subscribe, type Channel, type Merge, type Subscription } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pattern } from './support/bytes.js'
import { pair, Partner } from './support/partner.js'
import { mergeOf, named, type Source } from './support/sources.js'
import { blockUntil, isPending, within } from './support/until.js'

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
  'a port': (channel) =>
    new Promise((resolve, reject) => channel.port().once('message', resolve).once('messageerror', reject)),
  tryReceive: async (channel) => channel.tryReceive(),
  receiveEach: async (channel) => channel.receiveEach(() => {}),
}

for (const first of ['receive', 'a loop', 'batches', 'a web stream', 'a duplex', 'a port'])
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
    await partner.run((kit) => kit.channel.with(kit.ringfence.structured()).send('for the first'))
    t.truthy(await within(waiting, 'the message'))
  })

/** Resolves once a message has arrived, in the same turn of the event loop: no reader has got it. */
async function sendUnseen(t: ExecutionContext, partner: Partner, message: string | Uint8Array): Promise<void> {
  const sent = join(mkdtempSync(join(tmpdir(), 'ringfence-')), 'sent')
  t.teardown(() => rmSync(dirname(sent), { recursive: true }))
  const text = Buffer.from(message).toString('latin1')
  void partner.run(
    (kit, bytes: string, path: string) => {
      kit.channel.trySend(Buffer.from(bytes, 'latin1'))
      ;(kit.require('node:fs') as typeof import('node:fs')).writeFileSync(path, '')
    },
    text,
    sent,
  )
  blockUntil(() => existsSync(sent), 'the message is sent')
}

for (const first of ['receive', 'a loop', 'batches', 'a web stream', 'a duplex', 'a port'])
  test.serial(`${first} is not overtaken by any other reader before the wakeup`, async (t) => {
    const { channel, partner } = await pair(t)
    const next = readers[first]!(channel)
    t.true(await isPending(next))
    await sendUnseen(t, partner, structured().encode('for the first'))
    const others = Object.entries(readers).filter(
      ([second]) =>
        // A duplex may let the event loop turn first.
        second !== first && second !== 'a duplex' && !(first === 'receive' && second === 'waitReadable'),
    )
    await Promise.all(
      others.map(([second, read]) =>
        t.throwsAsync(within(read(channel), second), { ...invalid, message: /one place/ }, second),
      ),
    )
    t.truthy(await within(next, 'the message'))
    t.is(channel.stats().messagesReceived, 1)
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

type Waiting = (source: Channel | Subscription | Merge<Source>) => Promise<unknown>

const waiting: Record<string, Waiting> = {
  receive: (source) => source.receive(),
  'a loop': (source) => source[Symbol.asyncIterator]().next(),
  batches: (source) => source.batches()[Symbol.asyncIterator]().next(),
  'a web stream': (source) => source.readable.getReader().read(),
}

/** The calls that take a message, or return that there is one, without waiting. */
const takers: Record<string, Waiting> = {
  tryReceive: async (source) => source.tryReceive(),
  receiveEach: async (source) => source.receiveEach(() => {}),
  waitReadable: (source) => source.waitReadable(),
}

for (const [first, wait] of Object.entries(waiting)) {
  test.serial(`${first} is not overtaken on a subscription`, async (t) => {
    const [address, partner] = [abstractAddress(), await Partner.start(t)]
    await partner.run(async (kit, where: string) => {
      kit.keep['publisher'] = await kit.ringfence.publish(where)
    }, address)
    const subscription = await subscribe(address)
    t.teardown(() => subscription.close())
    const next = wait(subscription)
    t.true(await isPending(next))
    for (const [second, take] of Object.entries(takers)) {
      if (second === 'waitReadable' && first === 'receive') continue
      await t.throwsAsync(within(take(subscription), second), { ...invalid, message: /one place/ }, second)
    }
    await partner.run((kit) => (kit.keep['publisher'] as { send(text: string): Promise<void> }).send('for the first'))
    t.truthy(await within(next, 'the message'))
    t.is(subscription.tryReceive(), undefined)
  })

  test.serial(`${first} of a merge is not overtaken before the wakeup`, async (t) => {
    for (const [second, take] of Object.entries(takers)) {
      if (second === 'waitReadable' && first === 'receive') continue
      const [a] = named('a') as [Source]
      const merged = mergeOf(a)
      const next = wait(merged)
      t.true(await isPending(next))
      // The merge hands the first message out in a later microtask.
      a.send()
      await t.throwsAsync(within(take(merged), second), { ...invalid, message: /one place/ }, second)
      t.truthy(await within(next, 'the message'))
      t.is(merged.tryReceive(), undefined)
    }
  })
}

test.serial('a duplex does not overtake calls of receive', async (t) => {
  const { channel, partner } = await pair(t)
  const calls = [channel.receive(), channel.receive()]
  t.true(await isPending(Promise.race(calls)))
  await sendUnseen(t, partner, 'one')
  await t.throwsAsync(within(readers['a duplex']!(channel), 'the duplex'), { ...invalid, message: /one place/ })
  await partner.run((kit) => kit.channel.send('two'))
  t.deepEqual((await Promise.all(calls)).map(String), ['one', 'two'])
})

test.serial('waitReadable does not keep tryReceive and receiveEach from reading', async (t) => {
  const { channel, partner } = await pair(t)
  const readable = channel.waitReadable()
  t.true(await isPending(readable))
  t.is(channel.tryReceive(), undefined)
  t.is(
    channel.receiveEach(() => {}),
    0,
  )
  await partner.run((kit) => kit.channel.send('one'))
  t.true(await readable)
  t.is(String(channel.tryReceive()), 'one')
})

test.serial('an aborted receive no longer excludes tryReceive', async (t) => {
  const { channel, partner } = await pair(t)
  const over = new AbortController()
  const next = channel.receive({ signal: over.signal })
  t.throws(() => channel.tryReceive(), invalid)
  over.abort()
  await t.throwsAsync(next, { name: 'AbortError' })
  await partner.run((kit) => kit.channel.send('kept'))
  await channel.waitReadable()
  t.is(String(channel.tryReceive()), 'kept')
})

test.serial('several calls of next of batches get the messages in the order of the calls', async (t) => {
  const [a] = named('a') as [Source]
  const loop = mergeOf(a).batches()
  const calls = [loop.next(), loop.next()]
  t.true(await isPending(Promise.race(calls)))
  a.send(4)
  const results = (await Promise.all(calls)).map(({ value }) => value!.map(([, message]) => message))
  t.deepEqual(
    results.map(({ length }) => length),
    [1, 3],
  )
  t.deepEqual(
    results.flat(),
    [1, 2, 3, 4].map((number) => pattern(number, 1000)),
  )
})
