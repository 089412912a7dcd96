// Unit tests of a merge over rings that a test fills: the ends of its sources, its own end, and its events.
// merge.test.ts uses it with peers.

import { once } from 'node:events'
import { inspect } from 'node:util'

import test from 'ava'
import { RingfenceError, type Closed } from 'ringfence'

import { pattern } from './support/bytes.js'
import { clock, fairness, afterTurn } from './support/clock.js'
import { codeOf } from './support/ring.js'
import {
  settleClock,
  allowEnd,
  makePersistent,
  merge,
  mergeOf,
  named,
  order,
  Source,
  visits,
  type Merged,
} from './support/sources.js'
import { isPending, turn, turns } from './support/until.js'

const invalid = codeOf('INVALID_ARGUMENT')
const closed = codeOf('CLOSED')

test.serial(
  'a source that has ended is removed after its last message, and reported once no message is pending',
  async (t) => {
    const [a, b, c] = named('a', 'b', 'c') as [Source, Source, Source]
    const merged = mergeOf(a.send(2).end('lost'), b, c.end('evicted'))
    const ends: string[] = []
    merged.on('disconnect', (source, { reason, error }) =>
      ends.push(`${source.name} ${reason} ${error?.code}, ${merged.sources.length} left`),
    )
    t.is(await order(merged, 2), 'a2')
    t.deepEqual(ends, [])
    const waiting = merged.receive()
    t.deepEqual(ends, [], 'later')
    await turn()
    t.deepEqual(ends, ['a lost ERR_RINGFENCE_PEER_LOST, 1 left', 'c evicted ERR_RINGFENCE_EVICTED, 1 left'])
    b.send().end()
    t.is((await waiting)![0], b)
    let isNotified = false
    merged.on('disconnect', () => (isNotified = true))
    const last = merged.receive()
    t.false(isNotified)
    t.is(await last, undefined)
    t.true(isNotified, 'the end is told before the merge is over')
    t.false(await merged.waitReadable())
    t.is(await merged.receive(), undefined)
    t.deepEqual(merged.sources, [])
  },
)

test.serial('a source that ends is removed once all of it was read, even if nobody reads', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a, b)
  const ends: string[] = []
  merged.on('disconnect', (source) => ends.push(source.name))
  a.buffer.stop(() => new RingfenceError('PEER_LOST', 'as a test says'))
  b.send()
  t.true(b.buffer.hasMessage())
  b.buffer.stop(() => new RingfenceError('PEER_LOST', 'as a test says'))
  await turns(2)
  t.deepEqual(ends, ['a'])
  t.is(visits(merged), 'b1')
  t.deepEqual(ends, ['a'], 'not in the middle of receiveEach')
  await turn()
  t.deepEqual(ends, ['a', 'b'])
  t.is(await merged.receive(), undefined)
})

test.serial(
  'a source that ends during its turn is removed once it was read, even if the merge is not read again',
  async (t) => {
    const [a] = named('a') as [Source]
    const merged = mergeOf(a)
    const ends: string[] = []
    merged.on('disconnect', (source) => ends.push(source.name))
    t.is(merged.tryReceive(), undefined)
    a.send()
    t.is(merged.tryReceive()?.[0], a)
    a.buffer.stop(() => new RingfenceError('PEER_LOST', 'as a test says'))
    await turns(2)
    t.deepEqual(ends, ['a'])
    t.deepEqual(merged.sources, [])
  },
)

test.serial('waiting readers get messages in the order of their calls, and then the end', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a, b)
  await settleClock()
  const waits = [merged.receive(), merged.waitReadable(), merged.receive(), merged.receive(), merged.waitReadable()]
  t.true(await isPending(Promise.race(waits)))
  a.send(2)
  t.is(((await waits[0]) as [Source, Buffer])[0], a)
  t.true(await waits[1])
  t.is(((await waits[2]) as [Source, Buffer])[0], a)
  t.true(await isPending(Promise.race(waits.slice(3))))
  // A waiting call is not overtaken, although a message is available already.
  b.ring.push(pattern(0, 10))
  const late = merged.receive()
  a.end()
  b.end()
  t.is(((await waits[3]) as [Source, Buffer])[0], b)
  t.false(await waits[4])
  t.is(await late, undefined)
})

test.serial(
  'a merge that never had a source has not ended; one that lost its last has, until another is added',
  async (t) => {
    const merged = mergeOf()
    const waits = [merged.receive(), merged.waitReadable()]
    t.true(await isPending(Promise.race(waits)))
    const [a, b] = named('a', 'b') as [Source, Source]
    merged.add(a.send())
    t.is(((await waits[0]) as [Source, Buffer])[0], a)
    merged.delete(a)
    t.false(merged.delete(a))
    t.false(await waits[1], 'the last has left')
    t.is(await merged.receive(), undefined)
    t.false(await merged.waitReadable())
    merged.add(b)
    t.true(await isPending(merged.receive()))
  },
)

