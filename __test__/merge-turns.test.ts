// Unit tests of a merge over rings that a test fills: the turns of its sources, and how often it checks them.
// merge.test.ts uses it with peers.

import test from 'ava'

import { pattern } from './support/bytes.js'
import { clock, fairness, rested } from './support/clock.js'
import { withoutMemory } from './support/memory.js'
import { codeOf } from './support/ring.js'
import { calm, inShort, mergeOf, named, native, order, Source, visits } from './support/sources.js'
import { isPending, turn } from './support/until.js'

test.serial('sources take turns of 16 KiB, which end with the message that reaches them', async (t) => {
  const [a, b, c] = named('a', 'b', 'c') as [Source, Source, Source]
  for (const source of [a, b, c]) source.say(40)
  const merged = mergeOf(a, b, c)
  await calm()
  // 17 records of 1,008 bytes are more than 16,384.
  t.is(await order(merged, 90), 'a17 b17 c17 a17 b17 c5')
  // A source that was empty has the next turn, once.
  const d = new Source('d').say(20)
  merged.add(d)
  t.is(await order(merged, 20), 'd17 c3')
  t.is(merged.sources.length, 4)

  const [e, f] = named('e', 'f') as [Source, Source]
  e.say(40, 2040)
  f.say(40, 2040)
  await calm()
  t.is(await order(mergeOf(e, f), 24), 'e8 f8 e8', 'eight of 2,048 are just that')
})

test.serial('a turn also ends when two readings of the clock say so', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.say(20, 10), b.say(20, 10))
  await rested()
  const names = []
  for (let count = 0; count < 12; count += 1) {
    clock.now += 0.5
    names.push((await merged.receive())![0].name)
  }
  t.regex(inShort(names), /^a2( [ab][23]){4,}$/)
})

