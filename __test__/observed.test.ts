// Reading statistics in `ringfence top` and `doctor`: which processes they ask, and rates from two snapshots that are far
// enough apart. Over fake processes; observe.test.ts has real ones.

import test, { type ExecutionContext } from 'ava'

import { clock, afterTurn } from './support/clock.js'
import { internals } from './support/internals.js'
import { fails, fakeHost, useFakeFiles, type FakeFiles } from './support/fake-proc.js'
import { Handshakes, MAX_SNAPSHOT, observable, observeAddress, type Figures } from './support/stats-publisher.js'
import { isPending, within, turns } from './support/until.js'

interface Watched {
  pid: number
  uid: number
  executable: string
  channels: Figures[]
}

interface Sources {
  find(only?: ReadonlySet<number>): Promise<void>
  ready(): Promise<void>
  observed(address?: string): Watched[]
  lastTwo(): Map<number, { before: { at: number }; now: { at: number } }>
  close(): Promise<void>
}

const { Sources } = await internals<{
  Sources: new (patience: number) => Sources
}>('cli/observed.js')

/** Sources on a host with these observable processes. The patience is longer than a test. */
async function watching(t: ExecutionContext, pids: number[], patience = 1e9) {
  await afterTurn()
  const files = fakeHost(...pids.map((pid) => observable(pid)))
  t.teardown(useFakeFiles(files))
  const handshakes = new Handshakes(t)
  const sources = new Sources(patience)
  /** Asks these processes, or all, and lets them answer. */
  const find = async (only?: number[]) => {
    const finding = sources.find(only && new Set(only))
    await turns(2)
    const statsOf = []
    for (const pid of handshakes.pending) statsOf.push(await handshakes.answer(pid))
    await within(finding, 'those that are asked')
    return statsOf
  }
  return { files, handshakes, sources, find }
}

const channel = { id: 1, address: '@x', peer: 2, role: 'host' }
const still = {
  messagesSentPerSecond: 0,
  bytesSentPerSecond: 0,
  messagesReceivedPerSecond: 0,
  bytesReceivedPerSecond: 0,
}
const pidsOf = (sources: Sources) => sources.observed().map(({ pid }) => pid)

test.serial(
  'a rate needs two snapshots at least a quarter of a second apart, by the clock of the process',
  async (t) => {
    const { sources, find } = await watching(t, [40])
    const [stats] = await find()
    // One call is enough.
    t.deepEqual(await find(), [])
    t.deepEqual(sources.observed(), [])
    t.deepEqual(sources.lastTwo(), new Map())
    const ready = sources.ready()

    const figures = (messages: number): Figures => ({
      ...channel,
      messagesSent: messages,
      bytesSent: 10 * messages,
      messagesReceived: 2 * messages,
      bytesReceived: 20 * messages,
    })
    await stats!.publish(1000, figures(100))
    // The identity comes from the kernel.
    t.deepEqual(sources.observed(), [
      { pid: 40, uid: 5, executable: '/usr/bin/40', channels: [{ ...figures(100), ...still }] },
    ])
    t.deepEqual(sources.lastTwo(), new Map())

    clock.now += 249
    await stats!.publish(1001, figures(900))
    t.deepEqual(sources.observed()[0]!.channels, [{ ...figures(900), ...still }])
    t.deepEqual(sources.lastTwo(), new Map())
    t.true(await isPending(ready))

    clock.now += 1
    await stats!.publish(3000, figures(1100))
    await within(ready, 'two that can be compared')
    const rates = {
      messagesSentPerSecond: 500,
      bytesSentPerSecond: 5000,
      messagesReceivedPerSecond: 1000,
      bytesReceivedPerSecond: 10_000,
    }
    t.deepEqual(sources.observed()[0]!.channels, [{ ...figures(1100), ...rates }])
    const { before, now } = sources.lastTwo().get(40)!
    t.deepEqual([before.at, now.at], [1000, 3000])

    // Close behind the last one, so it is still compared with the first. The statistics of a publisher go into the same
    // rates.
    clock.now += 10
    const publisher = { ...channel, peer: null, role: 'publisher', address: '@p', messagesSent: 2100 }
    await stats!.publish(5000, { ...publisher, bytesSent: 2000 }, { ...figures(7), id: 2 })
    t.deepEqual(sources.observed()[0]!.channels, [
      {
        ...publisher,
        bytesSent: 2000,
        messagesSentPerSecond: 500,
        bytesSentPerSecond: 250,
        messagesReceivedPerSecond: -50,
        bytesReceivedPerSecond: -500,
      },
      // A channel that is new has no rate.
      { ...figures(7), id: 2, ...still },
    ])
    t.deepEqual(
      sources.observed('@p')[0]!.channels.map(({ id }) => id),
      [1],
    )
    t.deepEqual(sources.observed('@elsewhere'), [])
    // Now the process has no channels.
    await stats!.publish(6000)
    t.like(sources.observed(), [{ pid: 40, channels: [] }])
    t.false(stats!.calls.includes('close'))
    await sources.close()
    t.is(stats!.calls.at(-1), 'close')
  },
)

