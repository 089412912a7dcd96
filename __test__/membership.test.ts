// Members of an address: if one leaves, the other takes the place and loses nothing.

import { once } from 'node:events'
import { existsSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import { join, member, Membership, type Channel, type Closed, type Options, type RingfenceError } from 'ringfence'

import { abstractAddress, addressOf, isBound, kinds, namedAddress, untilBound } from './support/address.js'
import { Partner } from './support/partner.js'
import { RustPartner, rustPartner } from './support/rust.js'
import { terminateWorkers } from './support/terminate-workers.js'
import { isPending, within, blockUntil, until } from './support/until.js'

const small: Options = { capacity: 4096 }

/** A member in this process, which leaves when the test ends. */
async function memberHere(t: ExecutionContext, address: string, options: Options = small): Promise<Membership> {
  const membership = await member(address, options)
  t.teardown(() => membership.close())
  return membership
}

/** The next partner's channel. */
async function nextOf(membership: Membership): Promise<Channel> {
  const { value } = await within(membership[Symbol.asyncIterator]().next(), 'a partner')
  if (value === undefined) throw new Error('the membership is over')
  return value
}

/** A member in the partner, which records its events. */
async function memberThere(partner: Partner, address: string, options: Options = small): Promise<string> {
  return partner.run(
    async (kit, where: string, how: Options) => {
      const membership = await kit.ringfence.member(where, how)
      const events: string[] = []
      membership.on('connection', (channel) => events.push(`channel ${channel.role} ${channel.peer.pid}`))
      membership.on('role', (role) => events.push(`role ${role}`))
      membership.on('close', ({ error }) => events.push(`close ${error === undefined ? '' : error.code}`))
      Object.assign(kit.keep, { membership, events })
      return membership.role
    },
    address,
    options,
  )
}

const roleThere = (partner: Partner) => partner.run((kit) => (kit.keep['membership'] as Membership).role)
const eventsThere = (partner: Partner) => partner.run((kit) => kit.keep['events'] as string[])
const leaveThere = (partner: Partner) => partner.run((kit) => (kit.keep['membership'] as Membership).close())
const channelThere = (partner: Partner) =>
  partner.run((kit) => {
    const membership = kit.keep['membership'] as Membership
    return kit.until.until(() => membership.channel !== undefined, 'it hears of its partner')
  })
const sendFrom = async (partner: Partner, words: string[]) => {
  await channelThere(partner)
  await partner.run((kit, all: string[]) => {
    const { channel } = kit.keep['membership'] as Membership
    return Promise.all(all.map((word) => channel!.send(word))).then(() => {})
  }, words)
}

async function readAll(channel: Channel): Promise<string[]> {
  const words: string[] = []
  for await (const message of channel) words.push(String(message))
  return words
}

/** The messages that a lost peer has left. */
async function readAllOfLost(t: ExecutionContext, channel: Channel): Promise<string[]> {
  const words: string[] = []
  const reading = (async () => {
    for await (const message of channel) words.push(String(message))
  })()
  await t.throwsAsync(reading, { code: 'ERR_RINGFENCE_PEER_LOST' })
  return words
}

for (const kind of kinds) {
  test.serial(`the guest takes the place of a host that leaves, at ${kind} addresses`, async (t) => {
    const address = addressOf(kind, t)
    const first = await Partner.start(t)
    t.is(await memberThere(first, address), 'host')
    const here = await memberHere(t, address)
    t.is(here.role, 'guest')
    t.is(here.address, address)
    const channel = await nextOf(here)
    t.is(here.channel, channel)
    t.is(channel.role, 'guest')
    t.is(channel.peer.pid, first.pid)
    t.true(channel.evidence.some(({ step, check }) => step === 'ready' && check === 'address'))
    await until(async () => (await eventsThere(first)).length === 1, 'the host hears of its guest')
    await sendFrom(first, ['one', 'two'])
    const role = once(here, 'role')
    await leaveThere(first)
    // The place is taken over before the close resolves.
    t.deepEqual(await within(role, 'the role'), ['host'])
    t.is(here.role, 'host')
    t.is((await channel.closed).reason, 'closed')
    t.is(here.channel, undefined)
    t.deepEqual(await readAll(channel), ['one', 'two'])
    t.deepEqual(await eventsThere(first), [`channel host ${process.pid}`, 'close '])

    // The second process is killed as a guest, then as a host.
    const second = await Partner.start(t)
    t.is(await memberThere(second, address), 'guest')
    const next = await nextOf(here)
    t.is(next.role, 'host')
    t.is(next.peer.pid, second.pid)
    await until(async () => (await eventsThere(second)).length === 1, 'a guest comes with its channel')
    await sendFrom(second, ['three'])
    await second.kill()
    t.is((await next.closed).reason, 'lost')
    t.deepEqual(await readAllOfLost(t, next), ['three'])
    t.is(here.channel, undefined)

    const third = await Partner.start(t)
    t.is(await memberThere(third, address), 'guest')
    await nextOf(here)
    await here.close()
    await until(async () => (await roleThere(third)) === 'host', 'the guest is the host')
    await leaveThere(third)
    t.false(isBound(address))
    if (kind === 'named') t.deepEqual(readdirSync(dirname(address)), [])
  })

  test.serial(`the guest takes the place of a killed host, at ${kind} addresses`, async (t) => {
    const address = addressOf(kind, t)
    const host = await Partner.start(t)
    await memberThere(host, address)
    const here = await memberHere(t, address)
    const channel = await nextOf(here)
    await sendFrom(host, ['last words'])
    const role = once(here, 'role')
    await host.kill()
    t.deepEqual(await within(role, 'the role'), ['host'])
    t.is((await channel.closed).reason, 'lost')
    t.deepEqual(await readAllOfLost(t, channel), ['last words'])
    const next = await Partner.start(t)
    t.is(await memberThere(next, address), 'guest')
    t.is((await nextOf(here)).peer.pid, next.pid)
  })

  test.serial(`a third process is refused, or waits for its turn, at ${kind} addresses`, async (t) => {
    const address = addressOf(kind, t)
    const here = await memberHere(t, address)
    const refused = once(here, 'refused')
    const [second, third] = await Promise.all([Partner.start(t), Partner.start(t)])
    await memberThere(second, address)
    await nextOf(here)
    await t.throwsAsync(memberThere(third, address), {
      code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED',
      message: /two members hold it already/,
    })
    const [refusal] = (await refused) as [RingfenceError & { identity: { pid: number } }]
    t.is(refusal.code, 'ERR_RINGFENCE_ADDRESS_OCCUPIED')
    t.is(refusal.identity.pid, third.pid)
    const patient = memberThere(third, address, { ...small, wait: true })
    t.true(await isPending(patient))
    await here.close()
    t.is(await within(patient, 'its turn'), 'guest')
    await until(async () => (await roleThere(second)) === 'host', 'it is notified that it is the host')
    t.is(await third.run((kit) => (kit.keep['membership'] as Membership).channel!.peer.pid), second.pid)
  })
}

test.serial('a process that closes a channel without leaving keeps its place', async (t) => {
  const address = abstractAddress()
  const here = await memberHere(t, address)
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  for (let round = 0; round < 6; round += 1) {
    const channel = await nextOf(here)
    t.is(channel.peer.pid, partner.pid)
    if (round % 2 === 0) await channel.close()
    const there = await partner.run(
      async (kit, closes: boolean) => {
        const { value } = await (kit.keep['membership'] as Membership)[Symbol.asyncIterator]().next()
        if (closes) await value!.close()
        return (await value!.closed).reason
      },
      round % 2 === 1,
    )
    t.is(there, 'closed')
    t.is((await channel.closed).reason, 'closed')
  }
  await nextOf(here)
  t.is(here.role, 'host')
  t.is(await roleThere(partner), 'guest')
  t.false((await eventsThere(partner)).some((event) => event.startsWith('role')))
})

test.serial('leaving sends what was sent before, rejects pending calls, and ends loops', async (t) => {
  const address = abstractAddress()
  const here = await member(address, small)
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  const channel = await nextOf(here)
  const loop = (async () => {
    for await (const other of here) t.fail(`${other.peer.pid} came`)
  })()
  const closed = once(here, 'close')
  // These fit into the ring; the following ones do not.
  const fit = ['a', 'b', 'c'].map((word) => channel.send(word))
  const stuck = channel.send(new Uint8Array(20_000))
  const leaving = here.close()
  t.is(here.close(), leaving)
  await t.throwsAsync(channel.send('later'), { code: 'ERR_RINGFENCE_CLOSED' })
  await Promise.all(fit)
  await t.throwsAsync(stuck, { code: 'ERR_RINGFENCE_CLOSED' })
  await leaving
  await loop
  t.deepEqual(await closed, [{ reason: 'closed' }])
  t.is(here.channel, undefined)
  t.is((await channel.closed).reason, 'closed')
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_CLOSED' })
  t.deepEqual(await here[Symbol.asyncIterator]().next(), { done: true, value: undefined })
  const words = await partner.run(async (kit) => {
    const { value } = (await (kit.keep['membership'] as Membership)[Symbol.asyncIterator]().next()) as {
      value: Channel
    }
    const all: string[] = []
    try {
      for await (const message of value) all.push(String(message))
    } catch (error) {
      all.push((error as { code: string }).code)
    }
    return all
  })
  // The member has left with unsent messages.
  t.deepEqual(words, ['a', 'b', 'c', 'ERR_RINGFENCE_PEER_LOST'])
  await until(async () => (await roleThere(partner)) === 'host', 'it has the address')
})

test.serial('a host whose partner has ended its sending hands the address over', async (t) => {
  const address = namedAddress(t)
  const here = await member(address, { ...small, allowHalfOpen: true })
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  const channel = await nextOf(here)
  await partner.run((kit) => {
    const membership = kit.keep['membership'] as Membership
    return kit.until
      .until(() => membership.channel !== undefined, 'it has the channel')
      .then(() => membership.channel!.end())
  })
  t.is(await channel.receive(), undefined)
  const { ino } = statSync(address)
  await here.close()
  await until(async () => (await roleThere(partner)) === 'host', 'it has the address')
  t.is(statSync(address).ino, ino, 'the address was never free')
})

test.serial('if a guest leaves, the host takes the next one; await using leaves', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  for (let round = 0; round < 5; round += 1) {
    await using here = await member(address, small)
    t.is(here.role, 'guest')
    t.is((await nextOf(here)).peer.pid, partner.pid)
  }
  t.is(await roleThere(partner), 'host')
  await leaveThere(partner)
  t.deepEqual(readdirSync(dirname(address)), [])
})

