// The send queue: its calls of the binding, and when its promises settle.

import test from 'ava'

import { pattern } from './support/bytes.js'
import {
  fillBut,
  HEADER,
  MANY_TURNS,
  open,
  recordOf,
  small,
  type Fill,
  type Opened,
  type Ring,
} from './support/fake-ring.js'
import { isPending, turns } from './support/until.js'

const times = (count: number, what: string) => Array.from({ length: count }, () => what)

test('messages of one turn are sent with one call, and share a promise if they surely fit', async (t) => {
  const { ring, queue } = open(1 << 20)
  const first = queue.send(pattern(0, 10))
  t.is(queue.send('a text'), first)
  t.is(queue.send(pattern(2, 8192)), first)
  t.is(queue.send(pattern(3, 2000).toString('latin1').slice(0, 2000)), first)
  t.deepEqual(ring.newCalls(), ['packedRoom 8192'])
  await first
  t.deepEqual(ring.newCalls(), ['flush'])
  t.is(ring.received.length, 4)
  // A longer message is copied once, directly into the ring. So is one that must be sent immediately.
  await queue.send(pattern(0, 8193))
  await queue.send('staged')
  await queue.send('x'.repeat(8193))
  t.deepEqual(ring.newCalls(), ['send', 'packedRoom 8192', 'flush', 'send'])
  const eager = open(1 << 20, { eager: true })
  await Promise.all([eager.queue.send(pattern(0, 10)), eager.queue.send('a text')])
  t.deepEqual(eager.ring.newCalls(), ['send', 'send'])
})

test('one call carries at most 128 KiB', async (t) => {
  const { ring, queue } = open(1 << 20)
  const sent = small(40, 8192).map((message) => queue.send(message))
  await Promise.all(sent)
  t.deepEqual(
    ring.newCalls().filter((what) => what === 'flush'),
    times(3, 'flush'),
  )
  t.is(ring.received.length, 40)
})

/** The bytes of the memory for the messages of one turn, which have a hundred bytes each. */
async function arenaOf({ ring, queue }: Opened, count: number): Promise<number> {
  let bytes = 0
  const { flush } = ring
  ring.flush = (arena, from, to) => {
    bytes = arena.length
    return flush.call(ring, arena, from, to)
  }
  const before = ring.received.length
  await Promise.all(small(count, 100).map((message) => queue.send(message)))
  ring.flush = flush
  if (ring.received.length !== before + count) throw new Error(`${ring.received.length - before} of ${count} have gone`)
  return bytes
}

test.serial('memory for sending grows with the messages of a turn, and contains no earlier messages', async (t) => {
  const opened = open(1 << 20)
  // The first messages of a turn, the last that fits, and one more.
  for (const [count, bytes] of [
    [1, 4096],
    [36, 4096],
    [37, 8192],
    [200, 32_768],
    [1, 32_768],
    [1100, 131_072],
  ] as const)
    t.is(await arenaOf(opened, count), bytes, String(count))
  // Memory that a caller has not seen before contains only zeros.
  const fresh = open(1 << 20)
  const seen: number[] = []
  for (const size of [3000, 8000]) {
    fresh.queue.fill(size, (bytes, at, length) => {
      seen.push(...bytes.subarray(at, at + length))
      return bytes.subarray(at, at + length).fill(7).length
    })
  }
  t.deepEqual([...new Set(seen)], [0])
  t.deepEqual(
    fresh.ring.received.map((message) => message.length),
    [],
  )
  await fresh.queue.drained()
  t.true(
    fresh.ring.received.every((message) => message.every((byte) => byte === 7)) && fresh.ring.received.length === 2,
  )
})

test.serial('a limited number of queues have a large arena, and an idle queue is the first to lose it', async (t) => {
  const all = Array.from({ length: 40 }, () => open(1 << 20))
  t.teardown(() => all.forEach(({ queue }) => queue.stop(() => new Error('the end of this test'), true)))
  for (const each of all) t.is(await arenaOf(each, 1100), 131_072)
  // The first eight have lost their memory, and the others are unchanged.
  const sizes = await Promise.all(all.map((each) => arenaOf(each, 1)))
  t.deepEqual(sizes, [...Array.from({ length: 8 }, () => 4096), ...Array.from({ length: 32 }, () => 131_072)])
  // While messages wait in each of these, others continue with small ones and more calls.
  for (const { ring, queue } of all.slice(8)) {
    ring.room = 0
    queue.send(pattern(0, 10)).catch(() => {})
  }
  t.is(await arenaOf(all[0]!, 1100), 16_384)
  // If all queues wait, none of their messages is lost.
  for (const { ring, queue } of all.slice(8)) {
    ring.room = 1 << 20
    queue.pump()
    t.is(ring.received.length, 1102)
  }
  t.is(await arenaOf(all[0]!, 1100), 131_072)
})

