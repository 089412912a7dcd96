// A channel over a binding of the test's own: what it makes of each answer, which a peer would have to be lucky for.

import test from 'ava'
import type { Channel, RingfenceError } from 'ringfence'

import { Ring } from './support/paper-ring.js'
import { isPending } from './support/until.js'

const inside = async <Inside>(file: string): Promise<Inside> =>
  (await import(new URL(`../../dist/esm/${file}`, import.meta.url).href)) as Inside

interface Raw {
  readonly role: string
  readonly peer: object
  readonly capacity: number
  readonly maxMessageSize: number
  readonly maxAtOnce: number
  operate(operation: number, ...given: unknown[]): unknown
}

const settings = { busyPoll: 0, allowHalfOpen: true }
const { openChannel, openArrived } = await inside<{
  openChannel(raw: Raw, with_: typeof settings, address: string | null): Channel
  openArrived(raw: Raw, with_: typeof settings, address: string): Channel | { code: string; message: string }
}>('channel.js')
const { ENDED, FAILED, REASONS, REFUSED, native } = await inside<{
  ENDED: number
  FAILED: number
  REASONS: (string | undefined)[]
  REFUSED: number
  native: { operations(): string[] }
}>('native.js')
const names = native.operations()

/** What the binding answers, and what it was asked. */
class Binding {
  readonly ring = new Ring(65_536)
  readonly peer = { pid: 1 }
  /** Answers by the name of what is asked; what is not here is asked of the ring, or is 0. */
  answers: Record<string, unknown> = {
    stats: Array.from({ length: 8 }, () => 0),
    evidence: [],
    armReader: 1,
    lookParked: 1,
  }
  heard!: () => void
  #asked: string[] = []

  readonly raw: Raw = {
    role: 'host',
    peer: this.peer,
    capacity: this.ring.capacity,
    maxMessageSize: this.ring.maxMessageSize,
    maxAtOnce: this.ring.maxAtOnce,
    operate: (operation, ...given) => {
      const name = names[operation]!
      this.#asked.push(name)
      if (name === 'watch') this.heard = given[0] as () => void
      if (name in this.answers) return this.answers[name]
      const own = this.ring as unknown as Record<string, unknown>
      return typeof own[name] === 'function' ? (own[name] as (...all: unknown[]) => unknown).apply(this.ring, given) : 0
    },
  }

  /** What was asked since the last time, of these. */
  told(...of: string[]): string[] {
    return this.#asked.splice(0).filter((name) => of.includes(name))
  }

  /** The next call of that name fails so. */
  fail(name: string, code: string, message = 'as this test has it'): void {
    this.answers[name] = FAILED
    this.answers['failure'] = { code, message }
  }
}

function open(): { binding: Binding; channel: Channel } {
  const binding = new Binding()
  const channel = openChannel(binding.raw, settings, null)
  binding.told()
  return { binding, channel }
}

const ways = ['close', 'outlive']

test('a channel that cannot be watched is none, and its peer is told at once', (t) => {
  const binding = new Binding()
  binding.fail('watch', 'NO_SPACE', 'no descriptor is left')
  t.throws(() => openChannel(binding.raw, settings, null), {
    code: 'ERR_RINGFENCE_NO_SPACE',
    message: 'no descriptor is left',
  })
  t.true(binding.told('close').length > 0)
  t.like(openArrived(binding.raw, settings, '@somewhere'), {
    code: 'NO_SPACE',
    message: 'no descriptor is left',
    identity: binding.peer,
  })
  t.true(binding.told('close').length > 0)
})

test('each end that the binding tells is told by closed, and by every call that comes after it', async (t) => {
  const ends: [reason: string, code: string, message: RegExp, way: string][] = [
    ['exited', 'PEER_LOST', /process has ended/, 'outlive'],
    ['closed', 'PEER_LOST', /^the peer has closed the channel$/, 'outlive'],
    ['exposed', 'OBJECT_EXPOSED', /was wiped/, 'close'],
  ]
  for (const [reason, code, message, way] of ends) {
    const { binding, channel } = open()
    const waits = channel.writable(9)
    binding.ring.room = 0
    const sent = channel.send('waits')
    await waits
    t.true(await isPending(sent))
    binding.told()
    binding.answers['listen'] = REASONS.indexOf(reason)
    binding.answers['isCut'] = reason === 'exited' ? 1 : 2
    binding.heard()
    t.is(await channel.closed, reason as never)
    t.deepEqual(binding.told(...ways), [way])
    const expected = { code: `ERR_RINGFENCE_${code}`, message } as const
    await t.throwsAsync(sent, expected)
    await t.throwsAsync(channel.send('late'), expected)
    t.throws(() => channel.trySend('late'), expected)
    t.throws(() => channel.sendToken(1), expected)
    await t.throwsAsync(channel.verify(), expected)
    binding.heard()
    t.deepEqual(binding.told('listen', ...ways), [], 'nothing is heard of it any more')
  }
})

