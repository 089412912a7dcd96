import { existsSync, writeFileSync } from 'node:fs'

import test from 'ava'
import { join, member, type Channel, type Evidence, type Membership } from 'ringfence'

import { abstractAddress, namedAddress } from './support/address.js'
import { joinHere, Partner } from './support/partner.js'
import type { Kit } from './support/partner-process.js'
import { within, blockUntil } from './support/until.js'

/**
 * In the partner: joins or becomes a member, and opens a path to one of the shared objects during the handshake. Any
 * process of the same user could do that. Tries again if it was too late.
 */
function joinAndRetain(partner: Partner, address: string, how: 'join' | 'member' = 'join'): Promise<void> {
  const meet = async (kit: Kit, where: string, call: string) => {
    const options = { capacity: 8 << 20 }
    const openIt = async (): Promise<Channel> => {
      if (call === 'join') return kit.join(where, options)
      const membership = await kit.ringfence.member(where, options)
      kit.keep.membership = membership
      return (await membership[Symbol.asyncIterator]().next()).value!
    }
    const fs = kit.require('node:fs') as typeof import('node:fs')
    const O_PATH = 0o10000000
    const object = (path: string) => {
      try {
        return fs.readlinkSync(path).startsWith('/memfd:ringfence')
      } catch {
        return false
      }
    }
    for (;;) {
      const joining = openIt()
      const until = performance.now() + 2000
      // The handshake runs on another thread.
      while (kit.keep.path === undefined && performance.now() < until) {
        for (const fd of fs.readdirSync('/proc/self/fd')) {
          if (!object(`/proc/self/fd/${fd}`)) continue
          try {
            const copy = `/proc/self/fd/${fs.openSync(`/proc/self/fd/${fd}`, O_PATH)}`
            if (object(copy)) kit.keep.path = copy
          } catch {
            // It was closed in the meantime.
          }
        }
      }
      kit.channel = await joining
      await kit.channel.send(kit.keep.path === undefined ? 'again' : 'kept')
      if (kit.keep.path !== undefined) return
      await kit.channel.close()
      await (kit.keep.membership as Membership | undefined)?.close()
    }
  }
  return partner.run(meet, address, how)
}

test('a process that opens the shared memory ends the channel on both sides, and every call says why', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  const keeping = joinAndRetain(partner, address)
  let channel = await joinHere(t, address, { capacity: 8 << 20 })
  while (String(await channel.receive()) !== 'kept') {
    await channel.close()
    channel = await joinHere(t, address, { capacity: 8 << 20, wait: true })
  }
  await keeping
  const receiving = channel.receive()
  const code = await partner.run(({ keep, require }) => {
    const fs = require('node:fs') as typeof import('node:fs')
    try {
      fs.openSync(keep.path as string, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
      return 'open'
    } catch (error) {
      return (error as NodeJS.ErrnoException).code
    }
  })
  t.is(code, 'EAGAIN')
  const exposed = { code: 'ERR_RINGFENCE_OBJECT_EXPOSED', message: /another process tried to open/ }
  await t.throwsAsync(within(receiving, 'the end of the waiting'), exposed)
  t.is((await within(channel.closed, 'the end')).reason, 'exposed')
  await t.throwsAsync(channel.send('more'), exposed)
  t.throws(() => channel.tryReceive(), exposed)
  t.false(channel.readableEnded, 'the end is not clean')
  t.is(
    await within(
      partner.run(async ({ channel: there }) => (await there.closed).reason),
      'the end over there',
    ),
    'exposed',
  )
  await t.throwsAsync(
    partner.run(({ channel: there }) => there.send('more')),
    { code: exposed.code },
  )
})

test('exposed memory is reported as such even if this side ends its sending first', async (t) => {
  const address = namedAddress(t)
  const here = await member(address, { capacity: 8 << 20 })
  t.teardown(() => here.close())
  const partners = here[Symbol.asyncIterator]()
  const partner = await Partner.start(t)
  const keeping = joinAndRetain(partner, address, 'member')
  let channel: Channel
  do {
    channel = (await within(partners.next(), 'a partner')).value!
  } while (String(await channel.receive()) !== 'kept')
  await keeping
  const [go, gone] = [`${address}.go`, `${address}.gone`]
  await partner.run(
    ({ keep, require, until }, start: string, over: string) => {
      const fs = require('node:fs') as typeof import('node:fs')
      const membership = keep.membership as Membership
      const opens = async () => {
        await until.until(() => fs.existsSync(start), 'the other stands still')
        const anew = membership[Symbol.asyncIterator]().next()
        try {
          fs.openSync(keep.path as string, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
        } catch {
          // This open fails as before.
        }
        // A new connection means that the host has already noticed the end.
        await anew
        fs.writeFileSync(over, '')
      }
      void opens()
    },
    go,
    gone,
  )
  writeFileSync(go, '')
  blockUntil(() => existsSync(gone), 'the partner has come anew')
  await channel.end()
  t.is((await channel.closed).reason, 'exposed')
  const exposed = { code: 'ERR_RINGFENCE_OBJECT_EXPOSED' }
  await t.throwsAsync(channel.receive(), exposed)
  await t.throwsAsync(channel.send('more'), exposed)
})

test('realtimeSignal must be a realtime signal that the process does not use', async (t) => {
  for (const realtimeSignal of [10, 65, 0, 50.5, '50' as unknown as number]) {
    await t.throwsAsync(join(abstractAddress(), { realtimeSignal }), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  }
  // A process that ignores a signal passes that on through exec.
  const partner = await Partner.start(t, { through: ['env', '--ignore-signal=51', '--'] })
  await t.throwsAsync(partner.join(abstractAddress(), { realtimeSignal: 51 }), {
    code: 'ERR_RINGFENCE_INVALID_ARGUMENT',
    message: /signal 51 is in use: this process ignores it/,
  })
  const address = abstractAddress()
  const joined = joinHere(t, address, { realtimeSignal: 51 })
  await partner.join(address, { realtimeSignal: 52 })
  const number = (evidence: readonly Evidence[]) => evidence.find(({ check }) => check === 'tripwire')?.found
  t.is(number((await joined).evidence), 'by signal 51')
  t.is(number(await partner.run(({ channel }) => channel.evidence)), 'by signal 52')
})
