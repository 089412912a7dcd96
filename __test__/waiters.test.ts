// Unit tests of lists of waiting calls, from which every promise of this package is made.

import { internals } from './support/internals.js'
import { EventEmitter, getEventListeners } from 'node:events'

import test from 'ava'
import type { RingfenceError } from 'ringfence'

import { isPending, turns } from './support/until.js'

interface Wait<Value> {
  readonly promise: Promise<Value | null>
  cancel(): void
}

interface Waiter<Value> {
  readonly consumes: boolean
  resolve(value: Value | null): void
  reject(error: Error): void
}

interface List<Value> {
  readonly isEmpty: boolean
  readonly first: Waiter<Value> | null
  readonly hasConsumer: boolean
  add(signal?: AbortSignal, consumes?: boolean): Wait<Value>
  shift(): Waiter<Value> | null
  remove(waiter: Waiter<Value>): boolean
  end(): void
  fail(error: () => Error): void
}

const { Waiters } = await internals<{ Waiters: new () => List<string> }>('channel/waiters.js')
const { loop } = await internals<{
  loop(now: () => string | null | undefined, wait: () => Wait<string>): Required<AsyncIterator<string, undefined>>
}>('channel/loops.js')
const { settledWithin } = await internals<{
  settledWithin(milliseconds: number, promise: Promise<unknown>): Promise<void>
}>('runtime/deferred.js')
const { timers, atDeadline, LONGEST_TIMER } = await internals<{
  timers: Pick<typeof globalThis, 'setTimeout' | 'clearTimeout'> & Pick<typeof process, 'nextTick'> & { now(): number }
  atDeadline(expiresAt: number, expire: () => void): () => void
  LONGEST_TIMER: number
}>('runtime/timers.js')
const { emit } = await internals<{ emit(emitter: unknown, name: string, ...what: unknown[]): void }>('runtime/emit.js')

const over = { done: true, value: undefined }

test('the call that has waited longest is served first', async (t) => {
  const list = new Waiters()
  t.true(list.isEmpty)
  t.false(list.hasConsumer)
  t.is(list.first, null)
  t.is(list.shift(), null)
  const looks = list.add(undefined, false)
  t.false(list.isEmpty)
  t.false(list.hasConsumer)
  const takes = list.add()
  t.true(list.hasConsumer)
  const last = list.add()
  const { first } = list
  t.false(first!.consumes)
  t.is(list.shift(), first)
  first!.resolve('there is one')
  t.true(list.first!.consumes)
  list.shift()!.resolve('one')
  t.is(await looks.promise, 'there is one')
  t.is(await takes.promise, 'one')
  t.true(await isPending(last.promise))
  list.shift()!.reject(new Error('of the channel'))
  await t.throwsAsync(last.promise, { message: 'of the channel' })
  t.true(list.isEmpty)
})

test('leaving removes only one call from the list; an end and an error settle all', async (t) => {
  const list = new Waiters()
  const [one, two, three] = [list.add(), list.add(), list.add()]
  two.cancel()
  t.is(await two.promise, null)
  const { first } = list
  list.shift()!.resolve('one')
  one.cancel()
  two.cancel()
  t.is(await one.promise, 'one')
  t.false(list.remove(first!))
  t.false(list.isEmpty)
  const four = list.add()
  const last = list.first!
  t.true(list.remove(last))
  t.false(list.remove(last))
  t.true(await isPending(three.promise))
  t.true(await isPending(four.promise))
  t.false(list.isEmpty)
  const five = list.add()
  list.end()
  t.is(await four.promise, null)
  t.is(await five.promise, null)
  t.true(list.isEmpty)
  const waits = [list.add(), list.add()]
  const errors: Error[] = []
  list.fail(() => {
    errors.push(new Error(`number ${errors.length}`))
    return errors.at(-1)!
  })
  t.true(list.isEmpty)
  for (const [number, { promise }] of waits.entries()) await t.throwsAsync(promise, { message: `number ${number}` })
})

/** The CPU time in microseconds for each of `count` waits. */
function costOf(count: number, deed: (count: number) => void): number {
  const before = process.cpuUsage()
  deed(count)
  const { user, system } = process.cpuUsage(before)
  return (user + system) / count
}

