// Reading statistics in `ringfence top` and `doctor`: which processes they ask, and rates from two snapshots that are far
// enough apart. Over fake processes; observe.test.ts has real ones.

import test, { type ExecutionContext } from 'ava'

import { clock, rested } from './support/clock.js'
import { insideOf } from './support/inside.js'
import { fails, host, see, type Paper } from './support/paper-proc.js'
import { Handshakes, MAX_SNAPSHOT, observable, observeAddress, type Figures } from './support/teller.js'
import { isPending, soon, turns } from './support/until.js'

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

const { Sources } = await insideOf<{
  Sources: new (patience: number) => Sources
}>('cli/observed.js')

/** Sources on a host with these observable processes. The patience is longer than a test. */
async function watching(t: ExecutionContext, pids: number[], patience = 1e9) {
  await rested()
  const paper = host(...pids.map((pid) => observable(pid)))
  t.teardown(see(paper))
  const handshakes = new Handshakes(t)
  const sources = new Sources(patience)
  /** Asks these processes, or all, and lets them answer. */
  const find = async (only?: number[]) => {
    const finding = sources.find(only && new Set(only))
    await turns(2)
    const tellers = []
    for (const pid of handshakes.asked) tellers.push(await handshakes.answer(pid))
    await soon(finding, 'those that are asked')
    return tellers
  }
  return { paper, handshakes, sources, find }
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
    const [teller] = await find()
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
    await teller!.tell(1000, figures(100))
    // The identity comes from the kernel.
    t.deepEqual(sources.observed(), [
      { pid: 40, uid: 5, executable: '/usr/bin/40', channels: [{ ...figures(100), ...still }] },
    ])
    t.deepEqual(sources.lastTwo(), new Map())

    clock.now += 249
    await teller!.tell(1001, figures(900))
    t.deepEqual(sources.observed()[0]!.channels, [{ ...figures(900), ...still }])
    t.deepEqual(sources.lastTwo(), new Map())
    t.true(await isPending(ready))

    clock.now += 1
    await teller!.tell(3000, figures(1100))
    await soon(ready, 'two that can be compared')
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
    await teller!.tell(5000, { ...publisher, bytesSent: 2000 }, { ...figures(7), id: 2 })
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
    await teller!.tell(6000)
    t.like(sources.observed(), [{ pid: 40, channels: [] }])
    t.false(teller!.asked.includes('close'))
    await sources.close()
    t.is(teller!.asked.at(-1), 'close')
  },
)

test.serial('a process that stops reporting, since it is stopped, has no rates', async (t) => {
  const { sources, find } = await watching(t, [40])
  const [teller] = await find()
  const rates = () => sources.observed()[0]!.channels.map(({ messagesSentPerSecond }) => messagesSentPerSecond)
  for (const at of [1000, 2000, 2001]) {
    clock.now += 500
    await teller!.tell(at, { ...channel, messagesSent: at })
  }
  t.deepEqual(rates(), [1000])
  clock.now += 3000
  t.deepEqual(rates(), [1000])
  clock.now += 1
  t.deepEqual(rates(), [0])
  // Its last totals still count.
  t.like(sources.observed()[0]!.channels, [{ messagesSent: 2001 }])
  await teller!.tell(8000, { ...channel, messagesSent: 8000 })
  t.deepEqual(rates(), [1000])
})

