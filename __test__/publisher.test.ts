// Unit tests of a publisher: its calls of the binding, its events, and each end. broadcast.test.ts uses it with
// subscribers.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { inspect } from 'node:util'

import test, { type ExecutionContext } from 'ava'
import { json, type Publisher, type PublishOptions, type RingfenceError, type Subscriber } from 'ringfence'

import {
  captureHandshakes,
  FAILED,
  FakeSubscriber,
  openResources,
  openOver,
  publish,
  FakePublisher,
  REASONS,
} from './support/binding.js'
import { clock } from './support/clock.js'
import { codeOf } from './support/ring.js'
import { isPending, turn, until } from './support/until.js'

/** A publisher, and its events in order. */
async function published(t: ExecutionContext, fake = new FakePublisher(), options: PublishOptions = {}) {
  const publisher = await openOver(t, fake, (address) => publish(address, options))
  const events: string[] = []
  publisher.on('connection', (one) => events.push(`${one.peer.pid} comes`))
  publisher.on('disconnect', (_, { reason }) => events.push(`gone: ${reason}`))
  publisher.on('refused', (error) => events.push(error.code))
  publisher.on('close', (closed) => events.push(closed.reason))
  return { fake, publisher, events }
}

const reason = (name: string) => REASONS.indexOf(name)

test.serial('a publisher has the properties from the binding, and is open until it is closed', async (t) => {
  const { fake, publisher, events } = await published(t)
  t.deepEqual([publisher.address, publisher.capacity, publisher.maxMessageSize], ['@somewhere', 65_536, 8192])
  t.true(openResources.has(publisher))
  t.deepEqual(publisher.subscribers, [])
  t.is(publisher.ref(), publisher)
  t.is(publisher.unref(), publisher)
  t.deepEqual(fake.newCalls(), ['keep alive: 1', 'keep alive: 0'])
  const closing = publisher.close()
  t.deepEqual(fake.newCalls(), ['end', 'close'], 'at once, where nothing waits')
  await closing
  t.is((await publisher.closed).reason, 'closed')
  t.false(openResources.has(publisher))
  await turn()
  t.deepEqual(events, ['closed'])
  t.is(publisher.close(), closing)
  t.is(publisher.with(json()).close(), closing)
  await publisher[Symbol.asyncDispose]()
  fake.emit(new FakeSubscriber(1))
  fake.onRoom()
  await publisher.seal()
  await turn()
  t.deepEqual([fake.newCalls(), events], [[], ['closed']], 'nothing is asked any more, and nothing told')
  await t.throwsAsync(publisher.send('late'), codeOf('CLOSED'))
  await t.throwsAsync(publisher.close({ linger: -1 }), codeOf('INVALID_ARGUMENT'))
  t.throws(() => Reflect.construct(publisher.constructor, [Symbol('ringfence'), '@', fake, {}]), {
    ...codeOf('INVALID_ARGUMENT'),
    message: /made by publish/,
  })
  t.throws(() => publisher.with({} as never), codeOf('INVALID_ARGUMENT'))
})

test.serial('a publisher that cannot be watched, or was cancelled in the meantime, is closed at once', async (t) => {
  for (const call of ['watch', 'watchRoom'] as const) {
    const fake = new FakePublisher()
    fake.failing = { code: 'NO_SPACE', message: 'no descriptor' }
    fake.answers[call] = FAILED
    await t.throwsAsync(published(t, fake), codeOf('NO_SPACE'))
    t.deepEqual(fake.calls, ['close'])
  }
  const fake = new FakePublisher()
  const over = new AbortController()
  const all = captureHandshakes(t)
  const publishing = publish('@somewhere', { signal: over.signal })
  await Promise.resolve()
  over.abort()
  t.deepEqual(all[0]!.calls, ['cancel'])
  all[0]!.done(null, fake)
  await t.throwsAsync(publishing, codeOf('ABORT_ERR'))
  t.deepEqual(fake.calls, ['close'])
})

