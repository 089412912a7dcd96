// Yamux: the muxer of libp2p on both sides, over `duplex()`.

import assert from 'node:assert/strict'
import { once } from 'node:events'

import { defaultLogger } from '@libp2p/logger'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'

import { failure, noise, suite, turn } from './support.mjs'

const log = defaultLogger()

/** A stream as libp2p's connection. */
class Connection extends AbstractMultiaddrConnection {
  #stream

  constructor(stream, direction) {
    super({ direction, remoteAddr: multiaddr('/ip4/127.0.0.1/tcp/1'), log: log.forComponent('suites') })
    this.#stream = stream
    stream.on('data', (chunk) => this.onData(chunk))
    stream.on('drain', () => this.safeDispatchEvent('drain'))
    stream.on('error', (error) => this.abort(error))
    stream.on('close', () => this.onTransportClosed())
  }

  sendData(data) {
    const canSendMore = this.#stream.write(data.subarray())
    return { sentBytes: data.byteLength, canSendMore }
  }

  sendReset(error) {
    this.#stream.destroy(error)
  }

  async sendClose() {
    this.#stream.end()
  }

  sendPause() {
    this.#stream.pause()
  }

  sendResume() {
    this.#stream.resume()
  }
}

const muxer = (channel, direction) => yamux()().createStreamMuxer(new Connection(channel.duplex(), direction))

/** Everything that a stream receives until the other side ends it. */
async function collect(stream) {
  const parts = []
  for await (const part of stream) parts.push(part.subarray())
  return Buffer.concat(parts)
}

/** Writes everything, as fast as the other side reads. */
async function send(stream, bytes) {
  for (let at = 0; at < bytes.length; at += 20_000)
    if (!stream.send(bytes.subarray(at, at + 20_000))) await once(stream, 'drain')
}

const serve = (act) => (channel) =>
  muxer(channel, 'inbound').addEventListener('stream', ({ detail }) => void act(detail))

const { test, flow } = await suite(import.meta.url, {
  echo: serve(async (stream) => {
    for await (const part of stream) if (!stream.send(part)) await once(stream, 'drain')
    await stream.close()
  }),
  counts: serve(async (stream) => {
    const { length } = await collect(stream)
    stream.send(Buffer.from(String(length)))
    await stream.close()
  }),
  resets: serve((stream) => stream.abort(new Error('broken off'))),
})

async function over(channel, act) {
  const own = muxer(channel, 'outbound')
  await act(own)
  await own.close()
  // The muxer has announced its end. The connection belongs to the program.
  await channel.close()
}

async function ask(own, bytes) {
  const stream = await own.createStream()
  const got = collect(stream)
  await send(stream, bytes)
  await stream.close()
  return got
}

test('a stream carries bytes both ways', 'echo', (channel) =>
  over(channel, async (own) => {
    assert.equal(String(await ask(own, Buffer.from('hello'))), 'hello')
  }),
)

flow('a hundred streams at once, each with its own bytes', 'echo', (channel) =>
  over(channel, async (own) => {
    await Promise.all(
      Array.from({ length: 100 }, async (_, number) => {
        const sent = noise(number * 100)
        assert.ok((await ask(own, sent)).equals(sent), `stream ${number}`)
      }),
    )
  }),
)

flow('more than a window flows both ways', 'echo', (channel) =>
  over(channel, async (own) => {
    const sent = noise(2_000_000)
    assert.ok((await ask(own, sent)).equals(sent))
  }),
)

test('a stream is ended in one direction, and answers in the other', 'counts', (channel) =>
  over(channel, async (own) => {
    assert.equal(String(await ask(own, noise(100_000))), '100000')
  }),
)

test('a stream that is reset is an error of it alone', 'resets', (channel) =>
  over(channel, async (own) => {
    for (let number = 0; number < 2; number += 1) {
      const stream = await own.createStream()
      assert.match((await failure(collect(stream))).name, /Reset/)
    }
    assert.equal(own.status, 'open')
  }),
)

test('a peer that is killed ends all streams', 'echo', async (channel, child) => {
  const own = muxer(channel, 'outbound')
  const streams = await Promise.all(Array.from({ length: 10 }, () => own.createStream()))
  const ends = streams.map((stream) => collect(stream).catch(() => {}))
  await turn()
  child.kill('SIGKILL')
  await Promise.all(ends)
  assert.notEqual(own.status, 'open')
})
