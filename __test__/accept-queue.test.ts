// Unit tests of the queue of accepted channels: which loop gets which channel, and when accepting pauses.
// service.test.ts tests it with real clients.

import { internals } from './support/internals.js'
import test from 'ava'
import { RingfenceError, type Channel } from 'ringfence'

import { codeOf } from './support/ring.js'
import { isPending } from './support/until.js'

interface Consumer {
  accept(channel: Channel): void
  refusal(): Error
}

interface AcceptQueue {
  readonly hasLoop: boolean
  iterator(): AsyncIterator<Channel, undefined>
  setConsumer(taker: Consumer | null): void
  add(channel: Channel): void
  fail(error: Error): void
  end(): void
  removeUnclaimed(): Channel[]
}

interface Insides {
  AcceptQueue: new (
    all: boolean,
    setPaused: (paused: boolean) => void,
    handedOut: (channel: Channel) => void,
  ) => AcceptQueue
}

/** Not exported by the package. */
const { AcceptQueue } = await internals<Insides>('endpoint/accept-queue.js')

const over = { done: true, value: undefined }
/** The queue never uses a channel, so numbers will do. */
const channel = (number: number) => number as unknown as Channel
const value = (number: number) => ({ done: false, value: channel(number) })

function queueOf(all: boolean) {
  const paused: boolean[] = []
  const handedOut: Channel[] = []
  const queue = new AcceptQueue(
    all,
    (is) => paused.push(is),
    (one) => handedOut.push(one),
  )
  const add = (from: number, to: number) => {
    for (let number = from; number <= to; number += 1) queue.add(channel(number))
  }
  return { queue, paused, handedOut, add }
}

test('loops get channels in order, and 16 queued channels pause accepting', async (t) => {
  const { queue, paused, handedOut, add } = queueOf(true)
  add(1, 15)
  t.deepEqual(paused, [])
  add(16, 17)
  t.deepEqual(paused, [true], 'told once')
  t.deepEqual(handedOut, [])
  const loop = queue.iterator()
  t.deepEqual(await loop.next(), value(1))
  t.deepEqual(paused, [true])
  t.deepEqual(await loop.next(), value(2))
  t.deepEqual(paused, [true, false])
  const other = queue.iterator()
  for (let number = 3; number <= 17; number += 1)
    t.deepEqual(await (number % 2 === 0 ? loop : other).next(), value(number))
  t.deepEqual(paused, [true, false])
  const waits = loop.next()
  add(18, 18)
  await waits
  add(19, 19)
  queue.setConsumer({ accept: () => {}, refusal: () => new Error() })
  add(20, 20)
  queue.setConsumer(null)
  add(21, 21)
  queue.removeUnclaimed()
  t.deepEqual(
    handedOut,
    Array.from({ length: 20 }, (_, number) => channel(number + 1)),
  )
})

test('a queue that keeps the last channels keeps 16 of them, until a loop starts', async (t) => {
  const { queue, paused, add } = queueOf(false)
  add(1, 20)
  t.deepEqual(paused, [])
  const loop = queue.iterator()
  t.deepEqual(await loop.next(), value(5))
  add(21, 21)
  t.deepEqual(paused, [true], 'from now on none is dropped')
  add(22, 22)
  for (let number = 6; number <= 22; number += 1) t.deepEqual(await loop.next(), value(number))
  t.deepEqual(paused, [true, false])
  t.deepEqual(queue.removeUnclaimed(), [])
  add(23, 24)
  t.deepEqual(queue.removeUnclaimed(), [channel(23), channel(24)])
  t.deepEqual(queue.removeUnclaimed(), [])
})

