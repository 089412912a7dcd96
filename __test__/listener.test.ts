// A listener over a fake binding: connections, events and calls of the binding.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { getEventListeners } from 'node:events'
import { inspect } from 'node:util'

import test from 'ava'
import { RingfenceError, type Channel, type ConnectOptions, type Listener } from 'ringfence'

import { captureHandshakes } from './support/binding.js'
import { FAILED } from './support/channel.js'
import { clock } from './support/clock.js'
import { codeOf } from './support/ring.js'
import {
  incomingChannel,
  connect,
  runExitHandlers,
  listen,
  openListener,
  FakeEndpoint,
} from './support/fake-endpoint.js'
import { isPending, turn, until } from './support/until.js'

const next = async (from: AsyncIterable<unknown>) => (await from[Symbol.asyncIterator]().next()) as { value: Channel }
const toListeners = { ...codeOf('INVALID_ARGUMENT'), message: /listeners of 'connection'/ }
const toMessages = { ...codeOf('INVALID_ARGUMENT'), message: /messages\(\) reads/ }
const figures = (messages: number) => [messages, 10 * messages, 3, 4, 5, 64]

/** The processes whose channels a listener of 'connection' gets. */
function recordPids(listener: Listener): { pids: number[]; onConnection: (channel: Channel) => void } {
  const pids: number[] = []
  const onConnection = (channel: Channel) => void pids.push(channel.peer.pid)
  listener.on('connection', onConnection)
  return { pids, onConnection }
}

test.serial('each client is a channel, each refusal is reported, and both are counted', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const refusals: RingfenceError[] = []
  listener.on('refused', (error) => refusals.push(error))
  const [first, second, third] = [incomingChannel(1), incomingChannel(2), incomingChannel(3)]
  third.fail('watch', 'NO_SPACE')
  const uid = { code: 'PEER_REFUSED', message: 'another user', check: 'uid', wanted: '1', found: '2' }
  const timeout = { code: 'HANDSHAKE_TIMEOUT', message: 'says nothing', identity: { pid: 9 } }
  endpoint.emit(first.raw, uid, second.raw, timeout, timeout, third.raw)
  t.deepEqual(
    refusals.map(({ code, check, identity }) => [code.slice('ERR_RINGFENCE_'.length), check, identity?.pid]),
    [
      ['PEER_REFUSED', 'uid', undefined],
      ['HANDSHAKE_TIMEOUT', undefined, 9],
      ['HANDSHAKE_TIMEOUT', undefined, 9],
      ['NO_SPACE', undefined, 3],
    ],
  )
  const channels = [(await next(listener)).value, (await next(listener)).value]
  t.deepEqual(
    channels.map(({ peer }) => peer.pid),
    [1, 2],
  )
  t.is(listener.channels.length, 2)

  first.answers['stats'] = figures(10)
  second.answers['stats'] = figures(100)
  second.from.push(Buffer.from('right'))
  t.is(String(await channels[1]!.receive()), 'right')
  const refused = { uid: 1, HANDSHAKE_TIMEOUT: 2, NO_SPACE: 1 }
  t.like(listener.stats(), {
    open: 2,
    accepted: 2,
    refused,
    messagesSent: 110,
    messagesReceived: 1,
    ringCapacity: 128,
  })
  // One client disconnects, and what it has left is read later.
  first.from.push(Buffer.from('left'))
  first.from.ended = true
  first.end('closed')
  await channels[0]!.closed
  t.is(listener.channels.length, 1)
  t.like(listener.stats(), { open: 1, accepted: 2, messagesSent: 110, messagesReceived: 1, ringCapacity: 64 })
  t.is(String(await channels[0]!.receive()), 'left')
  t.like(listener.stats(), { messagesReceived: 1 }, 'until all of it was read')
  t.is(await channels[0]!.receive(), undefined)
  await Promise.resolve()
  t.like(listener.stats(), { messagesReceived: 2, bytesReceived: 9 })
  await channels[1]!.close()
  await Promise.resolve()
  t.like(listener.stats(), { open: 0, messagesSent: 110, messagesReceived: 2, ringCapacity: 0 })
})

