// HTTP/2: node:http2 on both sides, over `duplex()`.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { connect, constants, createServer } from 'node:http2'
import { pipeline } from 'node:stream/promises'

import { closing, collect, failure, noise, suite, writeOn } from './support.mjs'

const LARGE = 5_000_000

const serve = (channel, answer, options) => {
  const server = createServer(options)
  server.on('stream', answer)
  server.on('sessionError', () => {})
  server.emit('connection', channel.duplex())
  return server
}

const quiet = (stream) => stream.on('error', () => {})

const peers = {
  echo: (channel) =>
    void serve(channel, (stream, headers) => {
      quiet(stream).respond({ 'x-path': headers[':path'], 'x-method': headers[':method'] })
      stream.pipe(stream)
    }),
  hash: (channel) =>
    void serve(channel, async (stream) => {
      const hash = createHash('sha256')
      for await (const chunk of stream) hash.update(chunk)
      stream.respond()
      stream.end(hash.digest('hex'))
    }),
  trailers: (channel) =>
    void serve(channel, (stream) => {
      let got = {}
      stream.on('trailers', (headers) => (got = headers))
      stream.respond({ ':status': 201 }, { waitForTrailers: true })
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-got': String(got['x-sent']) }))
      stream.resume().on('end', () => stream.end('body'))
    }),
  pushes: (channel) =>
    void serve(channel, (stream) => {
      stream.pushStream({ ':path': '/pushed' }, (error, pushed) => {
        if (error) throw error
        pushed.respond()
        pushed.end('pushed')
      })
      stream.respond()
      stream.end('asked for')
    }),
  endless: (channel, how) =>
    void serve(channel, (stream) => {
      quiet(stream).respond()
      const { session } = stream
      void writeOn(stream, (count) => {
        if (count !== 100) return
        if (how === 'resets') stream.destroy(new Error('broken off'))
        if (how === 'destroys') session.destroy()
        if (how === 'fails') session.destroy(new Error('broken off'))
        if (how === 'exits') process.exit(0)
        if (how !== 'goes away') return
        session.close()
        stream.end()
      })
    }),
}

/**
 * Node's HTTP/2 reads nothing while one of its own writes waits. If both sides write, their rings must hold what the
 * windows allow, or the two wait for each other.
 */
const RING = 128 * 1024

const { test, flow } = await suite(import.meta.url, peers, { small: RING })

/** A session over the channel. Waits for its end, so that nothing is left. */
async function over(channel, act, options) {
  const session = connect('http://x', { createConnection: () => channel.duplex(), ...options })
  session.on('error', () => {})
  const closed = closing(session)
  await act(session)
  if (!session.destroyed) session.close()
  await closed
}

async function answerOf(stream, body) {
  const [headers] = await Promise.all([
    once(quiet(stream), 'response').then(([got]) => got),
    stream.writable ? new Promise((resolve) => stream.end(body, resolve)) : undefined,
  ])
  return { headers, body: await collect(stream) }
}

const post = (session, headers = {}) => session.request({ ':method': 'POST', ...headers })

test('a request with a body has its answer, with headers both ways', 'echo', (channel) =>
  over(channel, async (session) => {
    const { headers, body } = await answerOf(post(session, { ':path': '/a?b' }), 'hello')
    assert.equal(headers[':status'], 200)
    assert.equal(headers['x-path'], '/a?b')
    assert.equal(headers['x-method'], 'POST')
    assert.equal(String(body), 'hello')
  }),
)

flow('200 requests at once, each with its own body', 'echo', (channel) =>
  over(channel, async (session) => {
    await Promise.all(
      Array.from({ length: 200 }, async (_, number) => {
        const sent = noise(number * 50)
        const { body } = await answerOf(post(session), sent)
        assert.ok(body.equals(sent), `request ${number}`)
      }),
    )
  }),
)

flow('a large upload arrives whole', 'hash', (channel) =>
  over(channel, async (session) => {
    const sent = noise(LARGE)
    const { body } = await answerOf(post(session), sent)
    assert.equal(String(body), createHash('sha256').update(sent).digest('hex'))
  }),
)

