// `ringfence ps` and `top`: their output, keys, and processes that start later. observe.test.ts has real processes.

import { EventEmitter } from 'node:events'

import test, { type ExecutionContext } from 'ava'

import { clock, afterTurn } from './support/clock.js'
import { internals } from './support/internals.js'
import { captureOutput } from './support/output.js'
import { fails, fakeHost, fakeProcess, read, useFakeFiles, written, type FakeFiles } from './support/fake-proc.js'
import { Handshakes, observable, type Figures, type StatsPublisher } from './support/stats-publisher.js'
import { isPending, within, turns } from './support/until.js'

const { ps, top } = await internals<{
  ps(json: boolean): void
  top(address: string | undefined, how: { once: boolean; json: boolean }): Promise<void>
}>('cli/top.js')

const hereIs = (t: ExecutionContext, files: FakeFiles) => t.teardown(useFakeFiles(files))

const cells = (line: string) => line.trim().split(/ {2,}/)

const seen = () =>
  fakeHost(
    fakeProcess(3, [written(1, 65_536), read(2, 8192)], '@a'),
    { ...fakeProcess(4, [read(1, 65_536), written(2, 8192)]), '/proc/4/exe': '/tmp/\u001b[2J' },
    { ...fakeProcess(5, [written(9, 4096)]), '/proc/5/exe': fails('EACCES') },
    fakeProcess(6, [written(10, 4096, '@p')], '@p'),
    // A mapping without a ring, and the ring of its statistics.
    fakeProcess(7, [written(11, 0), written(12, 4_194_304, '@ringfence-observe-7')]),
  )

test.serial('ps has a row for each channel, and none for a process without one', (t) => {
  hereIs(t, seen())
  const output = captureOutput(t, 'stdout', { columns: 1000 })
  ps(false)
  const [headings, rule, ...rows] = output.text.trimEnd().split('\n')
  t.deepEqual(cells(headings!), ['pid', 'uid', 'executable', 'since', 'role', 'peer', 'ring', 'address'])
  t.regex(rule!, /^(─+ {2}){7}─+$/)
  const since = '2023-11-14T22:13:22'
  t.deepEqual(rows.map(cells), [
    ['3', '1003', '/usr/bin/3', since, 'host', '4', '65.54 kB', '@a'],
    ['4', '1004', '/tmp/\\u{1b}[2J', since, 'guest', '3', '8.19 kB', '@a'],
    ['5', '1005', '?', since, '?', '?', '4.10 kB', '?'],
    ['6', '1006', '/usr/bin/6', since, 'publisher', '-', '4.10 kB', '@p'],
  ])
  t.true(output.text.endsWith('\n'))
})

test.serial('ps is as wide as the terminal, and else 160 columns', (t) => {
  hereIs(t, fakeHost({ ...fakeProcess(3, [written(1, 4096)]), '/proc/3/exe': `/${'x'.repeat(300)}` }))
  for (const [how, width] of [[{ columns: 30 }, 30] as const, [{}, 160] as const]) {
    const output = captureOutput(t, 'stdout', how)
    ps(false)
    t.is(Math.max(...output.text.split('\n').map((line) => line.length)), width)
  }
})

test.serial('ps gives a program everything that it has found as JSON', (t) => {
  hereIs(t, seen())
  const output = captureOutput(t, 'stdout')
  ps(true)
  const { processes } = JSON.parse(output.text) as { processes: { pid: number; channels: object[] }[] }
  t.deepEqual(
    processes.map(({ pid, channels }) => [pid, channels.length]),
    [
      [3, 1],
      [4, 1],
      [5, 1],
      [6, 1],
    ],
  )
  t.deepEqual(processes[0]!.channels, [
    { address: '@a', peer: 4, role: 'host', ringCapacity: 65_536, peerRingCapacity: 8192 },
  ])
  t.true(output.text.startsWith('{\n  "processes"') && output.text.endsWith('}\n'))
})

/** A terminal, or another kind of input. */
class Input extends EventEmitter {
  /** The calls of this input. */
  readonly calls: string[] = []

