// Unit tests of a receive buffer: waiting readers, turns of the event loop, and ends. waiting.test.ts uses it with a
// peer.

import test from 'ava'
import { RingfenceError } from 'ringfence'

import { pattern } from './support/bytes.js'
import { clock, fairness, afterTurn } from './support/clock.js'
import { bufferOver, codeOf, RetainingRing, kinds, patterns, visitAll, type Buffered } from './support/ring.js'
import { turn, turns } from './support/until.js'

const over = () => new RingfenceError('PEER_LOST', 'as a test says')
const closedHere = () => new RingfenceError('CLOSED', 'as a test says')
const invalid = codeOf('INVALID_ARGUMENT')

test.serial('a waiting reader requests one wakeup, and another one for later messages', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  const waits = [buffer.wait(true), buffer.wait(true), buffer.wait(false)]
  t.deepEqual(ring.newCalls(), ['fetch', 'arm', 'fetch', 'fetch', 'fetch'])
  t.true(buffer.isArmed)
  ring.push(pattern(0, 10))
  buffer.handleWakeup()
  t.true((await waits[0]!.promise)!.equals(pattern(0, 10)))
  t.is(ring.newCalls().filter((what) => what === 'arm').length, 1)
  t.true(buffer.isArmed)
  ring.push(pattern(1, 10), pattern(2, 10))
  buffer.handleWakeup()
  t.false(buffer.isArmed)
  t.true((await waits[1]!.promise)!.equals(pattern(1, 10)))
  t.is((await waits[2]!.promise)!.length, 0, 'that there is one is told')
  t.is(ring.newCalls().includes('arm'), false, 'nobody waits')
  t.true(buffer.tryReceive()!.equals(pattern(2, 10)))

  // A message that arrives between the check and the request for a wakeup is found.
  ring.onEmpty = () => {
    ring.onEmpty = () => {}
    ring.push(pattern(3, 10))
  }
  t.true((await buffer.wait(true).promise)!.equals(pattern(3, 10)))
  t.false(buffer.isArmed)
})

test.serial('a receive that is called while others wait is queued behind them', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  void buffer.wait(true)
  ring.push(...patterns(0, 10, 10))
  ring.newCalls()
  t.is(buffer.receiveNow(), undefined)
  t.deepEqual(ring.newCalls(), [])
})

test.serial('no other reader overtakes one that waits for a message', async (t) => {
  const [loop, other] = [{}, {}]
  await afterTurn()
  for (const takes of [true, false]) {
    const { ring, buffer } = bufferOver(new RetainingRing())
    const wait = buffer.wait(takes, undefined, loop)
    ring.push(pattern(0, 10))
    for (const [way, read] of Object.entries({
      tryReceive: () => buffer.tryReceive(),
      receiveEach: () => buffer.receiveEach(() => {}),
      takeNow: () => buffer.takeNow(other),
      isReadableNow: () => buffer.isReadableNow(),
      loopReadableNow: () => buffer.loopReadableNow(other),
    }))
      t.throws(read, { ...invalid, message: /one place/ }, way)
    t.is(buffer.isReadableNow(loop), takes ? undefined : true, 'what is there belongs to the call that takes it')
    t.true(buffer.isReadableNow(null), 'it only watches')
    buffer.handleWakeup()
    t.is((await wait.promise)!.length, takes ? 10 : 0)
    t.is(buffer.tryReceive()?.length, takes ? undefined : 10)
  }
})

test.serial('a stream of more than 4 KiB is checked in each of eight turns before a wakeup is requested', async (t) => {
  const checksOf = async (lengths: number[], between?: () => void) => {
    const { ring, buffer } = bufferOver(new RetainingRing())
    ring.push(...patterns(0, ...lengths))
    while (buffer.tryReceive() !== null);
    ring.newCalls()
    void buffer.wait(true)
    const rest = buffer.wait(true)
    if (between !== undefined) {
      await turns(5)
      ring.push(pattern(0, 10))
      between()
    }
    await turns(30)
    t.true(buffer.isArmed)
    const checks = ring.newCalls()
    // It is asked once, and then sleeps until a wakeup.
    buffer.handleWakeup()
    t.is(ring.newCalls().filter((what) => what === 'arm').length, 1)
    rest.cancel()
    return checks.indexOf('arm')
  }
  // Two checks by the calls, and eight in turns.
  t.is(await checksOf([2040, 2040]), 10)
  t.is(await checksOf([2040, 2032]), 1, 'less is no stream')
  t.is(await checksOf([4096]), 1, 'nor is a message that comes alone')
  // A message that arrives in the meantime restarts the turns: one more check for it, and five more turns.
  t.true((await checksOf([2040, 2040], () => {})) >= 15)
})

