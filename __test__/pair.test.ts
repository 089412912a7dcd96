import { getEventListeners } from 'node:events'
import { setTimeout as pause } from 'node:timers/promises'

import test from 'ava'
import { connect, join, RingfenceError, subscribe } from 'ringfence'

import { abstractAddress, addressOf, backings, isBound, kinds, namedAddress, untilBound } from './support/address.js'
import { joinHere, pair, Partner } from './support/partner.js'
import { isPending, until } from './support/until.js'

for (const kind of kinds) {
  const an = kind === 'named' ? 'a named' : 'an abstract'

  for (const backing of backings) {
    test.serial(`two processes meet at ${an} address and exchange messages over ${backing}`, async (t) => {
      const { channel, partner } = await pair(t, { address: addressOf(kind, t), options: { backing } })
      const there = partner.run(async (kit) => {
        await kit.channel.send('from there')
        const heard = String(await kit.channel.receive())
        return { role: kit.channel.role, peer: kit.channel.peer.pid, heard }
      })
      await channel.send('from here')

      t.is(String(await channel.receive()), 'from there')
      const { role, peer, heard } = await there
      t.is(heard, 'from here')
      t.deepEqual([channel.role, role].sort(), ['guest', 'host'])
      t.is(channel.peer.pid, partner.pid)
      t.is(peer, process.pid)
    })
  }

  test.serial(
    `the process that binds ${an} address first is the host, the one that finds it bound the guest`,
    async (t) => {
      const address = addressOf(kind, t)
      const partner = await Partner.start(t)
      const joined = partner.join(address)
      await untilBound(address)
      const channel = await joinHere(t, address)
      await joined

      t.is(channel.role, 'guest')
      t.is(await partner.run((kit) => kit.channel.role), 'host')
    },
  )

  test.serial(`either process may come first at ${an} address, repeatedly`, async (t) => {
    const address = addressOf(kind, t)
    const partner = await Partner.start(t)
    for (let round = 0; round < 20; round += 1) {
      const { channel } = await pair(t, { address, partner })
      const role = await partner.run((kit) => kit.channel.role)
      t.deepEqual([channel.role, role].sort(), ['guest', 'host'])
      await channel.close()
      t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'closed')
    }
  })

  test.serial(`a third process at ${an} address gets ADDRESS_OCCUPIED at once, and the pair continues`, async (t) => {
    const { channel, partner, address } = await pair(t, { address: addressOf(kind, t) })
    const third = await Partner.start(t)
    const began = performance.now()
    await t.throwsAsync(third.join(address), { code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })
    t.true(performance.now() - began < 5_000, 'sooner than any deadline')

    await channel.send('still here')
    t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still here')
  })

  test.serial(`a process that is joined at ${an} address cannot join there a second time`, async (t) => {
    const { channel, partner, address } = await pair(t, { address: addressOf(kind, t) })
    await t.throwsAsync(join(address), { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })
    const again = partner.run(async (kit, where: string) => void (await kit.join(where)), address)
    await t.throwsAsync(again, { code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })

    await channel.send('still here')
    t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still here')
  })

  test.serial(`of two joins at ${an} address in one process one is ADDRESS_OCCUPIED, the other waits`, async (t) => {
    const address = addressOf(kind, t)
    const joins = [joinHere(t, address), joinHere(t, address)]
    const first = await Promise.race(joins.map((one) => one.catch((error: RingfenceError) => error)))
    t.is((first as RingfenceError).code, 'ERR_RINGFENCE_ADDRESS_OCCUPIED')

    const partner = await Partner.start(t)
    await partner.join(address)
    const results = await Promise.allSettled(joins)
    t.deepEqual(results.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  })

  test.serial(`with wait, a third process at ${an} address waits until the place is free`, async (t) => {
    const { channel, address } = await pair(t, { address: addressOf(kind, t) })
    const third = await Partner.start(t)
    const waiting = third.join(address, { wait: true })
    // A process that does not wait is still refused: the waiting one has not taken the place.
    await t.throwsAsync(join(address), { code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })
    t.true(await isPending(waiting))

    await channel.close()
    const next = await joinHere(t, address, { wait: true })
    await waiting
    t.is(next.peer.pid, third.pid)
  })

  test.serial(
    `at ${an} address an aborted join is an AbortError with the reason, and the address is free`,
    async (t) => {
      const address = addressOf(kind, t)
      const over = new AbortController()
      const joined = join(address, { signal: over.signal })
      await untilBound(address)
      t.is(getEventListeners(over.signal, 'abort').length, 1)
      const reason = new Error('enough')
      over.abort(reason)
      const error = await t.throwsAsync(joined, { instanceOf: RingfenceError, code: 'ABORT_ERR' })

      t.is(error?.cause, reason)
      t.false(isBound(address))
      t.is(getEventListeners(over.signal, 'abort').length, 0)
    },
  )
}