test.serial('after a turn four empty sources are checked, in rotation, and one with messages is next', async (t) => {
  const flood = new Source('flood').say(200)
  const idle = Array.from({ length: 10 }, (_, number) => new Source(`idle ${number}`))
  const merged = mergeOf(...idle, flood)
  await calm()
  t.is((await merged.receive())![0], flood)
  const looked = () => idle.map(({ ring }) => ring.since().length)
  t.deepEqual(
    looked(),
    idle.map(() => 1),
    'each was found empty',
  )
  await order(merged, 15)
  t.deepEqual(
    looked(),
    idle.map(() => 0),
    'the turn is not over',
  )
  await order(merged, 1)
  t.deepEqual(looked(), [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
  await order(merged, 17)
  t.deepEqual(looked(), [0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
  await order(merged, 17)
  t.deepEqual(looked(), [1, 1, 0, 0, 0, 0, 0, 0, 1, 1])
  idle[3]!.say()
  t.is(await order(merged, 19), 'flood17 idle 31 flood1')

  // Sources that will send a wakeup are checked as well, since that may be on its way.
  const [x, y] = named('x', 'y') as [Source, Source]
  const other = mergeOf(x, y)
  const waiting = other.receive()
  t.true(x.buffer.isArmed && y.buffer.isArmed)
  x.say(40)
  t.is((await waiting)![0], x)
  y.ring.come(pattern(0, 10))
  t.is(await order(other, 18), 'x16 y1 x1')
})

test.serial('a source that sends a little each time does not always come first', async (t) => {
  const [flood, little] = named('flood', 'little') as [Source, Source]
  const merged = mergeOf(little, flood.say(200))
  await calm()
  t.is(await order(merged, 17), 'flood17')
  const arms = () => {
    t.true(little.buffer.arm())
    little.say(1)
  }
  arms()
  t.is(await order(merged, 2), 'little1 flood1', 'it is heard at once')
  little.say(1)
  t.is(await order(merged, 18), 'flood16 little1 flood1', 'then in its turn')
  arms()
  t.is(await order(merged, 2), 'little1 flood1', 'and at once, where it has had nothing for a while')
})

test.serial('waiting parks all sources with one barrier, and a single source with its own', async (t) => {
  const { barrier } = native
  let barriers = 0
  let failure: object | null = null
  native.barrier = () => {
    barriers += 1
    return failure
  }
  t.teardown(() => (native.barrier = barrier))
  const asked = (sources: Source[]) =>
    sources.map(({ ring }) =>
      ring
        .since()
        .filter((what) => /arm|park|look$/.test(what))
        .join(' '),
    )

  await calm()
  const [one] = named('one') as [Source]
  const alone = mergeOf(one)
  const lonely = alone.receive()
  t.deepEqual([asked([one]), barriers], [['arm'], 0])
  one.say()
  t.is((await lonely)![0], one)

  const many = named('a', 'b', 'c')
  const [a, b, c] = many as [Source, Source, Source]
  const merged = mergeOf(...many)
  let waiting = merged.receive()
  t.deepEqual([asked(many), barriers], [['park look', 'park look', 'park look'], 1])
  void merged.waitReadable().then(() => {})
  t.deepEqual(asked(many), ['', '', ''], 'they will ring')
  b.say(2)
  t.is((await waiting)![0], b)
  t.is((await merged.receive())![0], b)
  for (const { ring } of many) ring.needsBarrier = false
  waiting = merged.receive()
  t.deepEqual([asked(many), barriers], [['', 'arm', ''], 1], 'the others still will')
  a.say()
  await waiting
  c.say()
  await merged.receive()
  waiting = merged.receive()
  t.deepEqual([asked(many), barriers], [['park look', '', 'park look'], 1], 'where none is needed, none is made')
  a.say()
  await waiting
  b.say()
  await merged.receive()
  // Messages that arrive between the two checks are found.
  const { parkReader } = a.ring
  a.ring.parkReader = () => {
    a.ring.parkReader = parkReader
    a.ring.come(pattern(0, 10))
    return a.ring.parkReader()
  }
  t.is((await merged.receive())![0], a)
  asked(many)
  c.ring.needsBarrier = true
  failure = { code: 'NO_SPACE' }
  c.say()
  t.is((await merged.receive())![0], c)
  waiting = merged.receive()
  t.deepEqual(
    [asked(many), barriers],
    [['park arm', '', 'park arm'], 2],
    'where it cannot be had, each is asked by itself',
  )
  c.say()
  t.is((await waiting)![0], c)
})

test.serial('a wakeup makes the merge check only the source that sent it', async (t) => {
  const sources = named('a', 'b', 'c')
  const merged = mergeOf(...sources)
  const received: string[] = []
  const reading = (async () => {
    for (let message = await merged.receive(); message !== undefined; message = await merged.receive())
      received.push(message[0].name)
  })()
  for (const { ring } of sources) ring.since()
  sources[1]!.say()
  await turn()
  t.deepEqual(received, ['b'])
  t.deepEqual(
    sources.map(({ ring }) => ring.since()),
    [[], ['fetch', 'fetch', 'fetch', 'arm'], []],
  )
  for (const source of sources) source.end()
  await reading
})

test.serial('receiveEach visits one round of each source in turns, up to its limit', async (t) => {
  const [a, b, c] = named('a', 'b', 'c') as [Source, Source, Source]
  const merged = mergeOf(a, b, c)
  await calm()
  t.is(visits(merged), '')
  a.say(20)
  b.say(1)
  c.say(20)
  t.is(visits(merged, 0), '')
  t.is(visits(merged, 2), 'a2')
  t.is(visits(merged, 16), 'b1 c15', 'a turn that was cut short is over')
  t.is(visits(merged), 'a17 c5 a1')
  t.is(visits(merged), '')
  // Messages that arrive during a call are left to the next one.
  a.say(1)
  b.say(1)
  let said = 0
  const more = (source: Source) => {
    if ((said += 1) <= 2) source.say(1)
  }
  t.is(visits(merged, undefined, more).length, 5)
  t.is(visits(merged, undefined, more).length, 5)
  // Parked sources are checked as well.
  const waiting = merged.waitReadable()
  t.true(a.buffer.isArmed)
  for (const source of [a, b, c]) source.ring.come(pattern(0, 10))
  t.is(visits(merged).length, 8)
  t.true(await isPending(waiting))
  for (const { ring } of [a, b, c]) t.false(ring.owesWake)
})

test.serial('receiveEach without a limit ends after 2 ms, and with a limit it does not', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.say(40, 1000), b.say(40, 1000))
  await rested()
  t.is(
    visits(merged, undefined, () => (clock.now += 0.5)),
    'a5',
  )
  await rested()
  t.is(visits(merged, 75, () => (clock.now += 0.5)).replace(/\d+/g, '').length > 6, true)
  t.is(visits(merged), '')
  // Turns that end early by their bytes add up as well.
  a.say(4, 20_000)
  b.say(4, 20_000)
  await calm()
  t.is(
    visits(merged, undefined, () => (clock.now += 1)),
    'a1 b1',
  )
  t.is(
    visits(merged, Infinity, () => (clock.now += 1)),
    'a1 b1 a1 b1 a1 b1',
  )
})

test.serial('a visitor may delete the source, close the merge, or throw; unvisited messages stay', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.say(3), b.say(3))
  await calm()
  t.is(
    visits(merged, undefined, (source) => source === a && merged.delete(a)),
    'a1 b3',
  )
  t.deepEqual(merged.sources, [b])
  t.deepEqual([merged.has(a), merged.has(b)], [false, true])
  t.true(a.buffer.tryReceive()!.equals(pattern(2, 1000)))
  t.is(visits(merged.add(a)), 'a1')
  a.say(2)
  b.say(2)
  const wrong = new Error('of a visitor')
  const fails = () => {
    throw wrong
  }
  // Its turn ends with that.
  t.is(
    t.throws(() => merged.receiveEach(fails)),
    wrong,
  )
  t.is(
    t.throws(() => merged.receiveEach(fails)),
    wrong,
  )
  t.is(visits(merged), 'a1 b1')
  a.say(2)
  b.say(2)
  t.is(
    visits(merged, undefined, () => void merged.close()),
    'a1',
  )
  t.deepEqual(merged.sources, [])
  t.is(a.buffer.tryReceive()!.length, 1000)
  t.is(b.buffer.tryReceive()!.length, 1000)
})