test('a staged message leaves room for seven more, and none is staged that cannot be sent at once', async (t) => {
  for (const [capacity, maxAtOnce, staged] of [
    [4096, 2048, 512],
    [65_536, 32_768, 8192],
    [1 << 20, 1 << 19, 8192],
    [65_536, 300, 300],
  ] as const) {
    const { ring, queue } = open(capacity, { maxAtOnce })
    await queue.send(pattern(0, staged))
    t.deepEqual(ring.newCalls(), [`packedRoom ${staged}`, 'flush'])
    await queue.send(pattern(0, staged + 1))
    t.deepEqual(ring.newCalls(), ['send'])
  }
})

test('the free room is read again once an eighth of it is left, or less than one call sends', async (t) => {
  for (const [capacity, enough, size] of [
    [65_536, 8192, 800],
    [1 << 20, 131_072, 8000],
    [1 << 24, 131_072, 8000],
  ] as const) {
    const { ring, queue } = open(capacity)
    await queue.send(pattern(0, size))
    ring.newCalls()
    while (ring.room >= enough) {
      await queue.send(pattern(0, size))
      t.deepEqual(ring.newCalls(), ['flush'])
    }
    await queue.send(pattern(0, size))
    t.deepEqual(ring.newCalls(), [`packedRoom ${Math.min(8192, capacity / 8)}`, 'flush'])
  }
})

test('a full ring is checked for some turns, then a wakeup is requested, and nothing more', async (t) => {
  for (const [size, wanted, maxAtOnce, call] of [
    [100, 256, 2048, 'flush'],
    [1000, 1000, 2048, 'send'],
    [20, 100, 100, 'flush'],
  ] as const) {
    const { ring, queue } = open(4096, { maxAtOnce })
    fillBut(ring, queue, 16)
    const message = pattern(1, size)
    const sent = queue.send(message)
    message.fill(0xff)
    await turns(MANY_TURNS)
    const calls = ring.newCalls()
    t.deepEqual(calls.slice(-9), [...times(7, `hasRoom ${wanted}`), call, `arm ${size}`])
    t.is(ring.armedFor, size)
    // Later messages are queued behind it, without calls.
    const behind = [queue.send('behind'), queue.send(pattern(2, 50)), queue.send('it')]
    await turns(MANY_TURNS)
    t.deepEqual(ring.newCalls(), [])
    t.is(queue.bufferedAmount, size + 58)
    for (const promise of [sent, ...behind]) t.true(await isPending(promise))
    ring.read(queue)
    await Promise.all([sent, ...behind])
    t.deepEqual(ring.received.map(String), [pattern(1, size), 'behind', pattern(2, 50), 'it'].map(String))
    t.true(queue.isEmpty)
  }
})

test('room that appears during the checks is used if it is worth a call, and the turns restart', async (t) => {
  const { ring, queue } = open(4096)
  fillBut(ring, queue, 16)
  const sent = small(3).map((message) => queue.send(message))
  await turns(3)
  ring.newCalls()
  // Enough for one of them, but not worth a call.
  ring.room += 112
  await turns(2)
  t.deepEqual(ring.newCalls(), times(2, 'hasRoom 256'))
  ring.room += 144
  await turns(1)
  t.deepEqual(ring.newCalls(), ['hasRoom 256', 'flush'])
  t.is(ring.received.length, 2)
  await sent[1]
  t.true(await isPending(sent[2]!))
  await turns(MANY_TURNS)
  t.deepEqual(ring.newCalls(), [...times(7, 'hasRoom 256'), 'flush', 'arm 100'])
  ring.read(queue, 1000)
  await sent[2]
  t.deepEqual(ring.received, small(3))
})

