// `ringfence doctor PID|ADDRESS`: which processes it examines, what it concludes for each pair, and what it prints.
// slow.test.ts produces each reason with real processes.

import timers from 'node:timers/promises'
import { syncBuiltinESMExports } from 'node:module'

import test, { type ExecutionContext } from 'ava'

import { clock, afterTurn } from './support/clock.js'
import { captureOutput } from './support/output.js'
import { fakeHost, fakeProcess, read, useFakeFiles, written, type FakeFiles } from './support/fake-proc.js'
import { diagnosePair, explain, type Finding } from './support/slow.js'
import { Handshakes, observable, type Figures } from './support/stats-publisher.js'
import { within, turns } from './support/until.js'

/** The files in /proc of a process that works half of the time, on one core. */
function activity(pid: number, core: number): FakeFiles {
  const at = `/proc/${pid}/task/${pid}`
  const words = Array.from({ length: 50 }, () => '0')
  words[0] = 'S'
  words[36] = String(core)
  return {
    [`/proc/${pid}/task`]: [String(pid)],
    [`${at}/stat`]: `${pid} (a) ${words.join(' ')}\n`,
    [`${at}/status`]: `Cpus_allowed_list:\t${core}\nvoluntary_ctxt_switches:\t5\n`,
    [`${at}/schedstat`]: '0 0 0\n',
    [`/proc/${pid}/cgroup`]: `0::/of ${pid}\n`,
    [`/proc/${pid}/root/dev/shm`]: { bsize: 1000, blocks: 100, bavail: 50 },
  }
}

const cacheOf = (core: number, shared: string): FakeFiles => {
  const at = `/sys/devices/system/cpu/cpu${core}/cache`
  return { [at]: ['index3'], [`${at}/index3/level`]: '3\n', [`${at}/index3/shared_cpu_list`]: `${shared}\n` }
}

/**
 * Two processes with a channel at @a; the second one also subscribes to a third. Two more processes have a channel at
 * @b.
 */
const all = () =>
  fakeHost(
    { ...observable(3, [written(1, 65_536), read(2, 8192)], '@a'), ...activity(3, 1) },
    { ...observable(4, [read(1, 65_536), written(2, 8192), read(3, 4096, '@p')]), ...activity(4, 1) },
    { ...observable(5, [written(3, 4096, '@p')]), ...activity(5, 2) },
    { ...fakeProcess(6, [written(4, 4096), read(5, 4096)], '@b'), ...activity(6, 1) },
    { ...observable(7, [read(4, 4096), written(5, 4096)]), ...activity(7, 2) },
    {
      '/proc/self/schedstat': '0 0 0\n',
      ...cacheOf(1, '1-2'),
      ...cacheOf(2, '1-2'),
      '/sys/fs/cgroup/of 5/memory.max': '1000\n',
      '/sys/fs/cgroup/of 5/memory.current': '10\n',
    },
  )

/** Mocks the timer: time passes as soon as a test waits for it. */
function timePasses(t: ExecutionContext): void {
  const { setTimeout: pause } = timers
  timers.setTimeout = ((milliseconds: number) => {
    clock.now += milliseconds
    return Promise.resolve()
  }) as never
  syncBuiltinESMExports()
  t.teardown(() => {
    timers.setTimeout = pause
    syncBuiltinESMExports()
  })
}

const figures = (peer: number, more: Figures): Figures => ({ id: 1, address: null, peer, role: 'host', ...more })

/** Examines this fake host. These processes answer, with these statistics. */
async function diagnoseWith<Found>(
  t: ExecutionContext,
  diagnose: () => Promise<Found>,
  snapshots: Record<number, [before: Figures, now: Figures]>,
): Promise<Found> {
  await afterTurn()
  const handshakes = new Handshakes(t)
  const done = diagnose()
  done.catch(() => {})
  await turns(2)
  t.deepEqual(handshakes.pending, Object.keys(snapshots).map(Number))
  const publishers = []
  for (const pid of Object.keys(snapshots)) publishers.push(await handshakes.answer(Number(pid)))
  for (const step of [0, 1]) {
    for (const publisher of publishers) await publisher.publish(1000 + 2000 * step, snapshots[publisher.pid]![step]!)
    clock.now += 2000
  }
  try {
    return await within(done, 'its end')
  } finally {
    for (const publisher of publishers) t.is(publisher.calls.at(-1), 'close')
  }
}

