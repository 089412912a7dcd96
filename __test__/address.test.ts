import { existsSync, readdirSync, statSync } from 'node:fs'
import { dirname } from 'node:path'

import test from 'ava'
import { join } from 'ringfence'

import { isBound, namedAddress, untilBound } from './support/address.js'
import { joinHere, pair, Partner } from './support/partner.js'

const withRoot = process.getuid!() === 0 ? test.serial : test.serial.skip

test.serial('a socket has the mode 0600 from the start, whatever the umask', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  await partner.run(() => void process.umask(0))
  void partner.join(address)
  await untilBound(address)
  t.is(statSync(address).mode & 0o777, 0o600)
})

for (const mode of [0o600, 0o660, 0o666, 0o000, 0o777]) {
  test.serial(`a socket has the mode 0${mode.toString(8).padStart(3, '0')} if that is requested`, async (t) => {
    const address = namedAddress(t)
    const partner = await Partner.start(t)
    await partner.run(() => void process.umask(0o077))
    void partner.join(address, { mode })
    await untilBound(address, mode)
    t.is(statSync(address).mode & 0o777, mode)
  })
}

withRoot('a socket has the group that is asked for, by number or by name', async (t) => {
  for (const [group, gid] of [
    [12, 12],
    ['root', 0],
    ['daemon', 1],
  ] as const) {
    const { address } = await pair(t, { address: namedAddress(t), options: { group, mode: 0o660 } })
    t.is(statSync(address).gid, gid)
  }
})

test.serial('only the owner may use the lock beside a socket', async (t) => {
  const { address } = await pair(t, { address: namedAddress(t), options: { mode: 0o666 } })
  t.is(statSync(`${address}.lock`).mode & 0o777, 0o600)
})

test.serial('a close leaves no file behind, whichever side closes', async (t) => {
  for (const who of ['here', 'there'] as const) {
    const address = namedAddress(t)
    const { channel, partner } = await pair(t, { address })
    t.deepEqual(readdirSync(dirname(address)).sort(), ['meet.sock', 'meet.sock.lock'])
    if (who === 'here') await channel.close()
    else await partner.run((kit) => kit.channel.close())
    await channel.closed
    await partner.run(async (kit) => (await kit.channel.closed).reason)
    t.deepEqual(readdirSync(dirname(address)), [])
  }
})

test.serial('a join that is cancelled or refused leaves no file behind', async (t) => {
  const address = namedAddress(t)
  const over = new AbortController()
  const joined = join(address, { signal: over.signal })
  await untilBound(address)
  over.abort()
  await t.throwsAsync(joined, { code: 'ABORT_ERR' })
  await t.throwsAsync(join(address, { capacity: 2 ** 50 }), { code: 'ERR_RINGFENCE_NO_SPACE' })
  await t.throwsAsync(join(address, { group: 'no-such-group' }), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  t.deepEqual(readdirSync(dirname(address)), [])
})

test.serial('the socket of a killed host is taken over', async (t) => {
  const address = namedAddress(t)
  for (const moment of ['while it waited', 'while it had a partner'] as const) {
    const dead = await Partner.start(t)
    const joined = dead.join(address)
    await untilBound(address)
    if (moment === 'while it had a partner') {
      const guest = await Partner.start(t)
      await guest.join(address)
      await joined
      await dead.kill()
      t.is(await guest.run(async (kit) => (await kit.channel.closed).reason), 'lost')
    } else {
      await dead.kill()
    }
    t.true(existsSync(address), 'it is stale')
    t.false(isBound(address))

    const { channel } = await pair(t, { address })
    await channel.close()
  }
})

test.serial('a path that begins with @ is a path if it is written as one', async (t) => {
  const directory = dirname(namedAddress(t))
  const partner = await Partner.start(t)
  await partner.run((_, where: string) => process.chdir(where), directory)
  const joined = partner.join('./@meet')
  const channel = await joinHere(t, `${directory}/@meet`)
  await joined
  t.is(channel.peer.pid, partner.pid)
})
