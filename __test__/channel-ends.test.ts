// A channel over a fake binding: how it handles each answer, including those that a real peer gives only rarely.

import test from 'ava'
import { json, type Channel, type RingfenceError } from 'ringfence'

import {
  Binding,
  HALF_OPEN,
  REASONS,
  prepareClose,
  mergeInputOf,
  open,
  openIncoming,
  openChannel,
} from './support/channel.js'
import { merge } from './support/binding.js'
import { clock, fairness } from './support/clock.js'
import { isPending, turn, turns } from './support/until.js'

const ways = ['end', 'close', 'outlive']

test('a channel that cannot be watched is closed, and its peer learns that at once', (t) => {
  const binding = new Binding()
  binding.fail('watch', 'NO_SPACE', 'no descriptor is left')
  t.throws(() => openChannel(binding.raw, { address: null, settings: HALF_OPEN }), {
    code: 'ERR_RINGFENCE_NO_SPACE',
    message: 'no descriptor is left',
  })
  t.like(openIncoming(binding.raw, { address: '@somewhere', settings: HALF_OPEN }), {
    code: 'NO_SPACE',
    message: 'no descriptor is left',
    identity: binding.peer,
  })
  t.true(binding.newCalls('close').length > 0)
  const { channel } = open()
  t.throws(() => Reflect.construct(channel.constructor, [Symbol('ringfence'), binding.raw, HALF_OPEN]) as unknown, {
    code: 'ERR_RINGFENCE_INVALID_ARGUMENT',
    message: /^channels are made by/,
  })
})

test('closed, and every later call, reports each end that the binding reports', async (t) => {
  const ends: [reason: string, code: string, message: RegExp, way: string][] = [
    ['lost', 'PEER_LOST', /^the peer, process \d+, has ended, .*; open a new channel/, 'outlive'],
    ['closed', 'PEER_LOST', /^the peer, process \d+, has closed the channel; open a new channel/, 'outlive'],
    ['exposed', 'OBJECT_EXPOSED', /was wiped/, 'close'],
  ]
  for (const [reason, code, message, way] of ends) {
    const { binding, channel } = open()
    const waits = channel.waitWritable(9)
    binding.ring.room = 0
    const sent = channel.send('waits')
    await waits
    t.true(await isPending(sent))
    binding.newCalls()
    binding.end(reason)
    const ended = await channel.closed
    t.is(ended.reason, reason as never)
    t.is(ended.error?.code as string | undefined, reason === 'closed' ? undefined : `ERR_RINGFENCE_${code}`)
    t.deepEqual(binding.newCalls('disarm', ...ways), [way])
    const expected = { code: `ERR_RINGFENCE_${code}`, message } as const
    await t.throwsAsync(sent, expected)
    await t.throwsAsync(channel.send('late'), expected)
    t.throws(() => channel.trySend('late'), expected)
    t.throws(() => channel.sendToken(1), expected)
    await t.throwsAsync(channel.verify(), expected)
    binding.onWakeup()
    t.deepEqual(binding.newCalls('listen', ...ways), [], 'nothing is heard of it any more')
  }
})

test('a peer that a later check refuses ends the channel as refused', async (t) => {
  const { binding, channel } = open()
  const waits = channel.receive()
  binding.answers['listen'] = REASONS.indexOf('refused')
  binding.onWakeup()
  t.like(await channel.closed, { reason: 'refused', error: { code: 'ERR_RINGFENCE_PEER_REFUSED' } })
  t.deepEqual(binding.newCalls(...ways), ['close'])
  const refused = { code: 'ERR_RINGFENCE_CLOSED', message: /no longer satisfies the policy/ } as const
  await t.throwsAsync(waits, refused)
  await t.throwsAsync(channel.send('late'), refused)
  await t.throwsAsync(channel.receive(), refused)
})

