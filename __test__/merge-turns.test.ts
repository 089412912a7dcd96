// Unit tests of a merge over rings that a test fills: the turns of its sources, and how often it checks them.
// merge.test.ts uses it with peers.

import test from 'ava'

import { pattern } from './support/bytes.js'
import { clock, fairness, afterTurn } from './support/clock.js'
import { withoutMemory } from './support/memory.js'
import { codeOf } from './support/ring.js'
import { settleClock, runLengths, mergeOf, named, native, order, Source, visits } from './support/sources.js'
import { isPending, turn } from './support/until.js'

test.serial('sources take turns of 16 KiB, which end with the message that reaches them', async (t) => {
  const [a, b, c] = named('a', 'b', 'c') as [Source, Source, Source]
  for (const source of [a, b, c]) source.send(40)
  const merged = mergeOf(a, b, c)
  await settleClock()
  // 17 records of 1,008 bytes are more than 16,384.
  t.is(await order(merged, 90), 'a17 b17 c17 a17 b17 c5')
  // A source that was empty has the next turn, once.
  const d = new Source('d').send(20)
  merged.add(d)
  t.is(await order(merged, 20), 'd17 c3')
  t.is(merged.sources.length, 4)

  const [e, f] = named('e', 'f') as [Source, Source]
  e.send(40, 2040)
  f.send(40, 2040)
  await settleClock()
  t.is(await order(mergeOf(e, f), 24), 'e8 f8 e8', 'eight of 2,048 are just that')
})

test.serial('a turn also ends when two readings of the clock say so', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.send(20, 10), b.send(20, 10))
  await afterTurn()
  const names = []
  for (let count = 0; count < 12; count += 1) {
    clock.now += 0.5
    names.push((await merged.receive())![0].name)
  }
  t.regex(runLengths(names), /^a2( [ab][23]){4,}$/)
})

test.serial('after a turn four empty sources are checked, in rotation, and one with messages is next', async (t) => {
  const flood = new Source('flood').send(200)
  const idle = Array.from({ length: 10 }, (_, number) => new Source(`idle ${number}`))
  const merged = mergeOf(...idle, flood)
  await settleClock()
  t.is((await merged.receive())![0], flood)
  const looked = () => idle.map(({ ring }) => ring.newCalls().length)
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
  idle[3]!.send()
  t.is(await order(merged, 19), 'flood17 idle 31 flood1')

  // Sources that will send a wakeup are checked as well, since that may be on its way.
  const [x, y] = named('x', 'y') as [Source, Source]
  const other = mergeOf(x, y)
  const waiting = other.receive()
  t.true(x.buffer.isArmed && y.buffer.isArmed)
  x.send(40)
  t.is((await waiting)![0], x)
  y.ring.push(pattern(0, 10))
  t.is(await order(other, 18), 'x16 y1 x1')
})

