// What `ringfence top` and `doctor` make of the figures that processes tell: rates, of two snapshots that are far enough apart.

import test, { type ExecutionContext } from 'ava'

import { clock } from './support/clock.js'
import { Partner } from './support/partner.js'
import { isPending, soon, turns, until } from './support/until.js'

type Figures = Record<string, unknown>

interface Watched {
  pid: number
  uid: number
  executable: string
  channels: Figures[]
}

interface Snapshot {
  at: number
}

interface Sources {
  find(only?: ReadonlySet<number>): Promise<void>
  ready(): Promise<void>
  watched(address?: string): Watched[]
  lastTwo(): Map<number, { before: Snapshot; now: Snapshot }>
  close(): Promise<void>
}

const { Sources } = (await import(new URL('../../dist/esm/cli/observed.js', import.meta.url).href)) as {
  Sources: new (patience?: number) => Sources
}

function sourcesOf(t: ExecutionContext, patience?: number): Sources {
  const sources = new Sources(patience)
  t.teardown(() => sources.close())
  return sources
}

/** A process that tells what a test has it tell. */
async function teller(t: ExecutionContext): Promise<Partner> {
  const partner = await Partner.start(t)
  await partner.run(async (kit) => {
    kit.keep['publisher'] = await kit.ringfence.publish(`@ringfence-observe-${process.pid}`, {
      policy: { uid: 'same' },
    })
  })
  return partner
}

const tell = (partner: Partner, at: number, ...channels: Figures[]) =>
  partner.run(
    async (kit, snapshot: object) => {
      const publisher = kit.keep['publisher'] as Awaited<ReturnType<typeof kit.ringfence.publish>>
      await publisher.send(JSON.stringify(snapshot))
    },
    { executable: '/x', at, channels },
  )

const subscribers = (partner: Partner) =>
  partner.run((kit) => (kit.keep['publisher'] as Awaited<ReturnType<typeof kit.ringfence.publish>>).subscribers.length)

const channel = { id: 1, address: '@x', peer: 2, role: 'host' }
const still = {
  messagesSentPerSecond: 0,
  bytesSentPerSecond: 0,
  messagesReceivedPerSecond: 0,
  bytesReceivedPerSecond: 0,
}

/** What is told has come, with so many messages sent by its first channel. */
const untilCome = (sources: Sources, partner: Partner, messagesSent: number) =>
  until(
    () => sources.watched().find(({ pid }) => pid === partner.pid)?.channels[0]?.['messagesSent'] === messagesSent,
    `${messagesSent} are told`,
  )

test.serial(
  'a rate is told of two snapshots with a quarter of a second between them, by the clock of the process',
  async (t) => {
    const partner = await teller(t)
    const sources = sourcesOf(t)
    const only = new Set([partner.pid])
    await sources.find(only)
    // Once is enough.
    await sources.find(only)
    t.is(await subscribers(partner), 1)
    t.deepEqual(sources.watched(), [])
    const ready = sources.ready()

    const figures = (messages: number): Figures => ({
      ...channel,
      messagesSent: messages,
      bytesSent: 10 * messages,
      messagesReceived: 2 * messages,
      bytesReceived: 20 * messages,
    })
    await tell(partner, 1000, figures(100))
    await untilCome(sources, partner, 100)
    t.like(sources.watched()[0], { pid: partner.pid, uid: process.geteuid!(), executable: process.execPath })
    t.deepEqual(sources.watched()[0]!.channels, [{ ...figures(100), ...still }])

    clock.now += 249
    await tell(partner, 1001, figures(900))
    await untilCome(sources, partner, 900)
    t.deepEqual(sources.watched()[0]!.channels, [{ ...figures(900), ...still }])
    t.deepEqual(sources.lastTwo(), new Map())
    t.true(await isPending(ready))

    clock.now += 1
    await tell(partner, 3000, figures(1100))
    await untilCome(sources, partner, 1100)
    await soon(ready, 'two that can be compared')
    const rates = {
      messagesSentPerSecond: 500,
      bytesSentPerSecond: 5000,
      messagesReceivedPerSecond: 1000,
      bytesReceivedPerSecond: 10_000,
    }
    t.deepEqual(sources.watched()[0]!.channels, [{ ...figures(1100), ...rates }])
    const { before, now } = sources.lastTwo().get(partner.pid)!
    t.deepEqual([before.at, now.at], [1000, 3000])

    // Close behind the last one: it is compared with the first still. A publisher's figures go into the same rates.
    clock.now += 10
    const publisher = {
      id: 1,
      address: '@p',
      peer: null,
      role: 'publisher',
      messagesSent: 1000,
      published: 1100,
      bytesPublished: 2000,
    }
    await tell(partner, 5000, publisher, { ...figures(7), id: 2 })
    await untilCome(sources, partner, 1000)
    t.deepEqual(sources.watched()[0]!.channels, [
      {
        ...publisher,
        ...still,
        messagesSentPerSecond: 500,
        bytesSentPerSecond: 250,
        messagesReceivedPerSecond: -50,
        bytesReceivedPerSecond: -500,
      },
      // One that was not there before has no rate.
      { ...figures(7), id: 2, ...still },
    ])
    t.deepEqual(
      sources.watched('@p')[0]!.channels.map(({ id }) => id),
      [1],
    )
    t.deepEqual(sources.watched('@elsewhere'), [])
    await sources.close()
    await until(async () => (await subscribers(partner)) === 0, 'it is not looked at any more')
  },
)