test('the checks restart with each part of a fragmented message', async (t) => {
  const { ring, queue } = open(4096)
  const sent = queue.send(pattern(0, 9000))
  for (let round = 0; round < 2; round += 1) {
    await turns(5)
    ring.newCalls()
    ring.room += 2048
    await turns(1)
    t.deepEqual(ring.newCalls(), ['hasRoom 9000', 'send'])
  }
  await turns(MANY_TURNS)
  t.deepEqual(ring.newCalls(), [...times(7, 'hasRoom 9000'), 'send', 'arm 9000'])
  t.true(await isPending(sent))
  while (!queue.isEmpty) {
    ring.read(queue)
    await turns(1)
  }
  await sent
  t.deepEqual(ring.received, [pattern(0, 9000)])
})

test('room that appears just before a wakeup is requested is found', async (t) => {
  for (const size of [100, 1000]) {
    const { ring, queue } = open(4096)
    fillBut(ring, queue, 16)
    const sent = queue.send(pattern(0, size))
    const { armWriter } = ring
    ring.armWriter = function (this: Ring, wanted: number) {
      this.room = 4096
      return armWriter.call(this, wanted)
    }
    await turns(MANY_TURNS)
    await sent
    t.is(ring.received.length, 1)
    t.is(ring.armedFor, null)
  }
})

test('waits are counted and timed: once for each send that had to wait, whatever its outcome', async (t) => {
  const { ring, queue } = open(4096)
  const block = (milliseconds: number) => {
    const from = performance.now()
    while (performance.now() - from < milliseconds);
    return (performance.now() - from) * 1000
  }
  let [least, most, waits] = [0, 0, 0]
  for (let round = 0; round < 3; round += 1) {
    // Two fit and do not wait. The third and the messages behind it wait.
    fillBut(ring, queue, 240)
    const from = performance.now()
    const sent = [...small(3), pattern(3, 3000), pattern(4, 100), pattern(5, 10)].map((message) => queue.send(message))
    waits += 4
    t.is(queue.stats().waits, waits)
    await sent[1]
    t.is(queue.stats().waits, waits)
    least += block(5)
    // A check that finds no room ends no wait, and starts none.
    queue.pump()
    const soFar = queue.stats().waitedMicros
    t.true(
      soFar >= Math.floor(least) && soFar <= Math.ceil(most + (performance.now() - from) * 1000),
      'while they wait',
    )
    ring.read(queue)
    await turns(MANY_TURNS)
    t.is(queue.stats().waits, waits)
    ring.read(queue)
    await Promise.all(sent)
    most += (performance.now() - from) * 1000
    const { waitedMicros } = queue.stats()
    t.true(waitedMicros >= Math.floor(least) && waitedMicros <= Math.ceil(most), 'afterwards')
    t.is(Math.round(waitedMicros), waitedMicros)
    block(2)
    t.is(queue.stats().waitedMicros, waitedMicros, 'nothing waits')
    t.is(queue.stats().waits, waits)
    ring.read(queue)
    await queue.send('at once')
    t.is(queue.stats().waits, waits)
  }
  // A wait that was given up counts as well.
  fillBut(ring, queue, 8)
  const never = [queue.send('never'), queue.send(pattern(0, 3000))]
  t.is(queue.stats().waits, waits + 2)
  queue.stop(() => new Error('enough'), true)
  for (const promise of never) await t.throwsAsync(promise, { message: 'enough' })
  t.is(queue.stats().waits, waits + 2)
  t.is(queue.bufferedAmount, 0)
  const { waitedMicros } = queue.stats()
  block(2)
  t.is(queue.stats().waitedMicros, waitedMicros)
})

test('reading bufferedAmount takes as long with many queued messages as with one', (t) => {
  /** The shortest time of many rounds: other load on the machine delays some of them, and not all. */
  const shortest = (count: number) => {
    const { queue } = open(4096)
    for (const message of small(count, 16)) void queue.send(message)
    const read = () => {
      const from = performance.now()
      for (let reads = 0; reads < 100; reads += 1) if (queue.bufferedAmount === 0) t.fail('nothing waits')
      return performance.now() - from
    }
    return Math.min(...Array.from({ length: 50 }, read))
  }
  // Checking each message took a thousand times as long.
  t.true(shortest(40_000) < 100 * Math.max(shortest(1), 0.001))
})