test.serial('no loop gets a channel while there is a connection listener', async (t) => {
  const { listener, endpoint } = await openListener(t)
  endpoint.emit(incomingChannel(1).raw, incomingChannel(2).raw)
  const { pids, onConnection } = recordPids(listener)
  t.deepEqual(pids, [], 'in a moment')
  await Promise.resolve()
  t.deepEqual(pids, [1, 2])
  endpoint.emit(incomingChannel(3).raw)
  t.deepEqual(pids, [1, 2, 3])
  await t.throwsAsync(next(listener), toListeners)
  // One more listener, and listeners of other events.
  const other = recordPids(listener)
  const none = () => {}
  await Promise.resolve()
  listener.on('refused', none).off('refused', none).off('connection', onConnection)
  endpoint.emit(incomingChannel(4).raw)
  t.deepEqual([pids, other.pids], [[1, 2, 3], [4]])
  listener.off('connection', other.onConnection)
  const waits = next(listener)
  endpoint.emit(incomingChannel(5).raw)
  t.is((await waits).value.peer.pid, 5)

  // A listener that listens once leaves later channels to loops. A listener that was removed gets none.
  endpoint.emit(incomingChannel(6).raw, incomingChannel(7).raw)
  const once: number[] = []
  listener.once('connection', ({ peer }) => once.push(peer.pid))
  await Promise.resolve()
  t.deepEqual(once, [6])
  const gone = recordPids(listener)
  listener.off('connection', gone.onConnection)
  await Promise.resolve()
  listener.on('refused', none)
  await Promise.resolve()
  t.is((await next(listener)).value.peer.pid, 7)
  t.deepEqual(gone.pids, [])
})

test.serial('removing all listeners keeps the internal ones', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const kept = () => [listener.listenerCount('newListener'), listener.listenerCount('removeListener')]
  const before = kept()
  recordPids(listener)
  await Promise.resolve()
  t.is(listener.removeAllListeners(), listener)
  t.deepEqual(kept(), before)
  t.is(listener.listenerCount('connection'), 0)
  endpoint.emit(incomingChannel(1).raw)
  t.is((await next(listener)).value.peer.pid, 1)
  for (const name of ['newListener', 'removeListener'] as const) {
    listener.removeAllListeners(name as never)
    t.deepEqual(kept(), before, name)
  }
  const { pids } = recordPids(listener)
  await Promise.resolve()
  endpoint.emit(incomingChannel(2).raw)
  t.deepEqual(pids, [2])
  listener.removeAllListeners('connection')
  endpoint.emit(incomingChannel(3).raw)
  t.is((await next(listener)).value.peer.pid, 3)
})

test.serial('messages() reads all channels, queued and later ones, up to the end of the last one', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const [first, second] = [incomingChannel(1), incomingChannel(2)]
  for (const { from } of [first, second]) from.push(Buffer.from('hello'))
  endpoint.emit(incomingChannel(0).raw)
  const [loop, unused] = [listener[Symbol.asyncIterator](), listener[Symbol.asyncIterator]()]
  void loop.next()
  t.throws(() => listener.messages(), { ...codeOf('INVALID_ARGUMENT'), message: /a loop over this listener/ })
  await loop.return!()
  endpoint.emit(first.raw)
  const { onConnection } = recordPids(listener)
  t.throws(() => listener.messages(), toListeners)
  listener.off('connection', onConnection)

  const messages = listener.messages()[Symbol.asyncIterator]()
  const others = listener.messages()[Symbol.asyncIterator]()
  t.deepEqual((await messages.next()).value![0].peer.pid, 1)
  const none = () => {}
  listener.on('refused', none).off('refused', none)
  endpoint.emit(second.raw)
  t.deepEqual((await others.next()).value![0].peer.pid, 2)
  await t.throwsAsync(next(listener), toMessages)
  await t.throwsAsync(unused.next(), toMessages, 'an iterator that was there before, and not used')
  t.throws(() => listener.on('connection', () => {}), toMessages)
  const waits = messages.next()
  await listener.close()
  t.true(await isPending(waits), 'channels go on')
  for (const { from, onWakeup } of [first, second]) {
    from.push(Buffer.from('bye'))
    from.ended = true
    onWakeup()
  }
  t.is(String((await waits).value![1]), 'bye')
  t.is(String((await messages.next()).value![1]), 'bye')
  t.deepEqual(await messages.next(), { done: true, value: undefined })
  t.deepEqual(await others.next(), { done: true, value: undefined })
  // A listener that is closed already accepts none.
  const late = await openListener(t)
  await late.listener.close()
  t.deepEqual(await late.listener.messages()[Symbol.asyncIterator]().next(), { done: true, value: undefined })
})

