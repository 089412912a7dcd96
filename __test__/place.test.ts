import { readdirSync } from 'node:fs'
import { join as joinPath } from 'node:path'

import test from 'ava'
import { listen, type Listener, type Options } from 'ringfence'

import { abstractAddress, addressOf, kinds, temporaryDirectory } from './support/address.js'
import type { Kit } from './support/partner-process.js'
import { listenHere, nextChannel, Partner } from './support/partner.js'
import { within } from './support/until.js'

const small: Options = { capacity: 4096 }

/** Runs in the partner: connects until it is refused. */
async function connectAll(kit: Kit, address: string): Promise<{ count: number; code: string; message: string }> {
  const channels = (kit.keep['channels'] ??= []) as unknown[]
  for (;;) {
    try {
      channels.push(await kit.ringfence.connect(address, { capacity: 4096 }))
    } catch (error) {
      const { code, message } = error as { code: string; message: string }
      return { count: channels.length, code, message }
    }
  }
}

test.serial('one process cannot take all slots of a service', async (t) => {
  const address = abstractAddress()
  await listenHere(t, address, { ...small, maxPeers: 16 })
  const greedy = await Partner.start(t)
  const { count, code, message } = await greedy.run(connectAll, address)
  t.deepEqual([count, code], [14, 'ERR_RINGFENCE_ADDRESS_OCCUPIED'])
  t.regex(message, /one process may have no more at once \(maxPeersPerProcess\)/)
  const honest = await Partner.start(t)
  await honest.connect(address, small)
})

test.serial('the limits of slots are options', async (t) => {
  const address = abstractAddress()
  await listenHere(t, address, { ...small, maxPeersPerProcess: 2, maxPeersPerUser: 3 })
  const [first, second] = [await Partner.start(t), await Partner.start(t)]
  t.is((await first.run(connectAll, address)).count, 2)
  const { count, message } = await second.run(connectAll, address)
  t.is(count, 1)
  t.regex(message, /one user may have no more at once \(maxPeersPerUser\)/)
  const invalid = { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }
  await t.throwsAsync(listen(abstractAddress(), { maxPeersPerProcess: 0 }), invalid)
  await t.throwsAsync(listen(abstractAddress(), { maxPeersPerUser: 0.5 }), invalid)
})

for (const kind of kinds) {
  test.serial(`connect with wait survives a service that closes during authorize (${kind})`, async (t) => {
    const address = addressOf(kind, t)
    let asked = () => {}
    const question = new Promise<void>((resolve) => (asked = resolve))
    const policy = {
      authorize: () => {
        asked()
        return new Promise<boolean>(() => {})
      },
    }
    const first = await listen(address, { ...small, policy })
    const agent = await Partner.start(t)
    const patient = agent.connect(address, { ...small, wait: true })
    await within(question, 'authorize is asked')
    await first.close()
    const second = await listenHere(t, address, small)
    await within(patient, 'the next service')
    t.is((await within(nextChannel(second), 'the agent')).peer.pid, agent.pid)
  })
}

test.serial('a relative path stays the same after its process changes its directory', async (t) => {
  const [from, to] = [temporaryDirectory(t), temporaryDirectory(t)]
  const there = joinPath(from, 'socket')
  const service = await Partner.start(t)
  await service.run(
    async (kit: Kit, begin: string, end: string) => {
      process.chdir(begin)
      const listening = kit.ringfence.listen('socket', { capacity: 4096 })
      process.chdir(end)
      kit.keep['listener'] = await listening
    },
    from,
    to,
  )
  t.deepEqual(readdirSync(from).sort(), ['socket', 'socket.lock'])
  t.deepEqual(readdirSync(to), [])
  const living = await listenHere(t, joinPath(to, 'socket'), small)
  const agent = await Partner.start(t)
  await agent.connect(there, small)
  await service.run((kit: Kit) => (kit.keep['listener'] as Listener).close())
  t.deepEqual(readdirSync(from), [])
  t.deepEqual(readdirSync(to).sort(), ['socket', 'socket.lock'])
  await living.close()
  t.deepEqual(readdirSync(to), [])
})