test.serial('a process that stops reporting, since it is stopped, has no rates', async (t) => {
  const { sources, find } = await watching(t, [40])
  const [stats] = await find()
  const rates = () => sources.observed()[0]!.channels.map(({ messagesSentPerSecond }) => messagesSentPerSecond)
  for (const at of [1000, 2000, 2001]) {
    clock.now += 500
    await stats!.publish(at, { ...channel, messagesSent: at })
  }
  t.deepEqual(rates(), [1000])
  clock.now += 3000
  t.deepEqual(rates(), [1000])
  clock.now += 1
  t.deepEqual(rates(), [0])
  // Its last totals still count.
  t.like(sources.observed()[0]!.channels, [{ messagesSent: 2001 }])
  await stats!.publish(8000, { ...channel, messagesSent: 8000 })
  t.deepEqual(rates(), [1000])
})

test.serial('of several channels, each is compared with itself', async (t) => {
  const { sources, find } = await watching(t, [40])
  const [stats] = await find()
  const both = (one: number, two: number) => [
    { ...channel, messagesSent: one },
    { ...channel, id: 2, messagesSent: two },
  ]
  await stats!.publish(0, ...both(10, 100))
  clock.now += 1000
  await stats!.publish(1000, ...both(11, 107).reverse())
  t.deepEqual(
    sources.observed()[0]!.channels.map(({ id, messagesSentPerSecond }) => [id, messagesSentPerSecond]),
    [
      [2, 7],
      [1, 1],
    ],
  )
})

test.serial('if no time has passed on the clock of the process, there is no rate', async (t) => {
  const { sources, find } = await watching(t, [40])
  const [stats] = await find()
  for (const [number, at] of [5000, 5000, 4000].entries()) {
    clock.now += 1000
    await stats!.publish(at, { ...channel, messagesSent: number })
    t.deepEqual(sources.observed()[0]!.channels, [{ ...channel, messagesSent: number, ...still }])
    t.deepEqual(sources.lastTwo(), new Map())
  }
})

test.serial(
  'a process that exits or reports no statistics is forgotten, without a wait; others keep their order',
  async (t) => {
    const { sources, find, handshakes } = await watching(t, [60, 50, 40])
    const [one, two] = await find([60, 50])
    t.deepEqual([one!.pid, two!.pid], [60, 50])
    const [three] = await find([40])
    for (const stats of [one!, two!, three!]) await stats.publish(1000, { ...channel, messagesSent: 1 })
    t.deepEqual(pidsOf(sources), [40, 50, 60])
    const ready = sources.ready()
    clock.now += 1000
    await one!.publish(2000, channel)
    t.true(await isPending(ready))
    await two!.publishText('no figures')
    t.true(await isPending(ready))
    await three!.exit()
    await within(ready, 'that no more is waited for')
    t.deepEqual(await find([]), [])
    t.deepEqual(pidsOf(sources), [60])
    t.deepEqual([...sources.lastTwo().keys()], [60])
    // The process that failed is disconnected, and asked again.
    t.deepEqual(
      [one!, two!].map((stats) => stats.calls.includes('close')),
      [false, true],
    )
    const again = await find([50])
    await again[0]!.publish(3000, channel)
    t.deepEqual(pidsOf(sources), [50, 60])
    t.deepEqual(handshakes.all, [])
  },
)

