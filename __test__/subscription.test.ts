// Unit tests of a subscription: its calls of the binding, its events, and each end. broadcast.test.ts uses it with a
// publisher.

import { once } from 'node:events'

import test, { type ExecutionContext } from 'ava'
import { json, type Subscription, type SubscribeOptions } from 'ringfence'

import { FAILED, merge, openResources, openOver, REASONS, subscribe, FakeSubscription } from './support/binding.js'
import { pattern } from './support/bytes.js'
import { clock } from './support/clock.js'
import { codeOf, patterns } from './support/ring.js'
import { isPending, turn, turns } from './support/until.js'

async function subscribed(
  t: ExecutionContext,
  fake = new FakeSubscription(),
  options: SubscribeOptions = {},
): Promise<{ fake: FakeSubscription; subscription: Subscription }> {
  const subscription = await openOver(t, fake, (address) => subscribe(address, options))
  return { fake, subscription }
}

test.serial('a subscription has the properties from the handshake, and is open until it ends', async (t) => {
  const { fake, subscription } = await subscribed(t)
  t.deepEqual([subscription.delivery, subscription.capacity, subscription.maxMessageSize], ['reliable', 65_536, 8192])
  t.is(subscription.peer, fake.peer as never)
  t.deepEqual(subscription.evidence as unknown, [{ check: 'uid' }])
  t.is(subscription.evidence, subscription.evidence)
  t.true(Object.isFrozen(subscription.evidence))
  t.true(openResources.has(subscription))
  t.true(await isPending(subscription.closed))
  await subscription.close()
  t.is((await subscription.closed).reason, 'closed')
  t.false(openResources.has(subscription))
  t.deepEqual(fake.newCalls(), ['evidence', 'close'])
  await subscription.close()
  fake.onWakeup()
  t.deepEqual(fake.newCalls(), [], 'it is asked no more')
  t.throws(() => Reflect.construct(subscription.constructor, [Symbol('ringfence'), fake, { busyPollMicros: 0 }]), {
    ...codeOf('INVALID_ARGUMENT'),
    message: /made by subscribe/,
  })
})

test.serial('a subscription that cannot be watched is closed at once', async (t) => {
  const fake = new FakeSubscription()
  fake.watching = FAILED
  fake.failing = { code: 'NO_SPACE', message: 'no descriptor' }
  await t.throwsAsync(subscribed(t, fake), codeOf('NO_SPACE'))
  t.true(fake.calls.includes('close'))
})

test.serial('messages arrive by every way to read, and a wakeup wakes waiting readers', async (t) => {
  const { fake, subscription } = await subscribed(t)
  const { ring } = fake
  ring.push(...patterns(0, 10, 10, 10, 10))
  t.true((await subscription.receive())!.equals(pattern(0, 10)))
  t.true(subscription.tryReceive()!.equals(pattern(1, 10)))
  t.true(await subscription.waitReadable())
  t.is(
    subscription.receiveEach((bytes, offset, length) => {
      t.true(pattern(2, 10).equals(bytes.subarray(offset, offset + length)))
    }, 1),
    1,
  )
  const loop = subscription[Symbol.asyncIterator]()
  t.true((await loop.next()).value!.equals(pattern(3, 10)))
  t.is(subscription.tryReceive(), undefined)

  const waits = [subscription.receive(), subscription.waitReadable()] as const
  t.true(await isPending(Promise.race(waits)))
  ring.push(...patterns(4, 10, 10))
  fake.onWakeup()
  t.deepEqual(fake.newCalls(), ['listen', 'disarm'])
  t.true((await waits[0])!.equals(pattern(4, 10)))
  t.true(await waits[1])
  t.true((await loop.next()).value!.equals(pattern(5, 10)))
  t.false(subscription.readableEnded)

  const over = new AbortController()
  const called = [subscription.receive({ signal: over.signal }), subscription.waitReadable({ signal: over.signal })]
  over.abort()
  for (const call of called) await t.throwsAsync(call as Promise<unknown>, codeOf('ABORT_ERR'))
  await t.throwsAsync(subscription.receive({ signal: over.signal }), codeOf('ABORT_ERR'))
  await t.throwsAsync(subscription.waitReadable({ signal: over.signal }), codeOf('ABORT_ERR'))
  t.throws(() => subscription.receiveEach(5 as never), codeOf('INVALID_ARGUMENT'))
  t.throws(() => subscription.with({} as never), codeOf('INVALID_ARGUMENT'))

  const values = subscription.with(json())
  ring.push(Buffer.from('1'), Buffer.from('2'))
  t.is(await values.receive(), 1)
  t.is((await values[Symbol.asyncIterator]().next()).value, 2)
})

test.serial('with busyPollMicros it spins', async (t) => {
  for (const busyPollMicros of [0, 5]) {
    const { fake, subscription } = await subscribed(t, new FakeSubscription(), { busyPollMicros })
    const waiting = subscription.receive()
    t.is(fake.ring.newCalls()[0], busyPollMicros > 0 ? 'pull busily' : 'pull')
    await subscription[Symbol.asyncDispose]()
    t.is((await subscription.closed).reason, 'closed')
    t.is(await waiting, undefined)
  }
})

