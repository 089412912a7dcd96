// Fairness: turns of the event loop among promises, and of sources in a merge.

import test from 'ava'

import { random } from './support/bytes.js'
import { internals } from './support/internals.js'

interface Fairness {
  spend(isWeak?: boolean): void
  readClock(isWeak?: boolean): number
  exceedsBudget(from: number, now: number): boolean
  readonly stride: number
  readonly clockReads: number
  readonly due: Promise<void> | null
  readonly weakDue: Promise<void> | null
}

const { timers } = await internals<{
  timers: Pick<typeof globalThis, 'setImmediate'> & { now(): number; slept(): number }
}>('runtime/timers.js')

/** A callback for after a turn of the event loop, and whether it keeps the process alive. */
interface Immediate {
  call(): void
  isStrong: boolean
}

/** A clock and an event loop that advance when a test says so. */
class World {
  now = 0
  /** Milliseconds that the event loop has slept. */
  slept = 0
  readonly due: Immediate[] = []

  run<Result>(deed: () => Result): Result {
    const real = { ...timers }
    timers.now = () => this.now
    timers.slept = () => this.slept
    timers.setImmediate = ((call: () => void) => {
      const immediate: Immediate = { call, isStrong: true }
      this.due.push(immediate)
      const handle = {
        ref: () => ((immediate.isStrong = true), handle),
        unref: () => ((immediate.isStrong = false), handle),
      }
      return handle
    }) as unknown as typeof setImmediate
    try {
      return deed()
    } finally {
      Object.assign(timers, real)
    }
  }

  /** The event loop turns. */
  turn(): void {
    this.run(() => {
      for (const { call } of this.due.splice(0)) call()
    })
  }
}

interface Source {
  name: number
}

interface Order {
  readonly next: Source | null
  readonly ready: Source[]
  readonly resting: Source[]
  spend(bytes: number): boolean
  end(): void
  isReady(source: Source): boolean
  wake(source: Source): void
  markEmpty(source: Source, isArmed: boolean): void
  rest(source: Source, isArmed: boolean): void
  remove(source: Source): void
  wakeAll(): void
  checkEmpty(count: number, needsTurn: (source: Source) => boolean): void
}

const { ListNode, Turns, TURN } = await internals<{
  ListNode: new () => object
  Turns: new () => Order
  TURN: number
}>('channel/turns.js')
const { fairness: shared } = await internals<{ fairness: Fairness }>('runtime/fairness.js')

class Numbered extends ListNode implements Source {
  constructor(readonly name: number) {
    super()
  }
}

/** A separate fairness, which starts when its clock does: that of the package belongs to the thread. */
function begin(): { world: World; fairness: Fairness } {
  const world = new World()
  const Class = shared.constructor as new () => Fairness
  return { world, fairness: world.run(() => new Class()) }
}

test('the clock is read about every quarter of a millisecond: rarely if messages are fast', (t) => {
  const { world, fairness } = begin()
  const spend = (count: number) => {
    const before = fairness.clockReads
    for (let number = 0; number < count; number += 1) world.run(() => fairness.spend())
    return fairness.clockReads - before
  }
  t.is(spend(1), 1)
  for (const stride of [2, 4, 8, 16, 32, 64, 128, 256, 256, 256]) {
    t.is(fairness.stride, stride)
    t.is(spend(stride - 1), 0)
    t.is(spend(1), 1)
  }
  t.is(fairness.clockReads, 11)
  world.now += 0.25
  t.is(
    world.run(() => fairness.readClock()),
    0.25,
  )
  t.is(fairness.stride, 256, 'as fast as it should be')
  world.now += 0.5
  world.run(() => fairness.readClock())
  t.is(fairness.stride, 128, 'twice as slow')
  world.now += 0.125
  world.run(() => fairness.readClock())
  t.is(fairness.stride, 256, 'fast again')
  world.now += 100
  world.run(() => fairness.readClock())
  t.is(fairness.stride, 1, 'one takes longer than that')
  world.now += 0.25
  world.run(() => fairness.readClock())
  t.is(fairness.stride, 2)
  world.now += 100
  world.run(() => fairness.readClock())
  t.is(fairness.stride, 1)
  t.is(spend(1), 1)
})