  constructor(readonly isTTY: boolean) {
    super()
  }

  setRawMode(raw: boolean): this {
    this.calls.push(`raw: ${raw}`)
    return this
  }

  setEncoding(): this {
    return this
  }

  pause(): void {
    this.calls.push('pause')
  }
}

function takeInput(t: ExecutionContext, isTTY: boolean): Input {
  const own = Object.getOwnPropertyDescriptor(process, 'stdin')!
  const input = new Input(isTTY)
  Object.defineProperty(process, 'stdin', { configurable: true, value: input })
  t.teardown(() => void Object.defineProperty(process, 'stdin', own))
  return input
}

/** The timers that the test sets. */
function timersHere(t: ExecutionContext): { call: () => void; every: number }[] {
  const { setInterval: begin, clearInterval: end } = globalThis
  const timers: { call: () => void; every: number }[] = []
  globalThis.setInterval = ((call: () => void, every: number) => {
    const timer = { call, every }
    timers.push(timer)
    return timer
  }) as never
  globalThis.clearInterval = (timer) => void timers.splice(timers.indexOf(timer as never), 1)
  t.teardown(() => Object.assign(globalThis, { setInterval: begin, clearInterval: end }))
  return timers
}

const channel = (id: number, figures: Figures): Figures => ({
  id,
  address: `@${id}`,
  peer: 9,
  role: 'host',
  ringCapacity: 1000,
  ...figures,
})

/** Two processes that each report their statistics twice, two seconds apart. */
async function openTop(
  t: ExecutionContext,
  first: [before: Figures[], now: Figures[]],
  second: [before: Figures[], now: Figures[]],
) {
  await afterTurn()
  const files = fakeHost(observable(40), observable(50))
  hereIs(t, files)
  const handshakes = new Handshakes(t)
  return {
    files,
    handshakes,
    async begin(): Promise<StatsPublisher[]> {
      await turns(2)
      const publishers = [await handshakes.answer(50), await handshakes.answer(40)]
      const both = [second, first] as const
      for (const [at, publisher] of publishers.entries()) await publisher.publish(1000, ...both[at]![0])
      clock.now += 2000
      for (const [at, publisher] of publishers.entries()) await publisher.publish(3000, ...both[at]![1])
      await turns(2)
      return publishers
    },
  }
}

const one: [Figures[], Figures[]] = [
  [channel(1, { messagesSent: 10, bytesSent: 40, messagesReceived: 4, bytesReceived: 1000 })],
  [
    channel(1, {
      messagesSent: 30,
      bytesSent: 1040,
      messagesReceived: 104,
      bytesReceived: 41_000,
      ringUsed: 505,
      waits: 7,
    }),
  ],
]
const two: [Figures[], Figures[]] = [
  [channel(1, {}), { id: 2, address: null, peer: null, role: 'publisher', messagesSent: 0, bytesSent: 0 }],
  [
    channel(1, { address: '@\u001b[2J', ringUsed: 800, ringCapacity: 1000, lost: 3 }),
    {
      id: 2,
      address: null,
      peer: null,
      role: 'publisher',
      messagesSent: 20,
      bytesSent: 60,
      open: 4,
      lag: 4096,
      waits: 9,
      evicted: 2,
    },
  ],
]

const HEADINGS = ['pid', 'role', 'peer', 'sent/s', 'received/s', 'fill', 'lag', 'lost', 'waits', 'evicted', 'address']
const ROWS = {
  one: ['40', 'host', '9', '10', '500 B/s', '50', '20.00 kB/s', '51 %', '0 B', '0', '7', '0', '@1'],
  two: ['50', 'host', '9', '0', '0 B/s', '0', '0 B/s', '80 %', '0 B', '3', '0', '0', '@\\u{1b}[2J'],
  publisher: [
    '50',
    'publisher',
    '4 subscribers',
    '10',
    '30 B/s',
    '0',
    '0 B/s',
    '0 %',
    '4.10 kB',
    '0',
    '9',
    '2',
    '(a line)',
  ],
}

