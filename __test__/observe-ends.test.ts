// A process that publishes its statistics, over a fake binding: readers, intervals and ends. observe.test.ts has real
// processes.

import { once } from 'node:events'

import test, { type ExecutionContext } from 'ava'
import type { observe as Observe } from 'ringfence'

import {
  captureHandshakes,
  FAILED,
  FakeSubscriber,
  openResources,
  FakePublisher,
  REASONS,
  type StartedHandshake,
} from './support/binding.js'
import { afterTurn } from './support/clock.js'
import { internals } from './support/internals.js'
import { codeOf } from './support/ring.js'
import { turn } from './support/until.js'

const { observe, observeIfAsked, observeAddress, MAX_SNAPSHOT } = await internals<{
  observe: typeof Observe
  observeIfAsked(): void
  observeAddress(pid: number): string
  MAX_SNAPSHOT: number
}>('runtime/observe.js')
const { builtin } = await internals<{ builtin: object }>('native.js')
const { timers: runtime } = await internals<{ timers: Pick<typeof globalThis, 'setInterval' | 'clearInterval'> }>(
  'runtime/timers.js',
)

interface Snapshot {
  pid: number
  channels: { id: number }[]
  more: number
}

/** A publisher that records what it is given. */
class Figures extends FakePublisher {
  readonly published: string[] = []

  override trySend(message: Uint8Array): number {
    this.published.push(Buffer.from(message).toString())
    return super.trySend(message)
  }

  snapshot = () => JSON.parse(this.published.pop()!) as Snapshot
}

/** A timer that runs while the process is being observed. */
interface Every {
  call: () => void
  milliseconds: number
  keepsAlive: boolean
}

/** The timers that are set while the test runs. */
function timersHere(t: ExecutionContext): Every[] {
  const { setInterval: begin, clearInterval: end } = runtime
  const set: Every[] = []
  runtime.setInterval = ((call: () => void, milliseconds: number) => {
    const timer = { call, milliseconds, keepsAlive: true, unref: () => Object.assign(timer, { keepsAlive: false }) }
    set.push(timer)
    return timer
  }) as never
  runtime.clearInterval = (timer) => {
    if (timer !== undefined) set.splice(set.indexOf(timer as never), 1)
  }
  t.teardown(() => Object.assign(runtime, { setInterval: begin, clearInterval: end }))
  return set
}

/** Starts an observation. */
async function observed(t: ExecutionContext, all: StartedHandshake[], fake = new Figures()) {
  const beginning = observe()
  t.is(observe(), beginning, 'one for all of the process')
  await Promise.resolve()
  all.pop()!.done(null, fake)
  const observation = await beginning
  t.teardown(() => observation.close())
  return { fake, observation }
}

test.serial('it listens at the process’s own address, for its own user, and is invisible to the program', async (t) => {
  await afterTurn()
  const all = captureHandshakes(t)
  const before = openResources.size
  const beginning = observe()
  await Promise.resolve()
  const [{ name, address, options, done }] = all as [StartedHandshake]
  t.deepEqual([name, address], ['publish', observeAddress(process.pid)])
  t.like(options, {
    capacity: 4 * 1024 * 1024,
    deliveries: ['latest', 'best-effort'],
    // Any process of the same user, whatever its executable: the command line is another program.
    policy: { uids: undefined, executables: undefined },
  })
  t.is(MAX_SNAPSHOT, 512 * 1024)
  const fake = new Figures()
  done(null, fake)
  const observation = await beginning
  t.teardown(() => observation.close())
  t.is(observation.address, address)
  t.is(openResources.size, before)
  t.true(fake.calls.includes('keep alive: 0'))
  t.false(fake.calls.includes('keep alive: 1'))
})

test.serial('each open resource is reported with its statistics, and keeps its number', async (t) => {
  await afterTurn()
  const { fake } = await observed(t, captureHandshakes(t))
  const open = (thing: object, address: string | null) => {
    openResources.add(Object.assign(thing, { address }))
    t.teardown(() => openResources.delete(thing))
  }
  const peer = { pid: 12 }
  // It names as many lagging subscribers as it may, and one more lags. The slowest come first.
  const subscribers = [3, 9, 0, 6, 8, 7, 2, 4, 1, 5].map((lag) => ({
    stats: () => ({ lag }),
    peer: { pid: 100 + lag },
  }))
  const behind = [9, 8, 7, 6, 5, 4, 3, 2].map((lag) => [100 + lag, lag])
  open({ role: 'guest', peer, stats: () => ({ messagesSent: 1 }) }, '@a')
  open({ subscribers, stats: () => ({ messagesSent: 2 }) }, '@b')
  open({ subscribers: [], stats: () => ({ messagesSent: 3 }) }, null)
  open({ peer, stats: () => ({ lag: 4 }) }, '@c')
  const tell = () => {
    fake.emit(new FakeSubscriber(1))
    const snapshot = fake.snapshot()
    fake.emit({ gone: 1, reason: 0 })
    return snapshot
  }
  const { channels, ...about } = tell()
  const { pid, execPath } = process
  t.deepEqual(about, { pid, uid: process.geteuid!(), executable: execPath, at: performance.now(), more: 0 } as never)
  const ids = channels.map(({ id }) => id)
  t.deepEqual(channels as object[], [
    { id: ids[0], address: '@a', peer: 12, role: 'guest', messagesSent: 1 },
    { id: ids[1], address: '@b', peer: null, role: 'publisher', messagesSent: 2, lag: 9, behind },
    { id: ids[2], address: null, peer: null, role: 'publisher', messagesSent: 3, lag: 0, behind: [] },
    { id: ids[3], address: '@c', peer: 12, role: 'subscriber', lag: 4 },
  ])
  t.true(ids.every((id, index) => id > 0 && !ids.slice(0, index).includes(id)))
  for (let number = 0; number < 498; number += 1) open({ peer, stats: () => ({}) }, '@d')
  const second = tell()
  t.deepEqual([second.channels.length, second.more], [500, 2])
  t.deepEqual(
    second.channels.slice(0, 4).map(({ id }) => id),
    ids,
  )
})