test('an error ends the channel if the channel failed, and not if the call was wrong', async (t) => {
  const calls: [call: string, deed: (channel: Channel) => unknown][] = [
    ['trySend', (channel) => channel.trySend('x')],
    ['sendToken', (channel) => channel.sendToken(1)],
  ]
  for (const [call, deed] of calls)
    for (const [code, reason] of [
      ['RING_CORRUPT', 'corrupt'],
      ['OBJECT_EXPOSED', 'exposed'],
      ['PEER_LOST', 'lost'],
      ['NO_SPACE', null],
      ['MESSAGE_TOO_LARGE', null],
      ['UNSUPPORTED', call === 'sendToken' ? null : 'failed'],
    ] as const) {
      const { binding, channel } = open()
      binding.fail(call, code)
      if (code === 'PEER_LOST') Object.assign(binding.answers, { listen: REASONS.indexOf('lost'), isLost: 1 })
      const title = `${call} ${code}`
      t.throws(() => deed(channel), { code: `ERR_RINGFENCE_${code}`, message: 'as this test has it' }, title)
      if (reason === null) {
        t.true(await isPending(channel.closed), title)
        t.deepEqual(binding.newCalls(...ways), [])
        await channel.send('goes on')
      } else {
        t.is((await channel.closed).reason, reason, title)
        t.deepEqual(binding.newCalls(...ways), [reason === 'lost' ? 'outlive' : 'close'], title)
        const error = await t.throwsAsync<RingfenceError>(
          channel.send('late'),
          { code: `ERR_RINGFENCE_${code}` },
          title,
        )
        if (code === 'RING_CORRUPT') t.is((error!.cause as Error).message, 'as this test has it')
      }
    }
})

test('pending messages are flushed before any wait or check', async (t) => {
  const deeds: [deed: (channel: Channel) => unknown, first: string][] = [
    [(channel) => channel.stats(), 'flush'],
    [(channel) => channel.receive(), 'flush'],
    [(channel) => channel.waitReadable(), 'flush'],
    [(channel) => channel[Symbol.asyncIterator]().next(), 'flush'],
    [(channel) => channel.with(json())[Symbol.asyncIterator]().next(), 'flush'],
  ]
  for (const [deed, first] of deeds) {
    const { binding, channel } = open()
    void channel.send('first')
    binding.newCalls()
    void deed(channel)
    t.is(binding.newCalls('flush', 'stats', 'pullRetained', 'pull')[0], first, String(deed))
    t.is(binding.ring.received.length, 1)
    const idle = open()
    void deed(idle.channel)
    t.false(idle.binding.newCalls('flush', 'hasRoom').length > 0, 'there is nothing to send')
  }
  // Nothing is sent after the end.
  const { binding, channel } = open()
  await channel.close()
  binding.newCalls()
  channel.stats()
  t.deepEqual(binding.newCalls('flush', 'stats'), ['stats'])
})

test('ref and unref decide whether a channel keeps the process alive', (t) => {
  const { binding, channel } = open()
  const kept: unknown[] = []
  Object.assign(binding.ring, { keepAlive: (alive: number) => void kept.push(alive) })
  t.is(channel.unref(), channel)
  t.is(channel.ref(), channel)
  t.deepEqual(kept, [0, 1])
})

test('after both sides have ended, the channel closes once the end was read', async (t) => {
  const { binding, channel } = open()
  await channel.end()
  t.deepEqual(binding.newCalls(...ways), ['end'])
  t.true(await isPending(channel.closed))
  binding.from.ended = true
  binding.answers['listen'] = REASONS.indexOf('closed')
  t.is(await channel.receive(), undefined)
  t.is((await channel.closed).reason, 'closed')
  t.is(await channel.receive(), undefined)
  await t.throwsAsync(channel.send('late'), { code: 'ERR_RINGFENCE_CLOSED', message: /has ended its sending/ })
})

const closed = { code: 'ERR_RINGFENCE_CLOSED', message: 'the channel is closed' } as const
const withPeer = { code: 'ERR_RINGFENCE_CLOSED', message: /allowHalfOpen/ } as const
const lost = { code: 'ERR_RINGFENCE_PEER_LOST' } as const
const bytes = (text: string) => Buffer.from(text)