test.serial('closing the merge of messages() leaves the channels open, and later ones to loops', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const [first, second] = [incomingChannel(1), incomingChannel(2)]
  endpoint.emit(first.raw)
  const merged = listener.messages()
  t.is(listener.messages(), merged)
  t.deepEqual(merged.sources, listener.channels)
  await merged.close()
  t.is(listener.channels[0]!.tryReceive(), undefined)
  endpoint.emit(second.raw)
  for await (const { peer } of listener) {
    t.is(peer.pid, 2)
    break
  }
  const again = listener.messages()
  t.not(again, merged)
  await listener.close()
  t.deepEqual(await again.closed, { reason: 'closed' })
})

test.serial('a close keeps or closes the channels that the program has, and ends the rest', async (t) => {
  for (const channels of [undefined, 'keep', 'close'] as const) {
    const { listener, endpoint } = await openListener(t)
    const events: unknown[] = []
    listener.on('close', (reason) => events.push(reason))
    for (const wrong of [{ channels: 'all' }, { chanels: 'keep' }, { linger: -1 }])
      await t.throwsAsync(listener.close(wrong as object), codeOf('INVALID_ARGUMENT'))
    const all = [incomingChannel(1), incomingChannel(2), incomingChannel(3)]
    endpoint.emit(...all.map(({ raw }) => raw))
    const loop = listener[Symbol.asyncIterator]()
    const { value } = (await loop.next()) as { value: Channel }
    for (const binding of all) binding.newCalls()
    t.deepEqual(endpoint.newCalls(), [])
    // Messages that no reader wants are dropped, including those of a lost client.
    all[2]!.from.push(Buffer.from('left'))
    all[2]!.end('lost')
    await turn()
    await (channels === undefined ? listener[Symbol.asyncDispose]() : listener.close({ channels }))
    t.deepEqual(
      all.map((binding) => binding.newCalls('close', 'outlive')),
      [channels === 'close' ? ['close'] : [], ['close'], ['outlive', 'close']],
      channels,
    )
    t.deepEqual(endpoint.newCalls(), ['close'])
    t.deepEqual(await listener.closed, { reason: 'closed' })
    t.deepEqual(await loop.next(), { done: true, value: undefined })
    t.deepEqual(events, [{ reason: 'closed' }])
    await listener.close({ channels: 'close' })
    t.is((await value.closed).reason, 'closed')
    endpoint.onWakeup()
    t.deepEqual([endpoint.calls, events], [[], [{ reason: 'closed' }]], 'that was all')
  }
})

test.serial('the channels that a close or destroy closes disconnect before the listener emits close', async (t) => {
  for (const end of ['close', 'destroy'] as const) {
    const { listener, endpoint } = await openListener(t)
    const events: string[] = []
    listener.on('connection', ({ peer }) => events.push(`connection ${peer.pid}`))
    listener.on('disconnect', ({ peer }) => events.push(`disconnect ${peer.pid}`))
    listener.on('close', () => events.push('close'))
    endpoint.emit(incomingChannel(1).raw, incomingChannel(2).raw)
    await turn()
    if (end === 'destroy') listener.destroy()
    else {
      const closes = [listener.close({ channels: 'close' }), listener.close()]
      endpoint.emit(incomingChannel(3).raw)
      await Promise.all(closes)
    }
    t.deepEqual(await listener.closed, { reason: 'closed' })
    await turn()
    t.deepEqual(events, ['connection 1', 'connection 2', 'disconnect 1', 'disconnect 2', 'close'], end)
  }
})

test.serial('a listener of an event closes the channel that it gets, and all others', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const all = [incomingChannel(1), incomingChannel(2), incomingChannel(3)]
  const sizes: number[] = []
  listener.on('connection', (channel) => {
    sizes.push(listener.channels.length, listener.stats().open)
    if (channel.peer.pid === 2) void listener.close({ channels: 'close' })
  })
  await Promise.resolve()
  endpoint.emit(...all.map(({ raw }) => raw))
  t.deepEqual(sizes, [1, 1, 2, 2])
  t.deepEqual(
    all.map((binding) => binding.newCalls('close')),
    [['close'], ['close'], []],
    'the third comes too late, and is not asked for',
  )
  await turn()
  t.is(listener.channels.length, 0)

  // A subscriber of the diagnostics channel may close the listener as well.
  const watched = await openListener(t)
  const onConnection = () => void watched.listener.close()
  subscribe('ringfence:channel:open', onConnection)
  t.teardown(() => unsubscribe('ringfence:channel:open', onConnection))
  const late = incomingChannel(4)
  watched.endpoint.emit(late.raw)
  t.deepEqual(late.newCalls('close'), ['close'], 'nobody would take it any more')
  t.is(watched.listener.channels.length, 0)
})

