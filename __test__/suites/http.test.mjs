// HTTP/1.1: node:http on both sides, over `duplex()`.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { Agent, createServer, request } from 'node:http'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import { collect, failure, noise, suite, turn, writeOn } from './support.mjs'

const LARGE = 5_000_000

/** A server of one connection. */
function serve(channel, answer, more = {}) {
  const server = createServer(answer)
  for (const [event, listener] of Object.entries(more)) server.on(event, listener)
  server.emit('connection', channel.duplex())
  return server
}

const peers = {
  echo: (channel) =>
    serve(channel, (asked, response) => {
      response.setHeader('x-method', asked.method)
      response.setHeader('x-path', asked.url)
      response.setHeader('x-all', asked.headers['x-all'] ?? '')
      asked.pipe(response)
    }),
  hash: (channel) =>
    serve(channel, async (asked, response) => {
      const hash = createHash('sha256')
      for await (const chunk of asked) hash.update(chunk)
      response.end(hash.digest('hex'))
    }),
  large: (channel, size) =>
    serve(channel, (_, response) => {
      response.setHeader('content-length', size)
      response.end(Buffer.alloc(size, 'abc'))
    }),
  chunks: (channel) =>
    serve(channel, async (asked, response) => {
      response.setHeader('trailer', 'x-sum')
      let sum = 0
      for await (const chunk of asked) {
        sum += chunk.length
        response.write(chunk)
        await turn()
      }
      response.addTrailers({ 'x-sum': String(sum), 'x-trailers': JSON.stringify(asked.trailers) })
      response.end()
    }),
  switches: (channel) => {
    const talk = (_, socket, head) => {
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n')
      socket.write(head)
      socket.pipe(socket)
    }
    const connect = (_, socket, head) => {
      socket.write('HTTP/1.1 200 Connected\r\n\r\n')
      socket.write(head)
      socket.pipe(socket)
    }
    serve(channel, () => {}, { upgrade: talk, connect })
  },
  waits: (channel) =>
    serve(channel, () => {}, {
      checkContinue(asked, response) {
        if (asked.headers['x-refuse']) {
          response.writeHead(417).end()
          return
        }
        response.writeContinue()
        asked.pipe(response)
      },
    }),
  bodyless: (channel) =>
    serve(channel, (asked, response) => {
      response.writeHead(Number(asked.url.slice(1)), asked.method === 'HEAD' ? { 'content-length': 1000 } : {})
      response.end()
    }),
  silent: (channel) => void serve(channel, () => {}).on('timeout', () => {}),
  endless: (channel, how) =>
    serve(channel, (_, response) =>
      writeOn(response, (count) => {
        if (count !== 100) return
        if (how === 'destroys') response.destroy()
        if (how === 'fails') response.socket.destroy(new Error('broken off'))
        if (how === 'exits') process.exit(0)
      }),
    ),
  ends: (channel, size, when) =>
    serve(channel, (_, response) => {
      response.end(Buffer.alloc(size, 'abc'))
      const server = response.socket.server
      // A server knows its connections only once it listens.
      if (when === 'closes') setImmediate(() => server.close())
      if (when === 'destroys') setImmediate(() => response.socket?.destroy())
    }).emit('listening'),
  refuses: (channel) =>
    serve(channel, () => {}, {
      clientError: (_, socket) => socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n'),
    }),
  slow: (channel) =>
    serve(channel, async (asked, response) => {
      let size = 0
      for await (const chunk of asked) {
        size += chunk.length
        await turn()
      }
      response.end(String(size))
    }),
}

const { test, flow } = await suite(import.meta.url, peers)

/** An agent with one connection, which is the channel. */
class Over extends Agent {
  constructor(channel, options) {
    super({ maxSockets: 1, ...options })
    this.made = 0
    this.stream = () => {
      this.made += 1
      return channel.duplex()
    }
  }

  createConnection() {
    return this.stream()
  }
}

/** The request also reports a response that breaks off. */
const ask = (agent, options = {}) => request({ agent, host: 'x', ...options }).on('error', () => {})

async function answerOf(asked, body) {
  asked.end(body)
  const [response] = await once(asked, 'response')
  const got = await collect(response)
  return { status: response.statusCode, headers: response.headers, trailers: response.trailers, body: got }
}