test('the loop that waits longest gets the next channel, and an abandoned loop gets none', async (t) => {
  const { queue, add } = queueOf(true)
  t.false(queue.hasLoop)
  const [first, second, unused] = [queue.iterator(), queue.iterator(), queue.iterator()]
  t.false(queue.hasLoop, 'none has begun')
  const waits = [first.next(), second.next(), first.next()] as const
  t.true(queue.hasLoop)
  t.true(await isPending(Promise.race(waits)))
  add(1, 1)
  t.deepEqual(await waits[0], value(1))
  t.deepEqual(await first.return!(), over)
  t.deepEqual(await waits[2], over)
  t.true(queue.hasLoop, 'the other goes on')
  await first.return!()
  t.deepEqual(await first.next(), over)
  t.true(queue.hasLoop, 'it was left once')
  add(2, 2)
  t.deepEqual(await waits[1], value(2))
  await second.return!()
  t.false(queue.hasLoop)
  await unused.return!()
  t.deepEqual(await unused.next(), over)
  t.false(queue.hasLoop)
})

test('an unused iterator keeps no channel, and pauses nothing', async (t) => {
  const { queue, paused, add } = queueOf(false)
  const unused = queue.iterator()
  add(1, 20)
  t.deepEqual(paused, [])
  t.deepEqual(await unused.next(), value(5), 'the last 16, as without one')
  add(21, 22)
  t.deepEqual(paused, [true])
})

test('after the end, loops finish once they have taken the queued channels', async (t) => {
  const { queue, add } = queueOf(true)
  const [waiting, other] = [queue.iterator(), queue.iterator()]
  const waits = waiting.next()
  queue.end()
  t.deepEqual(await waits, over)
  t.false(queue.hasLoop)
  add(1, 1)
  t.deepEqual(await other.next(), value(1))
  t.true(queue.hasLoop, 'the other was not told yet')
  t.deepEqual(await other.next(), over)
  t.false(queue.hasLoop)
  queue.setConsumer({ accept: () => t.fail(), refusal: () => new Error('of a taker') })
  t.deepEqual(await queue.iterator().next(), over, 'what has ended is taken by none')
})

test('the loop that has waited longest, or the first that asks, gets the error of the end', async (t) => {
  const failure = new RingfenceError('CLOSED', 'as a test says')
  for (const waits of [true, false]) {
    const { queue, add } = queueOf(true)
    const [first, second] = [queue.iterator(), queue.iterator()]
    if (!waits) add(1, 1)
    const called = waits ? [first.next(), second.next()] : []
    queue.fail(failure)
    queue.end()
    if (!waits) {
      t.deepEqual(await first.next(), value(1), 'what has come before is there')
      called.push(first.next(), second.next())
    }
    const error = await t.throwsAsync(called[0]!, codeOf('CLOSED'))
    t.is(error, failure)
    t.deepEqual(await called[1], over)
    t.false(queue.hasLoop)
  }
})

test('a taker gets every channel, queued or new, and loops are refused while it exists', async (t) => {
  const { queue, paused, add } = queueOf(true)
  const taken: Channel[] = []
  const refusals: Error[] = []
  const taker: Consumer = {
    accept: (one) => void taken.push(one),
    refusal: () => {
      const refusal = new Error('of a taker')
      refusals.push(refusal)
      return refusal
    },
  }
  add(1, 16)
  t.deepEqual(paused, [true])
  queue.setConsumer(taker)
  t.is(taken.length, 16)
  t.deepEqual(paused, [true, false])
  add(17, 17)
  t.deepEqual(taken.at(-1), channel(17))
  t.is(await t.throwsAsync(queue.iterator().next()), refusals[0])
  t.false(queue.hasLoop, 'it is over with that')
  queue.setConsumer(null)
  const loop = queue.iterator()
  const waits = [loop.next(), loop.next()]
  queue.setConsumer(taker)
  for (const one of waits) await t.throwsAsync(one, { message: 'of a taker' })
  t.is(new Set(refusals).size, 3, 'each has an error of its own')
  queue.setConsumer(null)
  add(18, 18)
  t.deepEqual(await queue.iterator().next(), value(18))

  // It may unregister itself after each channel.
  add(19, 21)
  const one: Channel[] = []
  queue.setConsumer({
    accept: (next) => {
      one.push(next)
      queue.setConsumer(null)
    },
    refusal: () => new Error('of another'),
  })
  t.deepEqual(one, [channel(19)])
  t.deepEqual(await queue.iterator().next(), value(20))
})
