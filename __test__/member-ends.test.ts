// A membership over a fake binding: its events, its role, and how it ends.

import { inspect } from 'node:util'

import test from 'ava'
import type { Channel, Closed, Membership } from 'ringfence'

import { incomingChannel, runExitHandlers, member, openMembership } from './support/fake-endpoint.js'
import { captureHandshakes } from './support/binding.js'
import { codeOf } from './support/ring.js'
import { isPending, turn } from './support/until.js'

const over = { done: true, value: undefined }

const closedBy = ({ reason, error }: Closed) => (error === undefined ? reason : `${reason}: ${error.message}`)

/** The events of a membership, in short. */
function told(membership: Membership): string[] {
  const events: string[] = []
  membership.on('connection', ({ peer }) => events.push(`channel ${peer.pid}`))
  membership.on('disconnect', ({ peer }, { reason }) => events.push(`${reason} ${peer.pid}`))
  membership.on('role', (role) => events.push(role))
  membership.on('refused', ({ code }) => events.push(code))
  membership.on('close', (closed) => events.push(`close ${closedBy(closed)}`))
  return events
}

test.serial('events that arrive with the place are reported in order, once the caller can listen', async (t) => {
  const [partner, next] = [incomingChannel(1), incomingChannel(2)]
  const { membership, endpoint } = await openMembership(t, { events: [partner.raw, 'guest'] })
  const events = told(membership)
  t.is(membership.role, 'guest')
  t.is(membership.channel?.peer.pid, 1)
  endpoint.emit('host', { code: 'PROTOCOL', message: 'as the binding says' }, next.raw)
  t.is(membership.role, 'host')
  t.deepEqual(events, [])
  await turn()
  t.deepEqual(events, ['channel 1', 'guest', 'host', 'ERR_RINGFENCE_PROTOCOL'])
  endpoint.emit('guest')
  t.deepEqual(events.slice(4), ['guest'])
  t.is(membership.unref().ref(), membership)
  t.deepEqual(endpoint.newCalls(), ['keep alive 0', 'keep alive 1'])

  // The end of an earlier partner does not affect the next one.
  t.is(membership.channel?.peer.pid, 2)
  partner.end('lost')
  await turn()
  t.is(membership.channel?.peer.pid, 2)
  t.deepEqual(events.slice(5), ['lost 1', 'channel 2'])
  next.end('lost')
  await turn()
  t.deepEqual(events.slice(7), ['lost 2'])
  t.is(membership.channel, undefined)
})

test.serial(
  'partners are reported one after the other, whatever a loop does with them, and none after the end',
  async (t) => {
    for (const ends of ['partner', 'membership'] as const) {
      const [partner, next] = [incomingChannel(1), incomingChannel(2)]
      const { membership, endpoint } = await openMembership(t, { events: [partner.raw] })
      const events = told(membership)
      const loop = membership[Symbol.asyncIterator]()
      await loop.next()
      await turn()
      t.deepEqual(events, ['channel 1'])
      const second = loop.next()
      endpoint.emit(next.raw)
      const channel = (await second).value!
      if (ends === 'partner') {
        channel.destroy()
        await turn()
        t.deepEqual(events, ['channel 1'], 'the end of the first one is not known yet')
        partner.end('lost')
        await turn()
        t.deepEqual(events.slice(1), ['lost 1', 'channel 2', 'closed 2'])
      } else {
        membership.destroy()
        await turn()
        t.is((await channel.closed).reason, 'closed')
        t.deepEqual(events.slice(1).sort(), ['close closed', 'closed 1'])
      }
    }
  },
)

test.serial('a member that leaves closes its channel, and has left once the binding has', async (t) => {
  for (const leavesAtOnce of [true, false])
    for (const withPartner of [true, false]) {
      const partner = incomingChannel(1)
      const { membership, endpoint } = await openMembership(t, { events: withPartner ? [partner.raw] : [] })
      await turn()
      const events = told(membership)
      endpoint.leavesImmediately = leavesAtOnce
      const channel = membership.channel
      const sent = channel?.send('before')
      const loop = membership[Symbol.asyncIterator]()
      if (withPartner) await loop.next()
      const waits = loop.next()
      const left = membership.close()
      t.is(membership.close(), left, 'once')
      await t.throwsAsync(membership.close({ linger: -1 }), codeOf('INVALID_ARGUMENT'))
      if (!leavesAtOnce) {
        t.true(await isPending(left))
        if (channel !== undefined)
          await t.throwsAsync(channel.send('late'), { ...codeOf('CLOSED'), message: 'the channel is closed' })
        endpoint.onLeft!()
      }
      await left
      await sent
      t.deepEqual(await waits, over)
      t.deepEqual(await membership.closed, { reason: 'closed' })
      if (withPartner) t.is((await channel!.closed).reason, 'closed')
      t.deepEqual(events, [...(withPartner ? ['closed 1'] : []), 'close closed'])
      t.deepEqual(endpoint.newCalls(), ['leave'])
      await membership[Symbol.asyncDispose]()
      endpoint.onWakeup()
      t.deepEqual(endpoint.calls, [], 'that was all')
    }
})