test('a request with a body has its answer, with headers both ways', 'echo', async (channel) => {
  const asked = ask(new Over(channel), { method: 'POST', path: '/a?b=c', headers: { 'X-All': 'x'.repeat(600) } })
  const { status, headers, body } = await answerOf(asked, 'hello')
  assert.equal(status, 200)
  assert.equal(headers['x-method'], 'POST')
  assert.equal(headers['x-path'], '/a?b=c')
  assert.equal(headers['x-all'], 'x'.repeat(600))
  assert.equal(String(body), 'hello')
})

flow('a connection is kept alive for 100 requests, with bodies of all sizes', 'echo', async (channel) => {
  const agent = new Over(channel, { keepAlive: true })
  for (let number = 0; number < 100; number += 1) {
    const sent = noise(Math.floor((number / 100) ** 4 * 100_000))
    const { body } = await answerOf(ask(agent, { method: 'PUT', path: `/${number}` }), sent)
    assert.ok(body.equals(sent), `request ${number}`)
  }
  assert.equal(agent.made, 1)
  agent.destroy()
})

test('requests that wait for the one connection are served in their order', 'echo', async (channel) => {
  const agent = new Over(channel, { keepAlive: true })
  const answers = await Promise.all(
    Array.from({ length: 50 }, (_, number) => answerOf(ask(agent, { method: 'POST' }), String(number))),
  )
  assert.deepEqual(
    answers.map(({ body }) => Number(body)),
    Array.from({ length: 50 }, (_, number) => number),
  )
  agent.destroy()
})

test('requests of one write are answered one after the other', 'echo', async (channel) => {
  const stream = channel.duplex()
  const one = (number) => `GET /${number} HTTP/1.1\r\nHost: x\r\n${number === 19 ? 'Connection: close\r\n' : ''}\r\n`
  stream.write(Array.from({ length: 20 }, (_, number) => one(number)).join(''))
  const text = String(await collect(stream))
  const paths = [...text.matchAll(/x-path: \/(\d+)/g)].map(([, path]) => Number(path))
  assert.deepEqual(
    paths,
    Array.from({ length: 20 }, (_, number) => number),
  )
})

test('chunks and trailers, both ways', 'chunks', async (channel) => {
  const asked = ask(new Over(channel), {
    method: 'POST',
    headers: { trailer: 'x-end', 'transfer-encoding': 'chunked' },
  })
  let sent = 0
  for (let number = 0; number < 100; number += 1) {
    sent += number
    if (number > 0) asked.write(noise(number))
  }
  asked.addTrailers({ 'x-end': 'yes' })
  const { trailers, body } = await answerOf(asked)
  assert.equal(body.length, sent)
  assert.deepEqual(trailers, { 'x-sum': String(sent), 'x-trailers': '{"x-end":"yes"}' })
})

flow('a large upload arrives whole', 'hash', async (channel) => {
  const body = noise(LARGE)
  const { body: hash } = await answerOf(ask(new Over(channel), { method: 'POST' }), body)
  assert.equal(String(hash), createHash('sha256').update(body).digest('hex'))
})

flow(
  'a large download arrives whole',
  'large',
  async (channel) => {
    const { body } = await answerOf(ask(new Over(channel)))
    assert.ok(body.equals(Buffer.alloc(LARGE, 'abc')))
  },
  LARGE,
)

flow('a large body flows both ways at once', 'echo', async (channel) => {
  const body = noise(LARGE)
  const asked = ask(new Over(channel), { method: 'POST' })
  const chunks = Array.from({ length: 200 }, (_, number) => body.subarray(number * 25_000, (number + 1) * 25_000))
  const sent = pipeline(Readable.from(chunks), asked)
  const [response] = await once(asked, 'response')
  const [got] = await Promise.all([collect(response), sent])
  assert.ok(got.equals(body))
})

flow('a server that reads slowly holds the client back', 'slow', async (channel) => {
  const asked = ask(new Over(channel), { method: 'POST' })
  let waits = 0
  for (let number = 0; number < 200; number += 1) {
    if (asked.write(noise(20_000))) continue
    waits += 1
    await once(asked, 'drain')
  }
  const { body } = await answerOf(asked)
  assert.equal(Number(body), 4_000_000)
  assert.ok(waits > 10, `${waits} waits`)
})