const immediates = () => process.getActiveResourcesInfo().filter((what) => what === 'Immediate').length

test.serial('a reader that keeps no process alive waits only for turns that do not either', async (t) => {
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  for (const isWeak of [false, true]) {
    const { ring, buffer } = bufferOver(new RetainingRing())
    await afterTurn()
    ring.push(...patterns(0, 3000, 3000))
    while (buffer.tryReceive() !== null);
    buffer.keepAlive(!isWeak)
    t.is(buffer.isWeak, isWeak)
    const before = immediates()
    const waiting = buffer.wait(true)
    t.is(immediates() - before, isWeak ? 0 : 1)
    ring.push(pattern(2, 10))
    t.is((await waiting.promise)!.length, 10)

    await afterTurn()
    clock.now += 3
    ring.push(pattern(3, 10))
    t.is(buffer.tryReceive()!.length, 10)
    t.is(immediates() - before, isWeak ? 0 : 1, 'the turn that is due')
    t.not(buffer.due, null)
    t.is(immediates() - before, isWeak ? 0 : 1)
    await buffer.due
    await turn()
    t.is(buffer.due, null)
    buffer.keepAlive(true)
    t.false(buffer.isWeak)
  }
})

for (const Kind of kinds)
  test.serial(`${Kind.name}: each way to read yields to the event loop after 2 ms`, async (t) => {
    const { ring, buffer } = bufferOver(new Kind())
    const ways = {
      receive: () => buffer.receiveNow(),
      'a long one': () => buffer.receiveNow(),
      readable: () => buffer.isReadableNow(),
    }
    for (const [way, read] of Object.entries(ways)) {
      ring.push(...patterns(0, ...Array.from({ length: 50 }, () => (way === 'a long one' ? 200_000 : 10))))
      await afterTurn()
      let count = 0
      while (read() !== undefined) {
        count += 1
        clock.now += 0.5
      }
      t.true(count > 0 && count <= 12, `${count} by ${way}`)
      // Waiting readers are served once, after the turn.
      const waiting = buffer.wait(false)
      buffer.serve()
      ring.newCalls()
      t.is(await Promise.race([waiting.promise, Promise.resolve('later')]), 'later')
      t.not(await waiting.promise, null)
      while (buffer.tryReceive() !== null);
      await afterTurn()
      ring.newCalls()
      void buffer.wait(true)
      await turns(20)
      ring.push(pattern(0, 10))
      buffer.handleWakeup()
    }
  })

test.serial('waiting readers are served once after a turn, however often that was scheduled', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  void buffer.wait(true)
  await afterTurn()
  clock.now += 3
  fairness.readClock()
  ring.newCalls()
  for (let round = 0; round < 3; round += 1) buffer.serve()
  t.deepEqual(ring.newCalls(), [])
  await turn()
  t.deepEqual(ring.newCalls(), ['fetch'])
  // The same, the next time.
  clock.now += 3
  fairness.readClock()
  buffer.serve()
  await turn()
  t.deepEqual(ring.newCalls(), ['fetch'])
})

test.serial('a visitor that waits is served at once, though it is time for the event loop', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  await afterTurn()
  ring.push(...patterns(0, 10, 10))
  clock.now += 3
  fairness.readClock()
  const visited: number[] = []
  let waiting: Promise<Buffer | null> | undefined
  buffer.receiveEach((_, __, length) => {
    visited.push(length)
    waiting = buffer.wait(true).promise
  }, Infinity)
  t.deepEqual(visited, [10])
  t.true((await waiting!)!.equals(pattern(1, 10)))
})