test.serial('unclaimed channels are closed with the membership, and stay open if the place was lost', async (t) => {
  for (const loses of [false, true]) {
    const { membership, endpoint } = await openMembership(t)
    await turn()
    const events = told(membership)
    endpoint.emit(...Array.from({ length: 18 }, (_, pid) => incomingChannel(pid).raw))
    t.deepEqual(endpoint.newCalls(), [], 'the last ones are kept, and no newcomer waits')
    if (loses) {
      endpoint.fail()
      t.deepEqual(endpoint.newCalls(), ['close'])
      t.is(closedBy(await membership.closed), 'failed: as the binding says')
    } else await membership[Symbol.asyncDispose]()
    t.is(events.at(-1), loses ? 'close failed: as the binding says' : 'close closed')
    const loop = membership[Symbol.asyncIterator]()
    if (loses) {
      for (let pid = 2; pid < 18; pid += 1) t.is(((await loop.next()) as { value: Channel }).value.peer.pid, pid)
      await t.throwsAsync(loop.next(), { message: 'as the binding says' })
      await membership.close()
      t.deepEqual(endpoint.newCalls(), [], 'there is no place to leave')
    }
    t.deepEqual(await loop.next(), over)
    endpoint.newCalls()
    endpoint.onWakeup()
    t.deepEqual(endpoint.calls, [])
  }
  // If the place is lost while leaving, that is the reason of the end.
  const { membership, endpoint } = await openMembership(t)
  endpoint.emit(incomingChannel(1).raw)
  endpoint.leavesImmediately = false
  const left = membership.close()
  await turn()
  endpoint.fail()
  endpoint.onLeft!()
  await left
  t.is(closedBy(await membership.closed), 'failed: as the binding says')
  t.is(((await membership[Symbol.asyncIterator]().next()) as { value: Channel }).value.peer.pid, 1)
})

test.serial('destroy leaves the place at once, and does not wait for the partner', async (t) => {
  const partner = incomingChannel(1)
  const { membership, endpoint } = await openMembership(t, { events: [partner.raw] })
  await turn()
  t.is(inspect(membership), '<Membership at @somewhere, host, peer 1, open>')
  const events = told(membership)
  const loop = membership[Symbol.asyncIterator]()
  await loop.next()
  partner.newCalls()
  membership.destroy(new Error('why'))
  membership.destroy()
  await membership.close()
  t.deepEqual(endpoint.newCalls(), ['close'])
  t.deepEqual(partner.newCalls('close'), ['close'])
  await t.throwsAsync(loop.next(), { message: 'destroyed: why' })
  t.deepEqual(events, ['closed 1', 'close failed: destroyed: why'])
  t.is(inspect(membership), '<Membership at @somewhere, host, closed: failed>')
})

test.serial('a process that exits leaves its place, even to a partner that exits as well', async (t) => {
  const alone = await openMembership(t, { address: '/somewhere' })
  const followed = await openMembership(t, { address: '/somewhere', events: [incomingChannel(1).raw] })
  const left = await openMembership(t, { address: '/somewhere' })
  await left.membership.close()
  for (const { endpoint } of [alone, followed, left]) endpoint.newCalls()
  runExitHandlers()
  t.deepEqual(
    [alone, followed, left].map(({ endpoint }) => endpoint.newCalls()),
    [['vacate'], ['vacate'], []],
  )
})

test.serial('only member creates memberships', async (t) => {
  const { membership } = await openMembership(t)
  t.throws(() => Reflect.construct(membership.constructor, [Symbol('ringfence'), { native: {} }]) as unknown, {
    ...codeOf('INVALID_ARGUMENT'),
    message: /^memberships are made by member/,
  })
  const all = captureHandshakes(t)
  void member('@somewhere')
  await Promise.resolve()
  t.is(all[0]!.name, 'member')
})
