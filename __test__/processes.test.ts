// Finding channels in /proc, as `ringfence ps` does, over a fake one: it can show processes of other users, and rare
// moments. observe.test.ts has real processes.

import { internals } from './support/internals.js'
import test from 'ava'

import { fails, fakeHost, line, fakeProcess, read, useFakeFiles, written, type FakeFiles } from './support/fake-proc.js'

interface Seen {
  pid: number
  uid: number
  executable: string | null
  since: number
  channels: object[]
}

/** Not exported by the package. */
const { seenProcesses } = await internals<{
  seenProcesses(): Seen[]
}>('runtime/processes.js')

/** The processes that are found in such a /proc. */
function seenIn(proc: FakeFiles): Seen[] {
  const unsee = useFakeFiles(proc)
  try {
    return seenProcesses()
  } finally {
    unsee()
  }
}

const channel = (role: string | null, peer: number | null, rings: [own: number, theirs: number], address?: string) => {
  return { address: address ?? null, peer, role, ringCapacity: rings[0], peerRingCapacity: rings[1] }
}

/** The channels of each process, by its pid. */
const channelsIn = (proc: FakeFiles) => Object.fromEntries(seenIn(proc).map(({ pid, channels }) => [pid, channels]))

test('a process is listed with its data from /proc, and one without shared objects is left out', (t) => {
  const [service, agent] = [
    [written(1, 65_536), read(2, 8192)],
    [read(1, 65_536), written(2, 8192)],
  ] as const
  const all = fakeHost(fakeProcess(3, [...service], '@a'), fakeProcess(4_000_000, [...agent]), fakeProcess(5, []))
  const about = (pid: number) => ({ pid, uid: 1000 + pid, since: 1_700_000_002_500, executable: `/usr/bin/${pid}` })
  t.deepEqual(seenIn(all), [
    { ...about(3), channels: [channel('host', 4_000_000, [65_536, 8192], '@a')] },
    { ...about(4_000_000), channels: [channel('guest', 3, [8192, 65_536], '@a')] },
  ])
  t.deepEqual(seenIn(fakeHost(fakeProcess(5, []))), [])
})

test('an object is recognized by its name, and counts once if it is mapped in pieces', (t) => {
  const shm = '/dev/shm/ringfence-1a2b (deleted)'
  for (const lines of [
    [written(12_345_678, 4096)],
    [line('r--', 9, 4096), line('rw-', 9, 8192)],
    [line('rw-', 9, 8192), line('r--', 9, 4096)],
    [line('rw-', 9, 12_288, shm)],
    [line('rw-', 9, 12_288, '/dev/shm/ringfence (deleted)')],
  ])
    t.deepEqual(channelsIn(fakeHost(fakeProcess(3, lines))), { 3: [channel(null, null, [4096, 0])] }, String(lines))
  for (const [rights, name] of [
    ['rw-', '/memfd:ringfence-control (deleted)'],
    ['rw-', '/memfd:ringfence'],
    ['rw-', '/memfd:ringfence (deleted) '],
    ['rw-', '/home/memfd:ringfence (deleted)'],
    ['rw-', '/dev/shm/ringfence-1a2b'],
    ['rw-', '/dev/shm/ringfence -1a2b (deleted)'],
    ['rw-', '/dev/shm/ring (deleted)'],
    ['---', '/memfd:ringfence (deleted)'],
  ] as const)
    t.deepEqual(channelsIn(fakeHost(fakeProcess(3, [line(rights, 9, 12_288, name)]))), {}, name)
  // The same inode on another device is another object. An object without a ring is not shown.
  const elsewhere = read(9, 4096).replace('00:01', '00:1f')
  t.deepEqual(channelsIn(fakeHost(fakeProcess(3, [written(9, 4096)]), fakeProcess(4, [elsewhere]))), {
    3: [channel(null, null, [4096, 0])],
    4: [channel(null, null, [0, 4096])],
  })
  t.deepEqual(channelsIn(fakeHost(fakeProcess(3, [line('rw-', 9, 8192), read(8, 0)]))), {})
})

test('a file whose name looks like a shared object is only a file', (t) => {
  const [one, other] = [
    fakeProcess(3, [written(1, 4096), read(2, 4096)]),
    fakeProcess(4, [read(1, 4096), written(2, 4096)]),
  ]
  const honest = channelsIn(fakeHost(one, other))
  for (const end of ['\r', '\u0085', '\\012'])
    for (const forged of [`/tmp/${end}${written(1, 65_536)}`, `/tmp/x${end}/memfd:ringfence (deleted)`])
      t.deepEqual(channelsIn(fakeHost(one, other, fakeProcess(5, [line('r--', 99, 12_288, forged)]))), honest)
  const before = line('r--', 99, 12_288, `/memfd:ringfence (deleted)\r/tmp/x`)
  t.deepEqual(channelsIn(fakeHost(one, other, fakeProcess(5, [before]))), honest)
})