test.serial('one wait among many costs as much as one among few, at any position', (t) => {
  const serve = (count: number) => {
    const list = new Waiters()
    for (let number = 0; number < count; number += 1) list.add()
    while (!list.isEmpty) list.shift()!.resolve('one')
  }
  const leave = (count: number) => {
    const list = new Waiters()
    const waits = Array.from({ length: count }, () => list.add())
    for (const wait of waits.reverse()) wait.cancel()
  }
  for (const deed of [serve, leave]) {
    costOf(5000, deed)
    const [few, many] = [costOf(5000, deed), costOf(100_000, deed)]
    t.true(many < 10 * Math.max(few, 2), `${deed.name}: ${few} µs each of few, ${many} of many`)
  }
})

test('an abort ends its own wait, and every end of a wait removes the listener of the signal', async (t) => {
  const controls = Array.from({ length: 4 }, () => new AbortController())
  const listeners = () => controls.map(({ signal }) => getEventListeners(signal, 'abort').length)
  const list = new Waiters()
  const [found, failed, left, aborted] = controls.map(({ signal }) => list.add(signal)) as [
    Wait<string>,
    Wait<string>,
    Wait<string>,
    Wait<string>,
  ]
  const other = list.add()
  t.deepEqual(listeners(), [1, 1, 1, 1])
  list.shift()!.resolve('found')
  t.deepEqual(listeners(), [0, 1, 1, 1])
  list.shift()!.reject(new Error('failed'))
  t.deepEqual(listeners(), [0, 0, 1, 1])
  left.cancel()
  t.deepEqual(listeners(), [0, 0, 0, 1])
  controls[3]!.abort(new Error('enough'))
  t.deepEqual(listeners(), [0, 0, 0, 0])
  t.is(await found.promise, 'found')
  await t.throwsAsync(failed.promise, { message: 'failed' })
  t.is(await left.promise, null)
  const error = await t.throwsAsync<RingfenceError>(aborted.promise, { code: 'ABORT_ERR' })
  t.is((error!.cause as Error).message, 'enough')
  list.shift()!.resolve('the next')
  t.is(await other.promise, 'the next')
  t.true(list.isEmpty)
})

test('an aborted wait ends with its own error, even if an earlier listener of the signal ends all waits', async (t) => {
  const ends = [
    (list: List<string>) => list.end(),
    (list: List<string>) => list.fail(() => new Error('of the channel')),
  ]
  for (const end of ends) {
    const list = new Waiters()
    const control = new AbortController()
    control.signal.addEventListener('abort', () => end(list))
    const other = list.add().promise.catch((error: Error) => error.message)
    const { promise } = list.add(control.signal)
    control.abort()
    await t.throwsAsync(promise, { code: 'ABORT_ERR' })
    t.is(await other, end === ends[0] ? null : 'of the channel')
  }
})

test('a loop takes available values, waits for others, and abandons only its own wait', async (t) => {
  const list = new Waiters()
  const there: (string | null | undefined | Error)[] = ['one', null, new Error('of a call')]
  const left: number[] = []
  let waits = 0
  const each = loop(
    () => {
      const value = there.shift()
      if (value instanceof Error) throw value
      return value
    },
    () => {
      const number = waits
      waits += 1
      const wait = list.add()
      return {
        promise: wait.promise,
        cancel: () => {
          left.push(number)
          wait.cancel()
        },
      }
    },
  )
  t.deepEqual(await each.next(), { done: false, value: 'one' })
  t.deepEqual(await each.next(), over)
  await t.throwsAsync(each.next(), { message: 'of a call' })
  t.is(waits, 0)
  const next = [each.next(), each.next(), each.next(), each.next(), each.next()]
  list.shift()!.resolve('two')
  list.shift()!.resolve(null)
  list.shift()!.reject(new Error('of a wait'))
  t.deepEqual(await next[0], { done: false, value: 'two' })
  t.deepEqual(await next[1], over)
  await t.throwsAsync(next[2]!, { message: 'of a wait' })
  t.true(await isPending(next[3]!))
  t.deepEqual(await each.return(), over)
  t.deepEqual(await Promise.all(next.slice(3)), [over, over])
  t.deepEqual(left, [3, 4], 'those that were served are not left')
  there.push('three')
  t.deepEqual(await each.next(), over)
  t.deepEqual(there, ['three'])
})