test.serial('with latest, a check fetches no message', async (t) => {
  for (const delivery of ['latest', 'best-effort', 'reliable'] as const) {
    const { fake, subscription } = await subscribed(t, new FakeSubscription(delivery))
    fake.ring.push(pattern(0, 10))
    t.true(await subscription.waitReadable())
    t.deepEqual(
      [fake.newCalls(), fake.ring.newCalls()],
      delivery === 'latest' ? [['has a message'], []] : [[], ['pull']],
    )
    await subscription.close()
  }
})

test.serial('fetched messages that were not returned are neither received nor skipped', async (t) => {
  const { fake, subscription } = await subscribed(t)
  fake.ring.push(...patterns(0, 10, 20, 30))
  t.is(subscription.tryReceive()!.length, 10)
  t.is(subscription.sequence, 98n)
  t.is(subscription.lost, 7n)
  t.deepEqual(subscription.stats(), {
    messagesReceived: 1,
    bytesReceived: 10,
    lost: 7,
    attachmentsReceived: 0,
    lag: 300,
    sleeps: 4,
  })
  t.is(subscription.tryReceive()!.length, 20)
  t.is(subscription.tryReceive()!.length, 30)
  t.deepEqual(subscription.stats(), {
    messagesReceived: 3,
    bytesReceived: 60,
    lost: 5,
    attachmentsReceived: 0,
    lag: 300,
    sleeps: 4,
  })
})

const reason = (name: string) => REASONS.indexOf(name)

for (const name of ['closed', 'lost'] as const)
  test.serial(`${name}: the publisher's messages are read, and then everything is released`, async (t) => {
    for (const close of [false, true]) {
      const { fake, subscription } = await subscribed(t)
      fake.ring.push(...patterns(0, 10, 10))
      fake.ring.ended = true
      fake.endReason = reason(name)
      fake.onWakeup()
      t.is((await subscription.closed).reason, name)
      t.deepEqual(fake.newCalls(), ['listen', 'outlive'])
      t.false(subscription.readableEnded)
      t.is((await subscription.receive())!.length, 10)
      const lost = name === 'lost' ? codeOf('PEER_LOST') : codeOf('CLOSED')
      await t.throwsAsync(subscription.verify(), lost)
      if (close) {
        await subscription.close()
        t.throws(() => subscription.tryReceive(), codeOf('CLOSED'))
      } else {
        t.is((await subscription.receive())!.length, 10)
        if (name === 'closed') t.is(await subscription.receive(), undefined)
        else await t.throwsAsync(subscription.receive(), lost)
        t.is(subscription.readableEnded, name === 'closed')
      }
      t.deepEqual(fake.newCalls(), ['close'])
      await subscription[Symbol.asyncDispose]()
      t.deepEqual(fake.newCalls(), [])
      if (!close && name === 'closed') t.is(await subscription.receive(), undefined, 'its end stays an end')
    }
  })

for (const [name, code] of [
  ['exposed', 'OBJECT_EXPOSED'],
  ['evicted', 'EVICTED'],
  ['corrupt', 'RING_CORRUPT'],
] as const)
  test.serial(`${name}: readers are notified, and nothing in the ring is read`, async (t) => {
    const { fake, subscription } = await subscribed(t)
    const waiting = subscription.receive()
    fake.ring.push(pattern(0, 10))
    fake.endReason = reason(name)
    // The end is found before the message is looked for.
    fake.ring.failing = code
    fake.onWakeup()
    t.is((await subscription.closed).reason, name)
    t.deepEqual(fake.newCalls(), ['listen', 'close'])
    await t.throwsAsync(waiting, codeOf(code))
    await t.throwsAsync(subscription.receive(), codeOf(code))
    t.throws(() => subscription.tryReceive(), codeOf(code))
    await t.throwsAsync(subscription.verify(), codeOf(code))
    await subscription.close()
    t.throws(() => subscription.tryReceive(), codeOf(code), 'the reason stays')
  })

test.serial('a close drops fetched messages, and loops end', async (t) => {
  for (const way of ['close', 'refused'] as const) {
    const { fake, subscription } = await subscribed(t)
    fake.ring.push(...patterns(0, 10, 10))
    t.is(subscription.tryReceive()!.length, 10)
    const before = [subscription.sequence, subscription.lost]
    if (way === 'close') await subscription.close()
    else {
      fake.endReason = reason('refused')
      fake.onWakeup()
    }
    t.throws(() => subscription.tryReceive(), codeOf('CLOSED'))
    const next = subscription[Symbol.asyncIterator]().next()
    if (way === 'close') t.true((await next).done)
    else await t.throwsAsync(next, codeOf('CLOSED'))
    t.is(subscription.stats().messagesReceived, 1)
    t.deepEqual([subscription.sequence, subscription.lost], before, 'what was discarded was not handed out')
  }
})