test.serial('top --once prints the traffic of each channel, and disconnects from the processes', async (t) => {
  const { begin, handshakes } = await openTop(t, one, two)
  const output = captureOutput(t, 'stdout', { columns: 1000 })
  const input = takeInput(t, true)
  const timers = timersHere(t)
  const done = top(undefined, { once: true, json: false })
  const publishers = await begin()
  await within(done, 'its end')
  const [head, headings, rule, ...rows] = output.text.trimEnd().split('\n')
  t.is(head, '2 processes, sorted by messages (m messages, b bytes, f fill, l lag, w waits, q quit)')
  t.deepEqual(cells(headings!), HEADINGS)
  t.regex(rule!, /^(─* {2}){12}─+$/)
  t.deepEqual(rows.map(cells), [ROWS.one, ROWS.publisher, ROWS.two])
  t.true(output.text.endsWith('\n'))
  for (const publisher of publishers) t.is(publisher.calls.at(-1), 'close')
  t.deepEqual([input.calls, timers, handshakes.all], [[], [], []])
})

test.serial('top counts one process in the singular', async (t) => {
  const { begin } = await openTop(t, one, two)
  const output = captureOutput(t, 'stdout')
  const done = top('@1', { once: true, json: false })
  await begin()
  await within(done, 'its end')
  t.regex(output.text, /^1 process, sorted by messages/)
})

test.serial('top gives a program the same as JSON, for one address if that is given', async (t) => {
  for (const [address, wanted] of [
    [undefined, [40, 50]],
    ['@1', [40]],
    ['@elsewhere', []],
  ] as const) {
    const { begin } = await openTop(t, one, two)
    const output = captureOutput(t, 'stdout')
    const done = top(address, { once: true, json: true })
    await begin()
    await within(done, 'its end')
    const { processes } = JSON.parse(output.text) as { processes: { pid: number; channels: Figures[] }[] }
    t.deepEqual(
      processes.map(({ pid }) => pid),
      [...wanted],
    )
    t.true(output.text.startsWith('{\n  "processes"') && output.text.endsWith('}\n'))
    if (address === '@elsewhere') continue
    t.deepEqual(processes[0]!.channels, [
      {
        ...one[1][0],
        messagesSentPerSecond: 10,
        bytesSentPerSecond: 500,
        messagesReceivedPerSecond: 50,
        bytesReceivedPerSecond: 20_000,
      },
    ])
  }
})

const CLEAR = '\u001B[2J\u001B[H'

/** The screens that were drawn since: the sort key, and the address or the role of each row. */
function screensIn(pieces: string[]): string[] {
  return pieces.map((piece) => {
    const [head, , , ...rows] = piece.slice(CLEAR.length).trimEnd().split('\n')
    const order = /sorted by (\w+)/.exec(head!)![1]
    return `${piece.startsWith(CLEAR)} ${order}: ${rows.map((row) => Object.keys(ROWS)[rowOf(row)]).join(' ')}`
  })
}
const rowOf = (row: string) => Object.values(ROWS).findIndex((all) => all.join() === cells(row).join())

test.serial('top redraws the screen each second and at each key, which selects the order', async (t) => {
  const { begin } = await openTop(t, one, two)
  const output = captureOutput(t, 'stdout', { columns: 1000 })
  const input = takeInput(t, true)
  const timers = timersHere(t)
  let drawn = 0
  const since = () => screensIn(output.writes.slice(drawn, (drawn = output.writes.length)))
  const done = top(undefined, { once: false, json: false })
  const publishers = await begin()
  t.deepEqual(since(), ['true messages: one publisher two'])
  t.deepEqual(input.calls, ['raw: true'])
  t.deepEqual(
    timers.map(({ every }) => every),
    [1000],
  )
  const by: Record<string, string> = {
    f: 'true fill: two one publisher',
    l: 'true lag: publisher one two',
    w: 'true waits: publisher one two',
    b: 'true bytes: one publisher two',
    m: 'true messages: one publisher two',
  }
  for (const [key, screen] of Object.entries(by)) {
    input.emit('data', key)
    t.deepEqual(since(), [screen])
  }
  input.emit('data', 'x\u0000Fq'.slice(0, 3))
  t.deepEqual(since(), [], 'other keys are none')
  input.emit('data', 'lf')
  timers[0]!.call()
  t.deepEqual(since(), [by['l']!, by['f']!, by['f']!])
  t.true(await isPending(done))
  input.emit('data', 'q')
  await within(done, 'its end')
  t.deepEqual(timers, [])
  t.deepEqual(input.calls, ['raw: true', 'raw: false', 'pause'])
  for (const publisher of publishers) t.is(publisher.calls.at(-1), 'close')
})

