// Values from one to many, and from many to one.

import test from 'ava'
import {
  json,
  listen,
  member,
  merge,
  Publisher,
  publish,
  RingfenceError,
  spawn,
  structured,
  Subscription,
  type Channel,
  type Codec,
} from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pair, Partner, type Pair } from './support/partner.js'
import { isPending, within, turns, until } from './support/until.js'

const over = { done: true, value: undefined }
const invalid = {
  instanceOf: RingfenceError,
  code: 'ERR_RINGFENCE_INVALID_ARGUMENT',
} as const

/** Keeps the bytes that it gets. */
const plain: Codec<Uint8Array> = {
  encode: (bytes) => bytes,
  decode: (bytes) => bytes,
}

const say = ({ partner }: Pair, ...texts: string[]) =>
  partner.run(async (kit, words: string[]) => {
    for (const word of words) await kit.channel.send(word)
  }, texts)

test('with the option codec everything consists of values from the start', async (t) => {
  const address = abstractAddress()
  await using publisher = await publish(address, { codec: json<Tick>() })
  const partner = await Partner.start(t)
  const there = partner.run(async (kit, where: string) => {
    const subscription = await kit.ringfence.subscribe(where, { codec: kit.ringfence.json<Tick>() })
    return [await subscription.receive(), await subscription.receive()]
  }, address)
  await until(() => publisher.subscribers.length === 1, 'it has come')
  await publisher.send({ price: 7 })
  await publisher.end()
  t.deepEqual(await there, [{ price: 7 }, undefined])
  await t.throwsAsync(publish(address, { codec: {} as Codec<Tick> }), invalid)
})

interface Tick {
  price: number
}

test('a listener, a membership and a child with a codec have channels of values', async (t) => {
  const address = abstractAddress()
  await using listener = await listen(address, { codec: json<Tick>() })
  const partner = await Partner.start(t)
  const connectThere = () =>
    partner.run(async (kit, where: string) => {
      const channel = await kit.ringfence.connect(where, { codec: kit.ringfence.json<Tick>() })
      await channel.send({ price: 1 })
      await channel.end()
    }, address)
  const first = connectThere()
  for await (const channel of listener) {
    t.deepEqual(await within(channel.receive(), 'a value'), { price: 1 })
    break
  }
  await first
  const connected = new Promise<Channel<Tick, Tick>>((resolve) =>
    listener.once('connection', (channel) => resolve(channel)),
  )
  const second = connectThere()
  const { price } = (await (await within(connected, 'a channel')).receive())!
  t.is(price, 1)
  await second
  const third = connectThere()
  for await (const [, tick] of listener.messages()) {
    t.is(tick.price, 1)
    break
  }
  await third
  await listener.close({ channels: 'close' })

  const meeting = abstractAddress()
  await using membership = await member(meeting, { codec: json<Tick>() })
  const there = partner.run(async (kit, where: string) => {
    const other = await kit.ringfence.member(where, { codec: kit.ringfence.json<Tick>() })
    const tick = await other.channel!.receive()
    await other.close()
    return tick
  }, meeting)
  for await (const channel of membership) {
    t.is(membership.channel, channel)
    await channel.send({ price: 2 })
    break
  }
  t.deepEqual(await there, { price: 2 })

  const code = `
    import { fromParent, json } from 'ringfence'
    const channel = await fromParent({ codec: json() })
    await channel.send({ price: (await channel.receive()).price + 1 })
    await channel.end()`
  await using started = await spawn(process.execPath, ['--input-type=module', '--eval', code], { codec: json<Tick>() })
  await started.channel.send({ price: 3 })
  const answer = await started.channel.receive()
  t.is(answer!.price, 4)
})