test.serial('a signal closes the publisher, and has no listener after that', async (t) => {
  const over = new AbortController()
  const { signal } = over
  const { fake, publisher } = await published(t, new FakePublisher(), { signal })
  over.abort()
  t.is((await publisher.closed).reason, 'closed')
  t.deepEqual(fake.newCalls(), ['end', 'close'])
  const listeners: string[] = []
  const other = new AbortController()
  const { addEventListener, removeEventListener } = other.signal
  other.signal.addEventListener = (...words: Parameters<typeof addEventListener>) => {
    listeners.push('on')
    addEventListener.apply(other.signal, words)
  }
  other.signal.removeEventListener = (...words: Parameters<typeof removeEventListener>) => {
    listeners.push('off')
    removeEventListener.apply(other.signal, words)
  }
  const second = await published(t, new FakePublisher(), { signal: other.signal })
  t.deepEqual(listeners.splice(0), ['on', 'off', 'on'], 'of the call, and of the publisher')
  await second.publisher.close()
  t.deepEqual(listeners, ['off'])
})

test.serial('messages are sent by every method, and statistics include them', async (t) => {
  const { fake, publisher } = await published(t)
  t.true(publisher.trySend('one'))
  const sent = publisher.send('two')
  t.is(publisher.sequence, 2n, 'what found room is there')
  await sent
  void publisher.send('three')
  t.is(publisher.bufferedAmount, 5)
  const { waits, waitedMicros, ...rest } = publisher.stats()
  t.deepEqual(rest, {
    open: 0,
    accepted: 0,
    refused: {},
    messagesSent: 3,
    bytesSent: 1000,
    attachmentsSent: 0,
    attachmentsWithheld: 0,
    evicted: 2,
    ringUsed: 65_536 - fake.room,
    ringCapacity: 65_536,
    queuedBytes: 0,
  })
  t.deepEqual([waits, waitedMicros], [0, 0])
  t.is(publisher.bufferedAmount, 0)
  await publisher.with(json()).send({ four: 4 })
  t.is(publisher.sequence, 4n)
  await publisher.waitWritable(100)
  fake.newCalls()
  void publisher.sequence
  void publisher.stats()
  t.deepEqual(fake.newCalls(), [], 'where nothing waits, nothing is asked')

  fake.room = 4
  t.false(publisher.trySend('five'))
  t.is(publisher.reserve(100), undefined)
  t.throws(() => publisher.reserve(-1), codeOf('INVALID_ARGUMENT'))
  const waiting = publisher.send('five')
  const writable = publisher.waitWritable(100)
  for (let turns = 0; !fake.armed && turns < 100; turns += 1) await turn()
  t.true(await isPending(Promise.race([waiting, writable])))
  t.is(publisher.stats().waits, 1)
  fake.room = 1000
  fake.newCalls()
  fake.onRoom()
  await waiting
  await writable
  t.deepEqual(fake.newCalls().slice(0, 2), ['listen', 'disarm'])
  t.is(publisher.sequence, 5n)
})

test.serial('with busyPollMicros each message is sent at once', async (t) => {
  for (const busyPollMicros of [0, 5]) {
    const { fake, publisher } = await published(t, new FakePublisher(), { busyPollMicros })
    void publisher.send('one').catch(() => {})
    t.is(fake.newCalls().includes('send'), busyPollMicros > 0)
    await publisher.close()
  }
})

