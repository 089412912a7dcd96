// A chat worker with the named adapter, for main.mjs and test.mjs: carries out commands, and reports the results.
//
//     node worker.mjs ADAPTER WHERE        WHERE: a directory, or the port of a Redis server

import { createServer } from 'node:http'
import { createRequire } from 'node:module'

import { Server } from 'socket.io'

const [way, where] = process.argv.slice(2)

/** Creates each adapter. */
const ways = {
  async ring() {
    const { createAdapter, joinMesh } = await import('./adapter.mjs')
    return createAdapter(await joinMesh({ directory: where }))
  },
  async 'cluster IPC'() {
    const { createAdapter } = await import('@socket.io/cluster-adapter')
    return createAdapter()
  },
  async Redis() {
    const [{ createAdapter }, { createClient }] = await Promise.all([
      import('@socket.io/redis-adapter'),
      import('redis'),
    ])
    const publishing = createClient({ socket: { host: '127.0.0.1', port: Number(where) } })
    const subscribing = publishing.duplicate()
    for (const client of [publishing, subscribing]) client.on('error', () => {})
    await Promise.all([publishing.connect(), subscribing.connect()])
    return createAdapter(publishing, subscribing)
  },
}

// All adapters extend this one, and call this method for each broadcast of another worker.
const { Adapter } = createRequire(import.meta.resolve('socket.io'))('socket.io-adapter')
const { broadcast } = Adapter.prototype
let seen = 0
let counting = null
Adapter.prototype.broadcast = function count(packet, options) {
  if (packet.data?.[0] === 'tick') {
    seen += 1
    counting?.()
  }
  return broadcast.call(this, packet, options)
}

const http = createServer()
const io = new Server(http)
io.adapter(await ways[way]())
const sockets = new Map()
io.on('connection', (socket) => sockets.set(socket.id, socket))
io.of('/other').on('connection', () => {})

let cpu
const received = []
io.on('note', (...words) => {
  const answer = words.at(-1)
  if (typeof answer === 'function') answer(process.pid)
  else received.push(words)
})

const commands = {
  // The number of connected workers, including this one.
  count: () => io.of('/').adapter.serverCount(),
  emit: ({ room, except, namespace = '/', words, local }) => {
    let to = io.of(namespace)
    if (local) to = to.local
    if (room !== undefined) to = to.to(room)
    if (except !== undefined) to = to.except(except)
    return to.emit('news', ...words)
  },
  ask: ({ timeout }) => io.timeout(timeout).emitWithAck('question'),
  join: ({ room, of }) => (of === undefined ? io : io.in(of)).socketsJoin(room),
  leave: ({ room, of }) => (of === undefined ? io : io.in(of)).socketsLeave(room),
  rooms: () => [...sockets.values()].flatMap((socket) => [...socket.rooms].filter((room) => room !== socket.id)),
  fetch: async () => (await io.fetchSockets()).map((socket) => socket.id),
  disconnect: () => io.disconnectSockets(),
  emitToServers: (words) => io.serverSideEmit('note', ...words),
  received: () => received,
  consult: () => io.serverSideEmitWithAck('note'),

  begin: () => {
    seen = 0
    cpu = process.cpuUsage()
  },
  // Sends broadcasts, with a turn of the event loop after each twenty.
  tick: async (count) => {
    for (let number = 0; number < count; number += 1) {
      io.emit('tick', number, 'a message of the usual length, as people write them to each other all day long')
      if (number % 20 === 19) await new Promise((resolve) => setImmediate(resolve))
    }
  },
  // Resolves once this number of broadcasts, including its own, was delivered to this worker's clients.
  seen: (count) =>
    new Promise((resolve) => {
      counting = () => {
        if (seen < count) return
        counting = null
        resolve(String(process.hrtime.bigint()))
      }
      counting()
    }),
  saw: () => seen,
  cpu: () => {
    const { user, system } = process.cpuUsage(cpu)
    return user + system
  },
}

process.on('message', async (message) => {
  if (message.command === undefined) return
  const { id, command, words } = message
  try {
    process.send({ id, answer: await commands[command](words) })
  } catch (error) {
    process.send({ id, failure: error.message })
  }
})
// Each worker gets its own port. Otherwise the primary would share one among them.
http.listen({ port: 0, host: '127.0.0.1', exclusive: true }, () => process.send({ port: http.address().port }))