test.serial('a source that sends a little each time does not always come first', async (t) => {
  const [flood, little] = named('flood', 'little') as [Source, Source]
  const merged = mergeOf(little, flood.send(200))
  await settleClock()
  t.is(await order(merged, 17), 'flood17')
  const arms = () => {
    t.true(little.buffer.arm())
    little.send(1)
  }
  arms()
  t.is(await order(merged, 2), 'little1 flood1', 'it is heard at once')
  little.send(1)
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
        .newCalls()
        .filter((what) => /arm|park|look$/.test(what))
        .join(' '),
    )

  await settleClock()
  const [one] = named('one') as [Source]
  const alone = mergeOf(one)
  const lonely = alone.receive()
  t.deepEqual([asked([one]), barriers], [['arm'], 0])
  one.send()
  t.is((await lonely)![0], one)

  const many = named('a', 'b', 'c')
  const [a, b, c] = many as [Source, Source, Source]
  const merged = mergeOf(...many)
  let waiting = merged.receive()
  t.deepEqual([asked(many), barriers], [['park look', 'park look', 'park look'], 1])
  void merged.waitReadable().then(() => {})
  t.deepEqual(asked(many), ['', '', ''], 'they will ring')
  b.send(2)
  t.is((await waiting)![0], b)
  t.is((await merged.receive())![0], b)
  for (const { ring } of many) ring.needsBarrier = false
  waiting = merged.receive()
  t.deepEqual([asked(many), barriers], [['', 'arm', ''], 1], 'the others still will')
  a.send()
  await waiting
  c.send()
  await merged.receive()
  waiting = merged.receive()
  t.deepEqual([asked(many), barriers], [['park look', '', 'park look'], 1], 'where none is needed, none is made')
  a.send()
  await waiting
  b.send()
  await merged.receive()
  // Messages that arrive between the two checks are found.
  const { parkReader } = a.ring
  a.ring.parkReader = () => {
    a.ring.parkReader = parkReader
    a.ring.push(pattern(0, 10))
    return a.ring.parkReader()
  }
  t.is((await merged.receive())![0], a)
  asked(many)
  c.ring.needsBarrier = true
  failure = { code: 'NO_SPACE' }
  c.send()
  t.is((await merged.receive())![0], c)
  waiting = merged.receive()
  t.deepEqual(
    [asked(many), barriers],
    [['park arm', '', 'park arm'], 2],
    'where it cannot be had, each is asked by itself',
  )
  c.send()
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
  for (const { ring } of sources) ring.newCalls()
  sources[1]!.send()
  await turn()
  t.deepEqual(received, ['b'])
  t.deepEqual(
    sources.map(({ ring }) => ring.newCalls()),
    [[], ['fetch', 'fetch', 'fetch', 'arm'], []],
  )
  for (const source of sources) source.end()
  await reading
})

test.serial('receiveEach visits one round of each source in turns, up to its limit', async (t) => {
  const [a, b, c] = named('a', 'b', 'c') as [Source, Source, Source]
  const merged = mergeOf(a, b, c)
  await settleClock()
  t.is(visits(merged), '')
  a.send(20)
  b.send(1)
  c.send(20)
  t.is(visits(merged, 0), '')
  t.is(visits(merged, 2), 'a2')
  t.is(visits(merged, 16), 'b1 c15', 'a turn that was cut short is over')
  t.is(visits(merged), 'a17 c5 a1')
  t.is(visits(merged), '')
  // Messages that arrive during a call are left to the next one.
  a.send(1)
  b.send(1)
  let said = 0
  const more = (source: Source) => {
    if ((said += 1) <= 2) source.send(1)
  }
  t.is(visits(merged, undefined, more).length, 5)
  t.is(visits(merged, undefined, more).length, 5)
  // Parked sources are checked as well.
  const waiting = merged.waitReadable()
  t.true(a.buffer.isArmed)
  for (const source of [a, b, c]) source.ring.push(pattern(0, 10))
  t.is(visits(merged).length, 8)
  t.true(await isPending(waiting))
  for (const { ring } of [a, b, c]) t.false(ring.owesWake)
})

test.serial('receiveEach without a limit ends after 2 ms, and with a limit it does not', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.send(40, 1000), b.send(40, 1000))
  await afterTurn()
  t.is(
    visits(merged, undefined, () => (clock.now += 0.5)),
    'a5',
  )
  await afterTurn()
  t.is(visits(merged, 75, () => (clock.now += 0.5)).replace(/\d+/g, '').length > 6, true)
  t.is(visits(merged), '')
  // Turns that end early by their bytes add up as well.
  a.send(4, 20_000)
  b.send(4, 20_000)
  await settleClock()
  t.is(
    visits(merged, undefined, () => (clock.now += 1)),
    'a1 b1',
  )
  t.is(
    visits(merged, Infinity, () => (clock.now += 1)),
    'a1 b1 a1 b1 a1 b1',
  )
})