test.serial('a signal that is already aborted is an AbortError before anything is bound', async (t) => {
  const address = abstractAddress()
  const reason = new Error('never mind')
  const joined = join(address, { signal: AbortSignal.abort(reason) })
  t.false(isBound(address))
  const error = await t.throwsAsync(joined, { instanceOf: RingfenceError, code: 'ABORT_ERR' })
  t.is(error?.cause, reason)
})

test.serial('a signal also cancels the wait for a place that is taken', async (t) => {
  const { address } = await pair(t)
  const over = new AbortController()
  const waiting = join(address, { wait: true, signal: over.signal })
  t.true(await isPending(waiting))
  over.abort()
  await t.throwsAsync(waiting, { code: 'ABORT_ERR' })
})

test.serial('AbortSignal.timeout cancels the wait for a partner', async (t) => {
  const error = await t.throwsAsync(join(abstractAddress(), { signal: AbortSignal.timeout(20) }), {
    code: 'ABORT_ERR',
  })
  t.is((error!.cause as Error).name, 'TimeoutError')
})

test.serial('a channel does not depend on the signal of its join', async (t) => {
  const over = new AbortController()
  const partner = await Partner.start(t)
  const address = abstractAddress()
  const [channel] = await Promise.all([join(address, { signal: over.signal }), partner.join(address)])
  t.teardown(() => channel.close())
  t.is(getEventListeners(over.signal, 'abort').length, 0)
  over.abort()

  await channel.send('still here')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still here')
})

for (const kind of kinds) {
  test.serial(`timeout limits the whole call, waiting included, and frees the ${kind} address`, async (t) => {
    const address = addressOf(kind, t)
    const error = await t.throwsAsync<RingfenceError>(join(address, { timeout: 20 }), {
      instanceOf: RingfenceError,
      code: 'ERR_RINGFENCE_TIMEOUT',
    })
    t.regex(
      error!.message,
      /^join did not succeed within its timeout of 20 ms; does a partner join at the same address\?$/,
    )
    t.false(isBound(address))
    const waiting = { wait: true, timeout: 20 }
    await t.throwsAsync(connect(address, waiting), { code: 'ERR_RINGFENCE_TIMEOUT' })
    await t.throwsAsync(subscribe(address, waiting), { code: 'ERR_RINGFENCE_TIMEOUT' })
  })
}

test.serial('a timeout that is not reached leaves the channel alone', async (t) => {
  const { channel, partner } = await pair(t, { here: { timeout: 1e9 } })
  await channel.send('still here')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still here')
})

test.serial('the handshakeTimeout limits a handshake, and not the wait for a partner', async (t) => {
  const over = new AbortController()
  const joined = join(abstractAddress(), { handshakeTimeout: 20, signal: over.signal })
  // No event reports that it keeps waiting, so wait for ten times the timeout.
  await pause(200)
  t.true(await isPending(joined))
  over.abort()
  await t.throwsAsync(joined, { code: 'ABORT_ERR' })
})

for (const kind of kinds) {
  test.serial(`a host that no longer answers at ${kind} addresses is HANDSHAKE_TIMEOUT`, async (t) => {
    const address = addressOf(kind, t)
    const silent = await Partner.start(t)
    void silent.join(address)
    await untilBound(address)
    await silent.stop()
    const error = await t.throwsAsync(join(address, { handshakeTimeout: 100 }), {
      instanceOf: RingfenceError,
      code: 'ERR_RINGFENCE_HANDSHAKE_TIMEOUT',
    })
    t.regex(error!.message, /100 ms.*a longer `handshakeTimeout`/)
  })
}

test.serial('a silent guest does not block the place for the next one', async (t) => {
  const address = namedAddress(t)
  const joined = joinHere(t, address)
  await untilBound(address)
  const silent = await Partner.start(t)
  await silent.run(async (kit, where: string) => {
    const net = kit.require('node:net') as typeof import('node:net')
    const socket = net.connect(where)
    socket.on('error', () => {})
    kit.keep['over'] = new Promise((resolve) => socket.on('close', resolve))
    socket.resume()
    await new Promise((resolve) => socket.on('connect', resolve))
  }, address)

  const partner = await Partner.start(t)
  await partner.join(address)
  t.is((await joined).peer.pid, partner.pid)
  await silent.run((kit) => kit.keep['over'])
  t.pass('the silent process is let go once the place is taken')
})

test.serial('a silent guest is dropped after the timeout, and the host keeps waiting', async (t) => {
  const address = namedAddress(t)
  const joined = joinHere(t, address, { handshakeTimeout: 100 })
  await untilBound(address)
  const silent = await Partner.start(t)
  await silent.run(async (kit, where: string) => {
    const net = kit.require('node:net') as typeof import('node:net')
    const socket = net.connect(where)
    socket.on('error', () => {})
    socket.resume()
    await new Promise((resolve) => socket.on('close', resolve))
  }, address)
  t.true(await isPending(joined))
})