test.serial('a stopped process is waited for until the patience ends', async (t) => {
  const { sources, find, handshakes } = await watching(t, [40, 50], 50)
  await find([40])
  await within(sources.ready(), 'the end of the patience')
  t.deepEqual(sources.observed(), [])
  const finding = sources.find()
  await turns(2)
  const [call] = handshakes.all
  t.like(call!.options, { handshakeTimeout: 50, maxMessageSize: MAX_SNAPSHOT, policy: { executables: undefined } })
  t.true(await isPending(finding))
  await sources.find()
  t.is(handshakes.all.length, 1, 'it is asked once')
  await handshakes.fail(50, 'HANDSHAKE_TIMEOUT')
  await within(finding, 'the others')
  // It is asked again; a connection after the end is closed.
  const late = sources.find()
  await turns(2)
  await sources.close()
  t.deepEqual(handshakes.all[0]!.calls, ['cancel'])
  const stats = await handshakes.answer(50)
  await within(late, 'its end')
  t.is(stats.calls.at(-1), 'close')
  t.deepEqual(sources.observed(), [])
})

test.serial('only processes of this user that listen at their own address are asked', async (t) => {
  const of = async (change: (files: FakeFiles) => void, ...more: FakeFiles[]) => {
    const { files, sources, handshakes } = await watching(t, [40])
    Object.assign(files, fakeHost(observable(40), ...more))
    change(files)
    void sources.find().catch(() => {})
    await turns(2)
    const { pending } = handshakes
    await sources.close()
    return pending
  }
  const unix = (files: FakeFiles, from: string, to: string) => {
    files['/proc/net/unix'] = (files['/proc/net/unix'] as string).replace(`${from}\n`, `${to}\n`)
  }
  t.deepEqual(await of(() => {}), [40])
  t.deepEqual(await of(() => {}, observable(50, [], '@a')), [40, 50])
  t.deepEqual(await of(() => {}, observable(50), observable(4_000_000)), [40, 50, 4_000_000])
  // This process, which would observe itself.
  t.deepEqual(await of(() => {}, observable(process.pid)), [40])
  t.deepEqual(await of(() => {}, observable(0)), [40])
  for (const name of [
    `x${observeAddress(40)}`,
    `${observeAddress(40)}x`,
    observeAddress(40).slice(1),
    observeAddress(40).slice(0, -2),
  ])
    t.deepEqual(await of((files) => unix(files, observeAddress(40), name)), [], name)
  // Another process listens there: its own address differs.
  t.deepEqual(
    await of((files) => unix(files, observeAddress(40), observeAddress(50)), {
      '/proc/50': observable(50)['/proc/50']!,
    }),
    [],
  )
  t.deepEqual(await of((files) => (files['/proc/40'] = { uid: process.geteuid!() + 1 })), [])
  for (const [part, code, calls] of [
    ['', 'ENOENT', []],
    ['/ns/net', 'ENOENT', []],
    // A hardened process hides its descriptors.
    ['/ns/net', 'EACCES', [40]],
    ['/fd', 'EACCES', [40]],
    ['/fd', 'ESRCH', []],
  ] as const)
    t.deepEqual(await of((files) => (files[`/proc/40${part}`] = fails(code))), [...calls], `${part} ${code}`)
})

test.serial(
  'a local failure to read /proc or to connect is reported; other failures of a connection are not',
  async (t) => {
    for (const part of ['/40', '/40/ns/net', '/40/fd', '/40/fd/3', '/net/unix']) {
      const { files, sources } = await watching(t, [40])
      files[`/proc${part}`] = fails('EMFILE')
      await t.throwsAsync(sources.find(), { code: 'ERR_RINGFENCE_NO_SPACE' }, part)
    }
    for (const code of ['NO_SPACE', 'PEER_REFUSED', 'PEER_LOST']) {
      const { sources, handshakes } = await watching(t, [40])
      const finding = sources.find()
      finding.catch(() => {})
      await turns(2)
      await handshakes.fail(40, code)
      if (code === 'NO_SPACE') await t.throwsAsync(finding, { code: `ERR_RINGFENCE_${code}` })
      else await within(finding, 'its end')
      t.deepEqual(pidsOf(sources), [])
      // It is asked again.
      void sources.find().catch(() => {})
      await turns(2)
      t.deepEqual(handshakes.pending, [40])
    }
  },
)

test.serial('a process that answers at the address of another one is disconnected', async (t) => {
  const { sources, handshakes } = await watching(t, [40])
  const finding = sources.find()
  await turns(2)
  const stats = await handshakes.answer(40, 41)
  await within(finding, 'its end')
  t.is(stats.calls.at(-1), 'close')
  t.deepEqual(sources.observed(), [])
  await sources.ready()
})