test.serial('a member may leave and join a hundred times, and leaks no descriptor', async (t) => {
  const address = namedAddress(t)
  const [one, other] = await Promise.all([Partner.start(t), Partner.start(t)])
  const come = (partner: Partner) => memberThere(partner, address, { ...small, wait: true })
  const descriptors = (partner: Partner) =>
    partner.run((kit) => {
      const { readdirSync: list } = kit.require('node:fs') as typeof import('node:fs')
      return list('/proc/self/fd').length
    })
  await come(one)
  await come(other)
  let before: number[] = []
  for (let round = 0; round <= 100; round += 1) {
    const leaves = round % 2 === 0 ? one : other
    const stays = round % 2 === 0 ? other : one
    await leaveThere(leaves)
    await until(async () => (await roleThere(stays)) === 'host', 'the other is the host')
    t.is(await come(leaves), 'guest')
    if (round !== 10) continue
    // The host may have its channel later than the guest, and has one descriptor more.
    await Promise.all([one, other].map(channelThere))
    before = await Promise.all([one, other].map(descriptors))
  }
  await until(async () => {
    const after = await Promise.all([one, other].map(descriptors))
    return after.every((count, index) => count <= before[index]!)
  }, 'no descriptor stays')
})

test.serial('if both leave at the same time, nothing is left', async (t) => {
  const [one, other] = await Promise.all([Partner.start(t), Partner.start(t)])
  for (let round = 0; round < 20; round += 1) {
    const address = namedAddress(t)
    await memberThere(one, address)
    await memberThere(other, address)
    await Promise.all([leaveThere(one), leaveThere(other)])
    t.deepEqual(readdirSync(dirname(address)), [])
  }
})