test.serial('subscribers connect and disconnect, and each end has a reason', async (t) => {
  const { fake, publisher, events } = await published(t)
  const newcomers = [1, 2, 3, 4].map((number) => new FakeSubscriber(number))
  fake.emit(...newcomers)
  t.is(publisher.subscribers.length, 4)
  t.is(publisher.stats().open, 4)
  const [first, second, third, fourth] = publisher.subscribers as [Subscriber, Subscriber, Subscriber, Subscriber]
  t.deepEqual([first.delivery, first.stats()], ['reliable', { lag: 50 }])
  t.is(first.evidence, first.evidence)
  t.true(Object.isFrozen(first.evidence))
  t.deepEqual(newcomers[0]!.calls, ['evidence'])
  const evicted: unknown[] = []
  const note = (message: unknown) => void evicted.push((message as { subscriber: unknown }).subscriber)
  subscribe('ringfence:evicted', note)
  t.teardown(() => unsubscribe('ringfence:evicted', note))
  fake.emit({ gone: 2, reason: reason('evicted') }, { gone: 1, reason: reason('lost') }, { gone: 9, reason: 1 })
  t.deepEqual(publisher.subscribers, [third, fourth])
  t.is(evicted.length, 1)
  t.is(evicted[0], second, 'those who watch the process hear of it')
  t.deepEqual([(await second.closed).reason, (await first.closed).reason], ['evicted', 'lost'])
  t.deepEqual([first.stats(), third.stats()], [{ lag: 0 }, { lag: 50 }])
  fake.emit({ gone: 3, reason: 0 })
  t.is((await third.closed).reason, 'closed')
  fake.emit({ code: 'PEER_REFUSED', message: 'another', check: 'uid' })
  t.deepEqual(events.splice(0), [
    ...newcomers.map(() => '7 comes'),
    'gone: evicted',
    'gone: lost',
    'gone: closed',
    'ERR_RINGFENCE_PEER_REFUSED',
  ])
  t.like(publisher.stats(), { open: 1, accepted: 4, refused: { uid: 1 } })
  await publisher.close()
  t.is((await fourth.closed).reason, 'closed')
  await turn()
  t.deepEqual(events, ['gone: closed', 'closed'])
})

test.serial('a single subscriber is checked again, and disconnected', async (t) => {
  const { fake, publisher } = await published(t)
  const other = new FakeSubscriber(1)
  fake.emit(other)
  const [one] = publisher.subscribers as [Subscriber]
  const looking = one.verify()
  const identity = { pid: 7, uid: 1 }
  other.onVerified(null, identity)
  t.is(await looking, identity as never)
  t.is(one.peer, identity as never)
  const refused = one.verify()
  other.onVerified({ code: 'PEER_REFUSED', message: 'another' }, null)
  await t.throwsAsync(refused, codeOf('PEER_REFUSED'))
  t.is(one.peer, identity as never)
  const unhandled: unknown[] = []
  const hear = (error: unknown) => void unhandled.push(error)
  process.on('unhandledRejection', hear)
  for (const code of ['CLOSED', 'PEER_LOST']) {
    void one.verify()
    other.onVerified({ code, message: 'it has gone' }, null)
    const gone = one.verify()
    other.onVerified({ code, message: 'it has gone' }, null)
    await t.throwsAsync(gone, codeOf(code))
  }
  await turn()
  process.off('unhandledRejection', hear)
  t.deepEqual(unhandled, [], 'that it has gone is told by its end')
  other.answer = FAILED
  await t.throwsAsync(one.verify(), codeOf('NO_SPACE'))
  const leaving = one.disconnect()
  t.deepEqual(other.calls, ['disconnect'])
  t.true(await isPending(leaving))
  fake.emit({ gone: 1, reason: reason('closed') })
  await leaving
  await one.disconnect()
  t.deepEqual(other.calls, ['disconnect'], 'it has gone')
  t.throws(() => Reflect.construct(one.constructor, [Symbol('ringfence'), other]), {
    ...codeOf('INVALID_ARGUMENT'),
    message: /made by a publisher/,
  })
})