test.serial('where no time has passed by the clock of the process there is no rate', async (t) => {
  const partner = await teller(t)
  const sources = sourcesOf(t)
  await sources.find(new Set([partner.pid]))
  for (const [number, at] of [5000, 5000, 4000].entries()) {
    clock.now += 1000
    await tell(partner, at, { ...channel, messagesSent: number })
    await untilCome(sources, partner, number)
  }
  t.deepEqual(sources.watched()[0]!.channels, [{ ...channel, messagesSent: 2, ...still }])
  t.deepEqual(sources.lastTwo(), new Map())
})

test.serial(
  'one that goes, or tells no figures, is not waited for, and forgotten; others stay, in their order',
  async (t) => {
    const [one, two, three] = (await Promise.all([teller(t), teller(t), teller(t)])).sort((a, b) => b.pid - a.pid) as [
      Partner,
      Partner,
      Partner,
    ]
    const sources = sourcesOf(t)
    const only = new Set([one.pid, two.pid])
    await sources.find(only)
    t.is(await subscribers(three), 0)
    await sources.find(new Set([three.pid]))
    for (const partner of [one, two, three]) {
      await tell(partner, 1000, { ...channel, messagesSent: 1 })
      await untilCome(sources, partner, 1)
    }
    t.deepEqual(
      sources.watched().map(({ pid }) => pid),
      [three.pid, two.pid, one.pid],
    )
    const ready = sources.ready()
    clock.now += 1000
    await tell(one, 2000, { ...channel, messagesSent: 2 })
    await untilCome(sources, one, 2)
    t.true(await isPending(ready))
    await two.run(async (kit) => {
      await (kit.keep['publisher'] as Awaited<ReturnType<typeof kit.ringfence.publish>>).send('no figures')
    })
    await three.kill()
    await soon(ready, 'that no more is waited for')
    await until(async () => (await sources.find(new Set()), sources.watched().length === 1), 'the others are forgotten')
    t.deepEqual(
      sources.watched().map(({ pid }) => pid),
      [one.pid],
    )
    await until(async () => (await subscribers(two)) === 0, 'it is let go of')
    // It is asked anew once it tells some.
    await tell(two, 3000, { ...channel, messagesSent: 5 })
    await sources.find(new Set([two.pid]))
    await untilCome(sources, two, 5)
  },
)

test.serial('a process that is stopped is waited for as long as there is patience', async (t) => {
  const partner = await teller(t)
  const sources = sourcesOf(t, 50)
  await sources.find(new Set([partner.pid]))
  await soon(sources.ready(), 'the end of the patience')
  t.deepEqual(sources.watched(), [])
  partner.stop()
  t.teardown(() => partner.goOn())
  const impatient = sourcesOf(t, 50)
  await soon(impatient.find(new Set([partner.pid])), 'the end of the patience')
  t.deepEqual(impatient.watched(), [])
  partner.goOn()

  // A handshake that is under way is called off.
  const [other, closed] = [await teller(t), sourcesOf(t)]
  other.stop()
  t.teardown(() => other.goOn())
  const finding = closed.find(new Set([other.pid]))
  await turns(2)
  await closed.close()
  await soon(finding, 'its end')
  t.deepEqual(closed.watched(), [])
})