test('after 2 ms without a turn of the event loop a promise is delayed until the next one', async (t) => {
  const { world, fairness } = begin()
  for (let round = 0; round < 3; round += 1) {
    const from = world.now
    world.now = from + 1.75
    world.run(() => fairness.spend())
    t.is(fairness.due, null)
    world.now = from + 2
    world.run(() => fairness.readClock())
    const { due } = fairness
    t.true(due instanceof Promise)
    world.now = from + 5
    world.run(() => fairness.readClock())
    t.is(fairness.due, due)
    t.is(fairness.weakDue, due)
    t.deepEqual(
      world.due.map(({ isStrong }) => isStrong),
      [true],
      'one turn is waited for',
    )
    world.now = from + 6
    world.turn()
    await due
    t.is(fairness.due, null)
    t.is(fairness.weakDue, null)
    // The time of the turn itself does not count as a message's.
    const { stride } = fairness
    world.now += 0.125
    world.run(() => fairness.readClock())
    t.is(fairness.stride, Math.min(256, 2 * stride))
    world.now = from + 6
  }
  t.true(fairness.exceedsBudget(1, 3))
  t.true(fairness.exceedsBudget(1, 4))
  t.false(fairness.exceedsBudget(1, 2.75))
})

test('the time that the event loop has slept is no time of messages, and it has turned', (t) => {
  const { world, fairness } = begin()
  const addLook = (took: number, slept: number) => {
    world.now += took
    world.slept += slept
    world.run(() => fairness.readClock())
  }
  for (const stride of [2, 4, 8]) {
    addLook(4, 3.875)
    t.is(fairness.stride, stride)
  }
  addLook(4, 3)
  t.is(fairness.stride, 2, 'they took four times as long as they should')
  t.is(fairness.due, null)
  addLook(4, 2)
  t.true(fairness.due instanceof Promise, 'it has slept, and then not turned for 2 ms')
  world.turn()
  addLook(2, 0)
  t.true(fairness.due instanceof Promise, 'it has not slept')
})

test('a turn that is needed only by callers that keep no process alive keeps none alive', async (t) => {
  for (const way of ['spend', 'readClock'] as const) {
    const { world, fairness } = begin()
    world.now = 2
    world.run(() => fairness[way](true))
    const promise = fairness.weakDue
    t.true(promise instanceof Promise)
    t.false(world.due[0]!.isStrong)
    t.is(fairness.weakDue, promise)
    t.false(world.due[0]!.isStrong)
    t.is(fairness.due, promise)
    t.true(world.due[0]!.isStrong, 'now another waits for it too')
    t.is(fairness.due, promise)
    world.turn()
    await promise
    world.now = 4
    world.run(() => fairness[way]())
    t.true(world.due[0]!.isStrong)
    world.turn()
    world.now = 6
    world.run(() => fairness[way](true))
    world.turn()
    t.is(fairness.due, null)
  }
})

const sources = (count: number) => Array.from({ length: count }, (_, number) => new Numbered(number))