test.serial('the end of the last source keeps the process alive until it is reported', async (t) => {
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  const [a] = named('a') as [Source]
  const merged = mergeOf(a.end())
  t.is(await merged.receive(), undefined)
  await afterTurn()
  await turn()
  // It is time for a turn of the event loop, which must not keep the process alive.
  clock.now += 3
  fairness.readClock(true)
  const immediates = () => process.getActiveResourcesInfo().filter((what) => what === 'Immediate').length
  const before = immediates()
  const over = merged.receive()
  t.is(immediates() - before, 1)
  t.is(await over, undefined)
})

test.serial('statistics count returned messages, including those of removed sources', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  a.send(3, 10)
  t.is(a.buffer.tryReceive()!.length, 10)
  const merged = mergeOf(a, b.send(2, 100))
  t.deepEqual(merged.stats(), { sources: 2, messagesReceived: 0, bytesReceived: 0 })
  await settleClock()
  t.is(visits(merged, 3), 'a2 b1')
  t.deepEqual(merged.stats(), { sources: 2, messagesReceived: 3, bytesReceived: 120 })
  merged.delete(a)
  t.deepEqual(merged.stats(), { sources: 1, messagesReceived: 3, bytesReceived: 120 })
  b.buffer.keepAlive(true)
  t.is(visits(merged), 'b1')
  await merged.close()
  t.deepEqual(merged.stats(), { sources: 0, messagesReceived: 4, bytesReceived: 220 })
})

test.serial('a source whose ring fails does not affect the others', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a, b)
  const ended = once(merged, 'disconnect')
  a.reason = 'corrupt'
  a.ring.failing = 'RING_CORRUPT'
  b.send()
  t.is(await order(merged, 1), 'b1')
  const [source, { reason, error }] = (await ended) as [Source, Closed]
  t.deepEqual([source, reason, error!.code], [a, 'corrupt', 'ERR_RINGFENCE_RING_CORRUPT'])
  t.deepEqual(a.opened.notifications, ['RING_CORRUPT'])
})

test.serial(
  'a closed merge releases its sources, returns the end to waiting calls, and refuses new sources',
  async (t) => {
    const [a, b] = named('a', 'b') as [Source, Source]
    const merged = mergeOf(a, b)
    const loop = merged[Symbol.asyncIterator]()
    const waits = [merged.receive(), merged.waitReadable()]
    t.true(await isPending(Promise.race(waits)))
    await merged.close()
    t.is(await waits[0], undefined)
    t.false(await waits[1])
    await t.throwsAsync(merged.receive(), closed)
    await t.throwsAsync(merged.waitReadable(), closed)
    t.throws(() => merged.receiveEach(() => {}), closed)
    t.throws(() => merged.add(a), closed)
    t.deepEqual(await loop.next(), { done: true, value: undefined })
    a.send()
    t.is(a.buffer.tryReceive()!.length, 1000)
    await merged.close()
    const other = mergeOf(a)
    await merged.close()
    t.deepEqual(other.sources, [a])
    t.throws(() => a.buffer.tryReceive(), invalid, 'it is another’s now')
  },
)

test.serial('an argument that is not a source is refused, and the sources beside it are not added', (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  for (const wrong of [5, null, 'ab', {}, undefined]) {
    const error = t.throws(() => merge([a, wrong] as never), invalid)
    t.regex(error!.message, /a merge reads channels and subscriptions, not /)
    t.true(a.buffer.tryReceive() === null, 'it is free')
  }
  for (const wrong of [5, 'ab', {}, null])
    t.throws(() => merge(wrong as never), { ...invalid, message: /an array or another iterable/ })
  t.deepEqual(merge().sources, [])
  const merged = mergeOf(a)
  t.is(merged.add(a), merged)
  t.deepEqual(merged.sources, [a])
  t.throws(() => mergeOf(b, a), invalid)
  t.true(b.buffer.tryReceive() === null)
})

