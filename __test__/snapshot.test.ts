// Statistics that a process sends to an observer are accepted only if they are well formed.

import test from 'ava'

import { internals } from './support/internals.js'

const { parseSnapshot } = await internals<{
  parseSnapshot(message: Buffer, identity: object): Record<string, unknown>
}>('cli/snapshot.js')

const identity = { pid: 7, uid: 1000, executable: { path: '/bin/real' } }
const channel = { id: 1, address: '@x', peer: 2, role: 'host' }
const snapshot = { pid: 1, uid: 2, executable: '/bin/told', at: 1.4, channels: [channel], more: 9 }

const read = (snapshots: unknown, of: object = identity) => parseSnapshot(Buffer.from(JSON.stringify(snapshots)), of)

const FIGURES = [
  'messagesSent',
  'bytesSent',
  'messagesReceived',
  'bytesReceived',
  'attachmentsSent',
  'attachmentsWithheld',
  'attachmentsReceived',
  'callsInFlight',
  'lateReplies',
  'waits',
  'waitedMicros',
  'wakeupsSent',
  'sleeps',
  'ringUsed',
  'ringCapacity',
  'queuedBytes',
  'open',
  'evicted',
  'lag',
  'lost',
]

test('the identity comes from the kernel; statistics are accepted, and nothing else', (t) => {
  const all = Object.fromEntries(FIGURES.map((name, number) => [name, number]))
  for (const role of ['host', 'guest', 'publisher', 'subscriber'])
    t.deepEqual(read({ ...snapshot, channels: [{ ...channel, ...all, role, more: 1, pid: 3 }], other: 1 }), {
      pid: 7,
      uid: 1000,
      executable: '/bin/real',
      at: 1,
      channels: [{ ...channel, ...all, role }],
      more: 0,
    })
  const none = { ...channel, address: null, peer: null }
  t.deepEqual(read({ ...snapshot, at: 1.6, channels: [none] }), {
    pid: 7,
    uid: 1000,
    executable: '/bin/real',
    at: 2,
    channels: [none],
    more: 0,
  })
  const snapshots = read({ ...snapshot, executable: 'x'.repeat(5000) }, { pid: 7, uid: 1000 })
  t.is(snapshots['executable'], 'x'.repeat(4096))
  const longest = { ...channel, address: 'x'.repeat(108), messagesSent: Number.MAX_SAFE_INTEGER, lag: 0 }
  t.deepEqual(read({ ...snapshot, channels: [longest] })['channels'], [longest])
  const behind = Array.from({ length: 10 }, (_, number) => [number, 10 - number])
  t.deepEqual(read({ ...snapshot, channels: [{ ...channel, behind }] })['channels'], [
    { ...channel, behind: behind.slice(0, 8) },
  ])
  const many = read({ ...snapshot, channels: Array.from({ length: 503 }, () => channel) })
  t.is((many['channels'] as object[]).length, 500)
  t.is(many['more'], 3)
  t.is(read({ ...snapshot, channels: Array.from({ length: 500 }, () => channel) })['more'], 0)
})

test('a malformed snapshot is rejected as a whole', (t) => {
  const wrong = (...of: unknown[]) => of
  const figures = wrong(-1, 2 ** 53, '1', null, {}, [], true)
  const snapshots: unknown[] = [null, 1, 'text', [], {}]
  for (const at of figures) snapshots.push({ ...snapshot, at })
  for (const channels of wrong(undefined, {}, 'x', null, 1)) snapshots.push({ ...snapshot, channels })
  for (const executable of wrong(undefined, null, 1, {})) snapshots.push({ ...snapshot, executable })
  const channels: unknown[] = [null, 1, 'text', []]
  for (const id of figures) channels.push({ ...channel, id })
  for (const address of wrong(undefined, 1, {}, 'x'.repeat(109), ['x'])) channels.push({ ...channel, address })
  for (const peer of wrong(undefined, -1, '1', {}, [])) channels.push({ ...channel, peer })
  for (const role of wrong(undefined, null, 'reader', { toString: 1 }, ['host'])) channels.push({ ...channel, role })
  for (const name of FIGURES) for (const figure of figures) channels.push({ ...channel, [name]: figure })
  for (const behind of wrong(1, {}, 'text', null, [1], [[]], [[1]], [['1', 1]], [{}]))
    channels.push({ ...channel, behind })
  for (const figure of figures)
    channels.push({ ...channel, behind: [[figure, 1]] }, { ...channel, behind: [[1, figure]] })
  for (const one of channels) snapshots.push({ ...snapshot, channels: [channel, one] })
  for (const one of snapshots) t.throws(() => read(one), { message: 'no figures' }, JSON.stringify(one))
  t.throws(() => parseSnapshot(Buffer.from('{'), identity), { name: 'SyntaxError' })
})
