// Loops over tokens, over a fake binding: which loop gets which token, and when the queue is watched.

import { internals } from './support/internals.js'
import test from 'ava'
import type { RingfenceError } from 'ringfence'

import { isPending } from './support/until.js'

interface Tokens {
  keepAlive(alive: boolean): void
  iterate(): Required<AsyncIterator<bigint, undefined>>
  stop(): void
  close(): void
}

const { Tokens, toToken } = await internals<{
  Tokens: new (binding: Binding) => Tokens
  toToken(token: unknown): bigint
}>('channel/tokens.js')
const { ENDED, FAILED } = await internals<{ ENDED: number; FAILED: number }>('native.js')
const { fairness } = await internals<{
  fairness: { readClock(): number; readonly due: Promise<void> | null; readonly weakDue: Promise<void> | null }
}>('runtime/fairness.js')
const { timers } = await internals<{ timers: Pick<typeof globalThis, 'setImmediate'> }>('runtime/timers.js')

/** A fake binding that records all calls except those for tokens. */
class Binding {
  readonly calls: string[] = []
  there: bigint[] = []
  hasEnded = false
  fails = false
  /** The number of calls for a token. */
  reads = 0
  call: (() => void) | null = null

  token(): bigint | number {
    this.reads += 1
    return this.there.shift() ?? (this.hasEnded ? ENDED : 0)
  }

  watchTokens(call: () => void): number {
    this.calls.push('watch')
    if (this.fails) return FAILED
    this.call = call
    return 0
  }

  unwatchTokens(): void {
    this.calls.push('unwatch')
  }

  endTokens(): void {
    this.calls.push('end')
    this.there = []
  }

  failure(): { code: string; message: string } {
    return { code: 'NO_SPACE', message: 'no descriptor is left' }
  }

  newCalls(): string[] {
    return this.calls.splice(0)
  }
}

function open(): { binding: Binding; tokens: Tokens; next(): Promise<IteratorResult<bigint, undefined>> } {
  const binding = new Binding()
  const tokens = new Tokens(binding)
  const loop = tokens.iterate()
  return { binding, tokens, next: () => loop.next() }
}

/** Lets enough time pass that the next call has to yield to the event loop. */
async function linger(): Promise<void> {
  // Finishes a turn that is due already.
  await fairness.due
  const from = performance.now()
  while (performance.now() - from < 3);
  fairness.readClock()
}

const value = (token: bigint) => ({ done: false, value: token })
const over = { done: true, value: undefined }

test('a token has 64 bits, whether it is a bigint or a whole number', (t) => {
  const good: [bigint | number, bigint][] = [
    [0n, 0n],
    [0, 0n],
    [1, 1n],
    [2 ** 53 - 1, 2n ** 53n - 1n],
    [2n ** 64n - 1n, 2n ** 64n - 1n],
  ]
  for (const [given, token] of good) t.is(toToken(given), token)
  const invalid = { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }
  for (const given of [
    -1n,
    2n ** 64n,
    2n ** 64n + 1n,
    -1,
    2 ** 53,
    0.5,
    Infinity,
    '1',
    '',
    null,
    undefined,
    {},
    false,
  ]) {
    const error = t.throws(() => toToken(given), invalid, String(given))
    if (typeof given === 'bigint') t.true(error!.message.endsWith(`not ${given}n`))
    if (typeof given === 'number') t.true(error!.message.endsWith(`not ${given}`))
  }
})

test.serial('a loop takes available tokens; otherwise the queue is watched, once for all waiting loops', async (t) => {
  const { binding, tokens, next } = open()
  binding.there = [1n, 2n]
  t.deepEqual(await next(), value(1n))
  t.deepEqual(await tokens.iterate().next(), value(2n))
  t.deepEqual(binding.newCalls(), [])
  const waits = [next(), tokens.iterate().next(), next()]
  await isPending(waits[0]!)
  t.deepEqual(binding.newCalls(), ['watch'])
  binding.there = [3n, 4n]
  const { reads } = binding
  // A new call is behind the waiting ones, although a token is available.
  const last = next()
  t.is(binding.reads, reads)
  binding.call!()
  t.deepEqual(await Promise.all(waits.slice(0, 2)), [value(3n), value(4n)])
  t.true(await isPending(waits[2]!))
  binding.there = [5n, 6n, 7n]
  binding.call!()
  t.deepEqual(await Promise.all([waits[2], last]), [value(5n), value(6n)])
  t.deepEqual(binding.newCalls(), [])
  // The third token is not taken, so the binding must stop calling.
  binding.call!()
  t.deepEqual(binding.newCalls(), ['unwatch'])
  t.deepEqual(await next(), value(7n))
  const again = next()
  await isPending(again)
  t.deepEqual(binding.newCalls(), ['watch'])
  binding.hasEnded = true
  binding.call!()
  t.deepEqual(await again, over)
  const { reads: before } = binding
  t.deepEqual(await next(), over)
  t.is(binding.reads, before)
})