test.serial('several loops share the channels, and leaving a loop affects nothing else', async (t) => {
  const address = abstractAddress()
  const here = await memberHere(t, address)
  const met: number[] = []
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  for await (const channel of here) {
    await channel.close()
    break
  }
  const loop = async () => {
    for await (const channel of here) {
      met.push(channel.peer.pid)
      await channel.close()
    }
  }
  const loops = [loop(), loop()]
  await until(() => met.length >= 10, 'it has come again and again')
  await here.close()
  await Promise.all(loops)
  t.true(met.every((pid) => pid === partner.pid))
})

test.serial('without a loop the last channels are queued, and from then on none is skipped', async (t) => {
  const address = abstractAddress()
  const here = await memberHere(t, address)
  let met = 0
  here.on('connection', (channel) => {
    met += 1
    void channel.close()
  })
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  // No member has a loop, and that delays no other member.
  await until(() => met >= 40, 'it has come again and again')
  const iterator = here[Symbol.asyncIterator]()
  const counted = met
  for (let count = 0; count < counted + 40 - 16; count += 1) {
    const { value } = (await within(iterator.next(), 'a channel')) as { value: Channel }
    t.is(value.peer.pid, partner.pid)
    if (count === 0) {
      // The other channels are not accepted: the partner waits at the address.
      await until(() => met >= counted + 1, 'one more has come')
      await new Promise((resolve) => setTimeout(resolve, 200))
      t.true(met <= counted + 34, `${met - counted} more have come`)
    }
  }
})

