// Statistics of open resources: they are exact, and the last values stay.

import test from 'ava'
import { merge, publish, subscribe, type Channel, type ChannelStats, type Subscription } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { listenHere, nextChannel, pair, Partner } from './support/partner.js'
import { until } from './support/until.js'

const statsThere = (partner: Partner): Promise<ChannelStats> => partner.run((kit) => kit.channel.stats())

test('a channel counts messages in the ring and returned messages, on both sides', async (t) => {
  const { channel, partner } = await pair(t)
  const untouched = channel.stats()
  t.like(untouched, { messagesSent: 0, bytesSent: 0, messagesReceived: 0, bytesReceived: 0, waits: 0, waitedMicros: 0 })
  t.like(untouched, { ringUsed: 0, ringCapacity: channel.capacity, queuedBytes: 0 })

  const sizes = [0, 1, 64, 2047, 2048, 9000, channel.capacity]
  const bytes = sizes.reduce((sum, size) => sum + size, 0)
  const read = partner.run(async (kit, count: number) => {
    for (let number = 0; number < count - 2; number += 1) await kit.channel.receive()
    let visited = 0
    while (visited < 2 && (await kit.channel.waitReadable())) visited += kit.channel.receiveEach(() => {})
    return kit.channel.stats()
  }, sizes.length)
  for (const size of sizes) await channel.send(Buffer.alloc(size))
  t.like(channel.stats(), { messagesSent: sizes.length, bytesSent: bytes, queuedBytes: 0 })
  t.like(await read, { messagesReceived: sizes.length, bytesReceived: bytes, messagesSent: 0 })

  t.true(channel.trySend('now'))
  t.true(channel.fill(8, () => 5))
  const reservation = channel.reserve(8192)!
  reservation.commit(7)
  channel.reserve(100)!.cancel()
  const waits = channel.stats()
  t.like(waits, { messagesSent: sizes.length + 3, bytesSent: bytes + 15 })
  t.true(waits.ringUsed > 0 && waits.ringUsed < 200, 'it is not read yet')
  await partner.run(async (kit) => void (await kit.channel.receive()))
  t.like(await statsThere(partner), { messagesReceived: sizes.length + 1, bytesReceived: bytes + 3 })

  await channel.close()
  t.like(channel.stats(), { messagesSent: sizes.length + 3, bytesSent: bytes + 15, ringCapacity: channel.capacity })
  // The remaining messages are read after the end, and count.
  await partner.run(async (kit) => {
    await kit.channel.closed
    while ((await kit.channel.receive()) !== undefined);
  })
  t.like(await statsThere(partner), { messagesReceived: sizes.length + 3, bytesReceived: bytes + 15 })
})

test('fetched messages that were not returned do not count, not even after a close', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    await Promise.all(Array.from({ length: 10 }, (_, number) => kit.channel.send(Buffer.alloc(number))))
  })
  for (let number = 0; number < 4; number += 1) await channel.receive()
  t.like(channel.stats(), { messagesReceived: 4, bytesReceived: 6 })
  await channel.close()
  t.like(channel.stats(), { messagesReceived: 4, bytesReceived: 6 })
})

test('a send without room is a wait, and a rejected message does not count', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 4096 } })
  while (channel.trySend(Buffer.alloc(500)));
  const full = channel.stats()
  t.like(full, { waits: 0, queuedBytes: 0 })
  const waiting = [channel.send(Buffer.alloc(500)), channel.send(Buffer.alloc(500))]
  await until(() => channel.stats().sleeps > full.sleeps, 'the sender sleeps')
  const asleep = channel.stats()
  t.like(asleep, { waits: 2, queuedBytes: 1000, messagesSent: full.messagesSent })
  await partner.run(async (kit, count: number) => {
    for (let number = 0; number < count; number += 1) await kit.channel.receive()
  }, full.messagesSent + 2)
  await Promise.all(waiting)
  const after = channel.stats()
  t.like(after, { waits: 2, queuedBytes: 0, messagesSent: full.messagesSent + 2 })
  t.true(after.waitedMicros > 0)
  t.true((await statsThere(partner)).wakeupsSent > 0, 'the reader has woken the sender')
  await channel.send('at once')
  t.is(channel.stats().waits, 2)

  while (channel.trySend(Buffer.alloc(500)));
  const { messagesSent } = channel.stats()
  const never = channel.send(Buffer.alloc(500))
  await channel.close()
  await t.throwsAsync(never, { code: 'ERR_RINGFENCE_CLOSED' })
  t.like(channel.stats(), { messagesSent, waits: 3, queuedBytes: 0 })
})

