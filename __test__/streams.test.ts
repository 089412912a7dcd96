// The directions of messages between processes, derived from /proc and from statistics.

import test from 'ava'

import { slow } from './support/slow.js'

interface Stream {
  writer: number
  reader: number
  capacity: number
  sent: object | null
  flow: object | null
  sleepsPerSecond: number | null
}

interface Pair {
  pid: number
  peer: number
  address: string | null
  streams: Stream[]
}

type Figures = Record<string, unknown>
type Statistics = Map<number, { before: object; now: object }>

const { pairsOf } = (await slow('streams')) as {
  pairsOf(target: number | string, processes: object[], statistics: Statistics): Pair[]
}

const seen = (pid: number, ...channels: object[]) => ({ pid, uid: 0, executable: '/x', since: 0, channels })

const side = (peer: number | null, role: string | null, more: object = {}) => ({
  address: null,
  peer,
  role,
  ringCapacity: 100,
  peerRingCapacity: 200,
  ...more,
})

/** Two snapshots of a process, two seconds apart: the first statistics of each channel, and the increments. */
function tells(...channels: [before: Figures, more: Figures][]) {
  const grown = (before: Figures, more: Figures) =>
    Object.fromEntries(
      Object.entries({ ...before, ...more }).map(([name, value]) => [
        name,
        name in before && name in more ? (before[name] as number) + (value as number) : value,
      ]),
    )
  return {
    before: { at: 1000, channels: channels.map(([before]) => before) },
    now: { at: 3000, channels: channels.map(([before, more]) => grown(before, more)) },
  }
}

const silent = { sent: null, flow: null, sleepsPerSecond: null }
const unseen: Statistics = new Map()

test('each channel is one pair: from the requested process, or from the host of an address', (t) => {
  const address = '@x'
  const processes = [
    seen(1, side(2, 'guest', { address })),
    seen(2, side(1, 'host', { address }), side(3, null, { address })),
  ]
  const streams = (pid: number, peer: number) => [
    { writer: pid, reader: peer, capacity: 100, ...silent },
    { writer: peer, reader: pid, capacity: 200, ...silent },
  ]
  t.deepEqual(pairsOf(1, processes, unseen), [{ pid: 1, peer: 2, address, streams: streams(1, 2) }])
  t.deepEqual(pairsOf(2, processes, unseen), [
    { pid: 2, peer: 1, address, streams: streams(2, 1) },
    { pid: 2, peer: 3, address, streams: streams(2, 3) },
  ])
  // Process 3 is known only from process 2.
  t.deepEqual(
    pairsOf(address, processes, unseen).map(({ pid, peer }) => [pid, peer]),
    [
      [2, 1],
      [2, 3],
    ],
  )
  t.deepEqual(pairsOf('@y', processes, unseen), [])
  t.deepEqual(pairsOf(3, processes, unseen), [])
  t.deepEqual(pairsOf(4, [seen(4, side(null, 'host'))], unseen), [])
})

test('if the host is unknown, the lower pid comes first, and each channel is still one pair', (t) => {
  const address = '@x'
  const processes = [seen(5, side(6, null, { address })), seen(6, side(5, null, { address }))]
  t.deepEqual(
    pairsOf(address, processes, unseen).map(({ pid }) => pid),
    [5],
  )
  const many = [
    seen(7, side(8, 'subscriber', { address, ringCapacity: 0 })),
    seen(8, side(7, 'publisher', { address, peerRingCapacity: 0 })),
  ]
  t.deepEqual(
    pairsOf(address, many, unseen).map(({ pid, streams }) => [pid, streams.length]),
    [[8, 1]],
  )
  t.deepEqual(
    pairsOf(7, many, unseen).map(({ streams }) => streams),
    [[{ writer: 8, reader: 7, capacity: 200, ...silent }]],
  )
})