test('messages that a peer has left are read and then released; a wiped ring is not read', async (t) => {
  for (const reason of ['lost', 'closed']) {
    const { binding, channel } = open()
    const waits = channel.receive()
    binding.from.push(bytes('one'), bytes('two'), Buffer.alloc(20_000))
    binding.from.ended = true
    binding.end(reason)
    t.deepEqual(binding.newCalls(...ways), ['outlive'])
    t.deepEqual([String(await waits), String(await channel.receive())], ['one', 'two'])
    t.is((await channel.receive())?.length, 20_000)
    t.deepEqual(binding.newCalls(...ways), [])
    if (reason === 'closed') t.is(await channel.receive(), undefined)
    else await t.throwsAsync(channel.receive(), lost)
    t.deepEqual(binding.newCalls(...ways), ['close'])
  }
  const { binding, channel } = open()
  const waits = channel.receive()
  binding.from.push(bytes('one'))
  binding.end('exposed')
  const error = { code: 'ERR_RINGFENCE_OBJECT_EXPOSED' } as const
  await t.throwsAsync(waits, error)
  await channel.close()
  await t.throwsAsync(channel.receive(), error)
})

test('a close releases messages that a peer has left, also after waiting for a flush', async (t) => {
  for (const linger of [0, 60_000]) {
    const { binding, channel } = open()
    binding.from.push(bytes('left'))
    binding.ring.room = 0
    const sent = channel.send('waits')
    sent.catch(() => {})
    const over = linger === 0 ? null : channel.close({ linger })
    t.true(await isPending(channel.closed))
    binding.end('lost')
    await (over ?? channel.close())
    t.deepEqual(binding.newCalls(...ways), ['outlive', 'close'])
    await t.throwsAsync(sent, lost)
    await t.throwsAsync(channel.receive(), closed)
    await channel.close()
    t.deepEqual(binding.newCalls(...ways), [], 'that was all')
    await t.throwsAsync(channel.send('late'), lost)
  }
  const { binding, channel } = open()
  binding.ring.room = 0
  const sent = channel.send('waits')
  const over = channel.close({ linger: 60_000 })
  await turns(20)
  t.deepEqual(binding.newCalls(...ways), [])
  binding.ring.room = 65_536
  binding.onWakeup()
  await sent
  await over
  t.deepEqual(binding.newCalls(...ways), ['end', 'close'])
})

test('a reader that finds the end also ends this side, unless the peer was cut off or the channel is half-open', async (t) => {
  const read = [
    (channel: Channel) => channel.receive(),
    (channel: Channel) => channel.waitReadable(),
    (channel: Channel) => channel[Symbol.asyncIterator]().next(),
    (channel: Channel) => channel.readable.getReader().read(),
  ]
  for (const deed of read)
    for (const [allowHalfOpen, cut, ends] of [
      [false, 0, true],
      [false, 1, false],
      [true, 0, false],
    ] as const) {
      const { binding, channel } = open({ ...HALF_OPEN, allowHalfOpen })
      binding.from.ended = true
      binding.answers['isLost'] = cut
      if (cut === 0) await deed(channel)
      else await t.throwsAsync(async () => deed(channel), lost)
      await turn()
      t.deepEqual(binding.newCalls(...ways), ends ? ['end'] : [])
      t.true(await isPending(channel.closed))
      if (ends) await t.throwsAsync(channel.send('late'), withPeer)
      else await channel.send('goes on')
    }
})

