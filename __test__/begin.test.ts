// The start of every call at an address, over a fake binding: cancellation, and how a failure is reported.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { getEventListeners } from 'node:events'

import test, { type ExecutionContext } from 'ava'
import { RingfenceError, type Channel, type Identity, type JoinOptions } from 'ringfence'

import { beginsHere, native, type Begun } from './support/binding.js'
import { codeOf } from './support/ring.js'
import { comer, connect, exits, join } from './support/standing.js'
import { until } from './support/until.js'

/** A call in progress. */
async function begins(t: ExecutionContext, options: JoinOptions = {}, call = join, address = '/somewhere') {
  const all = beginsHere(t)
  const opening = call(address, options)
  opening.catch(() => {})
  await Promise.resolve()
  return { begun: all[0]!, opening }
}

test.serial('a host that exits frees its address; a guest and a client leave it to the host', async (t) => {
  const places: [call: typeof join, role: string, meanwhile: string[], then: string[]][] = [
    [join, 'host', ['vacate'], ['vacate']],
    [join, 'guest', ['vacate'], []],
    [connect, 'guest', [], []],
  ]
  for (const [call, role, meanwhile, then] of places) {
    const waiting = await begins(t, {}, call)
    exits()
    t.deepEqual(waiting.begun.asked, meanwhile)
    const { begun, opening } = await begins(t, {}, call)
    const peer = comer()
    Object.assign(peer.raw, { role })
    begun.done(null, peer.raw)
    const channel = await opening
    t.is(channel.role, role as never)
    peer.told()
    exits()
    t.deepEqual([begun.asked, peer.told('vacate', 'close')], [[], then])
    const closed = await begins(t, {}, call)
    closed.begun.done(null, comer().raw)
    await (await closed.opening).close()
    exits()
    t.deepEqual(closed.begun.asked, [])
  }
  // A call that has failed has no address to free.
  const { begun, opening } = await begins(t)
  begun.done({ code: 'ABORTED', message: 'as the binding says' }, null)
  await t.throwsAsync(opening, { ...codeOf('ABORT_ERR'), message: 'as the binding says' })
  exits()
  t.deepEqual(begun.asked, [])
})

test.serial('a signal cancels a call with its own reason, and no listener stays on the signal', async (t) => {
  const over = new AbortController()
  const { signal } = over
  const listeners = () => getEventListeners(signal, 'abort').length
  for (const made of [true, false]) {
    const { begun, opening } = await begins(t, { signal })
    t.is(listeners(), 1)
    if (made) begun.done(null, comer().raw)
    else begun.done({ code: 'ABORTED', message: 'as the binding says' }, null)
    if (made) await opening
    else
      await t.throwsAsync(
        opening,
        { ...codeOf('ABORT_ERR'), message: 'as the binding says' },
        'the signal has not said so',
      )
    t.is(listeners(), 0)
  }
  const [called, failing] = [await begins(t, { signal }), await begins(t, { signal })]
  const reason = new Error('of the caller')
  over.abort(reason)
  t.deepEqual([called.begun.asked, failing.begun.asked], [['cancel'], ['cancel']])
  called.begun.done({ code: 'ABORTED', message: 'as the binding says' }, null)
  const error = await t.throwsAsync<RingfenceError>(called.opening, codeOf('ABORT_ERR'))
  t.is(error!.cause, reason)
  failing.begun.done({ code: 'PROTOCOL', message: 'as the binding says' }, null)
  await t.throwsAsync(failing.opening, codeOf('PROTOCOL'), 'it has failed by itself before')
  const all = beginsHere(t)
  await t.throwsAsync(join('/somewhere', { signal }), codeOf('ABORT_ERR'))
  t.deepEqual(all, [], 'nothing is begun')
})

