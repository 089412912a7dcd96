// SSH by ssh2: a client here and a server in the peer, and then the tests of the ssh2 package. Those have both ends in
// one process, with a relay in a second one.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { test as alone } from 'node:test'

import ssh2 from 'ssh2'

import { collect, failure, noise, suite } from './support.mjs'

const { test, flow } = await suite(import.meta.url, {
  serve(channel, hostKey, publicKey) {
    const server = new ssh2.Server({ hostKeys: [hostKey] }, (client) => {
      client.on('error', () => {})
      client.on('authentication', (asked) => {
        const isKnown = asked.method === 'password' ? asked.password === 'secret' : isSigned(asked, publicKey)
        if (isKnown) asked.accept()
        else asked.reject(['password', 'publickey'])
      })
      client.on('ready', () => client.on('session', (accept) => serveSession(accept())))
      client.on('tcpip', (accept) => {
        const stream = accept()
        stream.pipe(stream)
      })
    })
    server.injectSocket(channel.duplex())
  },
})

function isSigned({ method, key, signature, blob, hashAlgo }, publicKey) {
  if (method !== 'publickey') return false
  const known = ssh2.utils.parseKey(publicKey)
  if (!key.data.equals(known.getPublicSSH())) return false
  return signature === undefined || known.verify(blob, signature, hashAlgo) === true
}

function serveSession(session) {
  session.on('exec', (accept, _, { command }) => {
    const stream = accept()
    if (command === 'echo') {
      stream.pipe(stream)
      stream.on('end', () => stream.exit(0))
    } else if (command === 'hang') stream.write('hanging')
    else {
      stream.stderr.write('unknown')
      stream.exit(7)
      stream.end()
    }
  })
  session.on('pty', (accept) => accept())
  session.on('shell', (accept) => {
    const stream = accept()
    stream.on('data', (line) => stream.write(`you said ${line}`))
  })
}

const isPeer = process.argv[2] === 'peer'
const makeKey = () => (isPeer ? {} : ssh2.utils.generateKeyPairSync('ed25519'))
const [host, user] = [makeKey(), makeKey()]
const given = [host.private, user.public]

/** A client that has logged in. */
async function over(channel, act, login = { password: 'secret' }) {
  const client = new ssh2.Client()
  const ready = once(client, 'ready')
  client.connect({ sock: channel.duplex(), username: 'x', ...login })
  await ready
  // A late message to a peer that has closed already.
  client.on('error', () => {})
  await act(client)
  client.end()
  await channel.closed
}

const call = (client, name, ...words) =>
  new Promise((resolve, reject) => {
    client[name](...words, (error, answer) => (error ? reject(error) : resolve(answer)))
  })

for (const [what, login] of [
  ['a password', { password: 'secret' }],
  ['a key', { privateKey: user.private }],
])
  test(
    `SSH: a client with ${what} is let in, and has an answer`,
    'serve',
    (channel) =>
      over(
        channel,
        async (client) => {
          const stream = await call(client, 'exec', 'echo')
          stream.end('hello')
          assert.equal(String(await collect(stream)), 'hello')
        },
        login,
      ),
    ...given,
  )

test(
  'SSH: a client with a wrong password is not let in',
  'serve',
  async (channel) => {
    const error = await failure(over(channel, () => {}, { password: 'wrong' }))
    assert.equal(error.level, 'client-authentication')
  },
  ...given,
)

test(
  'SSH: a command has an exit code, and says what is wrong',
  'serve',
  (channel) =>
    over(channel, async (client) => {
      // The exit may be reported together with the reply.
      const [code, words] = await new Promise((resolve, reject) => {
        client.exec('unknown', (error, stream) => {
          if (error) {
            reject(error)
            return
          }
          const exit = once(stream.resume(), 'exit').then(([got]) => got)
          resolve(Promise.all([exit, collect(stream.stderr)]))
        })
      })
      assert.deepEqual([code, String(words)], [7, 'unknown'])
    }),
  ...given,
)

test(
  'SSH: a shell with a terminal',
  'serve',
  (channel) =>
    over(channel, async (client) => {
      const stream = await call(client, 'shell', { term: 'xterm' })
      stream.write('hello')
      assert.equal(String((await once(stream, 'data'))[0]), 'you said hello')
      stream.destroy()
    }),
  ...given,
)

flow(
  'SSH: more than a window flows both ways, on four sessions',
  'serve',
  (channel) =>
    over(channel, async (client) => {
      await Promise.all(
        Array.from({ length: 4 }, async () => {
          const sent = noise(2_500_000)
          const stream = await call(client, 'exec', 'echo')
          stream.end(sent)
          assert.ok((await collect(stream)).equals(sent))
        }),
      )
    }),
  ...given,
)

flow(
  'SSH: a forwarded connection carries bytes both ways',
  'serve',
  (channel) =>
    over(channel, async (client) => {
      const sent = noise(500_000)
      const stream = await call(client, 'forwardOut', '127.0.0.1', 1, '127.0.0.1', 2)
      stream.end(sent)
      assert.ok((await collect(stream)).equals(sent))
    }),
  ...given,
)

test(
  'SSH: a peer that is killed ends the client',
  'serve',
  async (channel, child) => {
    const error = await failure(
      over(channel, async (client) => {
        const stream = await call(client, 'exec', 'hang')
        await once(stream, 'data')
        const failed = failure(once(client, 'close'))
        child.kill('SIGKILL')
        throw await failed
      }),
    )
    assert.equal(error.code, 'ECONNRESET')
  },
  ...given,
)

const FILES = ['exec', 'shell', 'sftp', 'userauth', 'userauth-agent', 'misc-client-server', 'server-hostkeys']
const tests = join(dirname(createRequire(import.meta.url).resolve('ssh2/package.json')), 'test')

for (const name of isPeer ? [] : FILES)
  alone(`ssh2's own tests: ${name}`, { timeout: 60_000 }, async (t) => {
    const preload = new URL('ssh-over.mjs', import.meta.url).href
    const child = spawn(process.execPath, ['--import', preload, join(tests, `test-${name}.js`)], { stdio: 'inherit' })
    t.after(() => child.kill('SIGKILL'))
    assert.deepEqual(await once(child, 'exit'), [0, null])
  })