test.serial('a visitor that waits cannot stop the event loop: the ring is checked once if a turn is due', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  await afterTurn()
  ring.push(pattern(0, 10))
  clock.now += 3
  fairness.readClock()
  // The peer sends call frames without end: each check of the ring finds more, and no message.
  let arms = 0
  ring.armReader = () => Number((arms += 1) === 100)
  let waiting: Promise<Buffer | null> | undefined
  t.is(
    buffer.receiveEach(() => void (waiting = buffer.wait(true).promise), Infinity),
    1,
  )
  t.is(arms, 1)
  ring.push(pattern(1, 10))
  t.true((await waiting!)!.equals(pattern(1, 10)))
})

test.serial('a visitor that waits gets the next message, and no more is visited', async (t) => {
  for (const isFetched of [false, true]) {
    const { ring, buffer } = bufferOver(new RetainingRing())
    await afterTurn()
    ring.push(pattern(0, 10))
    t.true(!isFetched || buffer.isReadableNow())
    const waits: Promise<Buffer | null>[] = []
    const visitor = () => {
      if (waits.length > 0) return
      waits.push(buffer.wait(true).promise)
      // It arrives during the visit. `isEnded` may fetch it.
      ring.push(pattern(1, 10))
      t.false(buffer.isEnded)
    }
    t.is(buffer.receiveEach(visitor, Infinity), 1)
    buffer.handleWakeup()
    t.true((await waits[0]!)!.equals(pattern(1, 10)))
  }
})

test.serial('a listener of the signal that aborts a wait may close the buffer or let a merge read it', async (t) => {
  const { buffer } = bufferOver(new RetainingRing())
  const ends = [() => (buffer.attachMerge(() => {}), buffer.detachMerge()), () => buffer.close(closedHere)]
  for (const end of ends) {
    const control = new AbortController()
    control.signal.addEventListener('abort', () => t.notThrows(end))
    const { promise } = buffer.wait(true, control.signal)
    control.abort()
    await t.throwsAsync(promise, { code: 'ABORT_ERR' })
  }
})

test.serial('a listener of the signal that aborts a wait may read before the wait ends', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  const reads = [
    () => buffer.tryReceive(),
    () => buffer.wait(true, undefined, {}).promise,
    () => buffer.receiveNow() ?? buffer.wait(true).promise,
  ]
  for (const [index, read] of reads.entries()) {
    const control = new AbortController()
    let message: Buffer | null | Promise<Buffer | null> = null
    control.signal.addEventListener('abort', () => {
      ring.push(pattern(index, 10))
      message = read()
    })
    const { promise } = buffer.wait(true, control.signal)
    control.abort()
    t.true((await message!)!.equals(pattern(index, 10)))
    await t.throwsAsync(promise, { code: 'ABORT_ERR' })
  }
})

test.serial('a call of receiveEach without a limit ends after 2 ms, and one with a limit does not', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  ring.push(...patterns(0, ...Array.from({ length: 100 }, () => 10)))
  const slowly = () => void (clock.now += 0.5)
  await afterTurn()
  t.is(buffer.receiveEach(slowly), 5, 'a look at the clock after each, and 2 ms from the first to the last')
  await afterTurn()
  t.is(buffer.receiveEach(slowly, 50), 50)
  await afterTurn()
  t.is(buffer.receiveEach(slowly), 5)
  await afterTurn()
  t.is(buffer.receiveEach(slowly, Infinity), 40)
  ring.push(...patterns(0, ...Array.from({ length: 10 }, () => 200_000)))
  await afterTurn()
  t.is(buffer.receiveEach(slowly), 5, 'long ones count as well')
  while (buffer.tryReceive() !== null);
  // It checks less often if messages take no time.
  ring.push(...patterns(0, ...Array.from({ length: 1000 }, () => 10)))
  await afterTurn()
  const { clockReads } = fairness
  t.is(
    buffer.receiveEach(() => {}),
    1000,
  )
  t.true(fairness.clockReads - clockReads < 15, `${fairness.clockReads - clockReads} clock reads`)
})