test.serial('a call that exceeds its timeout is cancelled, and closes a channel that arrives late', async (t) => {
  for (const made of [false, true]) {
    const { begun, opening } = await begins(t, { timeout: 1 })
    const error = t.throwsAsync<RingfenceError>(opening, codeOf('TIMEOUT'))
    await until(() => begun.asked.includes('cancel'), 'it is cancelled')
    const late = comer()
    if (made) begun.done(null, late.raw)
    else begun.done({ code: 'ABORTED', message: 'as the binding says' }, null)
    t.is(
      (await error)!.message,
      'join did not succeed within its timeout of 1 ms; does a partner join at the same address?',
    )
    t.is(late.told('close').length, made ? 1 : 0)
  }
  const failing = await begins(t, { timeout: 1 })
  await until(() => failing.begun.asked.includes('cancel'), 'it is cancelled')
  failing.begun.done({ code: 'PROTOCOL', message: 'as the binding says' }, null)
  await t.throwsAsync(failing.opening, codeOf('PROTOCOL'), 'it has failed by itself before')
  const { begun, opening } = await begins(t, { timeout: 1e9 })
  begun.done(null, comer().raw)
  await opening
  t.deepEqual(begun.asked, [])
})

test.serial('a refusal is reported to observers of the process, with the exception of the callback', async (t) => {
  const told: { address: string | null; error: RingfenceError }[] = []
  const hear = (message: unknown) => void told.push(message as (typeof told)[number])
  subscribe('ringfence:refused', hear)
  t.teardown(() => unsubscribe('ringfence:refused', hear))
  const thrown = new Error('of the callback')
  const asks: ((id: number, identity: Identity) => void)[] = []
  const { begin } = native as { begin(...all: unknown[]): unknown }
  const all: Begun[] = []
  const answers: unknown[] = []
  native['begin'] = (
    name: string,
    address: string,
    options: object,
    done: Begun['done'],
    ask: (typeof asks)[number],
  ) => {
    all.push({ name, address, options, done, asked: [] })
    asks.push(ask)
    return { cancel() {}, vacate() {}, answer: (...answer: unknown[]) => void answers.push(answer) }
  }
  t.teardown(() => (native['begin'] = begin))
  const opening = join('@somewhere', {
    policy: {
      authorize: () => {
        throw thrown
      },
    },
  })
  await Promise.resolve()
  asks[0]!(7, {} as Identity)
  await Promise.resolve()
  t.like(answers, [[7, 2, 'an exception: of the callback']])
  all[0]!.done({ code: 'PEER_REFUSED', message: 'refused', question: 7, check: 'authorize' } as never, null)
  const error = await t.throwsAsync<RingfenceError>(opening, codeOf('PEER_REFUSED'))
  t.is(error!.cause, thrown)
  t.deepEqual(told, [{ ...told[0]!, address: '@somewhere', error: error! }])
  const other = join('@somewhere')
  await Promise.resolve()
  all[1]!.done({ code: 'PROTOCOL', message: 'no refusal' }, null)
  await t.throwsAsync(other, codeOf('PROTOCOL'))
  t.is(told.length, 1)
})

test.serial('a call that cannot start rejects, and a channel that cannot be used is closed', async (t) => {
  const { begin } = native
  t.teardown(() => (native['begin'] = begin))
  const short = new Error('no thread')
  const own = new RingfenceError('UNSUPPORTED', 'no binding')
  for (const [thrown, code, cause] of [
    [short, 'NO_SPACE', short],
    [own, 'UNSUPPORTED', undefined],
  ] as const) {
    native['begin'] = () => {
      throw thrown
    }
    const error = await t.throwsAsync<RingfenceError>(join('@somewhere'), codeOf(code))
    t.is(error!.cause, cause)
    t.regex(error!.message, cause === undefined ? /^no binding$/ : /cannot be started: no thread/)
  }
  native['begin'] = begin
  const { begun, opening } = await begins(t)
  const peer = comer()
  peer.fail('watch', 'NO_SPACE', 'no descriptor')
  begun.done(null, peer.raw)
  await t.throwsAsync(opening, { ...codeOf('NO_SPACE'), message: 'no descriptor' })
  t.true(peer.told('close').includes('close'))
  await t.throwsAsync(join(5 as never), { ...codeOf('INVALID_ARGUMENT'), message: /address must be a string, not 5/ })
})

test.serial('a channel is half-open if its options say so', async (t) => {
  for (const allowHalfOpen of [true, false]) {
    const { begun, opening } = await begins(t, { allowHalfOpen })
    const peer = comer()
    peer.from.ended = true
    begun.done(null, peer.raw)
    const channel: Channel = await opening
    t.is(await channel.receive(), undefined)
    t.deepEqual(peer.told('end'), allowHalfOpen ? [] : ['end'])
  }
})