test.serial('end sends what was sent before, and then the end', async (t) => {
  const { fake, publisher } = await published(t)
  fake.room = 4
  const waiting = publisher.send('before')
  const ending = publisher.end()
  t.is(publisher.end(), ending)
  const refused = await t.throwsAsync<Error>(publisher.send('late'), codeOf('CLOSED'))
  t.regex(refused!.message, /has ended/)
  t.true(await isPending(ending))
  t.false(fake.calls.includes('end'))
  fake.room = 1000
  // The last subscriber is gone already, so the end is complete at once.
  fake.events.push(FAILED)
  fake.onRoom()
  await waiting
  await ending
  t.deepEqual(fake.newCalls().slice(-2), ['end', 'close'])
  t.is((await publisher.closed).reason, 'closed')
  t.regex((await t.throwsAsync<Error>(publisher.send('late'), codeOf('CLOSED')))!.message, /has ended/)

  const other = await published(t)
  await other.publisher.end()
  t.deepEqual(other.fake.newCalls(), ['end'])
  t.true(await isPending(other.publisher.closed))
  // The publisher is open, and its program has made a mistake, which must be reported.
  const late = other.publisher.send('late')
  const message = /has ended/
  t.regex(((await new Promise((resolve) => process.once('unhandledRejection', resolve))) as Error).message, message)
  await t.throwsAsync(late, { message })
  other.fake.emit(FAILED)
  t.is((await other.publisher.closed).reason, 'closed')

  // A closed publisher has nothing to end, and says so.
  const third = await published(t)
  await third.publisher.close()
  third.fake.newCalls()
  await third.publisher.end()
  t.deepEqual(third.fake.newCalls(), [])
  t.regex((await t.throwsAsync<Error>(third.publisher.send('late')))!.message, /is closed/)
  const unhandled = new Set<unknown>()
  const hear = (error: unknown) => void unhandled.add(error)
  process.on('unhandledRejection', hear)
  t.teardown(() => process.off('unhandledRejection', hear))
  void third.publisher.send('late')
  const fourth = await published(t)
  await fourth.publisher.close()
  void fourth.publisher.send('late')
  await turn()
  t.is(unhandled.size, 0, 'that it is over is told by its end')
})

test.serial('pending sends have as long as linger when it is closed', async (t) => {
  const { fake, publisher } = await published(t)
  fake.room = 4
  const waiting = publisher.send('before')
  const closing = publisher.close({ linger: 60_000 })
  t.true(await isPending(Promise.race([closing, waiting])))
  await t.throwsAsync(publisher.send('late'), codeOf('CLOSED'))
  fake.room = 1000
  fake.onRoom()
  await waiting
  await closing
  t.is((await publisher.closed).reason, 'closed')

  const other = await published(t)
  other.fake.room = 4
  const lost = other.publisher.send('before')
  const lingering = other.publisher.close({ linger: 10 })
  const closed = other.publisher.close()
  await t.throwsAsync(lost, codeOf('CLOSED'))
  await Promise.all([lingering, closed])
  await turn()
  t.deepEqual(other.events, ['closed'], 'once, though it was closed twice')
})

test.serial('seal is called once, and again after a failure', async (t) => {
  const { fake, publisher } = await published(t)
  fake.answers.seal = FAILED
  fake.failing = { code: 'NO_SPACE', message: 'no thread' }
  await t.throwsAsync(publisher.seal(), codeOf('NO_SPACE'))
  fake.answers.seal = 0
  const sealing = publisher.seal()
  t.is(publisher.seal(), sealing)
  t.deepEqual(fake.newCalls(), ['seal', 'seal'])
  t.true(await isPending(sealing))
  fake.sealed()
  await sealing
})

test.serial('destroy drops what is not in the ring, and ends the publisher at once', async (t) => {
  const { fake, publisher, events } = await published(t)
  fake.emit(new FakeSubscriber(1))
  t.is(inspect(publisher), '<Publisher at @somewhere, 1 subscriber, open>')
  const [one] = publisher.subscribers as [Subscriber]
  fake.room = 4
  const lost = publisher.send('before')
  await turn()
  fake.newCalls()
  const why = new Error('why')
  publisher.destroy(why)
  publisher.destroy()
  await t.throwsAsync(lost, codeOf('CLOSED'))
  t.deepEqual(fake.newCalls(), ['close'])
  const { reason: ended, error } = await publisher.closed
  t.deepEqual([ended, error!.cause], ['failed', why])
  t.deepEqual(await one.closed, { reason: 'closed' })
  await turn()
  t.deepEqual(events, ['7 comes', 'gone: closed', 'failed'])
  t.is(inspect(publisher), '<Publisher at @somewhere, 0 subscribers, closed: failed>')
})