test.serial('an AbortSignal cancels the wait for a place, and nothing else', async (t) => {
  const address = abstractAddress()
  const over = new AbortController()
  const here = await memberHere(t, address, { ...small, signal: over.signal })
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  await nextOf(here)
  const third = await Partner.start(t)
  const waiting = third.run(async (kit, where: string) => {
    const stop = new AbortController()
    kit.keep['stop'] = stop
    await kit.ringfence.member(where, { capacity: 4096, wait: true, signal: stop.signal })
  }, address)
  await once(here, 'refused')
  await third.run((kit) => (kit.keep['stop'] as AbortController).abort())
  await t.throwsAsync(waiting, { code: 'ABORT_ERR' })
  over.abort()
  t.is(here.channel?.peer.pid, partner.pid)
  await t.throwsAsync(member(address, { signal: over.signal }), { code: 'ABORT_ERR' })
})

test.serial('a member meets only members: PROTOCOL names both', async (t) => {
  const address = abstractAddress()
  const here = await memberHere(t, address)
  const refused = once(here, 'refused')
  const stray = await Partner.start(t)
  const both = (host: string, guest: string) =>
    new RegExp(`holds the address called \`${host}\`,.* connected called \`${guest}\`: .* must call \`${host}\``)
  await t.throwsAsync(stray.join(address, small), { code: 'ERR_RINGFENCE_PROTOCOL', message: both('member', 'join') })
  t.regex(((await refused) as [Error])[0].message, both('member', 'join'))
  await here.close()
  const over = new AbortController()
  const joining = join(address, { ...small, signal: over.signal })
  await untilBound(address)
  await t.throwsAsync(memberThere(stray, address), { code: 'ERR_RINGFENCE_PROTOCOL', message: both('join', 'member') })
  over.abort()
  await t.throwsAsync(joining, { code: 'ABORT_ERR' })
})

test.serial('a guest whose host accepts no process loses its place, and learns why', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  await partner.run(async (kit, where: string) => {
    let asked = 0
    const authorize = () => (asked += 1) === 1
    const membership = await kit.ringfence.member(where, { capacity: 4096, policy: { authorize } })
    kit.keep['membership'] = membership
  }, address)
  const here = await memberHere(t, address)
  const channel = await nextOf(here)
  const closed = once(here, 'close')
  await channel.close()
  const [{ reason, error }] = (await within(closed, 'the end')) as [Closed]
  t.is(reason, 'failed')
  t.is(error!.code, 'ERR_RINGFENCE_PEER_REFUSED')
  t.is(error!.check, 'authorize')
  const iterator = here[Symbol.asyncIterator]()
  await t.throwsAsync(iterator.next(), { is: error })
  t.deepEqual(await iterator.next(), { done: true, value: undefined })
})

