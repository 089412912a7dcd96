// gRPC: @grpc/grpc-js on both sides. Its server accepts any connection. Its client creates sockets itself, so one is
// piped to `duplex()`.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { pipeline } from 'node:stream'

import grpc from '@grpc/grpc-js'

import { failure, noise, suite, turn } from './support.mjs'

const bytes = { serialize: (value) => value, deserialize: (value) => value }
const method = (name, requestStream, responseStream) => ({
  path: `/suites.Echo/${name}`,
  requestStream,
  responseStream,
  requestSerialize: bytes.serialize,
  requestDeserialize: bytes.deserialize,
  responseSerialize: bytes.serialize,
  responseDeserialize: bytes.deserialize,
})
const definition = {
  one: method('One', false, false),
  fails: method('Fails', false, false),
  hangs: method('Hangs', false, false),
  many: method('Many', false, true),
  sum: method('Sum', true, false),
  both: method('Both', true, true),
}
const LIMITS = { 'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1 }

const { test, flow } = await suite(
  import.meta.url,
  {
    serve(channel) {
      const server = new grpc.Server(LIMITS)
      server.addService(definition, {
        one(call, done) {
          const trailer = new grpc.Metadata()
          trailer.set('x-trailer', 'yes')
          const header = new grpc.Metadata()
          header.set('x-header', call.metadata.get('x-asked')[0] ?? '')
          call.sendMetadata(header)
          done(null, call.request, trailer)
        },
        fails: (_, done) => done({ code: grpc.status.NOT_FOUND, details: 'it is not there' }),
        hangs(call) {
          call.on('cancelled', () => {})
        },
        async many(call) {
          for (let count = call.request.readUInt32LE(); count > 0 && !call.cancelled; count -= 1) {
            if (!call.write(Buffer.alloc(1000, count))) await new Promise((resolve) => call.once('drain', resolve))
            await turn()
          }
          call.end()
        },
        sum(call, done) {
          let sum = 0
          call.on('data', ({ length }) => (sum += length))
          call.on('end', () => done(null, Buffer.from(String(sum))))
        },
        both(call) {
          call.pipe(call)
        },
      })
      const injector = server.createConnectionInjector(grpc.ServerCredentials.createInsecure())
      injector.injectConnection(channel.duplex())
    },
  },
  // As of HTTP/2.
  { small: 128 * 1024 },
)

/** A client, over a socket of this process that is piped to the channel. */
async function over(channel, act) {
  const joint = createServer((socket) => {
    const stream = channel.duplex()
    pipeline(socket, stream, () => {})
    pipeline(stream, socket, () => {})
  })
  await once(joint.listen(0, '127.0.0.1'), 'listening')
  const Client = grpc.makeGenericClientConstructor(definition, 'Echo')
  const client = new Client(`127.0.0.1:${joint.address().port}`, grpc.credentials.createInsecure(), LIMITS)
  try {
    await act(client)
  } finally {
    client.close()
    joint.close()
  }
  await channel.closed
}

const ask = (client, name, request, ...more) =>
  new Promise((resolve, reject) => {
    client[name](request, ...more, (error, answer) => (error ? reject(error) : resolve(answer)))
  })

test('a call has its answer, with metadata both ways', 'serve', (channel) =>
  over(channel, async (client) => {
    const metadata = new grpc.Metadata()
    metadata.set('x-asked', 'this')
    let header
    let status
    const answer = await new Promise((resolve, reject) => {
      const call = client.one(Buffer.from('hello'), metadata, (error, got) => (error ? reject(error) : resolve(got)))
      call.on('metadata', (got) => (header = got))
      call.on('status', (got) => (status = got))
    })
    await turn()
    assert.equal(String(answer), 'hello')
    assert.deepEqual(header.get('x-header'), ['this'])
    assert.deepEqual(status.metadata.get('x-trailer'), ['yes'])
  }),
)

test('an error has its code and its words', 'serve', (channel) =>
  over(channel, async (client) => {
    const { code, details } = await failure(ask(client, 'fails', Buffer.alloc(0)))
    assert.deepEqual([code, details], [grpc.status.NOT_FOUND, 'it is not there'])
  }),
)

flow('200 calls at once', 'serve', (channel) =>
  over(channel, async (client) => {
    await Promise.all(
      Array.from({ length: 200 }, async (_, number) => {
        const sent = noise(number * 20)
        assert.ok((await ask(client, 'one', sent)).equals(sent))
      }),
    )
  }),
)

flow('a large message goes both ways', 'serve', (channel) =>
  over(channel, async (client) => {
    const sent = noise(3_000_000)
    assert.ok((await ask(client, 'one', sent)).equals(sent))
  }),
)

flow('a server streams', 'serve', (channel) =>
  over(channel, async (client) => {
    const count = Buffer.alloc(4)
    count.writeUInt32LE(500)
    let got = 0
    for await (const message of client.many(count)) got += message.length
    assert.equal(got, 500_000)
  }),
)

flow('a client streams', 'serve', (channel) =>
  over(channel, async (client) => {
    const answer = await new Promise((resolve, reject) => {
      const call = client.sum((error, got) => (error ? reject(error) : resolve(got)))
      for (let number = 0; number < 500; number += 1) call.write(noise(1000))
      call.end()
    })
    assert.equal(String(answer), '500000')
  }),
)

flow('both stream at once', 'serve', (channel) =>
  over(channel, async (client) => {
    const call = client.both()
    let number = 0
    call.on('data', (message) => assert.equal(message.length, (number += 1)))
    for (let size = 1; size <= 500; size += 1) call.write(noise(size))
    call.end()
    await once(call, 'end')
    assert.equal(number, 500)
  }),
)

test('a call has a deadline, and can be cancelled', 'serve', (channel) =>
  over(channel, async (client) => {
    const late = await failure(ask(client, 'hangs', Buffer.alloc(0), { deadline: Date.now() + 200 }))
    assert.equal(late.code, grpc.status.DEADLINE_EXCEEDED)
    const cancelled = await new Promise((resolve) => {
      const call = client.hangs(Buffer.alloc(0), resolve)
      setImmediate(() => call.cancel())
    })
    assert.equal(cancelled.code, grpc.status.CANCELLED)
    assert.equal(String(await ask(client, 'one', Buffer.from('after'))), 'after')
  }),
)

test('a stream is cancelled in the middle', 'serve', (channel) =>
  over(channel, async (client) => {
    const count = Buffer.alloc(4)
    count.writeUInt32LE(1_000_000)
    const call = client.many(count)
    call.once('data', () => call.cancel())
    const [error] = await once(call, 'error')
    assert.equal(error.code, grpc.status.CANCELLED)
    assert.equal(String(await ask(client, 'one', Buffer.from('after'))), 'after')
  }),
)

test('a peer that is killed fails all calls', 'serve', (channel, child) =>
  over(channel, async (client) => {
    await ask(client, 'one', Buffer.alloc(1))
    const calls = Array.from({ length: 20 }, () => failure(ask(client, 'hangs', Buffer.alloc(0))))
    await turn()
    child.kill('SIGKILL')
    for (const { code } of await Promise.all(calls)) assert.equal(code, grpc.status.UNAVAILABLE)
  }),
)