test.serial('backings must agree: PROTOCOL names both, and the host waits for the next guest', async (t) => {
  const address = abstractAddress()
  const joined = joinHere(t, address, { backing: 'shm' })
  await untilBound(address)
  const partner = await Partner.start(t)
  const error = await t.throwsAsync(partner.join(address, { backing: 'memfd' }), { code: 'ERR_RINGFENCE_PROTOCOL' })
  t.regex(error!.message, /memfd/)
  t.regex(error!.message, /shm/)
  t.true(await isPending(joined))

  await partner.join(address, { backing: 'shm' })
  t.is((await joined).peer.pid, partner.pid)
})

test.serial('each sender chooses its capacity, and each receiver its longest message', async (t) => {
  const { channel, partner } = await pair(t, {
    here: { capacity: 8192, maxMessageSize: 3000 },
    there: { capacity: 65536, maxMessageSize: 1_000_000 },
  })
  const there = await partner.run((kit) => [kit.channel.capacity, kit.channel.maxMessageSize])

  t.deepEqual([channel.capacity, channel.maxMessageSize], [8192, 1_000_000])
  t.deepEqual(there, [65536, 3000])
})

test.serial('by default a ring has 4 MiB and a message at most 64', async (t) => {
  const { channel } = await pair(t)
  t.is(channel.capacity, 4 * 1024 * 1024)
  t.is(channel.maxMessageSize, 64 * 1024 * 1024)
})

test.serial('a capacity is rounded up to a power of two of at least 4096', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 1 }, there: { capacity: 100_000 } })
  t.is(channel.capacity, 4096)
  t.is(await partner.run((kit) => kit.channel.capacity), 131_072)
})

test.serial('the identity of the peer is that of the kernel', async (t) => {
  const { channel, partner } = await pair(t)
  const { peer } = channel
  const [uid, gid, groups] = await partner.run(() => [process.geteuid!(), process.getegid!(), process.getgroups!()])
  const { statSync } = await import('node:fs')
  const node = statSync(process.execPath, { bigint: true })

  t.is(peer.pid, partner.pid)
  t.is(peer.uid, uid as number)
  t.is(peer.gid, gid as number)
  if (peer.groups !== undefined)
    t.deepEqual(
      [...new Set([...peer.groups, peer.gid])].sort(),
      [...new Set([...(groups as number[]), peer.gid])].sort(),
    )
  t.deepEqual([peer.executable?.device, peer.executable?.inode], [String(node.dev), String(node.ino)])
})

test.serial('evidence lists every step of the handshake in order, with what each found', async (t) => {
  for (const backing of backings) {
    const { channel } = await pair(t, { options: { backing } })
    const { evidence } = channel
    const order = ['rendezvous', 'credentials', 'executable', 'hello', 'object', 'offer', 'final', 'ready']
    const firsts = [...new Set(evidence.map(({ step }) => step))]

    t.deepEqual(firsts, order)
    t.true(evidence.every(({ outcome, wanted }) => (outcome === 'not-asked') === (wanted === 'not asked for')))
    t.is(evidence.find(({ check }) => check === 'executable')?.outcome, 'passed')
    t.true(evidence.every(({ check, wanted, found }) => check !== '' && wanted !== '' && found !== ''))
    t.true(Object.isFrozen(evidence))
    const checks = (wanted: string) => evidence.filter(({ step }) => step === wanted).map(({ check }) => check)
    t.true(checks('credentials').includes('pid'))
    t.true(checks('executable').includes('executable'))
    t.true(checks('final').includes('executable'), 'the peer is looked at again at the end')
    t.true(checks('object').includes('names') && checks('object').includes('size'))
    t.is(checks('object').includes('sealed'), backing === 'memfd')
    t.is(checks('ready').at(-1), 'descriptors')
    await channel.close()
  }
})

test.serial('the address of a process that dies while it waits can be taken', async (t) => {
  for (const kind of kinds) {
    const address = addressOf(kind, t)
    const dead = await Partner.start(t)
    void dead.join(address)
    await untilBound(address)
    await dead.kill()

    const { channel, partner } = await pair(t, { address })
    t.is(channel.peer.pid, partner.pid)
  }
})

test.serial('joining does not block the event loop', async (t) => {
  let turns = 0
  const timer = setInterval(() => {
    turns += 1
  }, 1)
  t.teardown(() => clearInterval(timer))
  const over = new AbortController()
  const joined = join(abstractAddress(), { signal: over.signal })
  await until(() => turns > 20, 'timers have fired while no guest came')
  t.true(await isPending(joined))
  over.abort()
  await t.throwsAsync(joined, { code: 'ABORT_ERR' })
})