test('a peer that is refused by a later look is this side’s close', async (t) => {
  const { binding, channel } = open()
  binding.answers['listen'] = REFUSED
  binding.heard()
  t.is(await channel.closed, REASONS[REFUSED] as never)
  t.deepEqual(binding.told(...ways), ['close'])
  await t.throwsAsync(channel.send('late'), { code: 'ERR_RINGFENCE_CLOSED', message: /who the policy asks for/ })
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_CLOSED', message: /who the policy asks for/ })
})

test('what a call finds ends the channel where the channel is at fault, and not where the call is', async (t) => {
  const calls: [call: string, deed: (channel: Channel) => unknown][] = [
    ['trySend', (channel) => channel.trySend('x')],
    ['sendToken', (channel) => channel.sendToken(1)],
  ]
  for (const [call, deed] of calls)
    for (const [code, reason] of [
      ['RING_CORRUPT', 'corrupt'],
      ['OBJECT_EXPOSED', 'exposed'],
      ['PEER_LOST', 'exited'],
      ['NO_SPACE', null],
      ['MESSAGE_TOO_LARGE', null],
      ['UNSUPPORTED', call === 'sendToken' ? null : 'closed'],
    ] as const) {
      const { binding, channel } = open()
      binding.fail(call, code)
      if (code === 'PEER_LOST') binding.answers['listen'] = REASONS.indexOf('exited')
      const title = `${call} ${code}`
      t.throws(() => deed(channel), { code: `ERR_RINGFENCE_${code}`, message: 'as this test has it' }, title)
      if (reason === null) {
        t.true(await isPending(channel.closed), title)
        t.deepEqual(binding.told(...ways), [])
        await channel.send('goes on')
      } else {
        t.is(await channel.closed, reason, title)
        t.deepEqual(binding.told(...ways), [reason === 'exited' ? 'outlive' : 'close'], title)
        const error = await t.throwsAsync<RingfenceError>(
          channel.send('late'),
          { code: `ERR_RINGFENCE_${code}` },
          title,
        )
        if (code === 'RING_CORRUPT') t.is((error!.cause as Error).message, 'as this test has it')
      }
    }
})

test('what was sent is on its way before anything is waited for, or looked at', async (t) => {
  const deeds: [deed: (channel: Channel) => unknown, first: string][] = [
    [(channel) => channel.stats(), 'flush'],
    [(channel) => channel.receive(), 'flush'],
    [(channel) => channel.readable(), 'flush'],
    [(channel) => channel[Symbol.asyncIterator]().next(), 'flush'],
  ]
  for (const [deed, first] of deeds) {
    const { binding, channel } = open()
    void channel.send('first')
    binding.told()
    void deed(channel)
    t.is(binding.told('flush', 'stats', 'pullHeld', 'pull')[0], first, String(deed))
    t.is(binding.ring.got.length, 1)
    const idle = open()
    void deed(idle.channel)
    t.false(idle.binding.told('flush', 'hasRoom').length > 0, 'there is nothing to send')
  }
  // After the end nothing is sent any more.
  const { binding, channel } = open()
  await channel.close()
  binding.told()
  channel.stats()
  t.deepEqual(binding.told('flush', 'stats'), ['stats'])
})

test('a channel keeps the process alive, or not, as it is told', (t) => {
  const { binding, channel } = open()
  const kept: unknown[] = []
  Object.assign(binding.ring, { keepAlive: (alive: number) => void kept.push(alive) })
  t.is(channel.unref(), channel)
  t.is(channel.ref(), channel)
  t.deepEqual(kept, [0, 1])
})

test('both sides have ended: the channel closes once the end was read', async (t) => {
  const { binding, channel } = open()
  await channel.end()
  t.deepEqual(binding.told('end', ...ways), ['end'])
  t.true(await isPending(channel.closed))
  binding.answers['pullHeld'] = ENDED
  binding.answers['pull'] = ENDED
  binding.answers['listen'] = REASONS.indexOf('closed')
  t.is(await channel.receive(), null)
  t.is(await channel.closed, 'closed')
  t.is(await channel.receive(), null)
  await t.throwsAsync(channel.send('late'), { code: 'ERR_RINGFENCE_CLOSED', message: /has ended its sending/ })
})
