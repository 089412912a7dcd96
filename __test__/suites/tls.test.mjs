// TLS: node:tls and node:https on both sides, over `duplex()`.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer as createHttps, request } from 'node:https'
import { connect, createSecureContext, createServer, TLSSocket } from 'node:tls'

import { collect, failure, noise, suite, writeOn } from './support.mjs'

const LARGE = 5_000_000

/** A key and its self-signed certificate, each in one line. */
function identity(name) {
  const made = execFileSync(
    'openssl',
    ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'].concat([
      '-subj',
      `/CN=${name}`,
      '-addext',
      `subjectAltName=DNS:${name}`,
      '-keyout',
      '-',
      '-out',
      '-',
    ]),
    { stdio: ['ignore', 'pipe', 'ignore'], encoding: 'utf8' },
  )
  const [key, cert] = ['PRIVATE KEY', 'CERTIFICATE'].map(
    (what) => new RegExp(`-----BEGIN ${what}-----[^]*-----END ${what}-----\n`).exec(made)[0],
  )
  return { key, cert }
}

/** A server of one connection. */
const secure = (channel, options, act) => {
  const server = createServer(options, (socket) => act(socket.on('error', () => {})))
  server.on('tlsClientError', () => {})
  server.emit('connection', channel.duplex())
  return server
}

const peers = {
  echo: (channel, options) => void secure(channel, options, (socket) => socket.pipe(socket)),
  tells: (channel, options) =>
    void secure(channel, options, (socket) => {
      const { authorized, alpnProtocol, servername } = socket
      const protocol = socket.getProtocol()
      const client = socket.getPeerCertificate().subject?.CN
      socket.end(JSON.stringify({ authorized, alpnProtocol, servername, protocol, client }))
    }),
  names: (channel, options, others) =>
    void secure(
      channel,
      {
        ...options,
        SNICallback: (name, done) => done(null, others[name] && createSecureContext(others[name])),
      },
      (socket) => socket.end(socket.servername),
    ),
  hash: (channel, options) =>
    void secure(channel, { ...options, allowHalfOpen: true }, async (socket) => {
      const hash = createHash('sha256')
      for await (const chunk of socket.iterator({ destroyOnReturn: false })) hash.update(chunk)
      socket.end(hash.digest('hex'))
    }),
  large: (channel, options) => void secure(channel, options, (socket) => socket.end(Buffer.alloc(LARGE, 'abc'))),
  wrapped(channel, options) {
    const socket = new TLSSocket(channel.duplex(), { isServer: true, secureContext: createSecureContext(options) })
    socket.end('wrapped')
  },
  endless: (channel, options, how) =>
    void secure(channel, options, (socket) =>
      writeOn(socket, (count) => {
        if (count !== 100) return
        if (how === 'fails') socket.destroy(new Error('broken off'))
        if (how === 'exits') process.exit(0)
      }),
    ),
  https(channel, options) {
    const server = createHttps(options, (asked, response) => asked.pipe(response))
    server.emit('connection', channel.duplex())
  },
}

// TLS ends each direction separately, so the stream below must not end one with the other.
const { test, flow } = await suite(import.meta.url, peers, { allowHalfOpen: true })

const isPeer = process.argv[2] === 'peer'
const own = isPeer ? null : identity('server.test')
const other = isPeer ? null : identity('other.test')

const open = (channel, options = {}) =>
  connect({ socket: channel.duplex(), ca: own.cert, servername: 'server.test', ...options })

test(
  'a connection is made, and carries bytes both ways',
  'echo',
  async (channel) => {
    const socket = open(channel)
    await once(socket, 'secureConnect')
    assert.ok(socket.authorized)
    assert.ok(socket.encrypted)
    assert.equal(socket.getPeerCertificate().subject.CN, 'server.test')
    socket.end('hello')
    assert.equal(String(await collect(socket)), 'hello')
  },
  own,
)