for (const Kind of kinds)
  test.serial(
    `${Kind.name}: once the peer has ended, and all was read, each call returns the end without using the ring`,
    async (t) => {
      const { ring, buffer, notifications } = bufferOver(new Kind())
      ring.begin(pattern(0, 5000), 1000)
      const waits = [buffer.wait(false), buffer.wait(true), buffer.wait(true)]
      t.false(buffer.isEnded)
      t.false(buffer.isFinished)
      ring.ended = true
      buffer.handleWakeup()
      for (const { promise } of waits) t.is(await promise, null)
      t.deepEqual(notifications, ['no more comes', 'the end is told'])
      t.true(buffer.isFinished, 'of a message that was cut off nothing is left')
      ring.newCalls()
      notifications.splice(0)
      // Their callers learn of the end elsewhere.
      t.is(buffer.takeNow(null), null)
      t.is(buffer.take(), null)
      t.is(buffer.isReadableNow(), false)
      t.false(buffer.hasMessage())
      t.is(await buffer.wait(false).promise, null)
      t.false(buffer.checkParked())
      t.deepEqual(notifications, [])
      for (const [way, finds, wanted] of [
        ['tryReceive', () => buffer.tryReceive(), null],
        ['receiveEach', () => visitAll(buffer).length, 0],
        ['isEnded', () => buffer.isEnded, true],
        ['receiveNow', () => buffer.receiveNow(), null],
        ['nextNow', () => buffer.nextNow(), null],
        ['wait', () => buffer.wait(true).promise, null],
      ] as const) {
        t.is(await finds(), wanted, way)
        t.deepEqual(notifications.splice(0), ['the end is told'], way)
      }
      t.deepEqual(ring.newCalls(), [])
    },
  )

for (const Kind of kinds)
  test.serial(`${Kind.name}: each call gets the error of the ring, and the channel gets it once`, async (t) => {
    const { ring, buffer, notifications } = bufferOver(new Kind())
    const waits = [buffer.wait(true), buffer.wait(false)]
    ring.failing = 'RING_CORRUPT'
    buffer.handleWakeup()
    for (const { promise } of waits) await t.throwsAsync(promise, codeOf('RING_CORRUPT'))
    ring.newCalls()
    const calls = [
      () => buffer.tryReceive(),
      () => buffer.receiveNow(),
      () => buffer.isReadableNow(),
      () => buffer.receiveEach(() => {}),
      () => buffer.receiveEach(() => {}, 1),
    ]
    for (const call of calls) t.throws(call, codeOf('RING_CORRUPT'))
    await t.throwsAsync(buffer.wait(true).promise, codeOf('RING_CORRUPT'))
    t.is(
      buffer.receiveEach(() => {}, 0),
      0,
      'nothing was asked for',
    )
    t.false(buffer.isEnded, 'that is no clean end')
    t.deepEqual(notifications, ['RING_CORRUPT'])
    t.deepEqual(ring.newCalls(), [])
  })

test.serial('a failure is found by the next call of any kind', async (t) => {
  const asks = {
    gather: (buffer: Buffered) => void buffer.take(),
    arm: (buffer: Buffered) => t.false(buffer.arm()),
    park: (buffer: Buffered) => t.false(buffer.park()),
    look: (buffer: Buffered) => t.false(buffer.checkParked()),
  }
  for (const [what, ask] of Object.entries(asks)) {
    const { ring, buffer, notifications } = bufferOver(new RetainingRing())
    if (what === 'gather') ring.begin(pattern(0, 5000), 100)
    t.is(buffer.take(), null)
    ring.failing = 'OBJECT_EXPOSED'
    ask(buffer)
    t.true(buffer.isFinished, what)
    t.deepEqual(notifications, ['OBJECT_EXPOSED'], what)
    t.throws(() => buffer.tryReceive(), codeOf('OBJECT_EXPOSED'))
  }
  // Between the check and the request for a wakeup.
  const { ring, buffer, notifications } = bufferOver(new RetainingRing())
  ring.onEmpty = () => (ring.failing = 'OBJECT_EXPOSED')
  await t.throwsAsync(buffer.wait(true).promise, codeOf('OBJECT_EXPOSED'))
  t.deepEqual(notifications, ['OBJECT_EXPOSED'])
  t.false(buffer.isArmed)
})

test.serial(
  'the binding may know before this side that a check has refused the peer: calls that wait reject',
  async (t) => {
    const { ring, buffer, notifications } = bufferOver(new RetainingRing())
    const waits = [buffer.wait(true), buffer.wait(false)]
    ring.failing = 'CLOSED'
    buffer.handleWakeup()
    for (const { promise } of waits) await t.throwsAsync(promise, codeOf('CLOSED'))
    t.deepEqual(notifications, ['CLOSED'], 'it is not the peer’s end')
    t.throws(() => buffer.tryReceive(), codeOf('CLOSED'))
  },
)