flow('the connection is upgraded, and carries bytes both ways', 'switches', async (channel) => {
  const asked = ask(new Over(channel), { headers: { connection: 'Upgrade', upgrade: 'echo' } })
  asked.end()
  const [response, socket, head] = await once(asked, 'upgrade')
  assert.equal(response.statusCode, 101)
  const sent = noise(1_000_000)
  socket.end(sent)
  const got = Buffer.concat([head, await collect(socket)])
  assert.ok(got.equals(sent))
})

test('CONNECT makes a tunnel', 'switches', async (channel) => {
  const asked = ask(new Over(channel), { method: 'CONNECT', path: 'host:443' })
  asked.end()
  const [response, socket, head] = await once(asked, 'connect')
  assert.equal(response.statusCode, 200)
  socket.end('through')
  assert.equal(String(Buffer.concat([head, await collect(socket)])), 'through')
})

test('a body waits for 100 Continue, or is not sent', 'waits', async (channel) => {
  const agent = new Over(channel, { keepAlive: true })
  const asked = ask(agent, { method: 'POST', headers: { expect: '100-continue' } })
  asked.flushHeaders()
  await once(asked, 'continue')
  const { body } = await answerOf(asked, 'now')
  assert.equal(String(body), 'now')
  const refused = ask(agent, {
    method: 'POST',
    headers: { expect: '100-continue', 'x-refuse': '1', 'content-length': 0 },
  })
  assert.equal((await answerOf(refused)).status, 417)
  agent.destroy()
})

test('answers without a body', 'bodyless', async (channel) => {
  const agent = new Over(channel, { keepAlive: true })
  for (const [method, status] of [
    ['HEAD', 200],
    ['GET', 204],
    ['GET', 304],
    ['GET', 200],
  ]) {
    const { status: got, body } = await answerOf(ask(agent, { method, path: `/${status}` }))
    assert.deepEqual([got, body.length], [status, 0])
  }
  assert.equal(agent.made, 1)
  agent.destroy()
})

test('a request has a timeout', 'silent', async (channel) => {
  const asked = ask(new Over(channel), { timeout: 50 })
  asked.end()
  await once(asked, 'timeout')
  asked.destroy()
  assert.equal((await failure(once(asked, 'response'))).code, 'ECONNRESET')
})

test('a request is aborted by a signal', 'silent', async (channel) => {
  const controller = new AbortController()
  const asked = ask(new Over(channel), { signal: controller.signal })
  asked.end()
  setImmediate(() => controller.abort())
  assert.equal((await failure(once(asked, 'response'))).name, 'AbortError')
})

flow('a client that leaves in the middle of an answer ends it at the server', 'endless', async (channel) => {
  const asked = ask(new Over(channel))
  asked.end()
  const [response] = await once(asked, 'response')
  let size = 0
  for await (const chunk of response) {
    size += chunk.length
    if (size > 500_000) break
  }
  // The peer ends only once its response was closed.
  await channel.closed
})

for (const how of ['destroys', 'fails', 'exits'])
  flow(
    `a server that ${how} in the middle of an answer is an error at the client`,
    'endless',
    async (channel) => {
      const asked = ask(new Over(channel))
      asked.end()
      const [response] = await once(asked, 'response')
      assert.equal((await failure(collect(response))).code, 'ECONNRESET')
    },
    how,
  )

flow(
  'a server that is killed in the middle of an answer is an error at the client',
  'endless',
  async (channel, child) => {
    const asked = ask(new Over(channel))
    asked.end()
    const [response] = await once(asked, 'response')
    response.once('data', () => child.kill('SIGKILL'))
    assert.equal((await failure(collect(response))).code, 'ECONNRESET')
  },
)

for (const when of ['', 'closes', 'destroys'])
  flow(
    `a large answer is whole though the server ${when || 'closes the connection'} after it`,
    'ends',
    async (channel) => {
      const { body } = await answerOf(ask(new Over(channel), { headers: { connection: 'close' } }))
      assert.ok(body.equals(Buffer.alloc(3_000_000, 'abc')))
      await channel.closed
    },
    3_000_000,
    when,
  )

test('what is no HTTP is refused', 'refuses', async (channel) => {
  const stream = channel.duplex()
  stream.write('this is no HTTP\r\n\r\n')
  assert.match(String(await collect(stream)), /^HTTP\/1\.1 400 /)
})