for (const version of ['TLSv1.2', 'TLSv1.3'])
  test(
    `both agree on ${version}, ALPN and a client's certificate`,
    'tells',
    async (channel) => {
      const socket = open(channel, { ...other, ALPNProtocols: ['a', 'b'], minVersion: version, maxVersion: version })
      const told = JSON.parse(String(await collect(socket)))
      const wanted = {
        authorized: true,
        alpnProtocol: 'b',
        servername: 'server.test',
        protocol: version,
        client: 'other.test',
      }
      assert.deepEqual(told, wanted)
    },
    { ...own, requestCert: true, ca: other?.cert, ALPNProtocols: ['b'] },
  )

test(
  'a client without a certificate is told nothing',
  'tells',
  async (channel) => {
    const told = await collect(open(channel)).catch((error) => error.code)
    assert.match(String(told), /^(|ERR_SSL_.*|ECONNRESET)$/)
  },
  { ...own, requestCert: true, rejectUnauthorized: true, ca: other?.cert },
)

test(
  'the server has a certificate for each name',
  'names',
  async (channel) => {
    const socket = open(channel, { servername: 'other.test', ca: other.cert })
    assert.equal(String(await collect(socket)), 'other.test')
  },
  own,
  { 'other.test': other },
)

for (const [what, options] of [
  ['of another authority', { ca: '' }],
  ['for another name', { servername: 'wrong.test' }],
])
  test(
    `a certificate ${what} is refused`,
    'echo',
    async (channel) => {
      const given = options.ca === '' ? { ca: other.cert } : options
      const error = await failure(once(open(channel, given), 'secureConnect'))
      assert.match(error.code, /^(DEPTH_ZERO_SELF_SIGNED_CERT|ERR_TLS_CERT_ALTNAME_INVALID)$/)
    },
    own,
  )

flow(
  'a large upload arrives whole, and its end is known',
  'hash',
  async (channel) => {
    const socket = open(channel, { allowHalfOpen: true })
    const sent = noise(LARGE)
    socket.end(sent)
    assert.equal(String(await collect(socket)), createHash('sha256').update(sent).digest('hex'))
  },
  own,
)

flow(
  'a large download arrives whole',
  'large',
  async (channel) => {
    assert.ok((await collect(open(channel))).equals(Buffer.alloc(LARGE, 'abc')))
  },
  own,
)

flow(
  'large bodies flow both ways at once',
  'echo',
  async (channel) => {
    const socket = open(channel)
    const sent = noise(LARGE)
    const got = collect(socket)
    for (let at = 0; at < LARGE; at += 50_000)
      if (!socket.write(sent.subarray(at, at + 50_000))) await once(socket, 'drain')
    socket.end()
    assert.ok((await got).equals(sent))
  },
  own,
)

test(
  'a stream is wrapped by hand',
  'wrapped',
  async (channel) => {
    assert.equal(String(await collect(open(channel))), 'wrapped')
  },
  own,
)

flow(
  'a peer that fails is an error',
  'endless',
  async (channel) => {
    assert.equal((await failure(collect(open(channel)))).code, 'ECONNRESET')
  },
  own,
  'fails',
)

flow(
  'a peer that exits is an error',
  'endless',
  async (channel) => {
    assert.equal((await failure(collect(open(channel)))).code, 'ECONNRESET')
  },
  own,
  'exits',
)

flow(
  'a peer that is killed is an error',
  'endless',
  async (channel, child) => {
    const socket = open(channel)
    socket.once('data', () => child.kill('SIGKILL'))
    assert.equal((await failure(collect(socket))).code, 'ECONNRESET')
  },
  own,
)

flow(
  'a client that leaves ends the connection at the server',
  'endless',
  async (channel) => {
    const socket = open(channel)
    await once(socket, 'data')
    socket.destroy()
    await channel.closed
  },
  own,
)

flow(
  'HTTPS',
  'https',
  async (channel) => {
    const createConnection = () => open(channel)
    const asked = request({ method: 'POST', createConnection, headers: { connection: 'close' } })
    // TLS sends a final alert to the server, which may have closed already. The request reports that error as well.
    asked.on('error', () => {})
    asked.end(noise(1_000_000))
    const [response] = await once(asked, 'response')
    assert.equal((await collect(response)).length, 1_000_000)
    await channel.closed
  },
  own,
)