test('the last state of the peer decides why nothing is sent, in whatever order the events arrive', async (t) => {
  const notHalfOpen = { ...HALF_OPEN, allowHalfOpen: false }
  // The complete end is reported first; then the reader finds the end.
  const ended = open(notHalfOpen)
  ended.binding.from.ended = true
  ended.binding.from.push(bytes('last'))
  ended.binding.end('closed')
  await t.throwsAsync(ended.channel.send('late'), lost)
  for (let left = await ended.channel.receive(); left !== undefined;) left = await ended.channel.receive()
  await t.throwsAsync(ended.channel.send('late'), withPeer)
  // The same with a peer that was cut off, and if the binding has nothing left to report.
  const cut = open(notHalfOpen)
  cut.binding.from.ended = true
  cut.binding.end('lost')
  cut.binding.answers['isLost'] = 0
  await t.throwsAsync(cut.channel.receive(), lost)
  await t.throwsAsync(cut.channel.send('late'), lost)
  // The reader finds the end first; then the complete end is reported.
  const both = open(notHalfOpen)
  both.binding.from.ended = true
  t.is(await both.channel.receive(), undefined)
  both.binding.end('closed')
  t.is((await both.channel.closed).reason, 'closed')
  await t.throwsAsync(both.channel.send('late'), withPeer)
  // This side ends first; then the complete end is reported.
  const own = open(notHalfOpen)
  await own.channel.end()
  own.binding.from.ended = true
  own.binding.end('closed')
  t.is(await own.channel.receive(), undefined)
  await t.throwsAsync(own.channel.send('late'), lost)
  // Actions of this side are not blamed on the peer.
  for (const deed of [
    ({ channel }: ReturnType<typeof open>) => void channel.close(),
    ({ binding }: ReturnType<typeof open>) => binding.end('refused'),
  ]) {
    const here = open(notHalfOpen)
    const waits = here.channel.receive()
    waits.catch(() => {})
    deed(here)
    if ((await here.channel.closed).reason === 'closed') t.is(await waits, undefined)
    else await t.throwsAsync(waits, { code: 'ERR_RINGFENCE_CLOSED' })
    await t.throwsAsync(here.channel.send('late'), {
      code: 'ERR_RINGFENCE_CLOSED',
      message: /^the channel (is|was) closed/,
    })
  }
})

test('a peer that was cut off differs from one that ended its sending, before and after the event', async (t) => {
  for (const [how, message] of [
    [1, /process \d+, has ended, or executes another program now: its last messages/],
    [2, /process \d+, has destroyed the channel, or closed it before everything was sent: its last messages/],
  ] as const) {
    const { binding, channel } = open()
    binding.answers['isLost'] = how
    binding.from.ended = true
    t.throws(() => channel.tryReceive(), { ...lost, message })
    binding.end('lost', how)
    binding.answers['isLost'] = 0
    const { reason, error } = await channel.closed
    t.is(reason, 'lost')
    t.regex(error!.message, message)
    await t.throwsAsync(channel.receive(), { ...lost, message })
    const stream = channel.duplex()
    const failed = new Promise<Error>((resolve) => stream.on('error', resolve))
    stream.resume()
    t.regex((await failed).message, message)
  }
})

test('ending this side twice is one end, and a send after it is an error of that call', async (t) => {
  const { binding, channel } = open()
  binding.ring.room = 0
  const sent = channel.send('before')
  const over = channel.end()
  t.is(channel.end(), over)
  t.true(await isPending(over))
  t.deepEqual(binding.newCalls('end'), [])
  const message = /this side has ended its sending/
  await t.throwsAsync(channel.send('late'), { code: 'ERR_RINGFENCE_CLOSED', message })
  binding.ring.room = 65_536
  binding.onWakeup()
  await sent
  await over
  t.deepEqual(binding.newCalls('end'), ['end'])
  const late = channel.send('late')
  const unhandled = new Promise((resolve) => process.once('unhandledRejection', resolve))
  t.regex(((await unhandled) as Error).message, message)
  await t.throwsAsync(late, { message })
  // After the channel is over, the binding has nothing to end.
  const gone = open()
  await gone.channel.close()
  await gone.channel.end()
  t.deepEqual(gone.binding.newCalls(...ways), ['end', 'close'])
})

test('a reader that finds the end checks the line if this side has ended too', async (t) => {
  // Otherwise the peer may still be reading, so the line is not checked.
  const { binding, channel } = open()
  binding.from.ended = true
  t.is(await channel.receive(), undefined)
  await turn()
  t.deepEqual(binding.newCalls('listen'), [])
  // The wakeup of a pending send may be read together with it.
  const waiting = open()
  waiting.binding.ring.room = 0
  const sent = waiting.channel.send('waits')
  void waiting.channel.end()
  await turns(20)
  waiting.binding.ring.room = 65_536
  waiting.binding.from.ended = true
  t.is(waiting.channel.tryReceive(), undefined)
  await sent
  // A channel that was closed in the meantime checks nothing.
  const gone = open()
  await gone.channel.end()
  gone.binding.from.ended = true
  void gone.channel.receive()
  void gone.channel.close()
  gone.binding.newCalls()
  await turn()
  t.deepEqual(gone.binding.newCalls('listen', 'disarm', ...ways), [])
  // If the check finds that both sides have ended, no wakeup is sent.
  const both = open()
  await both.channel.end()
  both.binding.from.ended = true
  both.binding.answers['listen'] = REASONS.indexOf('closed')
  both.binding.newCalls()
  t.is(await both.channel.receive(), undefined)
  await both.channel.closed
  t.deepEqual(both.binding.newCalls('listen', 'disarm'), ['listen'])
})