test('a send that may have to wait has its own promise, and counts as a wait only if it waits', async (t) => {
  const { ring, queue } = open(65_536)
  ring.notGuaranteed = 65_536 - 2 * recordOf(100)
  const sent = small(4).map((message) => queue.send(message))
  t.is(new Set(sent).size, 3)
  t.is(sent[0], sent[1])
  t.is(queue.stats().waits, 0)
  t.is(queue.stats().waitedMicros, 0)
  await Promise.all(sent)
  t.is(queue.stats().waits, 0)
  t.deepEqual(ring.received, small(4))
  // The length of a text is unknown, so there must be room for the longest encoding.
  ring.read(queue)
  const first = queue.send('')
  t.not(queue.send('x'.repeat(300)), first)
  await turns(2)
  t.is(ring.received.length, 6)
})

test('sends with a shared promise resolve once they are in, whatever waits behind them', async (t) => {
  // Also if the arena was moved to the queue before.
  for (const isMoved of [false, true]) {
    const { ring, queue } = open(1 << 20)
    fillBut(ring, queue, 5 * 8192)
    ring.notGuaranteed = 8192
    const size = 8192 - HEADER
    // A wakeup is requested for a call that needs more room.
    const asks = queue.waitWritable(400_000)
    await turns(MANY_TURNS)
    const sent = small(isMoved ? 18 : 8, size).map((message) => queue.send(message))
    t.is(sent[3], sent[0])
    t.not(sent[4], sent[3])
    if (isMoved) void queue.send(pattern(0, size + 1))
    await Promise.all(sent.slice(0, 5))
    t.true(await isPending(sent[5]!))
    ring.read(queue, 8192)
    queue.handleWakeup()
    await sent[5]
    t.true(await isPending(sent[6]!))
    // It was moved now, with its beginning in the ring.
    if (!isMoved) void queue.send(pattern(0, 9000))
    ring.room += 8192
    queue.handleWakeup()
    await sent[6]
    t.true(await isPending(sent[7]!))
    while (!queue.isEmpty) {
      ring.read(queue)
      await turns(1)
    }
    await Promise.all([...sent, asks])
    t.true(small(sent.length, size).every((message, number) => message.equals(ring.received[number]!)))
  }
})