test.serial('top ends with Control-C, which is an ordinary key in raw mode', async (t) => {
  const { begin } = await openTop(t, one, two)
  captureOutput(t, 'stdout')
  const input = takeInput(t, true)
  timersHere(t)
  const done = top('@1', { once: false, json: false })
  await begin()
  input.emit('data', '\u0003')
  await within(done, 'its end')
  t.deepEqual(input.calls, ['raw: true', 'raw: false', 'pause'])
})

test.serial('top includes processes that start later, and a silent one does not delay the screen', async (t) => {
  const { begin, handshakes, files } = await openTop(t, one, two)
  const output = captureOutput(t, 'stdout', { columns: 1000 })
  const input = takeInput(t, true)
  const timers = timersHere(t)
  const done = top(undefined, { once: false, json: false })
  await begin()
  Object.assign(files, fakeHost(observable(40), observable(50), observable(60), observable(70)))
  const before = output.writes.length
  timers[0]!.call()
  timers[0]!.call()
  await turns(2)
  t.is(output.writes.length, before + 2)
  t.deepEqual(handshakes.pending, [60, 70], 'each is asked once')
  const late = await handshakes.answer(70)
  await late.publish(1, channel(1, {}))
  timers[0]!.call()
  t.regex(output.writes.at(-1)!, /\n70 +host +9 /)
  input.emit('data', 'q')
  await within(done, 'its end')
  t.is(late.calls.at(-1), 'close')
  t.deepEqual(handshakes.all[0]!.calls, ['cancel'])
})

test.serial('top that cannot read /proc fails, and leaves the terminal as it was', async (t) => {
  const { begin, files } = await openTop(t, one, two)
  captureOutput(t, 'stdout')
  const input = takeInput(t, true)
  const timers = timersHere(t)
  const done = top(undefined, { once: false, json: false })
  const publishers = await begin()
  files['/proc/net/unix'] = fails('EMFILE')
  timers[0]!.call()
  await t.throwsAsync(within(done, 'its end'), { code: 'ERR_RINGFENCE_NO_SPACE' })
  t.deepEqual(timers, [])
  t.deepEqual(input.calls, ['raw: true', 'raw: false', 'pause'])
  for (const publisher of publishers) t.is(publisher.calls.at(-1), 'close')
})

test.serial('top reads no keys without a terminal, or if a program reads its output', async (t) => {
  for (const [isTTY, json] of [
    [false, false],
    [true, true],
    [false, true],
  ] as const) {
    const { begin, files } = await openTop(t, one, two)
    const output = captureOutput(t, 'stdout')
    const input = takeInput(t, isTTY)
    const timers = timersHere(t)
    const done = top(undefined, { once: false, json })
    await begin()
    timers[0]!.call()
    t.deepEqual([input.calls, input.eventNames()], [[], []])
    if (json)
      for (const piece of output.writes) {
        // One object in each line.
        t.is(piece.indexOf('\n'), piece.length - 1)
        t.is((JSON.parse(piece) as { processes: object[] }).processes.length, 2)
      }
    t.is(output.writes.length, 2)
    files['/proc/net/unix'] = fails('EMFILE')
    timers[0]!.call()
    await t.throwsAsync(within(done, 'its end'))
    t.deepEqual(input.calls, ['pause'])
  }
})