/** A publisher reports one ring for all its readers. */
const publishes = { id: 1, address: null, peer: null, role: 'publisher', ringCapacity: 4096 }
const still = (peer: number): [Figures, Figures] => [figures(peer, {}), figures(peer, {})]

const shown = (findings: Finding[]) =>
  findings.map(({ check, status, processes, found }) => `${check} ${processes.join('→')} ${status}: ${found}`)

const SHM_AND_MEMORY = (pid: number) => [`shm ${pid} good: no ring there`, `memory ${pid} good: no limit`]

test.serial('for a process, each channel is judged in both directions by what both ends report', async (t) => {
  t.teardown(useFakeFiles(all()))
  timePasses(t)
  const full = { ringUsed: 60_000, messagesSent: 1000, bytesSent: 80_000 }
  const { processes, pairs } = await diagnoseWith(t, () => diagnosePair(4), {
    3: [figures(4, { ...full, messagesSent: 0, bytesSent: 0 }), figures(4, full)],
    4: still(3),
    5: [publishes, publishes],
  })
  t.deepEqual(
    processes.map(({ pid }) => pid),
    [3, 4, 5],
  )
  const [one, two] = pairs
  t.is(pairs.length, 2)
  t.like(one, { address: '@a', processes: [4, 3] })
  t.deepEqual(shown(one!.findings), [
    'cores 4→3 slow: cores 1 and 1: same core',
    'ring 4→3 good: 0 % of 8.19 kB full; the sender waits for room for 0 % of the time',
    'reader 3 good: works for 0 % of the time',
    'wake-ups 4→3 good: the reader sleeps 0 times a second',
    'sizes 4→3 unknown: none seen',
    'ring 3→4 slow: 92 % of 65.54 kB full; the sender waits for room for 0 % of the time',
    'reader 4 slow: works for 0 % of the time',
    'wake-ups 3→4 good: the reader sleeps 0 times a second, for 500 messages',
    'sizes 3→4 good: 80 B a message, 500 a second',
    ...SHM_AND_MEMORY(4),
    ...SHM_AND_MEMORY(3),
  ])
  t.like(two, { address: null, processes: [4, 5] })
  t.deepEqual(shown(two!.findings.filter(({ check }) => check !== 'reader' && check !== 'wake-ups')), [
    'cores 4→5 good: cores 1 and 2: near',
    'ring 5→4 good: 0 % of 4.10 kB full; the sender waits for room for 0 % of the time',
    'sizes 5→4 unknown: none seen',
    ...SHM_AND_MEMORY(4),
    'shm 5 good: no ring there',
    'memory 5 good: 10 B of 1.00 kB in /of 5',
  ])
})

test.serial('for an address, every process is asked, since any of them may know where it met its peer', async (t) => {
  t.teardown(useFakeFiles(all()))
  timePasses(t)
  const { processes, pairs } = await diagnoseWith(t, () => diagnosePair('@b'), {
    3: still(4),
    4: still(3),
    5: still(4),
    7: still(6),
  })
  t.deepEqual(
    processes.map(({ pid }) => pid),
    [6, 7],
  )
  t.deepEqual(
    pairs.map(({ address, processes: both }) => [address, both]),
    [['@b', [6, 7]]],
  )
})

test.serial('the cores of a process that has exited are not judged; its activity is unknown', async (t) => {
  for (const [gone, place] of [
    [3, 0],
    [4, 1],
  ] as const) {
    const files = all()
    delete files[`/proc/${gone}/task`]
    t.teardown(useFakeFiles(files))
    timePasses(t)
    const { pairs } = await diagnoseWith(t, () => diagnosePair(3), { 3: still(4), 4: still(3) })
    const lines = shown(pairs[0]!.findings)
    t.is(lines.length, 12)
    t.false(lines.some((line) => line.startsWith('cores')))
    t.true(lines.includes(`reader ${gone} unknown: another user’s, or gone`), String(place))
  }
})