test.serial('of several channels, each is compared with itself', async (t) => {
  const { sources, find } = await watching(t, [40])
  const [teller] = await find()
  const both = (one: number, two: number) => [
    { ...channel, messagesSent: one },
    { ...channel, id: 2, messagesSent: two },
  ]
  await teller!.tell(0, ...both(10, 100))
  clock.now += 1000
  await teller!.tell(1000, ...both(11, 107).reverse())
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
  const [teller] = await find()
  for (const [number, at] of [5000, 5000, 4000].entries()) {
    clock.now += 1000
    await teller!.tell(at, { ...channel, messagesSent: number })
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
    for (const teller of [one!, two!, three!]) await teller.tell(1000, { ...channel, messagesSent: 1 })
    t.deepEqual(pidsOf(sources), [40, 50, 60])
    const ready = sources.ready()
    clock.now += 1000
    await one!.tell(2000, channel)
    t.true(await isPending(ready))
    await two!.say('no figures')
    t.true(await isPending(ready))
    await three!.exit()
    await soon(ready, 'that no more is waited for')
    t.deepEqual(await find([]), [])
    t.deepEqual(pidsOf(sources), [60])
    t.deepEqual([...sources.lastTwo().keys()], [60])
    // The process that failed is disconnected, and asked again.
    t.deepEqual(
      [one!, two!].map((teller) => teller.asked.includes('close')),
      [false, true],
    )
    const again = await find([50])
    await again[0]!.tell(3000, channel)
    t.deepEqual(pidsOf(sources), [50, 60])
    t.deepEqual(handshakes.all, [])
  },
)

test.serial('a stopped process is waited for until the patience ends', async (t) => {
  const { sources, find, handshakes } = await watching(t, [40, 50], 50)
  await find([40])
  await soon(sources.ready(), 'the end of the patience')
  t.deepEqual(sources.observed(), [])
  const finding = sources.find()
  await turns(2)
  const [call] = handshakes.all
  t.like(call!.options, { handshakeTimeout: 50, maxMessageSize: MAX_SNAPSHOT, policy: { executables: undefined } })
  t.true(await isPending(finding))
  await sources.find()
  t.is(handshakes.all.length, 1, 'it is asked once')
  await handshakes.fail(50, 'HANDSHAKE_TIMEOUT')
  await soon(finding, 'the others')
  // It is asked again; a connection after the end is closed.
  const late = sources.find()
  await turns(2)
  await sources.close()
  t.deepEqual(handshakes.all[0]!.asked, ['cancel'])
  const teller = await handshakes.answer(50)
  await soon(late, 'its end')
  t.is(teller.asked.at(-1), 'close')
  t.deepEqual(sources.observed(), [])
})

test.serial('only processes of this user that listen at their own address are asked', async (t) => {
  const of = async (change: (paper: Paper) => void, ...more: Paper[]) => {
    const { paper, sources, handshakes } = await watching(t, [40])
    Object.assign(paper, host(observable(40), ...more))
    change(paper)
    void sources.find().catch(() => {})
    await turns(2)
    const { asked } = handshakes
    await sources.close()
    return asked
  }
  const unix = (paper: Paper, from: string, to: string) => {
    paper['/proc/net/unix'] = (paper['/proc/net/unix'] as string).replace(`${from}\n`, `${to}\n`)
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
    t.deepEqual(await of((paper) => unix(paper, observeAddress(40), name)), [], name)
  // Another process listens there: its own address differs.
  t.deepEqual(
    await of((paper) => unix(paper, observeAddress(40), observeAddress(50)), {
      '/proc/50': observable(50)['/proc/50']!,
    }),
    [],
  )
  t.deepEqual(await of((paper) => (paper['/proc/40'] = { uid: process.geteuid!() + 1 })), [])
  for (const [part, code, asked] of [
    ['', 'ENOENT', []],
    ['/ns/net', 'ENOENT', []],
    // A hardened process hides its descriptors.
    ['/ns/net', 'EACCES', [40]],
    ['/fd', 'EACCES', [40]],
    ['/fd', 'ESRCH', []],
  ] as const)
    t.deepEqual(await of((paper) => (paper[`/proc/40${part}`] = fails(code))), [...asked], `${part} ${code}`)
})

test.serial(
  'a local failure to read /proc or to connect is reported; other failures of a connection are not',
  async (t) => {
    for (const part of ['/40', '/40/ns/net', '/40/fd', '/40/fd/3', '/net/unix']) {
      const { paper, sources } = await watching(t, [40])
      paper[`/proc${part}`] = fails('EMFILE')
      await t.throwsAsync(sources.find(), { code: 'ERR_RINGFENCE_NO_SPACE' }, part)
    }
    for (const code of ['NO_SPACE', 'PEER_REFUSED', 'PEER_LOST']) {
      const { sources, handshakes } = await watching(t, [40])
      const finding = sources.find()
      finding.catch(() => {})
      await turns(2)
      await handshakes.fail(40, code)
      if (code === 'NO_SPACE') await t.throwsAsync(finding, { code: `ERR_RINGFENCE_${code}` })
      else await soon(finding, 'its end')
      t.deepEqual(pidsOf(sources), [])
      // It is asked again.
      void sources.find().catch(() => {})
      await turns(2)
      t.deepEqual(handshakes.asked, [40])
    }
  },
)

test.serial('a process that answers at the address of another one is disconnected', async (t) => {
  const { sources, handshakes } = await watching(t, [40])
  const finding = sources.find()
  await turns(2)
  const teller = await handshakes.answer(40, 41)
  await soon(finding, 'its end')
  t.is(teller.asked.at(-1), 'close')
  t.deepEqual(sources.observed(), [])
  await sources.ready()
})