test.serial('a signal closes an open listener, and one that is still starting, but not a closed one', async (t) => {
  const controller = new AbortController()
  const { signal } = controller
  const listeners = () => getEventListeners(signal, 'abort').length
  const first = await openListener(t, { signal })
  t.is(listeners(), 1)
  await first.listener.close()
  t.is(listeners(), 0)
  const second = await openListener(t, { signal })
  second.endpoint.emit(incomingChannel(1).raw)
  controller.abort()
  t.deepEqual(await second.listener.closed, { reason: 'closed' })
  t.deepEqual(second.endpoint.newCalls(), ['close'])

  const late = new AbortController()
  const all = captureHandshakes(t)
  const opening = listen('@somewhere', { signal: late.signal })
  await Promise.resolve()
  const endpoint = new FakeEndpoint()
  late.abort()
  t.deepEqual(all[0]!.calls, ['cancel'])
  all[0]!.done(null, endpoint)
  await t.throwsAsync(opening, codeOf('ABORT_ERR'))
  t.deepEqual(endpoint.newCalls(), ['close'])
})

test.serial('a listener that fails says why, and closes the channels that the program has not taken', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const events: unknown[] = []
  listener.on('close', (reason) => events.push(reason))
  const [first, second] = [incomingChannel(1), incomingChannel(2)]
  endpoint.emit(first.raw, second.raw)
  const loop = listener[Symbol.asyncIterator]()
  t.is(((await loop.next()) as { value: Channel }).value.peer.pid, 1)
  for (const binding of [first, second]) binding.newCalls()
  endpoint.fail()
  const closed = await listener.closed
  t.is(closed.reason, 'failed')
  t.is(closed.error!.message, 'as the binding says')
  t.deepEqual(endpoint.newCalls(), ['close'])
  t.deepEqual([first.newCalls('close'), second.newCalls('close')], [[], ['close']])
  t.deepEqual(events, [closed])
  t.is(await t.throwsAsync(loop.next()), closed.error as never)
  await listener.close()
  endpoint.onWakeup()
  t.deepEqual(endpoint.calls, [], 'nothing more is asked')
  // The first read that reaches the end of the messages reports the error as well.
  const read = await openListener(t)
  const messages = read.listener.messages()[Symbol.asyncIterator]()
  read.endpoint.fail()
  await t.throwsAsync(messages.next(), { message: 'as the binding says' })
  // So does a later iterator.
  const late = listener.messages()[Symbol.asyncIterator]()
  await t.throwsAsync(late.next(), { message: 'as the binding says' })
  t.deepEqual(await late.next(), { done: true, value: undefined })
})

test.serial('each channel that the program got is followed by its disconnect', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const events: string[] = []
  listener.on('disconnect', ({ peer }, { reason, error }) => events.push(`${peer.pid} ${reason} ${error?.code}`))
  const [looped, emitted, unclaimed] = [incomingChannel(1), incomingChannel(2), incomingChannel(3)]
  endpoint.emit(looped.raw)
  await next(listener)
  looped.end('lost')
  await turn()
  t.deepEqual(events, ['1 lost ERR_RINGFENCE_PEER_LOST'])
  // A channel that ends before the program has it: its connection is reported first.
  endpoint.emit(emitted.raw, unclaimed.raw)
  emitted.end('closed')
  await turn()
  t.is(events.length, 1)
  listener.once('connection', ({ peer }) => events.push(`${peer.pid}`))
  await turn()
  t.deepEqual(events.slice(1), ['2', '2 closed undefined'])
  await listener.close()
  await turn()
  t.is(events.length, 3, 'the program never had the third')
})

test.serial('a close that closes channels flushes what was sent, for at most linger', async (t) => {
  const { listener, endpoint } = await openListener(t)
  const agent = incomingChannel(1)
  endpoint.emit(agent.raw)
  const { value } = await next(listener)
  agent.ring.room = 0
  const waiting = value.send('before')
  const closing = listener.close({ channels: 'close', linger: 60_000 })
  t.deepEqual(endpoint.newCalls(), ['close'], 'the address is free at once')
  const again = listener.close()
  t.true(await isPending(Promise.race([closing, again])))
  agent.ring.room = 65_536
  agent.onWakeup()
  await waiting
  await Promise.all([closing, again])
})