flow('large bodies flow both ways, on four streams', 'echo', (channel) =>
  over(channel, async (session) => {
    await Promise.all(
      Array.from({ length: 4 }, async () => {
        const sent = noise(LARGE / 4)
        const stream = post(session)
        const chunks = Array.from({ length: 50 }, (_, number) => sent.subarray(number * 25_000, (number + 1) * 25_000))
        const [got] = await Promise.all([collect(stream), pipeline(chunks, stream, { end: true }).catch(() => {})])
        assert.ok(got.equals(sent.subarray(0, got.length)) && got.length === sent.length)
      }),
    )
  }),
)

test('trailers, both ways', 'trailers', (channel) =>
  over(channel, async (session) => {
    const stream = session.request({ ':method': 'POST' }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sent': 'yes' }))
    const trailers = once(stream, 'trailers')
    const { headers, body } = await answerOf(stream, 'x')
    assert.equal(headers[':status'], 201)
    assert.equal(String(body), 'body')
    assert.equal((await trailers)[0]['x-got'], 'yes')
  }),
)

test('a server pushes', 'pushes', (channel) =>
  over(channel, async (session) => {
    const pushed = once(session, 'stream')
    const { body } = await answerOf(session.request(), undefined)
    assert.equal(String(body), 'asked for')
    const [stream, headers] = await pushed
    assert.equal(headers[':path'], '/pushed')
    assert.equal(String(await collect(stream)), 'pushed')
  }),
)

test('pings and settings go both ways', 'echo', (channel) =>
  over(channel, async (session) => {
    const [time, payload] = await new Promise((resolve, reject) => {
      session.ping(Buffer.from('12345678'), (error, ...answer) => (error ? reject(error) : resolve(answer)))
    })
    assert.ok(time >= 0)
    assert.equal(String(payload), '12345678')
    await new Promise((resolve, reject) => {
      session.settings({ initialWindowSize: 100_000 }, (error) => (error ? reject(error) : resolve()))
    })
    assert.equal(session.localSettings.initialWindowSize, 100_000)
  }),
)

flow('a stream that the client resets leaves the session alone', 'endless', (channel) =>
  over(channel, async (session) => {
    const stream = quiet(session.request())
    stream.once('data', () => stream.close(constants.NGHTTP2_CANCEL))
    stream.resume()
    await closing(stream)
    await new Promise((resolve) => session.ping(resolve))
  }),
)

flow(
  'a stream that the server resets is an error of it alone',
  'endless',
  (channel) =>
    over(channel, async (session) => {
      const error = await failure(collect(session.request()))
      assert.equal(error.code, 'ERR_HTTP2_STREAM_ERROR')
      await new Promise((resolve) => session.ping(resolve))
    }),
  'resets',
)

test(
  'a server that goes away finishes its streams',
  'endless',
  (channel) =>
    over(channel, async (session) => {
      const away = once(session, 'goaway')
      assert.equal((await collect(session.request())).length, 1_000_000)
      await away
    }),
  'goes away',
)

for (const how of ['destroys', 'fails', 'exits'])
  flow(
    `a server that ${how} its session in the middle of an answer ends it at the client`,
    'endless',
    (channel) =>
      over(channel, async (session) => {
        const stream = quiet(session.request())
        stream.resume()
        await closing(stream)
      }),
    how,
  )

flow(
  'a server that is killed in the middle of an answer is an error at the client',
  'endless',
  async (channel, child) => {
    await over(channel, async (session) => {
      const stream = session.request()
      stream.once('data', () => child.kill('SIGKILL'))
      const error = await failure(collect(stream))
      assert.match(error.code, /^(ECONNRESET|ERR_HTTP2_STREAM_ERROR|ERR_HTTP2_STREAM_CANCEL)$/)
    })
  },
)

test('a client that destroys its session ends it at the server', 'endless', (channel) =>
  over(channel, async (session) => {
    const stream = quiet(session.request())
    await once(stream, 'data')
    session.destroy()
  }),
)