test('statistics of both processes: fill level, throughput, and how often the reader sleeps', (t) => {
  const processes = [seen(1, side(2, 'host')), seen(2, side(1, 'guest'))]
  const own = tells([
    {
      id: 1,
      peer: 2,
      role: 'host',
      address: '@met',
      messagesSent: 10,
      bytesSent: 1000,
      ringUsed: 5,
      waitedMicros: 500_000,
      sleeps: 3,
    },
    { messagesSent: 4, bytesSent: 80, ringUsed: 2, waitedMicros: 1_000_000, sleeps: 8 },
  ])
  const theirs = tells([
    { id: 9, peer: 1, role: 'guest', address: null, messagesReceived: 6, bytesReceived: 60, sleeps: 0 },
    { messagesReceived: 2, bytesReceived: 6, sleeps: 2 },
  ])
  const [pair] = pairsOf(
    1,
    processes,
    new Map([
      [1, own],
      [2, theirs],
    ]),
  )
  t.is(pair!.address, '@met')
  t.deepEqual(pair!.streams, [
    {
      writer: 1,
      reader: 2,
      capacity: 100,
      sent: { used: 7, usedBefore: 5, waiting: 0.5 / 1 },
      flow: { messagesPerSecond: 2, size: 20 },
      sleepsPerSecond: 1,
    },
    {
      writer: 2,
      reader: 1,
      capacity: 200,
      sent: { used: 0, usedBefore: 0, waiting: 0 },
      // Process 2 has reported no sent message, and process 1 no received one.
      flow: null,
      sleepsPerSecond: 4,
    },
  ])
  // Only the reader reports, so the throughput is what it has received.
  const [half] = pairsOf(1, processes, new Map([[2, theirs]]))
  t.is(half!.address, null)
  t.deepEqual(half!.streams[0], {
    writer: 1,
    reader: 2,
    capacity: 100,
    sent: null,
    flow: { messagesPerSecond: 1, size: 3 },
    sleepsPerSecond: 1,
  })
  t.is(pairsOf('@met', processes, new Map([[1, own]])).length, 1)
  t.is(pairsOf('@met', processes, new Map([[2, own]])).length, 0)
})

test('without traffic in between, the size of messages is that of all earlier ones', (t) => {
  const processes = [seen(1, side(2, 'host')), seen(2, side(1, 'guest'))]
  const figures = { id: 1, peer: 2, role: 'host', address: null }
  const flowOf = (before: Figures, more: Figures) =>
    pairsOf(1, processes, new Map([[1, tells([{ ...figures, ...before }, more])]]))[0]!.streams.map(({ flow }) => flow)
  t.deepEqual(flowOf({ messagesSent: 4, bytesSent: 100 }, {}), [{ messagesPerSecond: 0, size: 25 }, null])
  t.deepEqual(flowOf({ messagesReceived: 4, bytesReceived: 100 }, {}), [null, { messagesPerSecond: 0, size: 25 }])
  t.deepEqual(flowOf({}, {}), [null, null])
  t.deepEqual(flowOf({}, { messagesSent: 2, bytesSent: 10 }), [{ messagesPerSecond: 1, size: 5 }, null])
  // A channel that appeared between the two snapshots has no rate.
  const { before, now } = tells([{ ...figures, messagesSent: 4, bytesSent: 100 }, {}])
  t.deepEqual(
    pairsOf(1, processes, new Map([[1, { before: { ...before, channels: [] }, now }]]))[0]!.streams[0]!.sent,
    null,
  )
})

test('two channels of the same two processes have separate statistics', (t) => {
  const processes = [seen(1, side(2, 'host'), side(2, 'host')), seen(2, side(1, 'guest'), side(1, 'guest'))]
  const figures = (id: number, ringUsed: number, sleeps: number): [Figures, Figures] => [
    { id, peer: 2, role: 'host', address: null, ringUsed },
    { sleeps },
  ]
  const statistics: Statistics = new Map([
    [1, tells(figures(1, 5, 2), figures(2, 6, 4), [{ id: 3, peer: 3, role: 'host', address: null }, {}])],
  ])
  t.deepEqual(
    pairsOf(1, processes, statistics).map(({ streams }) => [streams[0]!.sent, streams[1]!.sleepsPerSecond]),
    [
      [{ used: 5, usedBefore: 5, waiting: 0 }, 1],
      [{ used: 6, usedBefore: 6, waiting: 0 }, 2],
    ],
  )
})

const publishes = (peer: number, ringCapacity = 100) => side(peer, 'publisher', { ringCapacity, peerRingCapacity: 0 })
const subscribed = (peer: number, peerRingCapacity = 100) =>
  side(peer, 'subscriber', { ringCapacity: 0, peerRingCapacity })

