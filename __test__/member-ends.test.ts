// A membership over a binding of the test's own: what it tells of partners, roles and tokens, and how it ends.

import test from 'ava'
import type { Channel, Membership, RingfenceError } from 'ringfence'

import { ENDED, type Binding } from './support/channel.js'
import { comer, exits, member, stays } from './support/standing.js'
import { beginsHere } from './support/binding.js'
import { codeOf } from './support/ring.js'
import { isPending, turn } from './support/until.js'

const over = { done: true, value: undefined }

/** What is told, in short. */
function told(membership: Membership): string[] {
  const events: string[] = []
  membership.on('channel', ({ peer }) => events.push(`channel ${peer.pid}`))
  membership.on('role', (role) => events.push(role))
  membership.on('refused', ({ code }) => events.push(code))
  membership.on('close', (reason) => events.push(`close ${reason?.message}`))
  return events
}

/** Tokens that the peer sends. */
function tokensOf(binding: Binding) {
  const waiting: bigint[] = []
  let bell: (() => void) | null = null
  let ended = false
  Object.assign(binding.answers, {
    token: () => waiting.shift() ?? (ended ? ENDED : 0),
    watchTokens: (hear: () => void) => {
      bell = hear
      return 0
    },
    unwatchTokens: () => {
      bell = null
      return 0
    },
  })
  return {
    send(...tokens: bigint[]) {
      waiting.push(...tokens)
      while (bell !== null && waiting.length > 0) (bell as () => void)()
    },
    end: () => void (ended = true),
  }
}

test.serial('what comes with the place is told once its caller can listen, and all in its order', async (t) => {
  const [partner, next] = [comer(1), comer(2)]
  const { membership, standing } = await stays(t, { events: [partner.raw, 'guest'] })
  const events = told(membership)
  t.is(membership.role, 'guest')
  t.is(membership.channel?.peer.pid, 1)
  standing.tell('host', { code: 'PROTOCOL', message: 'as the binding says' }, next.raw)
  t.is(membership.role, 'host')
  t.deepEqual(events, [])
  await turn()
  t.deepEqual(events, ['channel 1', 'guest', 'host', 'ERR_RINGFENCE_PROTOCOL', 'channel 2'])
  standing.tell('guest')
  t.deepEqual(events.slice(5), ['guest'])
  t.is(membership.unref().ref(), membership)
  t.deepEqual(standing.since(), ['keep alive 0', 'keep alive 1'])

  // The end of one that has gone before is nothing to the next.
  t.is(membership.channel?.peer.pid, 2)
  partner.end('exited', 1)
  await turn()
  t.is(membership.channel?.peer.pid, 2)
  next.end('exited', 1)
  await turn()
  t.is(membership.channel, null)
})

test.serial('one that leaves closes its channel, and is through once the binding is', async (t) => {
  for (const leavesAtOnce of [true, false])
    for (const withPartner of [true, false]) {
      const partner = comer(1)
      const { membership, standing } = await stays(t, { events: withPartner ? [partner.raw] : [] })
      await turn()
      const events = told(membership)
      standing.leavesAtOnce = leavesAtOnce
      const channel = membership.channel
      const sent = channel?.send('before')
      const loop = membership[Symbol.asyncIterator]()
      if (withPartner) await loop.next()
      const waits = loop.next()
      const left = membership.leave()
      t.is(membership.leave(), left, 'once')
      if (!leavesAtOnce) {
        t.true(await isPending(left))
        if (channel !== null)
          await t.throwsAsync(channel.send('late'), { ...codeOf('CLOSED'), message: 'the channel is closed' })
        standing.left!()
      }
      await left
      await sent
      t.deepEqual(await waits, over)
      t.is(await membership.closed, null)
      if (withPartner) t.is(await channel!.closed, 'closed')
      t.deepEqual(events, ['close undefined'])
      t.deepEqual(standing.since(), ['leave'])
      await membership[Symbol.asyncDispose]()
      standing.bell()
      t.deepEqual(standing.asked, [], 'that was all')
    }
})