test.serial('a stopped channel returns fetched messages, and then each call gets the reason', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  ring.push(...patterns(0, 10, 10, 10))
  t.is(buffer.tryReceive()!.length, 10)
  buffer.keepAlive(false)
  buffer.stop(over)
  t.false(buffer.isWeak, 'what is there is read to its end')
  t.false(buffer.isFinished)
  await afterTurn()
  t.true(buffer.isReadableNow())
  t.is(buffer.tryReceive()!.length, 10)
  t.is(buffer.receiveNow()!.length, 10)
  t.true(buffer.isFinished)
  t.throws(() => buffer.tryReceive(), codeOf('PEER_LOST'))
  buffer.keepAlive(false)
  t.false(buffer.isWeak)
  buffer.stop(closedHere)
  t.throws(() => buffer.tryReceive(), codeOf('PEER_LOST'), 'the first reason stays')

  const other = bufferOver(new RetainingRing()).buffer
  const waits = [other.wait(true), other.wait(true)]
  other.stop(over)
  const errors = await Promise.all(waits.map(({ promise }) => t.throwsAsync(promise, codeOf('PEER_LOST'))))
  t.not(errors[0], errors[1])
})

test.serial('a close drops messages that were not returned, and they do not count as received', async (t) => {
  for (const fetch of ['short', 'long', 'part', 'nothing'] as const) {
    const { ring, buffer, notifications } = bufferOver(new RetainingRing())
    if (fetch === 'short') {
      ring.push(...patterns(0, 10, 20, 30))
      t.is(buffer.tryReceive()!.length, 10)
    } else if (fetch === 'long') {
      ring.push(pattern(0, 5000))
      t.true(buffer.hasMessage())
    } else if (fetch === 'part') {
      ring.begin(pattern(0, 5000), 100)
      t.false(buffer.hasMessage())
    }
    const waits = fetch === 'part' || fetch === 'nothing' ? [buffer.wait(true), buffer.wait(false)] : []
    const received = fetch === 'short' ? { messages: 1, bytes: 10 } : { messages: 0, bytes: 0 }
    const unread = { short: 2, long: 1, part: 0, nothing: 0 }[fetch]
    t.deepEqual([buffer.received, buffer.unread], [received, unread])
    buffer.close(closedHere)
    for (const { promise } of waits) t.is(await promise, null)
    t.is(notifications.includes('the end is told'), waits.length > 0)
    ring.newCalls()
    t.deepEqual([buffer.received, buffer.unread], [received, unread])
    t.true(buffer.isFinished)
    t.is(buffer.nextNow(), null, 'a loop ends')
    for (const call of [
      () => buffer.tryReceive(),
      () => buffer.receiveNow(),
      () => buffer.isReadableNow(),
      () => buffer.receiveEach(() => {}),
    ])
      t.throws(call, codeOf('CLOSED'))
    // Also if waiting readers would be notified later.
    await afterTurn()
    clock.now += 3
    fairness.readClock()
    t.throws(() => buffer.receiveNow(), codeOf('CLOSED'))
    t.throws(() => buffer.isReadableNow(), codeOf('CLOSED'))
    t.deepEqual(ring.newCalls(), [])
    await afterTurn()
  }
})

test.serial('a visitor that closes gets no more messages, and only existing ones are dropped', (t) => {
  for (const length of [10, 200_000]) {
    const { ring, buffer } = bufferOver(new RetainingRing())
    ring.push(...patterns(0, length, length, length))
    let visits = 0
    buffer.receiveEach(() => {
      visits += 1
      buffer.close(closedHere)
    })
    t.is(visits, 1)
    t.false(ring.newCalls().includes('release'))
  }
})