test.serial('a message without memory fails one call, and waits for its source’s next turn', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.say(1, 200_000), b.say(1, 200_000))
  await calm()
  await withoutMemory(() => t.throwsAsync(merged.receive(), codeOf('NO_SPACE')))
  t.is(await order(merged, 1), 'b1', 'the turn is the other’s')
  t.true(await withoutMemory(() => merged.waitReadable()), 'there is one, and the call that takes it tells')
  t.throws(() => withoutMemory(() => visits(merged)), codeOf('NO_SPACE'))
  t.is(await order(merged, 1), 'a1')

  const waits = [merged.receive(), merged.receive()]
  const fails = t.throwsAsync(waits[0]!, codeOf('NO_SPACE'))
  const real = Buffer.allocUnsafeSlow
  let failures = 1
  Buffer.allocUnsafeSlow = (size) => {
    if (size === 200_000 && failures-- > 0) throw new RangeError('Array buffer allocation failed')
    return real(size)
  }
  a.say(1, 200_000)
  await turn()
  Buffer.allocUnsafeSlow = real
  await fails
  t.is((await waits[1])![0], a)

  // A check of an empty source may find such a message, too, and it is next.
  const [long, flood] = named('long', 'flood') as [Source, Source]
  const other = mergeOf(long, flood.say(40))
  await calm()
  t.is(await order(other, 16), 'flood16')
  long.ring.come(pattern(0, 200_000))
  t.is((await withoutMemory(() => other.receive(), 20_000))![0], flood)
  t.is(await order(other, 2), 'long1 flood1')
})

test.serial(
  'calls yield to the event loop after 2 ms, and calls that wait for that are served once it has turned',
  async (t) => {
    const [a] = named('a') as [Source]
    const merged = mergeOf(a.say(100, 10))
    const later = Promise.resolve('later')
    for (const way of ['receive', 'waitReadable'] as const) {
      await rested()
      let count = 0
      let call = merged[way]()
      while ((await Promise.race([call, Promise.resolve().then(() => later)])) !== 'later') {
        count += 1
        clock.now += 0.5
        call = merged[way]()
      }
      t.true(count > 1 && count <= 6, `${count} by ${way}`)
      t.truthy(await call)
    }
    // An end is not reported before its turn either.
    const [b] = named('b') as [Source]
    const ended = mergeOf(b.end())
    t.is(await ended.receive(), undefined)
    await rested()
    clock.now += 3
    fairness.readClock()
    const over = ended.waitReadable()
    t.is(await Promise.race([over, Promise.resolve().then(() => later)]), 'later')
    t.false(await over)
  },
)

const immediates = () => process.getActiveResourcesInfo().filter((what) => what === 'Immediate').length

test.serial('if no source keeps the process alive, waiting for a turn does not either', async (t) => {
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  const [a, b] = named('a', 'b') as [Source, Source]
  for (const isWeak of [true, false]) {
    a.buffer.keepAlive(false)
    b.buffer.keepAlive(!isWeak)
    const merged = mergeOf(a.say(3, 10), b)
    for (const way of ['receive', 'waitReadable'] as const) {
      await rested()
      await turn()
      const before = immediates()
      clock.now += 3
      if (way === 'receive') t.truthy(await merged.receive())
      const waiting = merged[way]()
      t.is(immediates() - before, isWeak ? 0 : 1, way)
      t.truthy(await waiting)
    }
    await merged.close()
    while (a.buffer.tryReceive() !== null);
  }
})