test('a channel whose membership closes flushes what was sent before, and this side closes it whatever the line reports', async (t) => {
  for (const isNotified of [true, false]) {
    const { binding, channel } = open()
    void channel.send('before')
    binding.newCalls()
    const { flushed, finish: over } = await prepareClose(channel, 1000)
    t.true(flushed)
    // The binding ends the sending when it leaves the address.
    t.deepEqual(binding.newCalls('flush', ...ways), ['flush'])
    await t.throwsAsync(channel.send('late'), closed)
    const waits = channel.receive()
    binding.from.push(bytes('left'))
    if (isNotified) binding.end('lost')
    else over()
    t.is(await waits, undefined)
    t.is((await channel.closed).reason, 'closed')
    t.deepEqual(binding.newCalls(...ways), ['close'])
    await t.throwsAsync(channel.receive(), closed)
    over()
    t.deepEqual(binding.newCalls(...ways), [], 'that was all')
  }
  const { binding, channel } = open()
  binding.from.push(bytes('left'))
  binding.end('lost')
  binding.newCalls()
  const { finish } = await prepareClose(channel, 1000)
  finish()
  await t.throwsAsync(channel.send('late'), lost)
  t.is(String(await channel.receive()), 'left', 'what had ended before is as it was')
})

test('a read that finds the peer gone while a membership closes the channel ends without an error; later ones fail', async (t) => {
  const reads = {
    loop: async (channel: Channel) => (await channel[Symbol.asyncIterator]().next()).value,
    'loop over batches': async (channel: Channel) => (await channel.batches().next()).value,
    receive: (channel: Channel) => channel.receive(),
    tryReceive: (channel: Channel) => channel.tryReceive(),
    receiveEach: (channel: Channel) => channel.receiveEach(() => {}) || undefined,
    waitReadable: async (channel: Channel) => (await channel.waitReadable()) || undefined,
  }
  for (const [name, read] of Object.entries(reads)) {
    const { binding, channel } = open()
    await prepareClose(channel, 1000)
    binding.from.onEmpty = () => {
      binding.from.onEmpty = () => {}
      binding.end('lost')
    }
    t.is(await read(channel), undefined, name)
    t.is((await channel.closed).reason, 'closed', name)
    if (!name.startsWith('loop')) await t.throwsAsync(async () => read(channel), closed, name)
  }
})

test('a merge reports why a channel has ended, and ends this side as well', async (t) => {
  for (const reason of [null, 'lost', 'closed'] as const) {
    const { binding, channel } = open({ ...HALF_OPEN, allowHalfOpen: false })
    const merged = merge([channel])
    const ends: unknown[] = []
    merged.on('disconnect', (of, end) => void ends.push(of === channel, end.reason))
    binding.from.push(bytes('last'))
    binding.from.ended = true
    // The event loop has not been notified yet.
    if (reason !== null) binding.answers['listen'] = REASONS.indexOf(reason)
    binding.answers['isLost'] = reason === 'lost' ? 1 : 0
    t.deepEqual(await merged.receive(), [channel, bytes('last')])
    t.is(await merged.receive(), undefined)
    t.deepEqual(ends, [true, reason ?? 'closed'])
    await t.throwsAsync(channel.send('late'), reason === 'lost' ? lost : withPeer)
  }
})