test.serial('if watching fails, waiting calls reject, and the next call tries again', async (t) => {
  const { binding, next } = open()
  binding.fails = true
  const error = await t.throwsAsync<RingfenceError>(next(), { code: 'ERR_RINGFENCE_NO_SPACE' })
  t.is(error!.message, 'no descriptor is left')
  await t.throwsAsync(next(), { code: 'ERR_RINGFENCE_NO_SPACE' })
  binding.fails = false
  const waits = next()
  await isPending(waits)
  t.deepEqual(binding.newCalls(), ['watch', 'watch', 'watch'])
  binding.there = [1n]
  binding.call!()
  t.deepEqual(await waits, value(1n))
})

test.serial('if the event loop has to turn first, a loop waits for that, and then for a token', async (t) => {
  for (const isWeak of [false, true]) {
    const { binding, tokens, next } = open()
    tokens.keepAlive(!isWeak)
    binding.there = [1n, 2n]
    await linger()
    const turns = fairness.weakDue!
    const waits = [next(), next(), next()]
    t.is(binding.reads, 0)
    t.deepEqual(binding.newCalls(), [])
    await turns
    t.deepEqual(await Promise.all(waits.slice(0, 2)), [value(1n), value(2n)])
    t.true(await isPending(waits[2]!))
    t.deepEqual(binding.newCalls(), ['watch'])
    binding.there = [3n]
    binding.call!()
    t.deepEqual(await waits[2], value(3n))
    // The queue is not watched if no call waits.
    const other = open()
    other.binding.there = [1n]
    await linger()
    const only = other.next()
    t.deepEqual(await only, value(1n))
    t.deepEqual(other.binding.newCalls(), [])
  }
})

test.serial('tokens that arrived before the channel ended are returned in order, without another call', async (t) => {
  const { binding, tokens, next } = open()
  const waits = next()
  await isPending(waits)
  binding.there = [1n, 2n, 3n, 4n]
  t.deepEqual(binding.newCalls(), ['watch'])
  tokens.stop()
  t.deepEqual(binding.newCalls(), ['end'])
  t.deepEqual(await waits, value(1n))
  binding.there = [5n]
  for (const token of [2n, 3n, 4n]) t.deepEqual(await next(), value(token))
  t.deepEqual(await next(), over)
  t.deepEqual(await next(), over)
  t.deepEqual(binding.newCalls(), [])
  // With no tokens, and after the binding has reported the end.
  const empty = open()
  const waiting = [empty.next(), empty.next()]
  await isPending(waiting[0]!)
  empty.tokens.stop()
  t.deepEqual(await Promise.all(waiting), [over, over])
  const ended = open()
  ended.binding.hasEnded = true
  t.deepEqual(await ended.next(), over)
  ended.tokens.stop()
  t.deepEqual(await ended.next(), over)
})

test.serial('a close of this side drops tokens that were not taken', async (t) => {
  const { binding, tokens, next } = open()
  const waits = [next(), next()]
  await isPending(waits[0]!)
  binding.there = [1n]
  tokens.close()
  t.deepEqual(await Promise.all(waits), [over, over])
  t.deepEqual(binding.newCalls(), ['watch', 'end'])
  binding.there = [2n]
  t.deepEqual(await next(), over)
})

/** Whether each turn of the event loop that this call schedules keeps the process alive. */
function strong(deed: () => void): boolean[] {
  const real = timers.setImmediate
  const handles: NodeJS.Immediate[] = []
  timers.setImmediate = ((call: () => void) => {
    handles.push(real(call))
    return handles.at(-1)
  }) as unknown as typeof setImmediate
  try {
    deed()
  } finally {
    timers.setImmediate = real
  }
  return handles.map((handle) => handle.hasRef())
}

test.serial(
  'the turn that a loop waits for keeps the process alive if the channel does, or after its end',
  async (t) => {
    const states: [deed: (tokens: Tokens) => void, isStrong: boolean][] = [
      [() => {}, true],
      [(tokens) => tokens.keepAlive(false), false],
      [(tokens) => (tokens.keepAlive(false), tokens.keepAlive(true)), true],
      [(tokens) => (tokens.keepAlive(false), tokens.stop()), true],
      [(tokens) => (tokens.stop(), tokens.keepAlive(false)), true],
    ]
    for (const [number, [deed, isStrong]] of states.entries()) {
      const { binding, tokens, next } = open()
      binding.there = [1n, 2n]
      deed(tokens)
      await fairness.due
      const from = performance.now()
      while (performance.now() - from < 3);
      let coming!: Promise<unknown>
      // Whichever of the calls reads the clock.
      const found = strong(() => {
        for (let calls = 0; fairness.weakDue === null && calls < 1000; calls += 1) {
          binding.there.push(1n)
          coming = next()
        }
      })
      t.deepEqual(found, [isStrong], `state ${number}`)
      await fairness.due
      await coming
    }
  },
)