test.serial('wrong addresses, options and calls are refused', async (t) => {
  await t.throwsAsync(member(5 as unknown as string), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  await t.throwsAsync(member('@x', { waits: true } as Options), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  const Anything = Membership as unknown as new () => Membership
  t.throws(() => new Anything(), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  const address = abstractAddress()
  const here = await memberHere(t, address)
  await t.throwsAsync(member(address), { code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED', message: /itself/ })
  t.is(here.role, 'host')
})

test.serial('a membership keeps its process alive until unref, and again after ref', async (t) => {
  for (const [steps, exits] of [
    [['unref'], true],
    [['unref', 'ref'], false],
    [[], false],
  ] as const) {
    const process_ = await Partner.start(t)
    const address = namedAddress(t)
    await process_.run(
      async (kit, where: string, calls: readonly ('ref' | 'unref')[]) => {
        const membership = await kit.ringfence.member(where)
        for (const call of calls) if (membership[call]() !== membership) throw new Error('not itself')
      },
      address,
      steps,
    )
    const exit = process_.detach()
    if (exits) {
      t.is((await within(exit, 'its exit')).code, 0)
      // It has left when its event loop ended.
      t.deepEqual(readdirSync(dirname(address)), [])
      continue
    }
    const other = await Partner.start(t)
    await memberThere(other, address)
    t.true(await isPending(exit))
    await process_.kill()
  }
})

test.serial('a membership works without libuv, watched by a thread', async (t) => {
  const address = abstractAddress()
  const [one, other] = await Promise.all([Partner.start(t), Partner.start(t)])
  for (const partner of [one, other]) {
    await partner.run(() => void Object.defineProperty(process.versions, 'bun', { value: '1.0.0' }))
  }
  t.is(await memberThere(one, address), 'host')
  t.is(await memberThere(other, address), 'guest')
  await until(async () => (await eventsThere(one)).length === 1, 'they have met')
  await sendFrom(one, ['hello'])
  await leaveThere(one)
  await until(async () => (await roleThere(other)) === 'host', 'the guest is the host')
  t.deepEqual(await eventsThere(other), [`channel guest ${one.pid}`, 'role host'])
})

test.serial('a member in a worker may be terminated at any moment, 30 times', async (t) => {
  const stage = await Partner.start(t, { node: ['--expose-gc'] })
  const other = await Partner.start(t)
  const address = namedAddress(t)
  await other.run(async (kit, where: string) => {
    const membership = await kit.ringfence.member(where, { capacity: 16_384, wait: true })
    kit.keep['membership'] = membership
    kit.keep['met'] = 0
    void (async () => {
      for await (const channel of membership) {
        kit.keep['met'] = (kit.keep['met'] as number) + 1
        void (async () => {
          void channel.send('hello').catch(() => {})
          for await (const message of channel) await channel.send(message)
        })().catch(() => {})
      }
    })()
  }, address)
  const before = await terminateWorkers(stage, address, 'staying', 0, 10)
  const after = await terminateWorkers(stage, address, 'staying', 10, 20)
  t.true(after <= before, `${before} descriptors before, ${after} after`)
  t.true((await other.run((kit) => kit.keep['met'] as number)) > 10)
  await stage.kill()
  // Whatever roles the workers had, the other member still has its place, or takes it now.
  const here = await memberHere(t, address, { capacity: 16_384, wait: true })
  t.is((await nextOf(here)).peer.pid, other.pid)
})

test.serial('a Node process replaces a Rust process, and the reverse', async (t) => {
  const address = namedAddress(t)
  const options: Options = { capacity: 8192, policy: { executable: rustPartner } }
  const start = () => new RustPartner(t, { deed: 'member', address, capacity: 8192, longest: 1000 })
  const first = start()
  t.is(await first.readLine(), 'host')
  const here = await memberHere(t, address, options)
  t.is(here.role, 'guest')
  let channel = await nextOf(here)
  t.is(await first.readLine(), `channel ${process.pid}`)
  t.is(String(await channel.receive()), 'hello')
  const role = once(here, 'role')
  // One message makes it leave.
  await channel.send('leave')
  t.is(await first.readLine(), 'left')
  t.deepEqual(await within(role, 'the role'), ['host'])
  const second = start()
  t.is(await second.readLine(), 'guest')
  channel = await nextOf(here)
  t.is(channel.peer.pid, second.pid)
  t.is(await second.readLine(), `channel ${process.pid}`)
  // It greets first: a partner that has left could not receive a greeting.
  t.is(String(await channel.receive()), 'hello')
  await here.close()
  t.is(await second.readLine(), 'host')
})

test.serial('an exception of a listener is uncaught, and skips no other listener and no later event', async (t) => {
  const address = abstractAddress()
  const here = await memberHere(t, address)
  const there = await Partner.start(t)
  const outcome = there.run(async (kit, where) => {
    const uncaught: string[] = []
    process.on('uncaughtException', (error) => uncaught.push(error.message))
    const membership = await kit.ringfence.member(where)
    membership.on('connection', () => {
      throw new Error('a channel')
    })
    membership.on('connection', () => {
      throw new Error('again')
    })
    membership.on('disconnect', (_, { reason }) => {
      throw new Error(reason)
    })
    // More if this member has joined again already.
    await kit.until.until(() => uncaught.length >= 3, 'all listeners are called')
    await membership.close()
    return { uncaught: uncaught.slice(0, 3), closed: await membership.closed }
  }, address)
  const channel = await nextOf(here)
  await channel.close()
  t.deepEqual(await outcome, { uncaught: ['a channel', 'again', 'closed'], closed: { reason: 'closed' } })
})

test("a partner's 'disconnect' comes before the 'connection' of the next one, even if both are there at once", async (t) => {
  const address = namedAddress(t)
  const here = await memberHere(t, address)
  const partner = await Partner.start(t)
  const back = `${address}.back`
  const outcome = partner.run(
    async (kit, where: string, sign: string) => {
      const fs = kit.require('node:fs') as typeof import('node:fs')
      const membership = await kit.ringfence.member(where)
      const events: string[] = []
      membership.on('disconnect', () => events.push('disconnect'))
      membership.on('connection', () => {
        // The first channel ends and the second one opens while this event loop stands still.
        if (events.push('connection') === 1) kit.until.blockUntil(() => fs.existsSync(sign), 'it is a guest again')
      })
      await kit.until.until(() => events.length >= 3, 'the second channel is there')
      await membership.close()
      return events
    },
    address,
    back,
  )
  await (await nextOf(here)).close()
  await nextOf(here)
  writeFileSync(back, '')
  t.deepEqual(await outcome, ['connection', 'disconnect', 'connection', 'disconnect'])
})

test('messages of a partner are read even if this side ends its sending before it notices the end', async (t) => {
  const address = namedAddress(t)
  const here = await memberHere(t, address)
  const partner = await Partner.start(t)
  await memberThere(partner, address)
  const channel = await nextOf(here)
  await sendFrom(partner, ['one', 'two'])
  const [go, gone] = [`${address}.go`, `${address}.gone`]
  await partner.run(
    (kit, start: string, over: string) => {
      const fs = kit.require('node:fs') as typeof import('node:fs')
      const { membership, events } = kit.keep as { membership: Membership; events: string[] }
      const leaves = async () => {
        await kit.until.until(() => fs.existsSync(start), 'the other stands still')
        await membership.channel!.close()
        // It has reconnected, so its host has already noticed the end.
        await kit.until.until(() => events.filter((event) => event.startsWith('channel')).length === 2, 'it is let in')
        fs.writeFileSync(over, '')
      }
      void leaves()
    },
    go,
    gone,
  )
  writeFileSync(go, '')
  blockUntil(() => existsSync(gone), 'the partner has come anew')
  await channel.end()
  t.is((await channel.closed).reason, 'closed')
  t.deepEqual(await readAll(channel), ['one', 'two'])
})

test.serial('a close flushes what was sent, and the partner reads all of it and a clean end', async (t) => {
  const address = abstractAddress()
  const here = await member(address, { capacity: 4096 })
  const partner = await Partner.start(t)
  await partner.run(async (kit, where: string) => {
    kit.keep['membership'] = await kit.ringfence.member(where)
  }, address)
  await until(() => here.channel !== undefined, 'the partner is there')
  const sent = Array.from({ length: 50 }, (_, number) => here.channel!.send(Buffer.alloc(500, number)))
  const left = here.close({ linger: 60_000 })
  t.true(await isPending(left))
  const count = await partner.run(async (kit) => {
    let read = 0
    for await (const message of (kit.keep['membership'] as Membership).channel!) read += message.length / 500
    return read
  })
  t.is(count, 50)
  await left
  await Promise.all(sent)
})