test('a listener counts accepted and refused clients, and sums up its channels', async (t) => {
  const listener = await listenHere(t, abstractAddress(), { policy: { authorize: ({ pid }) => pid !== refusedPid } })
  let refusedPid = 0
  const [one, other, refused] = await Promise.all([Partner.start(t), Partner.start(t), Partner.start(t)])
  refusedPid = refused.pid
  await t.throwsAsync(refused.connect(listener.address), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  const channels: Channel[] = []
  for (const partner of [one, other]) {
    const [channel] = await Promise.all([nextChannel(listener), partner.connect(listener.address)])
    channels.push(channel)
    await partner.run((kit) => kit.channel.send('four'))
    await channel.receive()
  }
  await until(() => listener.stats().refused['authorize'] === 1, 'the refusal was told')
  t.like(listener.stats(), { open: 2, accepted: 2, messagesReceived: 2, bytesReceived: 8 })
  t.is(listener.stats().ringCapacity, channels[0]!.capacity * 2)
  for (const channel of channels) channel.sendToken(1)
  t.is(listener.stats().tokensSent, 2)
  // Both channels count the signals of the process.
  const { tokensStray } = listener.stats()
  await one.run((_kit, pid: number) => void process.kill(pid, 50), process.pid)
  await until(() => channels.every((channel) => channel.stats().tokensStray === tokensStray + 1), 'both count it')
  t.is(listener.stats().tokensStray, tokensStray + 1)

  // The messages of a client are read after its end.
  await one.run(async (kit) => {
    await kit.channel.send('left behind')
    await kit.channel.close()
  })
  await channels[0]!.closed
  t.like(listener.stats(), { open: 1, accepted: 2, messagesReceived: 2, ringCapacity: channels[1]!.capacity })
  t.is(String(await channels[0]!.receive()), 'left behind')
  t.is(await channels[0]!.receive(), undefined)
  await until(() => listener.stats().messagesReceived === 3, 'it counts')
  await listener.close({ channels: 'close' })
  t.like(listener.stats(), { open: 0, accepted: 2, messagesReceived: 3, bytesReceived: 19, ringCapacity: 0 })
})

test('a publisher and a subscription each count on their side', async (t) => {
  const address = abstractAddress()
  const publisher = await publish(address, { capacity: 65_536 })
  t.teardown(() => publisher.close())
  const partner = await Partner.start(t)
  await partner.run(async (kit, where) => {
    kit.keep['subscription'] = await kit.ringfence.subscribe(where)
  }, address)
  await until(() => publisher.subscribers.length === 1, 'the subscriber is known')
  for (let number = 0; number < 5; number += 1) await publisher.send(Buffer.alloc(100))
  const published = publisher.stats()
  t.like(published, {
    messagesSent: 5,
    bytesSent: 500,
    open: 1,
    accepted: 1,
    evicted: 0,
    waits: 0,
    ringCapacity: 65_536,
  })
  t.is(published.ringUsed, publisher.subscribers[0]!.stats().lag)
  const read = (count: number) =>
    partner.run(async (kit, wanted) => {
      const subscription = kit.keep['subscription'] as Subscription
      for (let number = 0; number < wanted; number += 1) await subscription.receive()
      return subscription.stats()
    }, count)
  t.like(await read(2), { messagesReceived: 2, bytesReceived: 200, lost: 0 })
  t.like(await read(3), { messagesReceived: 5, bytesReceived: 500, lag: 0 })
  await until(() => publisher.stats().ringUsed === 0, 'all is read')
  await publisher.close()
  t.like(publisher.stats(), { messagesSent: 5, bytesSent: 500, open: 0, accepted: 1, evicted: 0, ringCapacity: 65_536 })
  const last = await partner.run(async (kit) => {
    const subscription = kit.keep['subscription'] as Subscription
    await subscription.receive()
    await subscription.closed
    return subscription.stats()
  })
  t.like(last, { messagesReceived: 5, bytesReceived: 500 })
})

test('a merge counts the messages that it returned, and not earlier ones of its sources', async (t) => {
  const [one, other] = await Promise.all([pair(t), pair(t)])
  for (const { partner } of [one, other])
    await partner.run(async (kit) => {
      for (const word of ['first', 'second', 'third']) await kit.channel.send(word)
    })
  await one.channel.receive()
  const both = merge([one.channel, other.channel])
  for (let number = 0; number < 5; number += 1) await both.receive()
  t.deepEqual(both.stats(), { sources: 2, messagesReceived: 5, bytesReceived: 27 })
  both.delete(one.channel)
  t.deepEqual(both.stats(), { sources: 1, messagesReceived: 5, bytesReceived: 27 })
  await both.close()
})

test('a membership counts its partners', async (t) => {
  const address = abstractAddress()
  const { member } = await import('ringfence')
  const membership = await member(address)
  t.teardown(() => membership.close())
  const channels = membership[Symbol.asyncIterator]()
  const partner = await Partner.start(t)
  for (let round = 1; round <= 2; round += 1) {
    const came = channels.next()
    await partner.join(address).catch(() => {})
    await partner.run(async (kit, where) => {
      kit.keep['membership'] = await kit.ringfence.member(where)
      await (kit.keep['membership'] as typeof membership).channel!.send('hello')
    }, address)
    const channel = (await came).value!
    await channel.receive()
    t.like(membership.stats(), { open: 1, accepted: round, messagesReceived: round })
    await partner.run((kit) => (kit.keep['membership'] as typeof membership).close())
    await channel.closed
  }
  await until(() => membership.stats().open === 0, 'the partner has left')
})

test('latest: skipped messages are lost, and counted', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  await partner.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 65_536 })
  }, address)
  const subscription = await subscribe(address, { delivery: 'latest' })
  t.teardown(() => subscription.close())
  await partner.run(async (kit) => {
    const publisher = kit.keep['publisher'] as import('ringfence').Publisher
    for (let number = 1; number <= 7; number += 1) await publisher.send(String(number))
  })
  t.is(String(await subscription.receive()), '7')
  t.like(subscription.stats(), { messagesReceived: 1, bytesReceived: 1, lost: 6, lag: 0 })
  await subscription.close()
  t.like(subscription.stats(), { messagesReceived: 1, bytesReceived: 1, lost: 6 })
})

