// The start of every call at an address, over a fake binding: cancellation, and how a failure is reported.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { getEventListeners } from 'node:events'

import test, { type ExecutionContext } from 'ava'
import { RingfenceError, type Channel, type Identity, type JoinOptions } from 'ringfence'

import { captureHandshakes, native, type StartedHandshake } from './support/binding.js'
import { codeOf } from './support/ring.js'
import { incomingChannel, connect, runExitHandlers, join } from './support/fake-endpoint.js'
import { until } from './support/until.js'

/** A call in progress. */
async function startCall(t: ExecutionContext, options: JoinOptions = {}, call = join, address = '/somewhere') {
  const all = captureHandshakes(t)
  const opening = call(address, options)
  opening.catch(() => {})
  await Promise.resolve()
  return { handshake: all[0]!, opening }
}

test.serial('a host that exits frees its address; a guest and a client leave it to the host', async (t) => {
  const places: [call: typeof join, role: string, meanwhile: string[], then: string[]][] = [
    [join, 'host', ['vacate'], ['vacate']],
    [join, 'guest', ['vacate'], []],
    [connect, 'guest', [], []],
  ]
  for (const [call, role, meanwhile, then] of places) {
    const waiting = await startCall(t, {}, call)
    runExitHandlers()
    t.deepEqual(waiting.handshake.calls, meanwhile)
    const { handshake, opening } = await startCall(t, {}, call)
    const peer = incomingChannel()
    Object.assign(peer.raw, { role })
    handshake.done(null, peer.raw)
    const channel = await opening
    t.is(channel.role, role as never)
    peer.newCalls()
    runExitHandlers()
    t.deepEqual([handshake.calls, peer.newCalls('vacate', 'close')], [[], then])
    const closed = await startCall(t, {}, call)
    closed.handshake.done(null, incomingChannel().raw)
    await (await closed.opening).close()
    runExitHandlers()
    t.deepEqual(closed.handshake.calls, [])
  }
  // A call that has failed has no address to free.
  const { handshake, opening } = await startCall(t)
  handshake.done({ code: 'ABORTED', message: 'as the binding says' }, null)
  await t.throwsAsync(opening, { ...codeOf('ABORT_ERR'), message: 'as the binding says' })
  runExitHandlers()
  t.deepEqual(handshake.calls, [])
})

test.serial('a signal cancels a call with its own reason, and no listener stays on the signal', async (t) => {
  const over = new AbortController()
  const { signal } = over
  const listeners = () => getEventListeners(signal, 'abort').length
  for (const made of [true, false]) {
    const { handshake, opening } = await startCall(t, { signal })
    t.is(listeners(), 1)
    if (made) handshake.done(null, incomingChannel().raw)
    else handshake.done({ code: 'ABORTED', message: 'as the binding says' }, null)
    if (made) await opening
    else
      await t.throwsAsync(
        opening,
        { ...codeOf('ABORT_ERR'), message: 'as the binding says' },
        'the signal has not said so',
      )
    t.is(listeners(), 0)
  }
  const [called, failing] = [await startCall(t, { signal }), await startCall(t, { signal })]
  const reason = new Error('of the caller')
  over.abort(reason)
  t.deepEqual([called.handshake.calls, failing.handshake.calls], [['cancel'], ['cancel']])
  called.handshake.done({ code: 'ABORTED', message: 'as the binding says' }, null)
  const error = await t.throwsAsync<RingfenceError>(called.opening, codeOf('ABORT_ERR'))
  t.is(error!.cause, reason)
  failing.handshake.done({ code: 'PROTOCOL', message: 'as the binding says' }, null)
  await t.throwsAsync(failing.opening, codeOf('PROTOCOL'), 'it has failed by itself before')
  const all = captureHandshakes(t)
  await t.throwsAsync(join('/somewhere', { signal }), codeOf('ABORT_ERR'))
  t.deepEqual(all, [], 'nothing is begun')
})

test.serial('a call that exceeds its timeout is cancelled, and closes a channel that arrives late', async (t) => {
  for (const made of [false, true]) {
    const { handshake, opening } = await startCall(t, { timeout: 1 })
    const error = t.throwsAsync<RingfenceError>(opening, codeOf('TIMEOUT'))
    await until(() => handshake.calls.includes('cancel'), 'it is cancelled')
    const late = incomingChannel()
    if (made) handshake.done(null, late.raw)
    else handshake.done({ code: 'ABORTED', message: 'as the binding says' }, null)
    t.is(
      (await error)!.message,
      'join did not succeed within its timeout of 1 ms; does a partner join at the same address?',
    )
    t.is(late.newCalls('close').length, made ? 1 : 0)
  }
  const failing = await startCall(t, { timeout: 1 })
  await until(() => failing.handshake.calls.includes('cancel'), 'it is cancelled')
  failing.handshake.done({ code: 'PROTOCOL', message: 'as the binding says' }, null)
  await t.throwsAsync(failing.opening, codeOf('PROTOCOL'), 'it has failed by itself before')
  const { handshake, opening } = await startCall(t, { timeout: 1e9 })
  handshake.done(null, incomingChannel().raw)
  await opening
  t.deepEqual(handshake.calls, [])
})

test.serial('a refusal is reported to observers of the process, with the exception of the callback', async (t) => {
  const messages: { address: string | null; error: RingfenceError }[] = []
  const onMessage = (message: unknown) => void messages.push(message as (typeof messages)[number])
  subscribe('ringfence:refused', onMessage)
  t.teardown(() => unsubscribe('ringfence:refused', onMessage))
  const thrown = new Error('of the callback')
  const asks: ((id: number, identity: Identity) => void)[] = []
  const { begin } = native as { begin(...all: unknown[]): unknown }
  const all: StartedHandshake[] = []
  const answers: unknown[] = []
  native['begin'] = (
    name: string,
    address: string,
    options: object,
    done: StartedHandshake['done'],
    ask: (typeof asks)[number],
  ) => {
    all.push({ name, address, options, done, calls: [] })
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
  t.deepEqual(messages, [{ ...messages[0]!, address: '@somewhere', error: error! }])
  const other = join('@somewhere')
  await Promise.resolve()
  all[1]!.done({ code: 'PROTOCOL', message: 'no refusal' }, null)
  await t.throwsAsync(other, codeOf('PROTOCOL'))
  t.is(messages.length, 1)
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
  const { handshake, opening } = await startCall(t)
  const peer = incomingChannel()
  peer.fail('watch', 'NO_SPACE', 'no descriptor')
  handshake.done(null, peer.raw)
  await t.throwsAsync(opening, { ...codeOf('NO_SPACE'), message: 'no descriptor' })
  t.true(peer.newCalls('close').includes('close'))
  await t.throwsAsync(join(5 as never), { ...codeOf('INVALID_ARGUMENT'), message: /address must be a string, not 5/ })
})

test.serial('a channel is half-open if its options say so', async (t) => {
  for (const allowHalfOpen of [true, false]) {
    const { handshake, opening } = await startCall(t, { allowHalfOpen })
    const peer = incomingChannel()
    peer.from.ended = true
    handshake.done(null, peer.raw)
    const channel: Channel = await opening
    t.is(await channel.receive(), undefined)
    t.deepEqual(peer.newCalls('end'), allowHalfOpen ? [] : ['end'])
  }
})