test('a check that refuses the peer closes the channel immediately', async (t) => {
  const { binding, channel } = open()
  let finish!: (failure: object | null, verified: object | null) => void
  binding.answers['verify'] = (isNotified: typeof finish) => {
    finish = isNotified
    return 0
  }
  const looking = channel.verify()
  binding.answers['listen'] = REASONS.indexOf('refused')
  finish({ code: 'PEER_REFUSED', message: 'as the binding says' }, null)
  await t.throwsAsync(looking, { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  t.is((await channel.closed).reason, 'refused')
  t.deepEqual(binding.newCalls(...ways), ['close'])
})

test('an unref’d channel uses no timer that would keep the process alive', (t) => {
  const { channel } = open()
  const { buffer } = mergeInputOf(channel)!
  t.false(buffer.isWeak)
  channel.unref()
  t.true(buffer.isWeak)
  channel.ref()
  t.false(buffer.isWeak)
})

test.serial('a stream of a channel lets the event loop turn', async (t) => {
  const { binding, channel } = open()
  binding.from.push(bytes('one'))
  const stream = channel.duplex()
  clock.now += 3
  fairness.readClock()
  t.not(fairness.due, null)
  stream.on('data', () => {})
  for (let number = 0; number < 9; number += 1) await new Promise((resolve) => process.nextTick(resolve))
  t.deepEqual(binding.newCalls('pullRetained'), [])
  await turns(2)
  t.true(binding.newCalls('pullRetained').length > 0)
})

test.serial(
  'a send that finds the end before its event loop was notified rejects, and is no unhandled rejection',
  async (t) => {
    for (const [code, answer, reason] of [
      ['CLOSED', REASONS.indexOf('refused'), 'refused'],
      ['PEER_LOST', REASONS.indexOf('lost'), 'lost'],
      ['OBJECT_EXPOSED', 0, 'exposed'],
      ['RING_CORRUPT', 0, 'corrupt'],
    ] as const)
      for (const size of [10, 20_000]) {
        const { binding, channel } = open()
        binding.fail(size === 10 ? 'flush' : 'send', code)
        Object.assign(binding.answers, { listen: answer, isLost: reason === 'lost' ? 1 : 0 })
        const unhandled: unknown[] = []
        const onUnhandled = (error: unknown) => void unhandled.push(error)
        process.on('unhandledRejection', onUnhandled)
        void channel.send(Buffer.alloc(size))
        await turns(2)
        process.off('unhandledRejection', onUnhandled)
        t.deepEqual(unhandled, [], code)
        t.is((await channel.closed).reason, reason)
        await t.throwsAsync(channel.send('late'), { code: `ERR_RINGFENCE_${code}` })
      }
  },
)

test('ending this side does not change why a channel has ended', async (t) => {
  for (const [reason, codeOfEnd] of [
    ['exposed', 'OBJECT_EXPOSED'],
    ['corrupt', 'RING_CORRUPT'],
    ['lost', 'PEER_LOST'],
  ] as const)
    for (const order of ['end first', 'end last', 'after the peer’s end'] as const) {
      // A peer that has ended its sending is not lost.
      const isClean = reason === 'lost' && order === 'after the peer’s end'
      const code = isClean ? 'CLOSED' : codeOfEnd
      const { binding, channel } = open({ ...HALF_OPEN, allowHalfOpen: false })
      if (order === 'after the peer’s end') {
        // This ends the sending of this side, before the peer exits.
        binding.from.ended = true
        t.true(channel.readableEnded)
      }
      binding.ring.room = 0
      void channel.send('waits')
      const ending = order === 'end first' ? channel.end() : undefined
      if (reason === 'corrupt') {
        binding.fail('sendToken', 'RING_CORRUPT')
        t.throws(() => channel.sendToken(1))
      } else if (isClean) binding.end('closed')
      else binding.end(reason)
      t.is((await channel.closed).reason, isClean ? 'closed' : reason)
      await ending
      if (order === 'end last') await channel.end()
      if (order === 'after the peer’s end') t.is(await channel.receive(), undefined)
      await t.throwsAsync(channel.send('late'), { code: `ERR_RINGFENCE_${code}` }, `${reason}, ${order}`)
      await t.throwsAsync(channel.waitWritable(), { code: `ERR_RINGFENCE_${code}` })
    }
})