test('several channels are each listed once, with their own peers', (t) => {
  const all = fakeHost(
    fakeProcess(3, [
      written(1, 4096),
      written(2, 8192),
      written(3, 16_384),
      read(4, 40_960),
      read(5, 45_056),
      read(6, 49_152),
    ]),
    fakeProcess(4, [written(4, 40_960), read(1, 4096)]),
    // In another order than at the other end.
    fakeProcess(5, [read(3, 16_384), read(2, 8192), written(5, 45_056), written(6, 49_152)]),
  )
  t.deepEqual(channelsIn(all), {
    3: [channel(null, 4, [4096, 40_960]), channel(null, 5, [8192, 45_056]), channel(null, 5, [16_384, 49_152])],
    4: [channel(null, 3, [40_960, 4096])],
    5: [channel(null, 3, [45_056, 8192]), channel(null, 3, [49_152, 16_384])],
  })
})

test('a publisher is listed with each reader of its ring, and each reader with the publisher', (t) => {
  const [ring, reads] = [written(1, 65_536, '@a'), read(1, 65_536, '@a')]
  // It also listens at another address: the name of the ring says which one is the publisher's.
  const publisher = fakeProcess(3, [ring], '@a', '@b')
  const ofPublisher = (peer: number | null) => channel('publisher', peer, [65_536, 0], '@a')
  const subscriber = channel('subscriber', 3, [0, 65_536], '@a')
  t.deepEqual(channelsIn(fakeHost(publisher, fakeProcess(4, [reads]))), { 3: [ofPublisher(4)], 4: [subscriber] })
  t.deepEqual(channelsIn(fakeHost(publisher, fakeProcess(4, [reads]), fakeProcess(5, [reads]))), {
    3: [ofPublisher(4), ofPublisher(5)],
    4: [subscriber],
    5: [subscriber],
  })
  t.deepEqual(channelsIn(fakeHost(publisher)), { 3: [ofPublisher(null)] }, 'without a subscriber that can be seen')
  const [reading, other] = [fakeProcess(3, [ring, read(2, 8192, '@c')], '@a'), fakeProcess(4, [written(2, 8192, '@c')])]
  t.deepEqual(channelsIn(fakeHost(reading, other)), {
    3: [ofPublisher(null), channel('subscriber', 4, [0, 8192])],
    4: [channel('publisher', 3, [8192, 0])],
  })
  // The publisher chooses the name itself: an address at which it does not listen belongs to another process.
  t.deepEqual(channelsIn(fakeHost(fakeProcess(3, [ring]), fakeProcess(4, [reads], '@a'))), {
    3: [channel('publisher', 4, [65_536, 0])],
    4: [channel('subscriber', 3, [0, 65_536])],
  })
  const path = '/run/a (deleted)\u{20ac}'
  const named = fakeProcess(3, [written(1, 4096, Buffer.from(path).toString('latin1'))], path)
  t.deepEqual(channelsIn(fakeHost(named)), { 3: [channel('publisher', null, [4096, 0], path)] })
})

test('the ring of a process’s statistics is not a channel, for it and for observers', (t) => {
  const figures = [4_194_304, '@ringfence-observe-3'] as const
  const [writer, reader] = [written(1, ...figures), read(1, ...figures)]
  const [one, other] = [
    [written(2, 4096), read(3, 8192)],
    [read(2, 4096), written(3, 8192)],
  ] as const
  t.deepEqual(seenIn(fakeHost(fakeProcess(3, [writer], '@ringfence-observe-3'), fakeProcess(4, [reader]))), [])
  t.deepEqual(
    channelsIn(fakeHost(fakeProcess(3, [writer, ...one]), fakeProcess(4, [...other]), fakeProcess(5, [reader]))),
    {
      3: [channel(null, 4, [4096, 8192])],
      4: [channel(null, 3, [8192, 4096])],
    },
  )
})

test('a process that subscribes to a publisher and has a channel with it is listed with both', (t) => {
  const [published, ofService] = [65_536, 4096]
  const agent = (pid: number, ...orders: [string, string]) => fakeProcess(pid, [...orders, written(pid * 10, 8192)])
  for (const service of [
    [written(1, published, '@p'), written(4, ofService), written(5, ofService)],
    [written(4, ofService), written(5, ofService), written(1, published, '@p')],
  ]) {
    const hub = fakeProcess(3, [...service, read(40, 8192), read(50, 8192)])
    const [one, other] = [
      agent(4, read(1, published, '@p'), read(4, ofService)),
      agent(5, read(5, ofService), read(1, published, '@p')),
    ]
    const all = channelsIn(fakeHost(hub, one, other))
    const ofHub = all[3] as { role: string | null }[]
    t.deepEqual(
      // The publisher's entry is last.
      ofHub.sort((first, second) => String(first.role).localeCompare(String(second.role))),
      [
        channel(null, 4, [ofService, 8192]),
        channel(null, 5, [ofService, 8192]),
        channel('publisher', 4, [published, 0]),
        channel('publisher', 5, [published, 0]),
      ],
    )
    for (const pid of [4, 5])
      t.deepEqual(all[pid], [channel(null, 3, [8192, ofService]), channel('subscriber', 3, [0, published])])
  }
})

