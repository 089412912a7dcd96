import type { ChildProcess } from 'node:child_process'
// An abort that comes after the handshake has succeeded and before the call has resolved: the call rejects, and neither
// side keeps a channel.

import { existsSync, writeFileSync } from 'node:fs'
import { join as inFolder } from 'node:path'
import { inspect } from 'node:util'

import test, { type ExecutionContext } from 'ava'
import {
  connect,
  fromParent,
  join,
  listen,
  member,
  publish,
  spawn,
  subscribe,
  type Channel,
  type PublishOptions,
} from 'ringfence'

import { abstractAddress, isBound, namedAddress, temporaryDirectory } from './support/address.js'
import {
  captureHandshakes,
  native,
  FakePublisher,
  publish as publishHere,
  FakeSubscription,
  subscribe as subscribeHere,
} from './support/binding.js'
import { Partner } from './support/partner.js'
import type { Kit } from './support/partner-process.js'
import { codeOf } from './support/ring.js'
import {
  incomingChannel,
  connect as connectHere,
  join as joinHere,
  listen as listenHere,
  member as memberHere,
  FakeEndpoint,
} from './support/fake-endpoint.js'
import { within, blockUntil, until } from './support/until.js'

const aborted = { ...codeOf('ABORT_ERR'), name: 'AbortError' }

/**
 * A guest whose channel is made destroys it: the peer may have sent messages that it has not read. The peer has its channel earlier.
 * Until then the guest gives up its handshake, which is a clean end.
 */
const ofGuest = /^(closed|lost)$/

/** Code that runs in the partner. Closing the channel that it opens is up to this side. */
type There = (kit: Kit, address: string) => Promise<unknown>

const joins: There = async (kit, address) => void (kit.channel = await kit.join(address))
const isMember: There = async (kit, address) => {
  const membership = await kit.ringfence.member(address, { wait: true })
  const { value } = await membership[Symbol.asyncIterator]().next()
  kit.channel = value!
}
const listens: There = async (kit, address) => {
  const listener = await kit.ringfence.listen(address)
  const { value } = await listener[Symbol.asyncIterator]().next()
  kit.channel = value!
}
const publishes: There = async (kit, address) => {
  const publisher = await kit.ringfence.publish(address)
  kit.keep['publisher'] = publisher
  await new Promise((resolve) => publisher.once('connection', resolve))
}

const calls: [
  title: string,
  there: There,
  begin: (address: string, signal: AbortSignal) => Promise<unknown>,
  isHere: 'first' | 'last',
][] = [
  ['join, as the host', joins, (address, signal) => join(address, { signal }), 'first'],
  ['join, as the guest', joins, (address, signal) => join(address, { signal }), 'last'],
  ['connect', listens, (address, signal) => connect(address, { signal, wait: true }), 'last'],
  ['member, as the guest', isMember, (address, signal) => member(address, { signal }), 'last'],
  ['subscribe', publishes, (address, signal) => subscribe(address, { signal, wait: true }), 'last'],
]

for (const [title, there, begin, isHere] of calls)
  test.serial(`an abort at the end of the handshake rejects ${title}, and the peer sees the channel end`, async (t) => {
    const address = abstractAddress()
    const partner = await Partner.start(t)
    const through = inFolder(temporaryDirectory(t), 'through')
    const over = new AbortController()
    const connectPartner = () =>
      partner.run(
        async (kit, code, where, file) => {
          // oxlint-disable-next-line no-new-func
          const connectTo = new Function(`return (${code})`)() as There
          await connectTo(kit, where)
          const { writeFileSync: write } = kit.require('node:fs') as typeof import('node:fs')
          write(file, '')
        },
        there.toString(),
        address,
        through,
      )
    let opening!: Promise<unknown>
    let coming: Promise<unknown>
    if (isHere === 'first') {
      opening = begin(address, over.signal)
      await until(() => isBound(address), 'this side waits')
      coming = connectPartner()
    } else {
      coming = connectPartner()
      await until(() => isBound(address), 'the partner waits')
      opening = begin(address, over.signal)
    }
    opening.catch(() => {})
    blockUntil(() => existsSync(through), 'the partner has a channel')
    over.abort(new Error('enough'))
    const error = await t.throwsAsync<Error>(opening, aborted)
    t.is((error!.cause as Error).message, 'enough')
    await coming
    const end = partner.run(async (kit) => {
      const publisher = kit.keep['publisher'] as import('ringfence').Publisher | undefined
      if (publisher === undefined) return (await kit.channel.closed).reason
      return publisher.subscribers[0]?.closed.then(({ reason }) => reason) ?? 'closed'
    })
    const reason = await within(end, 'the end over there')
    if (title === 'subscribe') t.is(reason, 'closed')
    else if (isHere === 'first') t.is(reason, 'lost')
    else t.regex(reason, ofGuest)
  })

for (const name of ['listen', 'publish', 'member'] as const)
  test.serial(`an abort at the moment of binding rejects ${name}, and the address is free`, async (t) => {
    const address = namedAddress(t)
    const over = new AbortController()
    const opens: Record<typeof name, (address: string, options: PublishOptions) => Promise<unknown>> = {
      listen,
      publish,
      member,
    }
    const opening = opens[name](address, { signal: over.signal })
    opening.catch(() => {})
    blockUntil(() => existsSync(address), 'it is bound')
    // No event reports that the call goes on after this point. The call must reject in both cases.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100)
    over.abort()
    await t.throwsAsync(opening, aborted)
    await until(() => !existsSync(address), 'the address is free')
  })