test('a turn has a number of bytes, or two readings of the clock, and then the next source follows', (t) => {
  const [one, two] = sources(2) as [Source, Source]
  const turns = new Turns()
  t.is(turns.next, null)
  turns.end()
  turns.wake(one)
  turns.wake(two)
  t.is(turns.next, one)
  t.false(turns.spend(TURN - 1))
  t.is(turns.next, one, 'its turn goes on')
  t.true(turns.spend(1))
  t.is(turns.next, two)
  t.true(turns.spend(TURN + 1))
  t.is(turns.next, one)
  shared.readClock()
  t.false(turns.spend(1))
  shared.readClock()
  t.true(turns.spend(1))
  t.is(turns.next, two, 'with all of its turn')
  t.false(turns.spend(TURN - 1))
  shared.readClock()
  t.false(turns.spend(0))
  // If others rest or leave, its turn does not get longer.
  turns.rest(one, false)
  t.is(turns.next, two)
  turns.remove(one)
  t.is(turns.next, two)
  // A single source has one turn after the other.
  t.true(turns.spend(1))
  t.is(turns.next, two)
  // A source that leaves and returns has a new turn.
  for (const leave of [
    () => turns.remove(two),
    () => turns.rest(two, true),
    () => turns.markEmpty(two, false),
    () => turns.end(),
  ]) {
    turns.wake(two)
    t.is(turns.next, two)
    t.false(turns.spend(TURN - 1))
    leave()
    turns.wake(two)
    t.is(turns.next, two)
    t.false(turns.spend(1))
    t.true(turns.spend(TURN - 1))
  }
})

/** The same, with arrays. */
class Model {
  fresh: Source[] = []
  ready: Source[] = []
  resting: Source[] = []
  armed: Source[] = []

  take(source: Source): void {
    for (const line of ['fresh', 'ready', 'resting', 'armed'] as const)
      this[line] = this[line].filter((each) => each !== source)
  }

  put(source: Source, line: 'fresh' | 'ready' | 'resting' | 'armed'): void {
    this.take(source)
    this[line].push(source)
  }

  isReady(source: Source): boolean {
    return this.fresh.includes(source) || this.ready.includes(source)
  }

  checkEmpty(count: number, needsTurn: (source: Source) => boolean): void {
    for (const line of ['resting', 'armed'] as const)
      for (let looks = 0; looks < count && this[line].length > 0; looks += 1) {
        const [source] = this[line] as [Source]
        this.put(source, needsTurn(source) ? 'fresh' : line)
      }
  }
}

test('a source with new messages comes first, once; resting ones are checked in turn', (t) => {
  for (let seed = 0; seed < 20; seed += 1) {
    const random01 = random(seed)
    const below = (most: number) => Math.floor(random01() * most)
    const all = sources(1 + (seed % 6))
    const turns = new Turns()
    const model = new Model()
    for (let step = 0; step < 300; step += 1) {
      const source = all[below(all.length)]!
      const isArmed = below(2) === 0
      const rest = isArmed ? 'armed' : 'resting'
      const { next } = turns
      t.is(next, model.fresh[0] ?? model.ready[0] ?? null)
      switch (below(9)) {
        case 0:
        case 1:
          turns.wake(source)
          if (!model.isReady(source)) model.put(source, 'fresh')
          break
        case 2:
          if (next === null) break
          t.true(turns.spend(TURN))
          model.put(next, 'ready')
          break
        case 3:
        case 4:
          if (next === null) break
          turns.markEmpty(next, isArmed)
          model.put(next, model.fresh.includes(next) && model.ready.length > 0 ? 'ready' : rest)
          break
        case 5:
          turns.rest(source, isArmed)
          model.put(source, rest)
          break
        case 6:
          turns.remove(source)
          model.take(source)
          break
        case 7:
          if (below(4) > 0) break
          turns.wakeAll()
          for (const each of [...model.resting, ...model.armed]) model.put(each, 'ready')
          break
        default: {
          const count = below(4)
          const has = new Set(all.filter(() => below(3) === 0))
          const looked: Source[] = []
          turns.checkEmpty(count, (each) => (looked.push(each), has.has(each as Numbered)))
          const wanted: Source[] = []
          model.checkEmpty(count, (each) => (wanted.push(each), has.has(each as Numbered)))
          t.deepEqual(
            looked.map(({ name }) => name),
            wanted.map(({ name }) => name),
          )
        }
      }
      const names = (line: Source[]) => line.map(({ name }) => name)
      t.deepEqual(names(turns.ready), names([...model.fresh, ...model.ready]))
      t.deepEqual(names(turns.resting), names(model.resting))
      t.deepEqual(
        all.map((each) => turns.isReady(each)),
        all.map((each) => model.isReady(each)),
      )
    }
  }
})