test.serial('a process without a channel, and an address without one, are reported', async (t) => {
  t.teardown(useFakeFiles(all()))
  timePasses(t)
  await t.throwsAsync(
    diagnoseWith(t, () => diagnosePair(9), {}),
    { message: 'process 9 has no channel, as far as this user may see' },
  )
  await t.throwsAsync(
    diagnoseWith(t, () => diagnosePair('@c'), { 3: still(4), 4: still(3), 5: still(4), 7: still(6) }),
    { message: '@c has no channel, as far as this user may see' },
  )
})

const MARKS = { good: 'good', slow: 'SLOW', unknown: '?' }
const cells = (line: string) => line.trim().split(/ {2,}/)

test.serial(
  'each pair is printed with a table of its findings, and slow or unknown ones are explained below',
  async (t) => {
    const files = all()
    // Anyone may choose these names.
    files['/proc/net/unix'] = (files['/proc/net/unix'] as string).replace(' @a\n', ' @\u001b[2J\n')
    t.teardown(useFakeFiles(files))
    timePasses(t)
    const snapshots = { 3: still(4), 4: still(3), 5: [publishes, publishes] as [Figures, Figures] }
    const output = captureOutput(t, 'stdout', { columns: 1000 })
    const { pairs } = await diagnoseWith(t, () => diagnosePair(4), snapshots)
    await diagnoseWith(t, () => explain(4, false), snapshots)
    const blocks = output.text.split(/(?=^processes )/m)
    t.is(blocks.length, 2)
    for (const [at, block] of blocks.entries()) {
      const { address, processes, findings } = pairs[at]!
      const where = address === null ? '' : ' at @\\u{1b}[2J'
      const [head, table, ...explained] = block.trimEnd().split('\n\n')
      t.is(head, `processes ${processes.join(' and ')}${where}`)
      const [headings, rule, ...rows] = table!.split('\n')
      t.deepEqual(cells(headings!), ['what', 'process', 'found'])
      t.regex(rule!, /^(─+ {2}){3}─+$/)
      t.deepEqual(
        rows.map(cells),
        findings.map(({ check, status, processes: whom, found }) => [MARKS[status], check, whom.join(' → '), found]),
      )
      const wanted = (['slow', 'unknown'] as const).flatMap((status) => {
        const some = findings.filter((finding) => finding.status === status)
        const lines = some.map(({ check, processes: whom, meaning }) => `  ${check}, ${whom.join(' → ')}: ${meaning}`)
        return some.length === 0 ? [] : [`${MARKS[status]}\n${lines.join('\n')}`]
      })
      t.deepEqual(explained, wanted)
      t.true(block.endsWith('\n\n'))
    }
    t.deepEqual(
      blocks.map((block) => block.includes('\nSLOW\n')),
      [true, false],
    )
  },
)

test.serial('it is as wide as the terminal, and else 160 columns', async (t) => {
  t.teardown(useFakeFiles(all()))
  timePasses(t)
  const width = (text: string) =>
    Math.max(
      ...text
        .split('\n')
        .filter((line) => /^\S/.test(line))
        .map((line) => line.length),
    )
  for (const [how, wanted] of [[{ columns: 40 }, 40] as const, [{}, 160] as const]) {
    const output = captureOutput(t, 'stdout', how)
    await diagnoseWith(t, () => explain(3, false), { 3: still(4), 4: still(3) })
    t.true(width(output.text) <= wanted, String(width(output.text)))
    if (wanted === 40) t.is(width(output.text), 40)
  }
})

test.serial('a program gets all of it as JSON', async (t) => {
  t.teardown(useFakeFiles(all()))
  timePasses(t)
  const output = captureOutput(t, 'stdout')
  const snapshots = { 3: still(4), 4: still(3) }
  const diagnosis = await diagnoseWith(t, () => diagnosePair(3), snapshots)
  await diagnoseWith(t, () => explain(3, true), snapshots)
  t.is(output.text, `${JSON.stringify(diagnosis, null, 2)}\n`)
})
