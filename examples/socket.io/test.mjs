// The requirements of the test suites of socket.io's adapters, with three worker processes and a client at each.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'

import { io } from 'socket.io-client'

import { startWorker, untilConnected } from './workers.mjs'

const directory = join(mkdtempSync(join(tmpdir(), 'ringfence-socket.io-')), 'workers')
let workers = []
let clients = []

const connect = async ({ port }, path = '') => {
  const client = io(`http://127.0.0.1:${port}${path}`, { transports: ['websocket'], forceNew: true })
  await once(client, 'connect')
  return client
}

before(async () => {
  workers = await Promise.all(Array.from({ length: 3 }, () => startWorker('ring', directory)))
})

beforeEach(async () => {
  for (const client of clients) client.disconnect()
  await untilConnected(workers)
  clients = await Promise.all(workers.map((worker) => connect(worker)))
})

after(async () => {
  for (const client of clients) client.disconnect()
  for (const worker of workers) worker.kill()
  await Promise.all(workers.map(({ exited }) => exited))
  rmSync(join(directory, '..'), { recursive: true })
})

/** Collects the events of each client until all expected ones have arrived. A later event shows that no other follows. */
async function news(expected, act) {
  const got = clients.map(() => [])
  clients.forEach((client, index) => client.on('news', (...words) => got[index].push(words)))
  const ends = clients.map(
    (client) => new Promise((resolve) => client.on('news', (word) => word === 'end' && resolve())),
  )
  await act()
  await workers[0].call('emit', { words: ['end'] })
  await Promise.all(ends)
  assert.deepEqual(
    got.map((all) => all.filter(([word]) => word !== 'end')),
    expected,
  )
}

const rooms = () => Promise.all(workers.map(async (worker) => (await worker.call('rooms')).sort()))

/** Joins and leaves are announced without a reply, in order with later announcements. */
async function settled() {
  await workers[0].call('consult')
}

test('a broadcast reaches the clients of all workers, bytes among it', async () => {
  const words = [1, '2', Buffer.from([3, 4])]
  await news([[words], [words], [words]], () => workers[0].call('emit', { words }))
})

test('a broadcast in a namespace stays there', async () => {
  const others = await Promise.all(workers.map((worker) => connect(worker, '/other')))
  await new Promise((resolve) => setTimeout(resolve, 0))
  const received = others.map((client) => once(client, 'news'))
  await news([[], [], []], () => workers[0].call('emit', { namespace: '/other', words: ['here'] }))
  assert.deepEqual(await Promise.all(received), [['here'], ['here'], ['here']])
  for (const client of others) client.disconnect()
})

test('rooms: joined and left from another worker; a broadcast to one, and to all but one', async () => {
  await workers[0].call('join', { room: 'all' })
  await settled()
  assert.deepEqual(await rooms(), [['all'], ['all'], ['all']])
  await workers[0].call('join', { room: 'two', of: clients[1].id })
  await settled()
  assert.deepEqual(await rooms(), [['all'], ['all', 'two'], ['all']])
  await news([[], [['to']], []], () => workers[2].call('emit', { room: 'two', words: ['to'] }).then(settled))
  await news([[['but']], [], [['but']]], () => workers[0].call('emit', { except: 'two', words: ['but'] }))
  await workers[0].call('leave', { room: 'all' })
  await settled()
  assert.deepEqual(await rooms(), [[], ['two'], []])
})

test('a local broadcast reaches the clients of its worker alone', async () => {
  await news([[['near']], [], []], () => workers[0].call('emit', { local: true, words: ['near'] }))
})

test('a broadcast with acknowledgements has those of all clients', async () => {
  clients.forEach((client, index) => client.on('question', (answer) => answer(index)))
  assert.deepEqual((await workers[1].call('ask', { timeout: 30_000 })).sort(), [0, 1, 2])
})

test('a broadcast with acknowledgements fails where a client does not answer in time', async () => {
  clients.slice(1).forEach((client) => client.on('question', (answer) => answer('yes')))
  await assert.rejects(workers[1].call('ask', { timeout: 500 }), /operation has timed out/)
})

test('fetchSockets has the sockets of all workers', async () => {
  assert.deepEqual((await workers[2].call('fetch')).sort(), clients.map(({ id }) => id).sort())
})

test('disconnectSockets ends the clients of all workers', async () => {
  const ends = clients.map((client) => once(client, 'disconnect'))
  await workers[0].call('disconnect')
  for (const [reason] of await Promise.all(ends)) assert.equal(reason, 'io server disconnect')
})

test('serverSideEmit reaches the other workers, and brings their answers', async () => {
  await workers[0].call('emitToServers', ['a', Buffer.from('b'), new Date(0)])
  const answers = await workers[0].call('consult')
  assert.deepEqual(answers.sort(), [workers[1].pid, workers[2].pid].sort())
  assert.deepEqual(await Promise.all(workers.map((worker) => worker.call('received'))), [
    [],
    [['a', Buffer.from('b'), new Date(0)]],
    [['a', Buffer.from('b'), new Date(0)]],
  ])
})

test('a worker that is killed while it is asked costs the others nothing, and another one takes its place', async () => {
  // It is stopped and cannot answer. The kernel's report of its death ends the request.
  workers[2].kill('SIGSTOP')
  const asked = workers[0].call('fetch')
  workers[2].kill('SIGKILL')
  assert.deepEqual((await asked).sort(), [clients[0].id, clients[1].id].sort())
  await untilConnected(workers.slice(0, 2))
  workers[2] = await startWorker('ring', directory)
  await untilConnected(workers)
  const client = await connect(workers[2])
  const received = once(client, 'news')
  await workers[0].call('emit', { words: ['welcome'] })
  assert.deepEqual(await received, ['welcome'])
  client.disconnect()
})