test.serial('statistics are sent to each new observer, and then at intervals while it is connected', async (t) => {
  await afterTurn()
  const timers = timersHere(t)
  const { fake } = await observed(t, captureHandshakes(t))
  t.deepEqual(timers, [])
  for (const round of ['first', 'second']) {
    fake.emit(new FakeSubscriber(1))
    t.is(fake.published.length, 1, round)
    t.is(timers.length, 1)
    const { call, milliseconds, keepsAlive } = timers[0]!
    t.deepEqual([milliseconds, keepsAlive], [500, false])
    call()
    t.is(fake.published.length, 2)
    fake.emit(new FakeSubscriber(2))
    t.is(fake.published.length, 3)
    fake.emit({ gone: 1, reason: 0 })
    t.is(timers.length, 1, 'another one looks')
    fake.emit({ gone: 2, reason: 0 })
    t.deepEqual(timers, [])
    call()
    t.is(fake.published.splice(0).length, 3, 'nobody looks')
  }
})

test.serial('an observation that has ended reports nothing, and the next call starts a new one', async (t) => {
  await afterTurn()
  const timers = timersHere(t)
  const all = captureHandshakes(t)
  const first = await observed(t, all)
  first.fake.emit(new FakeSubscriber(1))
  await first.observation.close()
  t.deepEqual(timers, [])
  t.true(first.fake.newCalls().includes('close'))
  const second = await observed(t, all)
  t.not(second.observation, first.observation)
  await first.observation[Symbol.asyncDispose]()
  t.is(await observe(), second.observation, 'closed once more, the first is no end of the second')

  // Another process has opened its memory.
  second.fake.emit(new FakeSubscriber(1))
  t.is(timers.length, 1)
  second.fake.ended = REASONS.indexOf('exposed')
  second.fake.emit(FAILED)
  await turn()
  t.deepEqual(timers, [])
  const third = await observed(t, all)
  t.not(third.observation, second.observation)
  await third.observation.close()

  const failing = observe()
  await Promise.resolve()
  all.pop()!.done({ code: 'ADDRESS_OCCUPIED', message: 'another thread' }, null)
  await t.throwsAsync(failing, codeOf('ADDRESS_OCCUPIED'))
  await observed(t, all)
})

test.serial('statistics that cannot be published cause no uncaught exception', async (t) => {
  await afterTurn()
  const timers = timersHere(t)
  const { fake } = await observed(t, captureHandshakes(t))
  fake.failing = { code: 'OBJECT_EXPOSED', message: 'and the event loop has not heard of it' }
  fake.answers.send = FAILED
  const failing = {
    stats: () => ({}),
    get role() {
      throw new RangeError('Array buffer allocation failed')
    },
  }
  openResources.add(failing)
  t.teardown(() => openResources.delete(failing))
  fake.emit(new FakeSubscriber(1))
  t.notThrows(timers[0]!.call)
  openResources.delete(failing)
  t.notThrows(timers[0]!.call)
  await turn()
})

test.serial('RINGFENCE_OBSERVE=1 observes the main thread, and a failure is a warning', async (t) => {
  await afterTurn()
  const all = captureHandshakes(t)
  const given = Object.getOwnPropertyDescriptor(builtin, 'threads')!
  t.teardown(() => {
    delete process.env['RINGFENCE_OBSERVE']
    Object.defineProperty(builtin, 'threads', given)
  })
  const asks = async (value: string | undefined, isMainThread: boolean) => {
    if (value === undefined) delete process.env['RINGFENCE_OBSERVE']
    else process.env['RINGFENCE_OBSERVE'] = value
    Object.defineProperty(builtin, 'threads', { ...given, get: () => ({ isMainThread }) })
    observeIfAsked()
    await Promise.resolve()
    return all.length
  }
  t.deepEqual([await asks(undefined, true), await asks('0', true), await asks('1', false)], [0, 0, 0])
  t.is(await asks('1', true), 1)
  const warned = once(process, 'warning') as Promise<[Error]>
  all[0]!.done({ code: 'ADDRESS_OCCUPIED', message: 'another process is there' }, null)
  t.is((await warned)[0].message, 'RINGFENCE_OBSERVE: another process is there')
})