test('nothing is invented about a process of another user, whose map is not readable', (t) => {
  const closed = { ...fakeProcess(4, []), '/proc/4/maps': fails('EACCES') }
  const one = fakeProcess(3, [written(1, 4096), read(2, 8192)], '@a')
  t.deepEqual(channelsIn(fakeHost(one, closed)), { 3: [channel(null, null, [4096, 8192])] })
  // Only rings of others.
  t.deepEqual(channelsIn(fakeHost(fakeProcess(3, [read(2, 8192)]), closed)), { 3: [channel(null, null, [0, 8192])] })
  t.deepEqual(channelsIn(fakeHost(fakeProcess(3, [read(2, 8192, '@p')]), closed)), {
    3: [channel('subscriber', null, [0, 8192])],
  })
  // A channel with a visible process is not mistaken for one with an invisible process.
  const three = fakeProcess(3, [written(1, 4096), read(9, 12_288), read(2, 8192)])
  t.deepEqual(channelsIn(fakeHost(three, fakeProcess(5, [read(1, 4096), written(2, 8192)])))[3], [
    channel(null, 5, [4096, 8192]),
    channel(null, null, [0, 12_288]),
  ])
})

test('an address is shown if only one of the two has it, and never the address of statistics', (t) => {
  const ends = (atHost: string[], atGuest: string[]) => {
    const [one, other] = [
      [written(1, 4096), read(2, 4096)],
      [read(1, 4096), written(2, 4096)],
    ] as const
    const all = channelsIn(fakeHost(fakeProcess(3, [...one], ...atHost), fakeProcess(4, [...other], ...atGuest)))
    return [all[3], all[4]].map((channels) => {
      const [{ role, address }] = channels as [{ role: string; address: string }]
      return role === null && address === null ? null : `${role} ${address}`
    })
  }
  t.deepEqual(ends([], []), [null, null])
  t.deepEqual(ends(['@a'], []), ['host @a', 'guest @a'])
  t.deepEqual(ends([], ['@b']), ['guest @b', 'host @b'])
  t.deepEqual(ends(['@a'], ['@b']), [null, null])
  t.deepEqual(ends(['@a', '@b'], []), [null, null])
  t.deepEqual(ends(['@a', '@a'], ['@a']), ['host @a', 'host @a'])
  t.deepEqual(ends(['@ringfence-observe-3'], ['@b']), ['guest @b', 'host @b'])
  // The address of another process.
  t.deepEqual(ends([], ['@ringfence-observe-3']), ['guest @ringfence-observe-3', 'host @ringfence-observe-3'])
})

test('processes that exit or are not readable are left out; a local failure is an error', (t) => {
  const [one, other] = [
    fakeProcess(3, [written(1, 4096), read(2, 8192)], '@a'),
    fakeProcess(4, [read(1, 4096), written(2, 8192)]),
  ]
  const all = fakeHost(one, other)
  const failing = (path: string, code: string) => ({ ...all, [path]: fails(code) })
  const parts = ['/maps', '/ns/net', '/fd', '', '/stat', '/exe', '/fd/3'].map((part) => `/proc/3${part}`)
  for (const path of ['/proc', '/proc/net/unix', '/proc/self/ns/net', ...parts])
    for (const code of ['EMFILE', 'ENFILE', 'ENOMEM'])
      t.throws(() => seenIn(failing(path, code)), { code: 'ERR_RINGFENCE_NO_SPACE' }, `${path}: ${code}`)
  for (const code of ['EACCES', 'ENOENT', 'ESRCH']) {
    for (const part of ['/maps', '/ns/net', '/fd'])
      t.deepEqual(channelsIn(failing(`/proc/3${part}`, code)), { 4: [channel(null, null, [8192, 4096])] }, part)
    // The process has exited since its map was read.
    for (const part of ['', '/stat'])
      t.deepEqual(channelsIn(failing(`/proc/3${part}`, code)), { 4: [channel('guest', 3, [8192, 4096], '@a')] }, part)
    const [first] = seenIn(failing('/proc/3/exe', code))
    t.like(first, { pid: 3, uid: 1003, executable: null, channels: [channel('host', 4, [4096, 8192], '@a')] })
    t.deepEqual(channelsIn(failing('/proc/3/fd/3', code)), {
      3: [channel(null, 4, [4096, 8192])],
      4: [channel(null, 3, [8192, 4096])],
    })
    for (const path of ['/proc', '/proc/net/unix']) t.throws(() => seenIn(failing(path, code)), { code }, path)
  }
})
