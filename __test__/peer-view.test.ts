// The last known state of the peer, over a fake binding: the results of `verify`.

import { execFileSync } from 'node:child_process'

import test from 'ava'
import type { Evidence, Identity, RingfenceError } from 'ringfence'

import { internals, urlOf } from './support/internals.js'

interface Verified {
  identity: Identity
  evidence: Evidence[]
}

type VerifyCallback = (failure: { code: string; message: string } | null, verified: Verified | null) => void

interface PeerView {
  peer: Identity
  readonly evidence: readonly Evidence[]
  verify(over: () => RingfenceError | undefined, hear: () => void): Promise<Identity>
}

const { PeerView } = await internals<{ PeerView: new (native: object) => PeerView }>('channel/peer-view.js')
const { FAILED } = await internals<{ FAILED: number }>('native.js')
const { RingfenceError: Failed } = await internals<{ RingfenceError: typeof RingfenceError }>('errors.js')

const who = (pid: number) => ({ pid }) as Identity
const check = (name: string) => ({ check: name }) as Evidence
const closed = () => new Failed('CLOSED', 'it is over')

/** A fake binding, which records the calls and answers when a test says so. */
class FakePeer {
  readonly peer = who(1)
  readonly callbacks: VerifyCallback[] = []
  fetched = 0
  answer = 0

  evidence(): Evidence[] {
    this.fetched += 1
    return [check('uid')]
  }

  verify(callback: VerifyCallback): number {
    this.callbacks.push(callback)
    return this.answer
  }

  failure = () => ({ code: 'NO_SPACE', message: 'no thread' })
}

test('a later check is reported beside those of the handshake, and replaces the previous one', async (t) => {
  const fake = new FakePeer()
  const view = new PeerView(fake)
  t.deepEqual([view.peer, fake.fetched], [who(1), 0], 'nothing is fetched before it is asked for')
  const heard: string[] = []
  for (const name of ['first', 'second']) {
    const looking = view.verify(
      () => undefined,
      () => heard.push(name),
    )
    const identity = who(2)
    fake.callbacks.pop()!(null, { identity, evidence: [check(name)] })
    t.is(await looking, identity)
    t.is(view.peer, identity)
    t.deepEqual(view.evidence, [check('uid'), check(name)])
    t.true(Object.isFrozen(view.evidence))
  }
  t.is(fake.fetched, 1)
  t.deepEqual(heard, [], 'nothing has ended')
})

test('a check that fails, or finds that the channel is over, changes nothing', async (t) => {
  const fake = new FakePeer()
  const view = new PeerView(fake)
  const { evidence } = view
  let over: RingfenceError | undefined
  let heard = 0
  const look = () =>
    view.verify(
      () => over,
      () => (heard += 1),
    )
  const refused = look()
  fake.callbacks.pop()!({ code: 'PEER_REFUSED', message: 'another one' }, null)
  await t.throwsAsync(refused, { code: 'ERR_RINGFENCE_PEER_REFUSED', message: 'another one' })
  t.is(heard, 1)
  const meanwhile = look()
  over = closed()
  fake.callbacks.pop()!(null, { identity: who(2), evidence: [check('late')] })
  t.is(await t.throwsAsync(meanwhile), over)
  t.is(heard, 2)
  over = undefined
  const late = look()
  over = new Failed('PEER_LOST', 'its process has ended')
  fake.callbacks.pop()!({ code: 'CLOSED', message: 'the channel was dropped' }, null)
  t.is(await t.throwsAsync(late), over)
  t.is(await t.throwsAsync(look()), over)
  t.is(fake.callbacks.length, 0, 'of what is over nothing is asked')
  over = undefined
  fake.answer = FAILED
  await t.throwsAsync(look(), { code: 'ERR_RINGFENCE_NO_SPACE', message: 'no thread' })
  t.deepEqual([view.peer, view.evidence, heard], [who(1), evidence, 3])
})

test('results that only a check reports must be handled; an end is also reported by closed', (t) => {
  const url = (file: string) => JSON.stringify(urlOf(file))
  const codes = ['PEER_REFUSED', 'NO_SPACE', 'HANDSHAKE_TIMEOUT', 'UNSUPPORTED', 'CLOSED', 'PEER_LOST', 'RING_CORRUPT']
  const script = `
    import { PeerView } from ${url('channel/peer-view.js')}
    import { RingfenceError } from ${url('errors.js')}
    process.on('unhandledRejection', ({ code }) => console.log(code))
    for (const code of ${JSON.stringify(codes)}) {
      const failure = { code, message: 'nobody waits for it' }
      const view = new PeerView({ peer: {}, evidence: () => [], verify: (told) => (told(failure, null), 0) })
      view.verify(() => undefined, () => {})
      if (code === 'CLOSED') view.verify(() => new RingfenceError(code, 'it is over'), () => {})
    }`
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' })
  t.deepEqual(
    output.trimEnd().split('\n'),
    codes.slice(0, 4).map((code) => `ERR_RINGFENCE_${code}`),
  )
})
