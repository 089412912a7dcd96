// Unit tests of errors: their class, their properties, and how they are made from failures of the binding.

import { createRequire } from 'node:module'
import { inspect } from 'node:util'

import test from 'ava'
import { RingfenceError } from 'ringfence'

import { internals } from './support/internals.js'

interface Insides {
  fromFailure(failure: object | null, thrown?: unknown): RingfenceError
  show(value: unknown): string
}

/** Not exported by the package. */
const { fromFailure, show } = await internals<Insides>('errors.js')

const other = createRequire(import.meta.url)('ringfence') as typeof import('ringfence')

test('an error of either build (ESM or CommonJS) is an error of both, and nothing else is one', (t) => {
  const [own, theirs] = [new RingfenceError('CLOSED', 'own'), new other.RingfenceError('CLOSED', 'theirs')]
  t.not(RingfenceError, other.RingfenceError)
  for (const error of [own, theirs]) {
    t.true(error instanceof RingfenceError)
    t.true(error instanceof other.RingfenceError)
    t.true(error instanceof Error)
  }
  for (const value of [null, undefined, 5, 'CLOSED', Symbol('CLOSED'), {}, [], () => {}, new Error('CLOSED')])
    t.false(value instanceof RingfenceError, String(value))
})

test('a failure of the core names the options as this program spells them', (t) => {
  const core = ['handshake_timeout', 'max_message_size', 'max_peer_capacity', 'max_peers', 'max_peers_per_process']
  core.push('max_peers_per_user', 'realtime_signal', 'memfd_create')
  const { message } = fromFailure({ code: 'NO_SPACE', message: core.join(' ') })
  const here = ['handshakeTimeout', 'maxMessageSize', 'maxPeerCapacity', 'maxPeers', 'maxPeersPerProcess']
  t.deepEqual(message.split(' '), [...here, 'maxPeersPerUser', 'realtimeSignal', 'memfd_create'])
})

test('a subclass of RingfenceError recognizes only its own instances', (t) => {
  class Own extends RingfenceError {}
  const own = new Own('CLOSED', 'own')
  t.true(own instanceof Own)
  t.true(own instanceof RingfenceError)
  t.false(new RingfenceError('CLOSED', 'of the class above') instanceof Own)
})

test('an error has a code, a sentence, a name and the known details', (t) => {
  const bare = new RingfenceError('CLOSED', 'the channel is closed')
  t.is(bare.code, 'ERR_RINGFENCE_CLOSED')
  t.is(bare.message, 'the channel is closed')
  t.is(bare.name, 'RingfenceError')
  t.deepEqual(Object.keys(bare), ['code'])
  for (const key of ['cause', 'check', 'wanted', 'found', 'identity', 'bytes']) t.false(key in bare, key)
  t.false(inspect(bare).includes('Symbol'), 'the mark of the class is not shown')

  const identity = { pid: 1, uid: 2 } as unknown as NonNullable<RingfenceError['identity']>
  const details = { check: 'uid', wanted: '1', found: '2', identity }
  const refused = new RingfenceError('PEER_REFUSED', 'refused', { cause: 0, ...details })
  t.deepEqual(JSON.parse(JSON.stringify(refused)), { code: 'ERR_RINGFENCE_PEER_REFUSED', ...details })
  t.is(refused.cause, 0)
  t.is(refused.identity, identity)

  const bytes = Buffer.from('secret')
  const malformed = new RingfenceError('MALFORMED', 'no value', { bytes })
  t.is(malformed.bytes, bytes)
  t.false(Object.keys(malformed).includes('bytes'), 'a log has no room for the message')
  t.is(malformed.name, 'RingfenceError')
  t.like(new RingfenceError('ABORT_ERR', 'called off'), { name: 'AbortError', code: 'ABORT_ERR' })
})

test('a failure of the binding becomes the matching error', (t) => {
  const identity = { pid: 1 }
  const failure = { code: 'PEER_REFUSED', message: 'refused', check: 'uid', wanted: '1', found: '2', identity }
  const error = fromFailure({ ...failure, cause: 'why' })
  t.true(error instanceof RingfenceError)
  const { check, wanted, found } = failure
  t.like(error, { code: 'ERR_RINGFENCE_PEER_REFUSED', check, wanted, found, identity })
  t.regex(error.message, /^refused; to accept this user, .* uid: 'any'$/)
  t.is(fromFailure({ ...failure, check: 'authorize' }).message, 'refused')
  t.true(error.cause instanceof Error)
  t.is((error.cause as Error).message, 'why')
  t.false('cause' in fromFailure(failure))
  const thrown = new TypeError('thrown in JavaScript')
  t.is(fromFailure({ ...failure, cause: 'why' }, thrown).cause, thrown)
  t.is(fromFailure(failure, thrown).cause, thrown)
  t.is(fromFailure(null).code, 'ERR_RINGFENCE_UNSUPPORTED')
})

test('a message can name any value, and shows nothing of its contents', (t) => {
  const shown: [unknown, string][] = [
    ['a\n"b"', '"a\\n\\"b\\""'],
    [() => 'secret', 'a function'],
    [class {}, 'a function'],
    [null, 'null'],
    [undefined, 'undefined'],
    [[1, 2], 'an array'],
    [{ toString: () => 'secret' }, 'an object'],
    [Object.create(null), 'an object'],
    [5, '5'],
    [5n, '5'],
    [true, 'true'],
    [Symbol('sign'), 'Symbol(sign)'],
  ]
  for (const [value, text] of shown) t.is(show(value), text)
})
