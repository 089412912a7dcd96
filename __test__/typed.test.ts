// Values from one to many, and from many to one.

import test from 'ava'
import {
  json,
  merge,
  publish,
  RingfenceError,
  structured,
  TypedMerge,
  TypedPublisher,
  TypedSubscription,
  type Codec,
} from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pair, Partner } from './support/partner.js'
import { until } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const

interface Tick {
  price: number
}

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
  t.true(ticks instanceof TypedPublisher)
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
        if (way === 2) while (await subscription.readable()) subscription.drain((tick) => found.push(tick))
        return { found, ended: subscription.readableEnded, sequence: Number(subscription.sequence) }
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
  await ticks.end()
  for (const each of there) t.deepEqual(await each, { found: values, ended: true, sequence: 100 })
  t.is(encoded, 100)
})

test('a subscription tells what is malformed, for one call', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  await partner.run(async (kit, where: string) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where)
  }, address)
  const { subscribe } = await import('ringfence')
  const subscription = (await subscribe(address)).with(json<number>())
  t.true(subscription instanceof TypedSubscription)
  t.teardown(() => subscription.close())
  await partner.run(async (kit) => {
    for (const text of ['1', '{', '2']) await (kit.keep['publisher'] as import('ringfence').Publisher).send(text)
  })
  t.is(await subscription.receive(), 1)
  const error = await t.throwsAsync(subscription.receive(), { code: 'ERR_RINGFENCE_MALFORMED' })
  t.is(String((error as RingfenceError).bytes), '{')
  t.is(await subscription.receive(), 2)
  t.is(subscription.tryReceive(), undefined)
  t.throws(() => subscription.subscription.with({} as Codec<number>), invalid)
})

test('a merge has values with the source that each is of', async (t) => {
  const pairs = await Promise.all([pair(t), pair(t)])
  const typed = merge(pairs.map(({ channel }) => channel)).with(structured<Map<string, number>>())
  t.true(typed instanceof TypedMerge)
  for (const [index, { partner }] of pairs.entries()) {
    await partner.run(async (kit, number: number) => {
      const there = kit.channel.with(kit.ringfence.structured<Map<string, number>>())
      for (let count = 0; count < 3; count += 1) await there.send(new Map([['n', 10 * number + count]]))
      if (number === 1) await kit.channel.send('no value')
      await there.end()
    }, index)
  }
  const found = new Map<unknown, number[]>(pairs.map(({ channel }) => [channel, []]))
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