test('a value is encoded once, and every subscriber decodes it', async (t) => {
  const address = abstractAddress()
  const publisher = await publish(address)
  t.teardown(() => publisher.close())
  let encoded = 0
  const counting: Codec<Tick> = {
    encode(value) {
      encoded += 1
      return JSON.stringify(value)
    },
    decode: json<Tick>().decode,
  }
  const ticks = publisher.with(counting)
  t.true(ticks instanceof Publisher)
  t.is(ticks.address, publisher.address)
  let subscribed = 0
  ticks.on('connection', () => (subscribed += 1))
  const partners = await Promise.all([Partner.start(t), Partner.start(t), Partner.start(t)])
  const there = partners.map((partner, index) =>
    partner.run(
      async (kit, where: string, way: number) => {
        const subscription = (await kit.ringfence.subscribe(where)).with(kit.ringfence.json<Tick>())
        const found: unknown[] = []
        if (way === 0) for await (const tick of subscription) found.push(tick)
        if (way === 1)
          for (let tick = await subscription.receive(); tick !== undefined; tick = await subscription.receive())
            found.push(tick)
        if (way === 2) while (await subscription.waitReadable()) subscription.receiveEach((tick) => found.push(tick))
        return {
          found,
          ended: subscription.readableEnded,
          sequence: Number(subscription.sequence),
        }
      },
      address,
      index,
    ),
  )
  await until(() => publisher.subscribers.length === 3, 'all have come')
  const values = Array.from({ length: 100 }, (_, price) => ({ price }))
  for (const value of values) await ticks.send(value)
  await t.throwsAsync(publisher.with(json()).send(undefined), invalid)
  t.throws(() => publisher.with(json()).trySend(5n), invalid)
  t.deepEqual([subscribed, ticks.subscribers.length, ticks.sequence, ticks.stats().messagesSent], [3, 3, 100n, 100])
  await ticks.end()
  for (const each of there) t.deepEqual(await each, { found: values, ended: true, sequence: 100 })
  t.is(encoded, 100)
})

test('a subscription reports a malformed message for one call', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  await partner.run(async (kit, where: string) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where)
  }, address)
  const { subscribe } = await import('ringfence')
  const subscription = (await subscribe(address)).with(json<number>())
  t.true(subscription instanceof Subscription)
  t.teardown(() => subscription.close())
  await partner.run(async (kit) => {
    for (const text of ['1', '{', '2']) await (kit.keep['publisher'] as import('ringfence').Publisher).send(text)
  })
  t.is(await subscription.receive(), 1)
  const error = await t.throwsAsync(subscription.receive(), {
    code: 'ERR_RINGFENCE_MALFORMED',
  })
  t.is(String((error as RingfenceError).bytes), '{')
  t.is(await subscription.receive(), 2)
  t.is(subscription.tryReceive(), undefined)
  t.throws(() => subscription.with({} as Codec<number>), invalid)
})

test('a merge returns values with their sources', async (t) => {
  const pairs = await Promise.all([pair(t), pair(t)])
  const channels = pairs.map(({ channel }) => channel.with(structured<Map<string, number>>()))
  const typed = merge(channels)
  for (const [index, { partner }] of pairs.entries()) {
    await partner.run(async (kit, number: number) => {
      const there = kit.channel.with(kit.ringfence.structured<Map<string, number>>())
      for (let count = 0; count < 3; count += 1) await there.send(new Map([['n', 10 * number + count]]))
      if (number === 1) await kit.channel.send('no value')
      await there.end()
    }, index)
  }
  const found = new Map<unknown, number[]>(channels.map((channel) => [channel, []]))
  let malformed = 0
  for (;;) {
    try {
      const next = await typed.receive()
      if (next === undefined) break
      found.get(next[0])!.push(next[1].get('n')!)
    } catch (error) {
      t.is((error as RingfenceError).code, 'ERR_RINGFENCE_MALFORMED')
      malformed += 1
    }
  }
  t.is(malformed, 1)
  t.deepEqual(
    [...found.values()],
    [
      [0, 1, 2],
      [10, 11, 12],
    ],
  )
})