test.serial('a deadline: a timer that fires early or is too long is started again', (t) => {
  const real = { ...timers }
  t.teardown(() => void Object.assign(timers, real))
  const started: { fire(): void; milliseconds: number }[] = []
  const cleared: unknown[] = []
  let now = 0
  let expired = 0
  timers.now = () => now
  timers.setTimeout = ((fire: () => void, milliseconds: number) => {
    const timer = { fire, milliseconds, unref: () => timer }
    started.push(timer)
    return timer
  }) as unknown as typeof setTimeout
  timers.clearTimeout = (timer) => void cleared.push(timer)
  const fireAt = (time: number) => {
    now = time
    started.at(-1)!.fire()
  }
  const cancel = atDeadline(LONGEST_TIMER + 10.5, () => (expired += 1))
  fireAt(LONGEST_TIMER)
  fireAt(LONGEST_TIMER + 10)
  t.is(expired, 0)
  t.deepEqual(
    started.map((timer) => timer.milliseconds),
    [LONGEST_TIMER, 11, 1],
  )
  cancel()
  t.deepEqual(cleared, [started[2]])
  fireAt(LONGEST_TIMER + 10.5)
  t.is(expired, 1)
  t.is(started.length, 3)
})

test.serial('a wait with a timeout: the first result counts, and no timer is left', async (t) => {
  const real = { ...timers }
  const started: { call(): void; milliseconds: number }[] = []
  const cleared: unknown[] = []
  const begin = (milliseconds: number, promise: Promise<unknown>) => {
    timers.setTimeout = ((call: () => void, after: number) => {
      started.push({ call, milliseconds: after })
      return started.at(-1)
    }) as unknown as typeof setTimeout
    const waiting = settledWithin(milliseconds, promise)
    timers.setTimeout = real.setTimeout
    return waiting
  }
  timers.clearTimeout = (timer) => void cleared.push(timer)
  t.teardown(() => void Object.assign(timers, real))
  const never = new Promise<never>(() => {})
  const late = begin(5, never)
  t.is(started[0]!.milliseconds, 5)
  t.true(await isPending(late))
  started[0]!.call()
  t.is(await late, undefined)
  await begin(5, Promise.resolve(1))
  // Longer than the maximum of a timer.
  const long = begin(2 ** 40, never)
  t.is(started[2]!.milliseconds, 2 ** 31 - 1)
  started[2]!.call()
  await long
  t.deepEqual(cleared, started)
})

test.serial('an exception of a listener is thrown later, and all listeners are called', (t) => {
  const results: unknown[] = []
  const later: (() => void)[] = []
  const error = new Error('of a listener')
  const emitter = new EventEmitter()
  emitter.once('event', (...what: unknown[]) => results.push('once', ...what))
  emitter.on('event', (what: unknown) => {
    if (what === 'bad') throw error
  })
  emitter.on('event', (...what: unknown[]) => results.push(...what))
  const { nextTick } = timers
  timers.nextTick = (call: () => void) => void later.push(call)
  try {
    emit(emitter, 'event', 1, 'two')
    emit(emitter, 'event', 'bad')
  } finally {
    timers.nextTick = nextTick
  }
  t.deepEqual(results, ['once', 1, 'two', 1, 'two', 'bad'])
  t.is(later.length, 1)
  t.is(t.throws(later[0]!), error)
})

test.serial('a promise that was settled before a rejection reports nothing to the process', async (t) => {
  const { Deferred } = await internals<{
    Deferred: new () => { promise: Promise<void>; resolve(): void; reject(error: Error): void }
  }>('runtime/deferred.js')
  const unhandled: unknown[] = []
  const note = (error: unknown) => unhandled.push(error)
  const others = process.rawListeners('unhandledRejection') as NodeJS.UnhandledRejectionListener[]
  process.removeAllListeners('unhandledRejection').on('unhandledRejection', note)
  t.teardown(() => {
    process.removeAllListeners('unhandledRejection')
    for (const other of others) process.on('unhandledRejection', other)
  })
  const [settled, open] = [new Deferred(), new Deferred()]
  const failed = new Error('open')
  settled.resolve()
  settled.reject(new Error('settled'))
  open.reject(failed)
  await settled.promise
  await turns(3)
  t.deepEqual(unhandled, [failed])
})