test.serial(
  'a held merge continues without sources until it may end, and reports the reason to one call',
  async (t) => {
    for (const failure of [null, new Error('as a test says')])
      for (const waits of [true, false]) {
        const held = makePersistent(() => {})
        const [a] = named('a') as [Source]
        held.add(a.send().end())
        t.is(await order(held, 1), 'a1')
        const waiting = [held.receive(), held.receive()]
        t.true(await isPending(Promise.race(waiting)))
        if (!waits) {
          held.add(new Source('b').send(2))
          t.is((await waiting[0])![0].name, 'b')
          t.is((await waiting[1])![0].name, 'b')
        }
        allowEnd(held, failure)
        if (!waits) {
          // A source continues, and then it ends.
          const last = held.receive()
          t.true(await isPending(last))
          continue
        }
        if (failure === null) t.is(await waiting[0], undefined)
        else t.is(await t.throwsAsync(waiting[0]), failure)
        t.is(await waiting[1], undefined)
        t.is(await held.receive(), undefined)
      }
    for (const way of ['receive', 'waitReadable', 'loop'] as const) {
      const failure = new Error('as a test says')
      const held = makePersistent(() => {})
      allowEnd(held, failure)
      const loop = held[Symbol.asyncIterator]()
      const first = way === 'loop' ? loop.next() : held[way]()
      t.is(await t.throwsAsync(first), failure, way)
      t.is(await held.receive(), undefined)
      t.false(await held.waitReadable())
      t.true((await loop.next()).done)
    }
  },
)

test.serial('closing and destroying a merge settle `closed` and emit close once', async (t) => {
  const failure = new RingfenceError('PEER_LOST', 'as a test says')
  const ways: [string, (merged: Merged) => unknown, Closed][] = [
    ['close', (merged) => merged.close(), { reason: 'closed' }],
    ['await using', (merged) => merged[Symbol.asyncDispose](), { reason: 'closed' }],
    ['destroy', (merged) => merged.destroy(), { reason: 'closed' }],
    ['destroy without an error', (merged) => merged.destroy(null as never), { reason: 'closed' }],
    ['destroy with an error', (merged) => merged.destroy(failure), { reason: 'failed', error: failure }],
  ]
  for (const [name, end, wanted] of ways) {
    const [a] = named('a') as [Source]
    const merged = mergeOf(a)
    const events: Closed[] = []
    merged.on('close', (how) => events.push(how))
    t.is(merged.address, null)
    t.is(inspect(merged), '<Merge, 1 source, open>')
    const waits = [merged.receive(), merged.receive()]
    void end(merged)
    void end(merged)
    for (const wait of waits)
      if (wanted.error === undefined) t.is(await wait, undefined, name)
      else t.is((await t.throwsAsync(wait))!.cause, failure)
    t.deepEqual(await merged.closed, wanted)
    await turn()
    t.deepEqual(events, [wanted])
    t.true(a.buffer.tryReceive() === null, 'the source is free again')
    if (wanted.error === undefined) await t.throwsAsync(merged.receive(), closed)
    else t.is((await t.throwsAsync(merged.receive()))!.cause, failure)
    t.is(merged.readableEnded, wanted.error === undefined)
  }
})

test.serial('a closed merge reports a source that had left before close', async (t) => {
  const [a] = named('a') as [Source]
  const merged = mergeOf(a.end())
  const events: string[] = []
  merged.on('disconnect', ({ name }) => events.push(name)).on('close', () => events.push('close'))
  t.is(merged.tryReceive(), undefined)
  t.deepEqual(merged.sources, [])
  await merged.close()
  await turn()
  t.deepEqual(events, ['a', 'close'])
})

test.serial('a merge without sources stays open, and one that was held ends', async (t) => {
  const merged = mergeOf(named('a')[0]!.end())
  t.is(await merged.receive(), undefined)
  t.true(await isPending(merged.closed))
  for (const failure of [null, new RingfenceError('NO_SPACE', 'as a test says')]) {
    const released: string[] = []
    const held = makePersistent(() => released.push('held'))
    const [a] = named('a') as [Source]
    held.add(a)
    allowEnd(held, failure)
    await turns(2)
    t.true(await isPending(held.closed))
    a.buffer.stop(() => new RingfenceError('PEER_LOST', 'as a test says'))
    if (failure !== null) t.is(await t.throwsAsync(held.receive()), failure)
    t.is(await held.receive(), undefined)
    const wanted = failure === null ? { reason: 'closed' } : { reason: 'failed', error: failure }
    t.deepEqual(await held.closed, wanted as Closed)
    t.throws(() => held.add(new Source('b')), closed)
    await held.close()
    t.deepEqual(released, [], 'it has ended by itself')
  }
})

test.serial('ref and unref apply to every source, and to later ones', (t) => {
  const [a, b, c] = named('a', 'b', 'c') as [Source, Source, Source]
  const merged = mergeOf(a)
  t.deepEqual(a.refCalls, [])
  t.is(merged.unref(), merged)
  merged.add(b)
  t.is(merged.ref(), merged)
  merged.add(c)
  t.deepEqual([a.refCalls, b.refCalls, c.refCalls], [['unref', 'ref'], ['unref', 'ref'], ['ref']])
})

test.serial('only merge creates merges', (t) => {
  const made = mergeOf() as unknown as object
  t.throws(() => Reflect.construct(made.constructor, [Symbol('ringfence'), null]), invalid)
})