test.serial('destroy ends the listener and all channels at once', async (t) => {
  for (const error of [undefined, new Error('why'), new RingfenceError('NO_SPACE', 'no room')]) {
    const { listener, endpoint } = await openListener(t)
    const events: unknown[] = []
    listener.on('close', (closed) => events.push(closed))
    const all = [incomingChannel(1), incomingChannel(2)]
    endpoint.emit(...all.map(({ raw }) => raw))
    await next(listener)
    for (const binding of all) binding.newCalls()
    listener.destroy(error)
    listener.destroy()
    await listener.close()
    t.deepEqual(
      all.map((binding) => binding.newCalls('close')),
      [['close'], ['close']],
    )
    t.deepEqual(endpoint.newCalls(), ['close'])
    const closed = await listener.closed
    t.is(closed.reason, error === undefined ? 'closed' : 'failed')
    t.true(closed.error === error || closed.error?.cause === error)
    t.is(closed.error instanceof RingfenceError, error !== undefined)
    t.deepEqual(events, [closed])
  }
})

test.serial('util.inspect shows a listener in one line', async (t) => {
  const { listener, endpoint } = await openListener(t)
  t.is(inspect(listener), '<Listener at @somewhere, 0 channels, open>')
  endpoint.emit(incomingChannel(1).raw)
  t.is(inspect({ listener }), '{ listener: <Listener at @somewhere, 1 channel, open> }')
  await listener.close()
  t.is(inspect(listener), '<Listener at @somewhere, 0 channels, closed>')
  const failed = await openListener(t, {}, '/a\nb')
  failed.listener.destroy(new Error('why'))
  t.is(inspect(failed.listener), '<Listener at /a\\u{a}b, 0 channels, closed: failed>')
})

test.serial('clients wait at the address while sixteen channels wait for a loop', async (t) => {
  const { listener, endpoint } = await openListener(t)
  endpoint.emit(...Array.from({ length: 16 }, (_, pid) => incomingChannel(pid).raw))
  t.deepEqual(endpoint.newCalls(), ['pause 1'])
  await next(listener)
  t.deepEqual(endpoint.newCalls(), ['pause 0'])
  t.is(listener.unref(), listener)
  t.is(listener.ref(), listener)
  t.deepEqual(endpoint.newCalls(), ['keep alive 0', 'keep alive 1'])
})

test.serial('the event loop turns, however fast clients are turned away', async (t) => {
  const { listener, endpoint } = await openListener(t)
  let emitted = 0
  listener.on('refused', () => {
    emitted += 1
    clock.now += 1
  })
  const failure = { code: 'PEER_REFUSED', message: 'as the binding says', check: 'uid' }
  endpoint.emit(...Array.from({ length: 200 }, () => failure))
  t.is(emitted, 16, 'after 2 ms and more')
  endpoint.onWakeup()
  t.is(emitted, 16, 'called again before the loop has turned')
  await turn()
  t.true(emitted < 200)
  await until(() => emitted === 200, 'the rest is told as well')
})

test.serial('a listener or channel that cannot be watched is closed', async (t) => {
  const endpoint = new FakeEndpoint()
  endpoint.failing = { code: 'NO_SPACE', message: 'no descriptor is left' }
  endpoint.watching = FAILED
  const all = captureHandshakes(t)
  const opening = listen('@somewhere')
  await Promise.resolve()
  all[0]!.done(null, endpoint)
  await t.throwsAsync(opening, { ...codeOf('NO_SPACE'), message: 'no descriptor is left' })
  t.deepEqual(endpoint.newCalls(), ['close'])
  const { listener } = await openListener(t)
  t.throws(() => Reflect.construct(listener.constructor, [Symbol('ringfence'), {}]) as unknown, {
    ...codeOf('INVALID_ARGUMENT'),
    message: /^listeners are made by listen/,
  })
})

test.serial('a process that exits frees the path of a listener, unless it is closed already', async (t) => {
  const open = await openListener(t, {}, '/somewhere')
  const closed = await openListener(t, {}, '/somewhere')
  await closed.listener.close()
  const abstract = await openListener(t)
  for (const { endpoint } of [open, closed, abstract]) endpoint.newCalls()
  runExitHandlers()
  t.deepEqual(
    [open, closed, abstract].map(({ endpoint }) => endpoint.newCalls()),
    [['close'], [], []],
  )
  await open.listener.close()
})

test.serial('the channel of a client has the address of the service', async (t) => {
  const all = captureHandshakes(t)
  const opening = connect('/somewhere', { handshakeTimeout: 5 } satisfies ConnectOptions)
  await Promise.resolve()
  t.like(all[0], { name: 'connect', address: '/somewhere' })
  runExitHandlers()
  t.deepEqual(all[0]!.calls, [], 'it has bound nothing')
  const agent = incomingChannel(4)
  all[0]!.done(null, agent.raw)
  t.is((await opening).peer.pid, 4)
  t.deepEqual(agent.newCalls('vacate'), [])
})
