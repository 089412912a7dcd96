// Each test has two processes: its own, and a peer that runs the function which the test names.

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { test as nodeTest } from 'node:test'
import { fileURLToPath } from 'node:url'

import { fromParent, spawn } from 'ringfence'

/** Milliseconds for a test, and for the end of its peer: many times what they need. */
const LIMIT = 30_000

/** The bytes of a large ring, and of the smallest one, which is always full. */
const ROOMY = 1024 * 1024
const SMALLEST = 4096

/**
 * Declares the tests of a file. In a peer it runs the peer's function instead, and declares nothing.
 *
 * @param url - The file's.
 * @param peers - Each gets the channel and what the test gives it. The process must end by itself once its channel has.
 * @param options - Of the channel, and `small`: bytes of the smaller ring.
 * @returns `test(title, peer, act, given)`: `act` gets the channel and the peer's process. `flow` is the same with rings of two sizes,
 * where much flows, or it matters what is still on its way.
 */
export async function suite(url, peers, { small = SMALLEST, ...more } = {}) {
  const [role, named, options, words] = process.argv.slice(2)
  if (role === 'peer') {
    await peers[named](await fromParent(JSON.parse(options)), ...JSON.parse(words))
    return { test() {}, flow() {} }
  }
  const declare = (title, capacity, peer, act, given) =>
    nodeTest(title, { timeout: LIMIT }, async () => {
      const command = [fileURLToPath(url), 'peer', peer, JSON.stringify({ capacity, ...more }), JSON.stringify(given)]
      const started = await spawn(process.execPath, command, { capacity, ...more, spawn: { stdio: 'inherit' } })
      const exited = once(started.child, 'exit')
      try {
        const { channel } = started
        await act(channel, started.child)
        await channel.close()
        const [code, signal] = await exited
        if (code !== 0 && !started.child.killed) throw new Error(`the peer ended by ${signal ?? `exit code ${code}`}`)
      } finally {
        started.child.kill('SIGKILL')
        await exited
      }
    })
  return {
    test: (title, peer, act, ...given) => declare(title, ROOMY, peer, act, given),
    flow(title, peer, act, ...given) {
      declare(title, ROOMY, peer, act, given)
      declare(`${title} (small ring)`, small, peer, act, given)
    },
  }
}

export async function collect(stream) {
  const chunks = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** Bytes of which no two parts are equal. */
export const noise = (size) => randomBytes(size)

/** The error that a promise rejects with. */
export const failure = (promise) =>
  promise.then(
    () => {
      throw new Error('it has succeeded')
    },
    (error) => error,
  )

export const turn = () => new Promise((resolve) => setImmediate(resolve))

/** Resolves at one of these events. `once` would reject if an error came first. */
const first = (emitter, ...events) =>
  new Promise((resolve) => {
    const done = () => {
      for (const event of events) emitter.removeListener(event, done)
      resolve()
    }
    for (const event of events) emitter.on(event, done)
  })

export const closing = (emitter) => first(emitter, 'close')

/** Writes until the stream is destroyed. `then(count)` is called after each 10 kB. */
export async function writeOn(stream, then) {
  const chunk = noise(10_000)
  for (let count = 1; !stream.destroyed && !stream.writableEnded; count += 1) {
    if (!stream.write(chunk)) await first(stream, 'drain', 'close')
    if (!stream.destroyed) then(count)
    await turn()
  }
}
