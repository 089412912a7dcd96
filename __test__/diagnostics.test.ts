// Diagnostics for observers of the process: node:diagnostics_channel and NODE_DEBUG=ringfence.

import { execFile } from 'node:child_process'
import { subscribe as watch, unsubscribe } from 'node:diagnostics_channel'
import { once, type EventEmitter } from 'node:events'
import { copyFileSync, existsSync, linkSync, realpathSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import {
  listen,
  member,
  publish,
  type Channel,
  type Identity,
  type Listener,
  type Membership,
  type PublishOptions,
  type Publisher,
  type RingfenceError,
  type Subscriber,
} from 'ringfence'

import { abstractAddress, isBound, temporaryDirectory, untilBound } from './support/address.js'
import { urlOf } from './support/internals.js'
import { joinHere, listenHere, pair, Partner } from './support/partner.js'
import { blockUntil, until } from './support/until.js'

/** The messages of a diagnostics channel, until the test ends. */
function told<Message>(t: ExecutionContext, name: string): Message[] {
  const messages: Message[] = []
  const onMessage = (message: unknown) => void messages.push(message as Message)
  watch(name, onMessage)
  t.teardown(() => unsubscribe(name, onMessage))
  return messages
}

test.serial('the start and the end of a channel are reported', async (t) => {
  const opened = told<{ channel: Channel; peer: Identity; address: string }>(t, 'ringfence:channel:open')
  const closed = told<{ channel: Channel; peer: Identity; reason: string; error: RingfenceError }>(
    t,
    'ringfence:channel:close',
  )
  const { channel, partner, address } = await pair(t)
  t.is(opened.length, 1)
  t.is(opened[0]!.channel, channel)
  t.is(opened[0]!.address, address)
  t.is(opened[0]!.peer.pid, partner.pid)
  t.deepEqual(closed, [])
  await partner.kill()
  const { reason, error } = await channel.closed
  t.is(reason, 'lost')
  t.deepEqual(closed, [{ channel, peer: channel.peer, reason, error: error! }])
})

interface Refusal {
  address: string
  error: RingfenceError
  identity: Identity
}

test.serial('each refusal reports the peer and the check', async (t) => {
  const refused = told<Refusal>(t, 'ringfence:refused')
  const listener = await listenHere(t, abstractAddress(), { policy: { authorize: () => false } })
  const partner = await Partner.start(t)
  await t.throwsAsync(partner.connect(listener.address), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  await until(() => refused.length > 0, 'the refusal is told')
  const [first] = refused
  t.deepEqual(Object.keys(first!), ['address', 'error', 'identity'])
  t.is(first!.address, listener.address)
  t.is(first!.identity.pid, partner.pid)
  t.is(first!.error.identity, first!.identity)
  t.like(first!.error, { code: 'ERR_RINGFENCE_PEER_REFUSED', check: 'authorize' })
  t.is(refused.length, 1)
})

test.serial('the host of a pair reports each guest that it refuses, once', async (t) => {
  const refused = told<Refusal>(t, 'ringfence:refused')
  const thrown = new Error('of the callback')
  const partners = [await Partner.start(t), await Partner.start(t), await Partner.start(t)] as const
  const address = abstractAddress()
  const answers = [
    () => false,
    () => {
      throw thrown
    },
    () => true,
  ]
  const joining = joinHere(t, address, { policy: { authorize: () => answers.shift()!() } })
  await untilBound(address)
  for (const partner of partners.slice(0, 2))
    await t.throwsAsync(partner.join(address, { wait: true }), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  await until(() => refused.length === 2, 'both refusals are told, while it waits')
  await partners[2].join(address)
  t.is((await joining).peer.pid, partners[2].pid)
  t.deepEqual(
    refused.map(({ address: where, error, identity }) => [where, error.check, identity.pid]),
    partners.slice(0, 2).map(({ pid }) => [address, 'authorize', pid]),
  )
  t.is(refused[1]!.error.cause, thrown)
})

for (const name of ['member', 'publish', 'listen'] as const)
  test.serial(`each of many refusals is reported by ${name}, even if its event loop is blocked`, async (t) => {
    const refused = told<Refusal>(t, 'ringfence:refused')
    const address = abstractAddress()
    const policy = { uid: 54321 }
    const calls: Record<
      typeof name,
      (address: string, options: PublishOptions) => Promise<Listener | Membership | Publisher>
    > = {
      member,
      publish,
      listen,
    }
    const endpoint = await calls[name](address, { policy })
    t.teardown(() => endpoint[Symbol.asyncDispose]())
    const events: unknown[] = []
    ;(endpoint as EventEmitter).on('refused', (error) => events.push(error))
    const partner = await Partner.start(t)
    const through = join(temporaryDirectory(t), 'through')
    const coming = partner.run(
      async (kit, how, where, file) => {
        const connectTo = { member: 'member', publish: 'subscribe', listen: 'connect' } as const
        for (let number = 0; number < 40; number += 1) {
          const call = kit.ringfence[connectTo[how]] as (where: string) => Promise<unknown>
          await call(where).catch(() => {})
        }
        const { writeFileSync: write } = kit.require('node:fs') as typeof import('node:fs')
        write(file, '')
      },
      name,
      address,
      through,
    )
    blockUntil(() => existsSync(through), 'all have come')
    await coming
    await until(() => refused.length === 40, 'each is told')
    t.is(events.length, 40)
    t.true(refused.every(({ identity, error }) => identity.pid === partner.pid && error.check === 'uid'))
  })

test('with NODE_DEBUG=ringfence the host of a pair prints the peers that it refuses', async (t) => {
  const address = abstractAddress()
  const script = `
    import { join } from ${JSON.stringify(urlOf('index.js'))}
    await join(${JSON.stringify(address)}, { policy: { authorize: () => false } })`
  const env = { ...process.env, NODE_DEBUG: 'ringfence' }
  const host = execFile(process.execPath, ['--input-type=module', '--eval', script], { env })
  t.teardown(() => host.kill('SIGKILL'))
  let printed = ''
  host.stderr!.on('data', (text: string) => (printed += text))
  await until(() => isBound(address), 'it waits')
  const partner = await Partner.start(t)
  await t.throwsAsync(partner.join(address), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  const line = `process ${partner.pid} (uid ${process.geteuid!()}) was refused (ERR_RINGFENCE_PEER_REFUSED): authorize`
  await until(() => printed.includes(line), 'it is printed')
  t.true(printed.includes(`${address}: ${line}`))
})

test.serial('an eviction is reported', async (t) => {
  const evicted = told<{ publisher: Publisher; subscriber: Subscriber }>(t, 'ringfence:evicted')
  const publisher = await publish(abstractAddress(), { capacity: 4096, stall: 1 })
  t.teardown(() => publisher.close())
  const partner = await Partner.start(t)
  await partner.run(async (kit, where) => {
    kit.keep['subscription'] = await kit.ringfence.subscribe(where)
  }, publisher.address)
  await until(() => publisher.subscribers.length === 1, 'the subscriber is known')
  const [subscriber] = publisher.subscribers
  for (let number = 0; number < 20; number += 1) await publisher.send(Buffer.alloc(400))
  t.is((await subscriber!.closed).reason, 'evicted')
  t.deepEqual(evicted, [{ publisher, subscriber }])
  t.is(publisher.stats().evicted, 1)
})

test.serial(
  'an error that the handler of a call throws is reported on its side, unless its caller has given up',
  async (t) => {
    const failed = told<{ channel: Channel; peer: Identity; error: unknown }>(t, 'ringfence:call:error')
    const { channel, partner } = await pair(t)
    const thrown = new Error('not today')
    void channel.serve(async (request, { signal }) => {
      if (request.toString() === 'fails') throw thrown
      const aborted = once(signal, 'abort')
      await partner.run((kit) => (kit.keep['giveUp'] as () => void)())
      await aborted
      throw signal.reason
    })
    const call = (request: string) =>
      partner.run((kit, message) => {
        const controller = new AbortController()
        kit.keep['giveUp'] = () => controller.abort()
        const outcome = kit.channel.call(message, { signal: controller.signal })
        return outcome.catch((error: Error) => error.message)
      }, request)
    t.is(await call('waits'), 'The operation was aborted')
    t.is(await call('fails'), 'not today')
    t.deepEqual(failed, [{ channel, peer: channel.peer, error: thrown }])
  },
)

test('with NODE_DEBUG=ringfence each handshake is printed, by the steps of its evidence', async (t) => {
  const index = urlOf('index.js')
  const script = `
    import { spawn, fromParent } from ${JSON.stringify(index)}
    import { fileURLToPath } from 'node:url'
    if (process.argv[2] === 'child') await (await fromParent()).closed
    else {
      const { child, channel } = await spawn(process.execPath, [process.argv[1], 'child'], { spawn: { stdio: 'ignore' } })
      await channel.close()
      child.ref()
    }`
  const file = `${temporaryDirectory(t)}/story.mjs`
  writeFileSync(file, script)
  const run = (debug: string) =>
    new Promise<string>((resolve, reject) => {
      const env = { ...process.env, NODE_DEBUG: debug }
      execFile(process.execPath, [file], { env, timeout: 60_000 }, (error, _, stderr) =>
        error === null ? resolve(stderr) : reject(error),
      )
    })
  const story = await run('ringfence')
  t.regex(
    story,
    /^RINGFENCE \d+: a private line: a channel, this side is the host; the peer is process \d+ \(uid \d+\)$/m,
  )
  t.regex(story, /^RINGFENCE \d+: {3}executable, uid: wanted .+, found .+ \(passed\)$/m)
  t.regex(story, /the channel with process \d+ has ended: closed/)
  t.is(await run(''), '')
})

test('refusals, evictions and subscriptions are printed, with the peer and the reason as far as they are known', async (t) => {
  const inside = (file: string) => JSON.stringify(urlOf(file))
  const script = `
    import { reportEvicted, reportRefused, reportSubscribed, reportHandlerError } from ${inside('runtime/diagnostics.js')}
    import { RingfenceError } from ${inside('errors.js')}
    const peer = { pid: 12, uid: 34 }
    const evidence = [{ step: 'HELLO', check: 'uid', wanted: '1', found: '34', outcome: 'passed' }]
    reportRefused('@an-address', new RingfenceError('PEER_REFUSED', 'it hung up'))
    const details = { identity: peer, check: 'uid', wanted: '1', found: '34' }
    reportRefused(null, new RingfenceError('PEER_REFUSED', 'not him', details))
    reportEvicted({ address: '@an-address' }, { peer, evidence })
    reportHandlerError({ address: '@an-address', peer, evidence }, new Error('not\\u001btoday'))
    reportSubscribed({ peer, evidence }, '@an-address', 'a subscription')`
  const run = (debug: string) =>
    new Promise<string>((resolve, reject) => {
      const env = { ...process.env, NODE_DEBUG: debug }
      const words = ['--input-type=module', '-e', script]
      execFile(process.execPath, words, { env, timeout: 60_000 }, (error, _, stderr) =>
        error === null ? resolve(stderr) : reject(error),
      )
    })
  t.deepEqual(
    (await run('ringfence'))
      .replaceAll(/^RINGFENCE \d+: /gm, '')
      .trimEnd()
      .split('\n'),
    [
      '@an-address: a process was refused (ERR_RINGFENCE_PEER_REFUSED): it hung up',
      'a private line: process 12 (uid 34) was refused (ERR_RINGFENCE_PEER_REFUSED): uid: wanted 1, found 34',
      '@an-address: the subscriber of process 12 was evicted',
      '@an-address: the handler of a call of process 12 has thrown: not\\u{1b}today',
      '@an-address: a subscription; the peer is process 12 (uid 34)',
      '  HELLO, uid: wanted 1, found 34 (passed)',
    ],
  )
  t.is(await run(''), '')
})

test('a name that a peer has chosen moves no cursor in that output', async (t) => {
  const named = join(temporaryDirectory(t), '\u001b[2J\nRINGFENCE 1: all is well\u202e')
  // A hard link is the same executable. If that is impossible, a copy, which is refused.
  try {
    linkSync(realpathSync(process.execPath), named)
  } catch {
    copyFileSync(process.execPath, named)
  }
  const index = urlOf('index.js')
  const script = `
    import { spawn, fromParent } from ${JSON.stringify(index)}
    const code = "const { fromParent } = await import(" + ${JSON.stringify(JSON.stringify(index))} + "); await (await fromParent()).closed"
    const words = ['--input-type=module', '-e', code]
    await spawn(process.env.NAMED, words, { spawn: { stdio: 'ignore' } }).then(({ channel }) => channel.close(), () => {})`
  const env = { ...process.env, NODE_DEBUG: 'ringfence', NAMED: named }
  const story = await new Promise<string>((resolve, reject) => {
    const words = ['--input-type=module', '-e', script]
    execFile(process.execPath, words, { env, timeout: 60_000 }, (error, _, stderr) =>
      error === null ? resolve(stderr) : reject(error),
    )
  })
  t.true(story.includes('\\u{1b}[2J\\u{a}RINGFENCE 1: all is well\\u{202e}'), story)
  for (const moving of ['\u001b', '\u202e', '\nRINGFENCE 1: all is well']) t.false(story.includes(moving))
})