/** A child that has a channel with its parent. Both ends report how the channel ends. */
async function childOf(t: ExecutionContext, code: string, signal?: AbortSignal) {
  const words = ['--input-type=module', '--eval', code]
  let child!: ChildProcess
  const channel = spawn(process.execPath, words, {
    signal,
    handshakeTimeout: 60_000,
    spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
    onSpawn: (started) => (child = started),
  }).then((spawned) => spawned.channel)
  t.teardown(() => void child.kill('SIGKILL'))
  channel.catch(() => {})
  let output = ''
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (output += text))
  return { child, channel, output: () => output }
}

test.serial('an abort when the child has answered rejects spawn, and the child is killed', async (t) => {
  const through = inFolder(temporaryDirectory(t), 'through')
  const over = new AbortController()
  const { child, channel } = await childOf(
    t,
    `import { fromParent } from 'ringfence'
     import { writeFileSync } from 'node:fs'
     await fromParent({ handshakeTimeout: 60_000 })
     writeFileSync(${JSON.stringify(through)}, '')
     // It does not exit by itself at the end of the channel.
     setInterval(() => {}, 1000)`,
    over.signal,
  )
  blockUntil(() => existsSync(through), 'the child has a channel')
  over.abort()
  await t.throwsAsync(channel, aborted)
  await until(() => child.signalCode === 'SIGKILL', 'the child is killed')
})

test.serial('an abort when the parent has answered rejects fromParent and ends the channel', async (t) => {
  const through = inFolder(temporaryDirectory(t), 'through')
  const { channel, output } = await childOf(
    t,
    `import { fromParent } from 'ringfence'
     import { existsSync } from 'node:fs'
     const over = new AbortController()
     const opening = fromParent({ handshakeTimeout: 60_000, signal: over.signal })
     while (!existsSync(${JSON.stringify(through)})) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2)
     over.abort()
     await opening.then(() => console.log('open'), ({ code }) => console.log(code))
     setInterval(() => {}, 1000)`,
  )
  const open = await channel
  writeFileSync(through, '')
  t.regex((await within(open.closed, 'the end')).reason, ofGuest)
  await until(() => output() !== '', 'the child says what it was told')
  t.is(output(), 'ABORT_ERR\n')
  await t.throwsAsync(fromParent({ signal: AbortSignal.abort() }), aborted)
})

interface Opening {
  begin: (signal: AbortSignal) => Promise<{ readonly closed: Promise<unknown> }>
  made: () => { fake: object; closed: () => boolean }
}

/** Each call, over a fake binding. */
const openings: Record<string, Opening> = {
  join: { begin: (signal) => joinHere('@somewhere', { signal }), made: aChannel },
  connect: { begin: (signal) => connectHere('@somewhere', { signal }), made: aChannel },
  listen: { begin: (signal) => listenHere('@somewhere', { signal }), made: aPlace },
  member: { begin: (signal) => memberHere('@somewhere', { signal }), made: aPlace },
  publish: { begin: (signal) => publishHere('@somewhere', { signal }), made: () => noted(new FakePublisher()) },
  subscribe: { begin: (signal) => subscribeHere('@somewhere', { signal }), made: () => noted(new FakeSubscription()) },
}

function aChannel() {
  const peer = incomingChannel()
  return { fake: peer.raw, closed: () => peer.newCalls('close').length > 0 }
}

function aPlace() {
  const endpoint = new FakeEndpoint()
  return { fake: endpoint, closed: () => endpoint.newCalls().includes('close') }
}

function noted(fake: FakePublisher | FakeSubscription) {
  return { fake, closed: () => fake.newCalls().includes('close') }
}

for (const [title, { begin, made }] of Object.entries(openings))
  test.serial(`an abort rejects ${title} up to the moment when it resolves, and not later`, async (t) => {
    t.truthy(native)
    const early = new AbortController()
    const all = captureHandshakes(t)
    const first = begin(early.signal)
    const { fake, closed } = made()
    early.abort()
    all[0]!.done(null, fake)
    await t.throwsAsync(first, aborted)
    t.true(closed())

    const late = new AbortController()
    const second = begin(late.signal)
    const other = made()
    all[1]!.done(null, other.fake)
    // The promise is settled already: an abort cannot come between this point and an `await`.
    t.notRegex(inspect(second), /^Promise { <pending>/)
    t.false(other.closed())
    const open = await second
    late.abort()
    // Once a call has resolved, its signal closes only listeners and publishers.
    t.is(other.closed(), title === 'listen' || title === 'publish')
    if (title === 'listen' || title === 'publish') await open.closed
    else await (open as unknown as AsyncDisposable)[Symbol.asyncDispose]()
  })

test.serial('an abort by an observer of the process rejects as well', async (t) => {
  const { subscribe: watch, unsubscribe } = await import('node:diagnostics_channel')
  const over = new AbortController()
  let opened: Channel | undefined
  const onOpen = (message: unknown) => {
    opened = (message as { channel: Channel }).channel
    over.abort()
  }
  watch('ringfence:channel:open', onOpen)
  t.teardown(() => unsubscribe('ringfence:channel:open', onOpen))
  const all = captureHandshakes(t)
  const opening = joinHere('@somewhere', { signal: over.signal })
  const peer = incomingChannel()
  all[0]!.done(null, peer.raw)
  await t.throwsAsync(opening, aborted)
  t.is((await opened!.closed).reason, 'closed')
  t.deepEqual(peer.newCalls('close'), ['close'])
})
