// A loop that is left while it waits takes nothing afterwards: later messages go to other readers.

import { once } from 'node:events'
import { Readable } from 'node:stream'

import test from 'ava'
import { member } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { listenHere, pair, Partner } from './support/partner.js'
import { isPending, within } from './support/until.js'

const over = { done: true, value: undefined }

test('a destroyed stream over a channel consumes no message', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = Readable.from(channel)
  // It reads, and waits for the first message.
  stream.read()
  t.true(await isPending(once(stream, 'readable')))
  const closed = once(stream, 'close')
  stream.destroy()
  await within(closed, 'the stream to be closed')
  await partner.run(async (kit) => {
    for (const text of ['one', 'two']) await kit.channel.send(text)
  })
  t.is(String(await within(channel.receive(), 'the first message')), 'one')
  t.is(String(await within(channel.receive(), 'the second message')), 'two')
})

test('a loop over messages that is left stops waiting, and the next reader gets the message', async (t) => {
  const { channel, partner } = await pair(t)
  const first = channel[Symbol.asyncIterator]()
  const second = channel[Symbol.asyncIterator]()
  const left = [first.next(), first.next()]
  t.true(await isPending(Promise.race(left)))
  await t.throwsAsync(second.next(), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }, 'beside a loop that waits')
  t.deepEqual(await first.return!(), over)
  t.deepEqual(await within(Promise.all(left), 'the loop that was left'), [over, over])
  t.deepEqual(await first.next(), over, 'it stays left')
  await partner.run(async (kit) => {
    for (const text of ['one', 'two']) await kit.channel.send(text)
  })
  t.is(String((await within(second.next(), 'the message')).value), 'one')
  t.is(String(await within(channel.receive(), 'the next one')), 'two')
})

test('a loop that is left while it yields to the event loop takes no message', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 1 << 20 } })
  const there = await partner.run((kit) => {
    let sent = 0
    while (kit.channel.trySend(String(sent))) sent += 1
    return sent
  })
  let next = 0
  let leaves = 0
  while (next < there) {
    const loop = channel[Symbol.asyncIterator]()
    const coming = loop.next().then(({ value }) => value)
    // A result that is not there after all pending microtasks waits for a turn of the event loop.
    const value = await Promise.race([coming, new Promise<null>((resolve) => process.nextTick(resolve, null))])
    if (value === null) {
      await loop.return!()
      t.is(await coming, undefined)
      leaves += 1
      await new Promise((resolve) => setImmediate(resolve))
      continue
    }
    if (String(value) !== String(next)) return t.fail(`${String(value)} came instead of ${next}`)
    next += 1
  }
  t.true(leaves > 0)
  t.is(next, there)
})

test('a loop over a listener that is left while it waits takes no client', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address)
  const partner = await Partner.start(t)
  const first = listener[Symbol.asyncIterator]()
  const left = first.next()
  t.true(await isPending(left))
  await first.return!()
  t.deepEqual(await within(left, 'the loop that was left'), over)
  await partner.connect(address)
  const { value: channel } = await within(listener[Symbol.asyncIterator]().next(), 'the agent')
  await partner.run((kit) => kit.channel.send('served'))
  t.is(String(await channel!.receive()), 'served')
})

test('a loop over a membership that is left while it waits takes no partner', async (t) => {
  const address = abstractAddress()
  const membership = await member(address)
  t.teardown(() => membership.close())
  const partner = await Partner.start(t)
  const first = membership[Symbol.asyncIterator]()
  const left = first.next()
  t.true(await isPending(left))
  await first.return!()
  t.deepEqual(await within(left, 'the loop that was left'), over)
  await partner.run(async (kit, where: string) => {
    const there = await kit.ringfence.member(where)
    kit.keep['membership'] = there
    kit.channel = there.channel!
  }, address)
  const { value: channel } = await within(membership[Symbol.asyncIterator]().next(), 'the partner')
  await partner.run((kit) => kit.channel.send('served'))
  t.is(String(await channel!.receive()), 'served')
})

test('a loop over tokens that is left while it waits takes no token', async (t) => {
  const { channel, partner } = await pair(t)
  const first = channel.tokens()[Symbol.asyncIterator]()
  const left = first.next()
  t.true(await isPending(left))
  await first.return!()
  t.deepEqual(await within(left, 'the loop that was left'), over)
  await partner.run(({ channel: there }) => {
    for (const token of [7n, 8n]) there.sendToken(token)
  })
  const second = channel.tokens()[Symbol.asyncIterator]()
  t.is((await within(second.next(), 'the first token')).value, 7n)
  t.is((await within(second.next(), 'the second token')).value, 8n)
})