test.serial('a visitor that receives gets a message that is not visited, even if the event loop is due', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.send(2), b.send(2))
  for (const isDue of [false, true]) {
    await settleClock()
    if (isDue) clock.now += 3
    fairness.readClock()
    const received: ReturnType<typeof merged.receive>[] = []
    t.is(
      visits(merged, Infinity, () => void received.push(merged.receive())),
      'a1 b1',
    )
    t.deepEqual(
      (await Promise.all(received)).map((message) => message![0].name),
      ['a', 'b'],
    )
    a.send(2)
    b.send(2)
  }
})

test.serial('a visitor that waits cannot stop the event loop: the ring is checked once if a turn is due', async (t) => {
  const a = new Source('a').send(1)
  const merged = mergeOf(a)
  await settleClock()
  clock.now += 3
  fairness.readClock()
  // The peer sends call frames without end: each check of the ring finds more, and no message.
  let arms = 0
  a.ring.armReader = () => Number((arms += 1) === 100)
  let received: ReturnType<typeof merged.receive> | undefined
  t.is(
    visits(merged, Infinity, () => void (received = merged.receive())),
    'a1',
  )
  t.is(arms, 1)
  a.send(1)
  t.is((await received!)![0], a)
})

test.serial('a visitor that waits gets the next message of any source, and no more is visited', async (t) => {
  for (const next of ['a', 'b']) {
    const [a, b] = named('a', 'b') as [Source, Source]
    const merged = mergeOf(a.send(1), b)
    await settleClock()
    // It is fetched before the visit, so the visit has not asked the ring yet.
    t.true(a.buffer.hasMessage())
    const received: ReturnType<typeof merged.receive>[] = []
    const receives = () => {
      if (received.length > 0) return
      received.push(merged.receive())
      const source = next === 'a' ? a : b
      source.send(1)
    }
    t.is(visits(merged, Infinity, receives), 'a1')
    t.is((await received[0])![0].name, next)
  }
})

test.serial('a visitor may delete the source, close the merge, or throw; unvisited messages stay', async (t) => {
  const [a, b] = named('a', 'b') as [Source, Source]
  const merged = mergeOf(a.send(3), b.send(3))
  await settleClock()
  t.is(
    visits(merged, undefined, (source) => source === a && merged.delete(a)),
    'a1 b3',
  )
  t.deepEqual(merged.sources, [b])
  t.deepEqual([merged.has(a), merged.has(b)], [false, true])
  t.true(a.buffer.tryReceive()!.equals(pattern(2, 1000)))
  t.is(visits(merged.add(a)), 'a1')
  a.send(2)
  b.send(2)
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
  a.send(2)
  b.send(2)
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
  const merged = mergeOf(a.send(1, 200_000), b.send(1, 200_000))
  await settleClock()
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
  a.send(1, 200_000)
  await turn()
  Buffer.allocUnsafeSlow = real
  await fails
  t.is((await waits[1])![0], a)

  // A check of an empty source may find such a message, too, and it is next.
  const [long, flood] = named('long', 'flood') as [Source, Source]
  const other = mergeOf(long, flood.send(40))
  await settleClock()
  t.is(await order(other, 16), 'flood16')
  long.ring.push(pattern(0, 200_000))
  t.is((await withoutMemory(() => other.receive(), 20_000))![0], flood)
  t.is(await order(other, 2), 'long1 flood1')
})

test.serial(
  'calls yield to the event loop after 2 ms, and calls that wait for that are served once it has turned',
  async (t) => {
    const [a] = named('a') as [Source]
    const merged = mergeOf(a.send(100, 10))
    const later = Promise.resolve('later')
    for (const way of ['receive', 'waitReadable'] as const) {
      await afterTurn()
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
    await afterTurn()
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
    const merged = mergeOf(a.send(3, 10), b)
    for (const way of ['receive', 'waitReadable'] as const) {
      await afterTurn()
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