test('a message written in place is staged if it surely fits, else it is a reservation', async (t) => {
  const { ring, queue } = open(65_536)
  const put =
    (message: Uint8Array): Fill =>
    (bytes, offset, length) => {
      t.true(length >= message.length)
      bytes.set(message, offset)
      return message.length
    }
  t.true(queue.fill(200, put(pattern(0, 150))))
  void queue.send(pattern(1, 10))
  t.true(queue.fill(8192, put(pattern(2, 8192))))
  t.deepEqual(ring.newCalls(), ['packedRoom 8192'])
  t.is(queue.bufferedAmount, 150 + 10 + 8192)
  await Promise.resolve()
  t.deepEqual(ring.newCalls(), ['flush'])
  void queue.send(pattern(3, 10))
  t.true(queue.fill(8193, put(pattern(4, 20))))
  t.deepEqual(ring.newCalls(), ['flush', 'reserve 8193', 'commit 20'])
  const thrown = new Error('of the caller')
  const fails: Fill = () => {
    throw thrown
  }
  for (const size of [100, 5000, 9000])
    t.is(
      t.throws(() => queue.fill(size, fails)),
      thrown,
    )
  t.deepEqual(ring.newCalls(), ['packedRoom 8192', 'reserve 9000', 'cancel'])
  t.throws(() => queue.fill(9000, () => 9001), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  t.deepEqual(ring.newCalls(), ['reserve 9000', 'cancel'])
  const taken: Fill = (bytes) => {
    structuredClone(bytes.buffer, { transfer: [bytes.buffer as ArrayBuffer] })
    return 5
  }
  t.throws(() => queue.fill(9000, taken), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  t.deepEqual(ring.newCalls(), ['reserve 9000', 'cancel'])
  // Earlier messages may be flushed in the meantime.
  void queue.send('before')
  const put5 = put(pattern(5, 20))
  t.true(queue.fill(20, (...memory) => (queue.pump(), put5(...memory))))
  await turns(1)
  t.deepEqual(ring.received.slice(-2), [Buffer.from('before'), pattern(5, 20)])
  ring.newCalls()
  const eager = open(65_536, { eager: true })
  t.true(eager.queue.fill(100, put(pattern(0, 5))))
  t.deepEqual(eager.ring.newCalls(), ['reserve 100', 'commit 5'])
  // It must not overtake queued messages.
  fillBut(ring, queue, 16)
  t.false(queue.fill(100, fails))
  t.deepEqual(ring.newCalls(), ['packedRoom 8192', 'reserve 100'])
  const waits = queue.send(pattern(5, 100))
  for (const size of [0, 8193]) t.false(queue.fill(size, fails))
  t.is(queue.reserve(0), undefined)
  t.false(queue.trySend(''))
  t.false(ring.newCalls().some((what) => /^(reserve|trySend)/.test(what)))
  ring.read(queue)
  await turns(MANY_TURNS)
  await waits
  t.true(queue.fill(100, put(pattern(6, 100))))
  await Promise.resolve()
  t.deepEqual(ring.received, [pattern(5, 100), pattern(6, 100)])
})

test('memory for messages that are written in place and copied is kept if it is small', (t) => {
  const { ring, queue } = open(65_536, { eager: true })
  ring.showsNothing = true
  const shown = (size: number) => {
    let memory!: Uint8Array
    t.true(queue.fill(size, (bytes) => ((memory = bytes), size)))
    return memory
  }
  const kept = shown(4096)
  t.is(kept.length, 4096)
  t.is(shown(100), kept)
  t.is(shown(4096), kept)
  t.is(shown(4097).length, 4097)
  t.is(shown(4097).length, 4097)
  t.is(shown(1), kept)
  const other = open(65_536, { eager: true })
  other.queue.fill(1, (bytes) => (t.is(bytes.length, 4096), 1))
})

test('a message that is too long is an error, even while others wait', async (t) => {
  const { ring, queue } = open(4096)
  fillBut(ring, queue, 8)
  const waits = queue.send('waits')
  const failed = { code: 'ERR_RINGFENCE_RING_CORRUPT' }
  t.false(queue.trySend(new Uint8Array(2048)))
  t.is(queue.reserve(2048), undefined)
  t.false(queue.fill(2048, () => 1))
  t.false(ring.newCalls().some((what) => /^(reserve|trySend)/.test(what)))
  t.throws(() => queue.trySend(new Uint8Array(2049)), failed)
  t.throws(() => queue.reserve(2049), failed)
  t.throws(() => queue.fill(2049, () => 1), failed)
  await t.throwsAsync(queue.waitWritable(2049), failed)
  ring.read(queue)
  await turns(MANY_TURNS)
  await waits
})

test('calls that wait for room resolve in order, each once there is enough', async (t) => {
  const { ring, queue } = open(4096)
  await queue.waitWritable(2048)
  await queue.waitWritable(0)
  t.deepEqual(ring.newCalls(), ['hasRoom 2048', 'hasRoom 0'])
  fillBut(ring, queue, 16)
  const resolved: number[] = []
  const asking = [100, 1000, 10].map((size) => queue.waitWritable(size).then(() => resolved.push(size)))
  await turns(MANY_TURNS)
  t.deepEqual(ring.newCalls().slice(-2), ['hasRoom 100', 'arm 100'])
  const behind = queue.waitWritable(20)
  await turns(MANY_TURNS)
  ring.newCalls()
  ring.read(queue, 200)
  await turns(MANY_TURNS)
  t.deepEqual(resolved, [100])
  t.deepEqual(ring.newCalls().at(-1), 'arm 1000')
  await turns(MANY_TURNS)
  t.deepEqual(ring.newCalls(), [], 'the peer is to ring')
  ring.read(queue)
  await Promise.all([...asking, behind])
  t.deepEqual(resolved, [100, 1000, 10])
  // Earlier messages are sent first.
  fillBut(ring, queue, 16)
  const sent = queue.send(pattern(0, 100))
  const room = queue.waitWritable(10)
  t.true(await isPending(room))
  ring.read(queue)
  await turns(MANY_TURNS)
  await Promise.all([sent, room])
  t.is(ring.received.length, 1)
})

test('an error of the binding rejects the call and all waiting ones, and nothing more is called', async (t) => {
  const deeds: [call: string, deed: (of: Opened) => unknown, isFull?: boolean][] = [
    ['packedRoom', ({ queue }) => queue.send('x')],
    ['packedRoom', ({ queue }) => queue.fill(1, () => 1)],
    ['flush', ({ queue }) => queue.send('x')],
    ['flush', ({ queue }) => (void queue.send('x').catch(() => {}), queue.send(pattern(0, 1000)))],
    ['send', ({ queue }) => queue.send(pattern(0, 1000))],
    ['trySend', ({ queue }) => queue.trySend('x')],
    ['reserve', ({ queue }) => queue.reserve(1)],
    ['reserve', ({ queue }) => queue.fill(1000, () => 1)],
    ['commit', ({ queue }) => queue.reserve(1)!.commit()],
    ['commit', ({ queue }) => queue.fill(1000, () => 1)],
    ['hasRoom', ({ queue }) => queue.waitWritable(1)],
    ['arm', ({ queue }) => queue.waitWritable(1000), true],
    ['arm', ({ queue }) => queue.send(pattern(0, 100)), true],
    ['arm', ({ queue }) => queue.send(pattern(0, 1000)), true],
  ]
  for (const [call, deed, isFull = false] of deeds) {
    const opened = open(4096, { ends: true })
    const { ring, queue, failures } = opened
    if (isFull) fillBut(ring, queue, 8)
    const waiting = queue.waitWritable(2000)
    const empty = queue.send('before').then(() => queue.drained())
    if (!isFull) {
      await empty
      // The free room is read again after it.
      queue.trySend('')
    }
    ring.fails = call
    const title = `${call} of ${String(deed)}`
    const error = await t.throwsAsync(async () => deed(opened), { code: 'ERR_RINGFENCE_RING_CORRUPT' }, title)
    t.deepEqual(failures, [error!], title)
    if (isFull) {
      await t.throwsAsync(waiting, { is: error })
      await t.throwsAsync(empty, { is: error })
    }
    t.is(ring.newCalls().at(-1)!.split(' ')[0], call, 'nothing is asked behind it')
    await t.throwsAsync(queue.send('later'), { is: error })
    t.is(queue.bufferedAmount, 0)
    queue.handleWakeup()
    await turns(MANY_TURNS)
    t.deepEqual(ring.newCalls(), [], title)
  }
  const { ring, queue, failures } = open(4096, { ends: true })
  fillBut(ring, queue, 8)
  const waits = queue.send(pattern(0, 1000))
  ring.fails = 'send'
  const error = await t.throwsAsync(waits)
  t.deepEqual(failures, [error!])
})

test('an end releases the calls that wait for a flush', async (t) => {
  const refusal = () => new Error('refused')
  const idle = open(4096)
  await idle.queue.drained()
  t.is(idle.queue.linger(1000, refusal), null)
  await t.throwsAsync(idle.queue.send('late'), { message: 'refused' })
  for (const how of ['room', 'an end'] as const) {
    const { ring, queue } = open(4096)
    fillBut(ring, queue, 16)
    const sent = queue.send(pattern(0, 1000))
    const empty = queue.drained()
    t.is(queue.linger(0, refusal), null)
    const lingers = queue.linger(2 ** 40, refusal)!
    t.throws(() => queue.trySend('late'), { message: 'refused' })
    t.true(await isPending(lingers))
    t.true(await isPending(empty))
    if (how === 'an end') queue.stop(() => new Error('over'), true)
    else {
      await turns(MANY_TURNS)
      ring.read(queue)
    }
    await lingers
    await empty
    if (how === 'room') await sent
    else {
      await t.throwsAsync(sent, { message: 'over' })
      ring.newCalls()
      await turns(MANY_TURNS)
      t.deepEqual(ring.newCalls(), [], 'the ring is looked at no more')
    }
  }
  t.deepEqual(idle.ring.received, [])
})

test.serial('flushing a long queue costs as much for each message as a short one', async (t) => {
  const message = pattern(0, 600)
  const ways: [title: string, wait: (queue: Opened['queue']) => Promise<void>][] = [
    ['sends', (queue) => queue.send(message)],
    ['waits for room', (queue) => queue.waitWritable(100)],
  ]
  /** The CPU time in microseconds for each message, once there is room. */
  const costOf = async (count: number, wait: (queue: Opened['queue']) => Promise<void>) => {
    const { ring, queue } = open(4096)
    fillBut(ring, queue, 16)
    const waiting = Array.from({ length: count }, () => wait(queue))
    ring.room = Infinity
    const before = process.cpuUsage()
    queue.pump()
    await Promise.all(waiting)
    const { user, system } = process.cpuUsage(before)
    return (user + system) / count
  }
  for (const [title, wait] of ways) {
    await costOf(5000, wait)
    const [few, many] = [await costOf(5000, wait), await costOf(100_000, wait)]
    t.true(many < 3 * Math.max(few, 2), `${title}: ${few} µs each of few, ${many} of many`)
  }
})