test.serial('a process that opens its memory ends the publisher, and the reason is reported', async (t) => {
  for (const way of ['the binding tells', 'a reason', 'a call fails'] as const) {
    const { fake, publisher, events } = await published(t)
    fake.emit(new FakeSubscriber(1))
    const [one] = publisher.subscribers as [Subscriber]
    fake.failing = { code: way === 'a reason' ? 'CLOSED' : 'OBJECT_EXPOSED', message: 'as the binding says' }
    if (way === 'a reason') fake.ended = reason('exposed')
    if (way === 'a call fails') {
      fake.answers.send = FAILED
      t.throws(() => publisher.trySend('one'), codeOf('OBJECT_EXPOSED'))
    } else fake.emit(FAILED)
    t.is((await publisher.closed).reason, 'exposed', way)
    t.is((await one.closed).reason, 'exposed')
    await turn()
    t.deepEqual(events, ['7 comes', 'gone: exposed', 'exposed'])
    for (const end of [() => {}, () => publisher.end()]) {
      await end()
      const error = await t.throwsAsync<RingfenceError>(publisher.send('late'), codeOf('OBJECT_EXPOSED'))
      t.regex(error!.message, /the publisher is closed/)
    }
  }
})

test.serial('a failing call ends the publisher only if the publisher itself has failed', async (t) => {
  for (const [code, ends] of [
    ['CLOSED', true],
    ['UNSUPPORTED', true],
    ['NO_SPACE', false],
  ] as const) {
    const { fake, publisher } = await published(t)
    fake.failing = { code, message: 'as the binding says' }
    fake.answers.send = FAILED
    t.throws(() => publisher.trySend('one'), codeOf(code))
    if (ends) {
      const { reason: ended, error } = await publisher.closed
      t.deepEqual([ended, error?.code], code === 'CLOSED' ? ['closed', undefined] : ['failed', `ERR_RINGFENCE_${code}`])
      const late = await t.throwsAsync<Error>(publisher.send('late'), codeOf('CLOSED'))
      t.regex(late!.message, /the publisher is closed/)
    } else t.true(await isPending(publisher.closed))
    t.is(fake.newCalls().includes('close'), ends)
  }
})

test.serial('an exception of a listener skips no other listener and no later event', async (t) => {
  const { fake, publisher, events } = await published(t)
  const thrown: string[] = []
  const hear = (error: Error) => void thrown.push(error.message)
  const others = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  process.on('uncaughtException', hear)
  t.teardown(() => {
    process.off('uncaughtException', hear)
    for (const other of others) process.on('uncaughtException', other)
  })
  publisher.prependListener('connection', () => {
    throw new Error('of a listener')
  })
  fake.emit(new FakeSubscriber(1), { gone: 1, reason: reason('lost') })
  await turn()
  t.deepEqual([thrown, events], [['of a listener'], ['7 comes', 'gone: lost']])
  t.is(publisher.subscribers.length, 0)
  await (publisher satisfies Publisher).close()
})

test.serial('the event loop turns, however fast subscribers are turned away', async (t) => {
  const { fake, publisher, events } = await published(t)
  publisher.on('refused', () => (clock.now += 1))
  fake.emit(
    ...Array.from({ length: 200 }, () => ({ code: 'PEER_REFUSED', message: 'as the binding says', check: 'uid' })),
  )
  t.is(events.length, 16, 'after 2 ms and more')
  fake.onWakeup()
  t.is(events.length, 16, 'called again before the loop has turned')
  await turn()
  t.true(events.length < 200)
  await until(() => events.length === 200, 'the rest is told as well')
})