test.serial('all messages of a lost peer are read, and then the ring is released, once', (t) => {
  for (const way of ['receive', 'receiveEach', 'close', 'fail'] as const) {
    const { ring, buffer } = bufferOver(new RetainingRing())
    let released = 0
    ring.push(...patterns(0, 10, 5000, 10))
    buffer.keepAlive(false)
    ring.ended = true
    buffer.keepLeftovers(() => (released += 1))
    t.false(buffer.isWeak)
    buffer.keepAlive(false)
    t.false(buffer.isWeak, 'it is no more than a ring')
    t.true(buffer.mayHaveLeftovers)
    t.is(released, 0)
    if (way === 'receive') {
      for (const length of [10, 5000, 10]) t.is(buffer.tryReceive()!.length, length)
      t.true(buffer.isEnded)
    } else if (way === 'receiveEach') {
      // One more message is on its way, and belongs to the next round.
      buffer.receiveEach((_, __, length) => void (length === 5000 && ring.push(pattern(3, 20))))
      t.is(released, 0)
      t.is(visitAll(buffer).length, 1)
      t.true(buffer.isEnded)
    } else if (way === 'close') buffer.close(closedHere)
    else {
      t.is(buffer.tryReceive()!.length, 10)
      ring.failing = 'RING_CORRUPT'
      t.throws(() => buffer.tryReceive(), codeOf('RING_CORRUPT'))
    }
    t.is(released, 1, way)
    t.false(buffer.mayHaveLeftovers)
    t.is(buffer.take(), null)
    buffer.close(closedHere)
    t.is(released, 1)
  }
})

test.serial(
  'if a lost peer has left no message, its ring is released at once, and waiting calls are notified',
  async (t) => {
    for (const wait of [true, false])
      for (const isOver of [true, false]) {
        const { ring, buffer } = bufferOver(new RetainingRing())
        let released = 0
        const waiting = wait ? buffer.wait(true) : undefined
        t.is(buffer.isArmed, wait)
        ring.ended = true
        if (isOver && !wait) t.is(buffer.tryReceive(), null)
        buffer.keepLeftovers(() => (released += 1))
        t.is(released, 1)
        t.false(buffer.mayHaveLeftovers)
        t.false(buffer.isArmed)
        if (waiting !== undefined) t.is(await waiting.promise, null)
      }
  },
)

test.serial('only the merge reads a buffer that it has borrowed, until it is returned', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  let wakeups = 0
  const waiting = buffer.wait(true)
  t.throws(() => buffer.attachMerge(() => {}), invalid, 'a call waits')
  waiting.cancel()
  ring.push(pattern(0, 10))
  buffer.receiveEach(() => t.throws(() => buffer.attachMerge(() => {}), invalid), 1)
  ring.push(...patterns(1, 10, 10, 10))
  buffer.attachMerge(() => (wakeups += 1))
  for (const call of [
    () => buffer.attachMerge(() => {}),
    () => buffer.ensureNotMerged(),
    () => buffer.tryReceive(),
    () => buffer.receiveNow(),
    () => buffer.nextNow(),
    () => buffer.isReadableNow(),
    () => buffer.receiveEach(() => {}),
  ])
    t.throws(call, invalid)
  ring.newCalls()
  buffer.handleWakeup()
  t.is(wakeups, 1)
  t.deepEqual(ring.newCalls(), [])
  t.true(buffer.hasMessage())
  t.true(buffer.take()!.equals(pattern(1, 10)))
  buffer.stop(over)
  t.is(wakeups, 2)
  t.false(buffer.isFinished)
  buffer.detachMerge()
  t.notThrows(() => buffer.ensureNotMerged())
  t.true(buffer.tryReceive()!.equals(pattern(2, 10)))
  buffer.attachMerge(() => (wakeups += 1))
  buffer.close(closedHere)
  t.is(wakeups, 3)
  t.true(buffer.isFinished)
})

test.serial('a merge parks many rings in two steps each', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  t.true(buffer.park())
  t.false(buffer.isArmed)
  t.true(buffer.checkParked())
  t.true(buffer.isArmed)
  ring.needsBarrier = false
  t.false(buffer.park())
  ring.push(pattern(0, 10))
  t.false(buffer.checkParked())
  t.false(buffer.isArmed)
  t.false(buffer.arm())
  t.is(buffer.take()!.length, 10)
  t.true(buffer.arm())
  t.true(buffer.isArmed)
  t.deepEqual(ring.newCalls(), ['park', 'look', 'park', 'look', 'arm', 'fetch', 'fetch', 'arm'])
})
