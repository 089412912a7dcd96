// A dead peer ends each of its channels, even if another process holds a copy of its socket.

import { once } from 'node:events'

import test, { type ExecutionContext } from 'ava'
import { connect, member, publish, spawn, subscribe, type Channel, type Closed, type Membership } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { listenHere, nextChannel, pair, Partner } from './support/partner.js'
import { within } from './support/until.js'

/**
 * Starts a process that holds a copy of each socket of the caller, except its standard streams and the socket to the
 * test.
 */
function startHolders(require: NodeJS.Require): number[] {
  const fs = require('node:fs') as typeof import('node:fs')
  const children = require('node:child_process') as typeof import('node:child_process')
  const fds = fs.readdirSync('/proc/self/fd').map(Number)
  return fds.flatMap((fd) => {
    try {
      if (fd <= 3 || !fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:')) return []
      return [children.spawn('sleep', ['1000'], { stdio: ['ignore', 'ignore', 'ignore', fd] }).pid!]
    } catch {
      // It is closed already, or a child cannot inherit it, like a listening socket.
      return []
    }
  })
}

function endWithTest(t: ExecutionContext, holders: number[]): void {
  t.true(holders.length > 0)
  t.teardown(() => {
    for (const pid of holders) process.kill(pid, 'SIGKILL')
  })
}

/** Makes the partner start such processes. */
async function duplicateLine(t: ExecutionContext, partner: Partner): Promise<void> {
  const holders = await partner.run(
    // oxlint-disable-next-line no-new-func
    (kit, code: string) => (new Function(`return (${code})`)() as typeof startHolders)(kit.require),
    startHolders.toString(),
  )
  endWithTest(t, holders)
}

const patient = { handshakeTimeout: 60_000 }

/** The reason for which the channel ends, and the result of a wait for a message. */
async function endOf(channel: Channel): Promise<[Closed, unknown]> {
  const waiting = channel.receive().then(
    (message) => message,
    (error: { code: string }) => error.code,
  )
  return within(Promise.all([channel.closed, waiting]), 'the end of the channel')
}

test('a dead peer ends the channel of a pair despite a copied socket', async (t) => {
  const { channel, partner } = await pair(t, { options: patient })
  await duplicateLine(t, partner)
  const ended = endOf(channel)
  await partner.kill()
  t.is((await ended)[0].reason, 'lost')
})

test('a dead peer ends the channel of a service despite a copied socket', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address, patient)
  const partner = await Partner.start(t)
  await partner.connect(address, patient)
  const channel = await nextChannel(listener)
  await duplicateLine(t, partner)
  const ended = endOf(channel)
  await partner.kill()
  t.is((await ended)[0].reason, 'lost')
})

test('a dead peer ends the channel of a client despite a copied socket', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  await partner.run(
    async (kit, where: string, options: object) => {
      kit.keep['listener'] = await kit.ringfence.listen(where, options)
    },
    address,
    patient,
  )
  const channel = await connect(address, patient)
  await duplicateLine(t, partner)
  const ended = endOf(channel)
  await partner.kill()
  t.is((await ended)[0].reason, 'lost')
})

test('a dead peer ends the channel of a member despite a copied socket', async (t) => {
  const address = abstractAddress()
  const membership: Membership = await member(address, patient)
  t.teardown(() => membership.close())
  const partner = await Partner.start(t)
  await partner.run(
    async (kit, where: string, options: object) => {
      kit.keep['membership'] = await kit.ringfence.member(where, options)
    },
    address,
    patient,
  )
  const { value: channel } = await within(membership[Symbol.asyncIterator]().next(), 'a partner')
  await duplicateLine(t, partner)
  const ended = endOf(channel!)
  await partner.kill()
  t.is((await ended)[0].reason, 'lost')
})

test('a dead peer ends the channel of a parent despite a copied socket', async (t) => {
  const code = `
    import { createRequire } from 'node:module'
    import { fromParent } from 'ringfence'
    const channel = await fromParent({ handshakeTimeout: 60_000 })
    const startHolders = ${startHolders.toString()}
    await channel.send(JSON.stringify(startHolders(createRequire(process.cwd() + '/'))))
    setInterval(() => {}, 1000)
  `
  const { child, channel: open } = await spawn(process.execPath, ['--input-type=module', '--eval', code], {
    ...patient,
    spawn: { stdio: ['ignore', 'ignore', 'inherit'] },
  })
  t.teardown(() => child.kill('SIGKILL'))
  endWithTest(t, JSON.parse(String(await open.receive())) as number[])
  const ended = endOf(open)
  child.kill('SIGKILL')
  t.is((await ended)[0].reason, 'lost')
})

test('a dead peer ends the channel of a subscription despite a copied socket', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  await partner.run(async (kit, where: string) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where)
  }, address)
  const subscription = await subscribe(address, patient)
  await duplicateLine(t, partner)
  const ended = within(Promise.all([subscription.closed, subscription.receive().catch(() => {})]), 'its end')
  await partner.kill()
  t.is((await ended)[0].reason, 'lost')
})

test('a dead peer ends the channel of a publisher despite a copied socket', async (t) => {
  const address = abstractAddress()
  const publisher = await publish(address, { stall: 60_000 })
  t.teardown(() => publisher.close())
  const partner = await Partner.start(t)
  await partner.run(async (kit, where: string) => {
    kit.keep['subscription'] = await kit.ringfence.subscribe(where)
  }, address)
  await duplicateLine(t, partner)
  const gone = within(once(publisher, 'disconnect'), 'its end')
  await partner.kill()
  t.is((await gone)[1].reason, 'lost')
})

test('a dead peer with a copied socket that had ended its sending has ended cleanly', async (t) => {
  const { channel, partner } = await pair(t, { options: { ...patient, allowHalfOpen: true } })
  await partner.run((kit) => kit.channel.end())
  t.is(await within(channel.receive(), 'its end'), undefined)
  await duplicateLine(t, partner)
  const closed = within(channel.closed, 'the end of the channel')
  await partner.kill()
  t.is((await closed).reason, 'closed')
  t.is(await channel.receive(), undefined)
})