test('a publisher reports all its subscribers together, for each of its rings', (t) => {
  const processes = [
    seen(1, publishes(2), publishes(3), publishes(4, 4000)),
    seen(2, subscribed(1)),
    seen(4, subscribed(1, 4000)),
  ]
  const figures = { peer: null, role: 'publisher', messagesSent: 10, bytesSent: 100 }
  const statistics: Statistics = new Map([
    [
      1,
      tells(
        // A ring of the same size that belongs to no publisher.
        [{ id: 5, peer: 9, role: 'host', address: '@h', ringCapacity: 100, messagesSent: 1 }, {}],
        [
          { ...figures, id: 1, address: '@p', ringCapacity: 100 },
          { messagesSent: 2, bytesSent: 8 },
        ],
        [
          { ...figures, id: 2, address: '@q', ringCapacity: 4000 },
          { messagesSent: 4, bytesSent: 80 },
        ],
      ),
    ],
    [2, tells([{ id: 1, peer: 1, role: 'subscriber', address: '@p', sleeps: 1 }, { sleeps: 6 }])],
  ])
  const stream = (reader: number, sleepsPerSecond: number | null, more: object = {}) => ({
    writer: 1,
    reader,
    capacity: 100,
    sent: { used: 0, usedBefore: 0, waiting: 0 },
    flow: { messagesPerSecond: 1, size: 4 },
    sleepsPerSecond,
    ...more,
  })
  const other = stream(4, null, { capacity: 4000, flow: { messagesPerSecond: 2, size: 20 } })
  t.deepEqual(pairsOf(1, processes, statistics), [
    { pid: 1, peer: 2, address: '@p', streams: [stream(2, 3)] },
    { pid: 1, peer: 3, address: '@p', streams: [stream(3, null)] },
    { pid: 1, peer: 4, address: '@q', streams: [other] },
  ])
  t.deepEqual(pairsOf(2, processes, statistics), [{ pid: 2, peer: 1, address: '@p', streams: [stream(2, 3)] }])
  t.deepEqual(pairsOf(4, processes, statistics), [{ pid: 4, peer: 1, address: '@q', streams: [other] }])
  // Without statistics this is unknown.
  t.is(pairsOf(1, processes, unseen).length, 3)
  t.is(pairsOf(4, processes, unseen).length, 1)
})

test('lagging subscribers have the ring of the publisher full, and it waits for the slowest', (t) => {
  const readers = [2, 3, 4, 5, 6]
  const processes = [seen(1, ...readers.map((reader) => publishes(reader))), ...readers.map((pid) => seen(pid))]
  const publisher = { id: 1, peer: null, role: 'publisher', address: '@p', ringCapacity: 100 }
  const sentTo = (before: object, now: object, more: [number, ReturnType<typeof tells>][] = []) => {
    const own = tells([{ ...publisher, ringUsed: 99, waitedMicros: 0 }, { waitedMicros: 1_000_000 }])
    Object.assign(own.before.channels[0]!, before)
    Object.assign(own.now.channels[0]!, now)
    return pairsOf(1, processes, new Map([[1, own], ...more])).map(({ streams }) => {
      const { used, usedBefore, waiting } = streams[0]!.sent as Record<string, number>
      return [used, usedBefore, waiting]
    })
  }
  const [none, waits] = [0, 0.5]
  t.deepEqual(
    sentTo(
      {
        behind: [
          [2, 99],
          [3, 60],
          [4, 20],
        ],
      },
      {
        behind: [
          [2, 98],
          [4, 40],
          [3, 30],
        ],
      },
    ),
    [
      [98, 99, waits],
      [30, 60, waits],
      [40, 20, none],
      [0, 0, none],
      [0, 0, none],
    ],
  )
  // It waited for a subscriber that has read since, so it is unknown which one.
  const lags = [0, 0, none]
  t.deepEqual(sentTo({ behind: [] }, { behind: [] }), [lags, lags, lags, lags, lags])
  // A subscriber that is not among the slowest reports its own lag.
  const own = tells([{ id: 7, peer: 1, role: 'subscriber', address: '@p', lag: 50 }, { lag: 10 }])
  const behind = [[2, 100]]
  t.deepEqual(sentTo({ behind }, { behind }, [[6, own]]).slice(3), [lags, [60, 50, waits]])
  // A publisher of an earlier version reports only how full the ring is, and not each subscriber.
  t.deepEqual(sentTo({}, {})[4], [99, 99, waits])
})