test('the names of all statistics', async (t) => {
  const ofChannel = [
    ...[
      'messagesSent',
      'bytesSent',
      'messagesReceived',
      'bytesReceived',
      'attachmentsSent',
      'attachmentsReceived',
      'callsInFlight',
      'lateReplies',
      'waits',
      'waitedMicros',
      'wakeupsSent',
    ],
    ...['sleeps', 'ringUsed', 'ringCapacity', 'queuedBytes'],
    ...['tokensSent', 'tokensReceived', 'tokensStray', 'tokensDropped'],
  ]
  const namesOf = (stats: object) => Object.keys(stats).sort()
  const { channel } = await pair(t)
  t.deepEqual(namesOf(channel.stats()), [...ofChannel].sort())
  const listener = await listenHere(t, abstractAddress())
  t.deepEqual(namesOf(listener.stats()), [...ofChannel, 'open', 'accepted', 'refused'].sort())
  const publisher = await publish(abstractAddress(), { capacity: 65_536 })
  t.teardown(() => publisher.close())
  t.deepEqual(
    namesOf(publisher.stats()),
    [
      ...['open', 'accepted', 'refused', 'messagesSent', 'bytesSent', 'evicted', 'waits', 'waitedMicros'],
      ...['ringUsed', 'ringCapacity', 'queuedBytes', 'attachmentsSent', 'attachmentsWithheld'],
    ].sort(),
  )
  const partner = await Partner.start(t)
  const ofSubscription = await partner.run(async (kit, where) => {
    const subscription = await kit.ringfence.subscribe(where)
    kit.keep['subscription'] = subscription
    return Object.keys(subscription.stats()).sort()
  }, publisher.address)
  t.deepEqual(ofSubscription, ['attachmentsReceived', 'bytesReceived', 'lag', 'lost', 'messagesReceived', 'sleeps'])
})

test('a publisher counts evicted subscribers, and sends that had to wait', async (t) => {
  const publisher = await publish(abstractAddress(), { capacity: 4096, stall: 50 })
  t.teardown(() => publisher.close())
  const partner = await Partner.start(t)
  await partner.run(async (kit, where) => {
    kit.keep['subscription'] = await kit.ringfence.subscribe(where)
  }, publisher.address)
  await until(() => publisher.subscribers.length === 1, 'the subscriber is known')
  await partner.stop()
  while (publisher.trySend(Buffer.alloc(200)));
  const full = publisher.stats()
  t.like(full, { open: 1, evicted: 0, waits: 0, waitedMicros: 0 })
  await publisher.send(Buffer.alloc(200))
  await until(() => publisher.stats().open === 0, 'it is gone')
  const after = publisher.stats()
  t.like(after, { evicted: 1, waits: 1, messagesSent: full.messagesSent + 1 })
  t.true(after.waitedMicros > 0)
  partner.resume()
})
