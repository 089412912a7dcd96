// Clients and servers of other protocols, over `duplex()`: ws, undici, mqtt and aedes, mysql2, nodemailer and smtp-server.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'

import { Aedes } from 'aedes'
import { MqttClient } from 'mqtt'
import mysql from 'mysql2'
import { createConnection } from 'mysql2/promise'
import { createTransport } from 'nodemailer'
import { SMTPServer } from 'smtp-server'
import { Client } from 'undici'
import { WebSocket, WebSocketServer, createWebSocketStream } from 'ws'

import { closing, collect, failure, noise, suite } from './support.mjs'

const COLUMN = { catalog: 'def', schema: 'a', table: 'a', orgTable: 'a', name: 'value', orgName: 'value' }
const TEXT = { characterSet: 33, columnLength: 255, columnType: 253, flags: 0, decimals: 0 }
const HANDSHAKE = { protocolVersion: 10, serverVersion: '8', connectionId: 1, statusFlags: 2, characterSet: 33 }
/** All, without compression and TLS. */
const CAPABILITIES = 0xffffff & ~0x20 & ~0x800

const { test, flow } = await suite(import.meta.url, {
  webSocket(channel) {
    const server = createServer()
    new WebSocketServer({ server }).on('connection', (socket) => {
      socket.on('message', (message, binary) => socket.send(message, { binary }))
    })
    server.emit('connection', channel.duplex())
  },
  http(channel) {
    const server = createServer((request, response) => {
      if (request.url === '/part') response.write('a part')
      else if (request.method === 'POST') request.pipe(response)
      else response.end(request.url)
    })
    server.emit('connection', channel.duplex())
  },
  async broker(channel) {
    const broker = await Aedes.createBroker()
    const stream = channel.duplex()
    broker.handle(stream)
    stream.on('close', () => broker.close())
  },
  database(channel) {
    const server = mysql.createServer()
    server.on('connection', (connection) => {
      // Each command numbers its packets anew.
      const restart = () => connection._resetSequenceId()
      connection.serverHandshake({ ...HANDSHAKE, capabilityFlags: CAPABILITIES }).on('end', restart)
      connection.on('query', (query) => {
        connection.sequenceId = 1
        const count = Number(query)
        if (Number.isNaN(count)) connection.writeError({ message: `what is ${query}?`, code: 1064 })
        else {
          connection.writeColumns([{ ...COLUMN, ...TEXT }])
          for (let row = 0; row < count; row += 1) connection.writeTextRow([`row ${row}`])
          connection.writeEof()
        }
        restart()
      })
      connection.on('error', () => {})
    })
    server._server.emit('connection', channel.duplex())
  },
  mail(channel) {
    const server = new SMTPServer({
      authOptional: true,
      disabledCommands: ['STARTTLS'],
      disableReverseLookup: true,
      onData: (stream, _session, done) => void text(stream).then(({ length }) => done(null, `${length} letters`)),
    })
    server.server.emit('connection', channel.duplex())
  },
})

const webSocket = (channel) => new WebSocket('ws://peer/', { createConnection: () => channel.duplex() })

flow('ws: messages of all sizes come back, and a close has its code', 'webSocket', async (channel) => {
  const socket = webSocket(channel)
  await once(socket, 'open')
  for (const size of [0, 1, 125, 126, 65_535, 65_536, 1_000_000]) {
    const sent = noise(size)
    socket.send(sent)
    const [received] = await once(socket, 'message')
    assert.ok(received.equals(sent), `${size} bytes`)
  }
  socket.close(1000, 'done')
  const [code, reason] = await once(socket, 'close')
  assert.deepEqual([code, String(reason)], [1000, 'done'])
})

flow('ws: a socket is a stream', 'webSocket', async (channel) => {
  const stream = createWebSocketStream(webSocket(channel))
  const sent = noise(1_000_000)
  stream.write(sent)
  let left = sent.length
  for await (const chunk of stream) if ((left -= chunk.length) === 0) stream.end()
  assert.equal(left, 0)
})

test('ws: a peer that is killed closes the socket', 'webSocket', async (channel, child) => {
  const socket = webSocket(channel)
  await once(socket, 'open')
  child.kill('SIGKILL')
  // Of a connection that was cut off.
  assert.equal((await once(socket, 'close'))[0], 1006)
})

/** undici's client expects its connection later. */
const client = (channel) =>
  new Client('http://peer', { connect: (_options, done) => setImmediate(done, null, channel.duplex()), pipelining: 4 })

flow('undici: requests in a pipeline, with bodies', 'http', async (channel) => {
  const own = client(channel)
  const ask = async (path, more) => (await own.request({ method: 'GET', path, ...more })).body
  const paths = Array.from({ length: 50 }, (_, number) => `/${number}`)
  assert.deepEqual(await Promise.all(paths.map(async (path) => text(await ask(path)))), paths)
  const sent = noise(500_000)
  for (const body of [sent, Readable.from([sent])])
    assert.ok((await collect(await ask('/', { method: 'POST', body }))).equals(sent))
  await own.close()
})

test('undici: an answer is aborted', 'http', async (channel) => {
  const own = client(channel)
  const aborter = new AbortController()
  const { body } = await own.request({ method: 'GET', path: '/part', signal: aborter.signal })
  await once(body, 'readable')
  aborter.abort()
  assert.equal((await failure(text(body))).name, 'AbortError')
  await own.destroy()
})

test('undici: a peer that is killed disconnects an idle client', 'http', async (channel, child) => {
  const own = client(channel)
  const disconnected = once(own, 'disconnect')
  await text((await own.request({ method: 'GET', path: '/' })).body)
  child.kill('SIGKILL')
  await disconnected
  await own.destroy()
})

flow('mqtt: messages of each quality of service', 'broker', async (channel) => {
  const own = new MqttClient(() => channel.duplex(), { reconnectPeriod: 0 })
  await once(own, 'connect')
  await own.subscribeAsync('a/#', { qos: 2 })
  const sent = [0, 1, 2].map((qos) => ({ qos, bytes: noise(100_000 * (qos + 1)) }))
  for (const { qos, bytes } of sent) {
    const received = once(own, 'message')
    await own.publishAsync('a/b', bytes, { qos })
    assert.ok((await received)[1].equals(bytes), `quality ${qos}`)
  }
  await own.endAsync()
})

flow('mysql2: rows, an error, and a stream of rows', 'database', async (channel) => {
  const own = await createConnection({ stream: channel.duplex() })
  const counts = [0, 1, 10, 10_000]
  const results = await Promise.all(counts.map((count) => own.query(String(count))))
  assert.deepEqual(
    results.map(([rows]) => rows.length),
    counts,
  )
  assert.match((await failure(own.query('nonsense'))).message, /what is nonsense/)
  let count = 0
  for await (const { value } of own.connection.query('5000').stream()) assert.equal(value, `row ${count++}`)
  assert.equal(count, 5000)
  own.destroy()
})

flow('nodemailer and smtp-server: a long letter', 'mail', async (channel) => {
  const transport = createTransport({ host: 'peer', ignoreTLS: true })
  const stream = channel.duplex()
  transport.getSocket = (_options, done) => done(null, { connection: stream })
  const { response } = await transport.sendMail({ from: 'a@a.test', to: 'b@b.test', text: 'a line\n'.repeat(50_000) })
  assert.match(response, /[0-9]{6} letters/)
  if (!stream.closed) await closing(stream)
})