test('a merge of values supports every method of a merge, and its sources may change', async (t) => {
  const [one, two] = await Promise.all([pair(t), pair(t)])
  const [first, second] = [one.channel.with(json<number>()), two.channel.with(json<number>())]
  const typed = merge([first])
  t.throws(() => typed.add(one.channel as never), invalid)
  t.is(typed.add(second), typed)
  t.deepEqual(typed.sources, [first, second])
  await say(one, '1', '2', '3')
  t.true(await within(typed.waitReadable(), 'a message'))
  const found: unknown[] = []
  const visit = (value: number, source: unknown) => void found.push(source === first, value)
  t.is(typed.receiveEach(visit, 2), 2, 'no more than it is to')
  t.deepEqual(found, [true, 1, true, 2])
  const loop = typed[Symbol.asyncIterator]()
  const { done, value } = await loop.next()
  t.false(done)
  t.is(value?.[0], first)
  t.is(value?.[1], 3)
  const waits = loop.next()
  t.true(await isPending(waits))
  t.deepEqual(await loop.return!(), over)
  t.deepEqual(await within(waits, 'the loop that was left'), over)
  await say(two, '4')
  t.is((await within(typed.receive(), 'what comes after the loop'))?.[1], 4)

  t.true(typed.delete(second))
  t.false(typed.delete(second))
  t.deepEqual(typed.sources, [first])
  await say(two, '5')
  t.is(String(await within(two.channel.receive(), 'the message of the one that left')), '5')

  await one.partner.run(({ channel }) => channel.end())
  t.false(await within(typed.waitReadable(), 'the end'))
  t.is(await typed.receive(), undefined)
  t.deepEqual(await typed[Symbol.asyncIterator]().next(), over)
})

test('closing a merge of values releases its sources', async (t) => {
  for (const how of ['close', Symbol.asyncDispose] as const) {
    const one = await pair(t)
    const typed = merge([one.channel.with(json())])
    await typed[how]()
    t.deepEqual(typed.sources, [])
    await t.throwsAsync(typed.receive(), { code: 'ERR_RINGFENCE_CLOSED' })
    await say(one, 'its own again')
    t.is(String(await one.channel.receive()), 'its own again')
  }
})

test('a visitor may keep the values of a merge', async (t) => {
  const { poolSize } = Buffer
  t.teardown(() => void (Buffer.poolSize = poolSize))
  // Otherwise a small copy would be in memory that the engine shares out.
  Buffer.poolSize = 0
  const one = await pair(t)
  const typed = merge([one.channel.with(plain)])
  const sent = ['first', 'second']
  await say(one, ...sent)
  const kept: Uint8Array[] = []
  let borrowed = 0
  t.is(
    typed.receiveEach((bytes) => {
      if (String(bytes) === sent[kept.length]) kept.push(bytes)
      if (bytes.buffer.byteLength > bytes.length) borrowed += 1
    }),
    2,
  )
  t.deepEqual(kept.length, 2, 'each is what was sent')
  t.is(borrowed, 0, 'none is the ring’s memory')
})

test('a merge reports a codec that cannot decode a message', async (t) => {
  const one = await pair(t)
  const nothing = merge([one.channel.with({ encode: () => '', decode: () => undefined })])
  await say(one, 'something')
  const error = await t.throwsAsync(nothing.receive(), {
    code: 'ERR_RINGFENCE_MALFORMED',
  })
  t.is(String((error as RingfenceError).bytes), 'something')
})

test('a channel of values: without a message, and after leaving a loop', async (t) => {
  const one = await pair(t)
  for (const typed of [one.channel.with(plain), one.channel.with(json())]) {
    t.is(typed.tryReceive(), undefined)
    const loop = typed[Symbol.asyncIterator]()
    t.deepEqual(await loop.return!(), over)
    await say(one, '7')
    t.deepEqual(await within(loop.next(), 'the loop that was left'), over)
    t.is(String(typed.tryReceive()), '7')
  }
})

test('a view of values emits its events after removeAllListeners of the channel that it was made from', async (t) => {
  const { channel, partner } = await pair(t)
  const [view, other] = [channel.with(json()), channel.with(json())]
  const events: string[] = []
  for (const [name, each] of Object.entries({ channel, view, other }))
    each.on('close', ({ reason }) => events.push(`${name}: ${reason}`))
  channel.removeAllListeners()
  other.removeAllListeners()
  other.once('close', () => events.push('other, once'))
  await partner.kill()
  await channel.closed
  await turns(2)
  t.deepEqual(events, ['view: lost', 'other, once'])
})