test.serial('a publisher that a later check refuses ends the subscription as refused', async (t) => {
  const { fake, subscription } = await subscribed(t)
  const waiting = subscription.receive()
  fake.endReason = reason('refused')
  fake.onWakeup()
  t.like(await subscription.closed, { reason: 'refused', error: { code: 'ERR_RINGFENCE_PEER_REFUSED' } })
  t.deepEqual(fake.newCalls(), ['listen', 'close'])
  await t.throwsAsync(waiting, codeOf('CLOSED'))
  const error = t.throws(() => subscription.tryReceive(), codeOf('CLOSED'))
  t.regex(error!.message, /no longer satisfies the policy/)
  await t.throwsAsync(subscription.verify(), { message: /no longer satisfies the policy/ })
})

test.serial('an error of a call ends the subscription if it is fatal', async (t) => {
  for (const [code, ends] of [
    ['RING_CORRUPT', 'corrupt'],
    ['UNSUPPORTED', 'failed'],
    ['NO_SPACE', undefined],
    ['EVICTED', 'evicted'],
    ['OBJECT_EXPOSED', 'exposed'],
  ] as const) {
    const { fake, subscription } = await subscribed(t)
    fake.ring.failing = code
    fake.endReason = code === 'EVICTED' ? reason(ends) : 0
    const error = t.throws(() => subscription.tryReceive(), codeOf(code))
    const isListening = fake.newCalls().includes('listen')
    t.is(isListening, code === 'EVICTED', code)
    if (ends === undefined) {
      t.true(await isPending(subscription.closed))
      continue
    }
    t.is((await subscription.closed).reason, ends)
    const rejection = await t.throwsAsync<Error>(subscription.verify(), codeOf(code))
    if (code === 'RING_CORRUPT') {
      t.is(rejection!.message, 'as the ring says')
      t.is((rejection!.cause as Error).message, error!.message)
    }
  }
})

test.serial('a reader that finds the end returns first, and then the publisher’s end is reported', async (t) => {
  const { fake, subscription } = await subscribed(t)
  fake.ring.ended = true
  fake.endReason = reason('closed')
  t.is(subscription.tryReceive(), undefined)
  t.deepEqual(fake.newCalls(), [])
  t.is((await subscription.closed).reason, 'closed')
  t.deepEqual(fake.newCalls(), ['listen', 'outlive', 'close'])
})

test.serial('verify returns the identity of the publisher, and reports if the subscription has ended', async (t) => {
  const { fake, subscription } = await subscribed(t)
  const { evidence } = subscription
  const looking = subscription.verify()
  const identity = { pid: 7, uid: 1 }
  fake.onVerified(null, { identity, evidence: [{ check: 'pid' }] })
  t.is(await looking, identity as never)
  t.is(subscription.peer, identity as never)
  t.deepEqual(subscription.evidence as unknown, [...evidence, { check: 'pid' }])
  fake.newCalls()
  const refused = subscription.verify()
  fake.endReason = reason('refused')
  fake.onVerified({ code: 'PEER_REFUSED', message: 'another' }, null)
  await t.throwsAsync(refused, codeOf('PEER_REFUSED'))
  t.is((await subscription.closed).reason, 'refused')
})

const immediates = () => process.getActiveResourcesInfo().filter((what) => what === 'Immediate').length

test.serial('it keeps the process alive until unref, and so do its readers', async (t) => {
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  const { fake, subscription } = await subscribed(t)
  for (const [call, rejection] of [
    ['unref', 'keep alive: 0'],
    ['ref', 'keep alive: 1'],
  ] as const) {
    t.is(subscription[call](), subscription)
    t.deepEqual(fake.newCalls(), [rejection])
    await turns(20)
    fake.ring.push(...patterns(0, 3000, 3000))
    while (subscription.tryReceive() !== undefined);
    const before = immediates()
    const waiting = subscription.receive()
    t.is(immediates() - before, call === 'ref' ? 1 : 0)
    fake.ring.push(pattern(2, 10))
    t.is((await waiting)!.length, 10)
    clock.now += 1
  }
})

test.serial('a merge reads it, and reports why it has ended, even before the line was read', async (t) => {
  for (const name of ['lost', undefined] as const) {
    const { fake, subscription } = await subscribed(t)
    const merged = merge([subscription])
    t.throws(() => subscription.tryReceive(), codeOf('INVALID_ARGUMENT'))
    fake.ring.push(...patterns(0, 10, 20))
    t.is(String((await merged.receive())![0] === subscription), 'true')
    t.deepEqual(merged.stats(), { sources: 1, messagesReceived: 1, bytesReceived: 10 })
    t.truthy(await merged.receive())
    const ended = once(merged, 'disconnect')
    fake.ring.ended = true
    if (name !== undefined) fake.endReason = reason(name)
    t.is(await merged.receive(), undefined)
    t.is((await ended)[1].reason, name === 'lost' ? 'lost' : 'closed')
    await turn()
  }
})