test.serial('channels that nobody has taken go with the place, and stay where it was lost', async (t) => {
  for (const loses of [false, true]) {
    const { membership, standing } = await stays(t)
    await turn()
    const events = told(membership)
    standing.tell(...Array.from({ length: 18 }, (_, pid) => comer(pid).raw))
    t.deepEqual(standing.since(), [], 'the last ones are kept, and no newcomer waits')
    if (loses) {
      standing.fail()
      t.deepEqual(standing.since(), ['close'])
      t.is((await membership.closed)?.message, 'as the binding says')
    } else await membership[Symbol.asyncDispose]()
    t.is(events.at(-1), loses ? 'close as the binding says' : 'close undefined')
    const loop = membership[Symbol.asyncIterator]()
    if (loses) {
      for (let pid = 2; pid < 18; pid += 1) t.is(((await loop.next()) as { value: Channel }).value.peer.pid, pid)
      await t.throwsAsync(loop.next(), { message: 'as the binding says' })
      await membership.leave()
      t.deepEqual(standing.since(), [], 'there is no place to leave')
    }
    t.deepEqual(await loop.next(), over)
    standing.since()
    standing.bell()
    t.deepEqual(standing.asked, [])
  }
  // Lost on the way out: that is why, and not that it has left.
  const { membership, standing } = await stays(t)
  standing.tell(comer(1).raw)
  standing.leavesAtOnce = false
  const left = membership.leave()
  standing.fail()
  standing.left!()
  await left
  t.is((await membership.closed)?.message, 'as the binding says')
  t.is(((await membership[Symbol.asyncIterator]().next()) as { value: Channel }).value.peer.pid, 1)
})

test.serial('tokens are events as long as somebody listens, and else the channel’s own', async (t) => {
  const partner = comer(1)
  const tokens = tokensOf(partner)
  const { membership, standing } = await stays(t)
  await turn()
  membership.once('token', () => t.fail())
  membership.removeAllListeners('token')
  standing.tell(partner.raw)
  const heard: bigint[] = []
  const hear = (token: bigint) => void heard.push(token)
  membership.on('refused', () => {})
  tokens.send(1n)
  const loop = membership.channel!.tokens()[Symbol.asyncIterator]()
  t.deepEqual(await loop.next(), { done: false, value: 1n }, 'nobody has listened')
  membership.on('token', hear)
  membership.on('token', hear)
  tokens.send(2n, 3n)
  await turn()
  t.deepEqual(heard, [2n, 2n, 3n, 3n], 'each once for each')
  membership.off('token', hear)
  tokens.send(4n)
  await turn()
  t.deepEqual(heard.slice(4), [4n])
  membership.off('token', hear)
  tokens.send(5n, 6n)
  t.deepEqual(
    [await loop.next(), await loop.next()].map(({ value }) => value),
    [5n, 6n],
  )
  // One that listens once has one.
  tokens.send(7n, 8n)
  t.deepEqual(await new Promise((resolve) => membership.once('token', resolve)), 7n)
  t.deepEqual(await loop.next(), { done: false, value: 8n })

  // The next partner's as well; the last ones of one that has gone are not lost by that.
  membership.on('token', hear)
  await turn()
  const next = comer(2)
  const nexts = tokensOf(next)
  heard.length = 0
  tokens.send(9n, 10n, 11n)
  partner.end('closed', 1)
  standing.tell(next.raw)
  nexts.send(12n)
  await turn()
  nexts.send(13n)
  await turn()
  t.deepEqual(
    heard.sort((a, b) => Number(a - b)),
    [9n, 10n, 11n, 12n, 13n],
  )
  // Where tokens cannot be waited for, that is told.
  const last = comer(3)
  last.fail('watchTokens', 'NO_SPACE')
  const refused = new Promise<RingfenceError>((resolve) => membership.once('refused', resolve))
  standing.tell(last.raw)
  t.is((await refused).code, 'ERR_RINGFENCE_NO_SPACE')
  // A listener that comes between two partners.
  last.end('exited', 1)
  await turn()
  t.is(membership.channel, null)
  membership.on('token', hear)
  await turn()
})

test.serial('a process that exits leaves its place, also to a partner, which may exit as well', async (t) => {
  const alone = await stays(t, { address: '/somewhere' })
  const followed = await stays(t, { address: '/somewhere', events: [comer(1).raw] })
  const left = await stays(t, { address: '/somewhere' })
  await left.membership.leave()
  for (const { standing } of [alone, followed, left]) standing.since()
  exits()
  t.deepEqual(
    [alone, followed, left].map(({ standing }) => standing.since()),
    [['vacate'], ['vacate'], []],
  )
})

test.serial('memberships are made by member', async (t) => {
  const { membership } = await stays(t)
  t.throws(() => Reflect.construct(membership.constructor, [Symbol('ringfence'), { native: {} }]) as unknown, {
    ...codeOf('INVALID_ARGUMENT'),
    message: /^memberships are made by member/,
  })
  const all = beginsHere(t)
  void member('@somewhere')
  await Promise.resolve()
  t.is(all[0]!.name, 'member')
})
