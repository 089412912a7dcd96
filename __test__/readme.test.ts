// The code in docs/ does what the text says, also if a peer is killed.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import { transform } from 'esbuild'

import { namedAddress, untilBound } from './support/address.js'
import { Partner } from './support/partner.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** The first example of a page, or below one of its headings. */
function exampleOf(page: string, heading?: string): string {
  const text = readFileSync(join(root, page), 'utf8')
  const section = heading === undefined ? text : text.slice(text.indexOf(`\n## ${heading}\n`))
  const [, code] = /```[jt]s\n(.*?)```/s.exec(section)!
  return code!
}

/** Each text must exist, so that a change of the example is noticed here. */
function replaceAll(t: ExecutionContext, code: string, changes: [from: string, to: string][]): string {
  for (const [from, to] of changes) {
    t.true(code.includes(from), `the page says ${from}`)
    code = code.replaceAll(from, to)
  }
  return code
}

/** Runs code in its own process, which finds the package as a dependent does. */
async function run(t: ExecutionContext, code: string) {
  const directory = mkdtempSync(join(root, 'build', 'readme-'))
  const file = join(directory, 'main.mjs')
  // Node 20 does not support `await using`.
  writeFileSync(file, (await transform(code, { loader: 'ts', target: 'node20' })).code)
  const child = spawn(process.execPath, [file], { stdio: ['ignore', 'pipe', 'pipe'] })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
    rmSync(directory, { recursive: true })
  })
  return { child, exited, complaints: createInterface({ input: child.stderr })[Symbol.asyncIterator]() }
}

/** The messages of a call that was pending when the peer's process ended, and of a later one. */
const ENDED = '(the peer, process \\d+,|the peer is gone: process \\d+) has ended'

test('the service continues after one of its clients is killed', async (t) => {
  const address = namedAddress(t)
  const { complaints, child } = await run(
    t,
    replaceAll(t, exampleOf('docs/guide/README.md', 'Serve many clients'), [
      ["'/run/user/1000/service.sock'", JSON.stringify(address)],
    ]),
  )
  await untilBound(address)
  const [doomed, other] = await Promise.all([Partner.start(t), Partner.start(t)])
  for (const agent of [doomed, other]) await agent.connect(address)
  await doomed.run(async (kit) => {
    // More than both rings hold, so the service has replies left to send whenever this process ends.
    for (let order = 0; order < 400; order += 1) void kit.channel.send('x'.repeat(65_536))
    await kit.channel.receive()
  })
  await doomed.kill()
  const { value: complaint } = await complaints.next()
  t.regex(String(complaint), new RegExp(`^client ${doomed.pid}: ${ENDED}`))
  t.is(
    await other.run(async (kit) => {
      await kit.channel.send('42')
      return String(await kit.channel.receive())
    }),
    'done: 42',
  )
  t.is(child.exitCode, null)
})

test('a member keeps its place while its partners are killed one after the other', async (t) => {
  const address = namedAddress(t)
  const { complaints, exited, child } = await run(
    t,
    replaceAll(t, exampleOf('docs/guide/restart.md', 'Keep the address between two processes'), [
      ["'/run/user/1000/orders.sock'", JSON.stringify(address)],
    ]),
  )
  for (let round = 0; round < 2; round += 1) {
    await untilBound(address)
    const partner = await Partner.start(t)
    await partner.run(async (kit, where) => {
      const membership = await kit.ringfence.member(where, { wait: true })
      kit.channel = membership.channel!
      for (let order = 0; order < 400; order += 1) void kit.channel.send('x'.repeat(65_536))
      await kit.channel.receive()
    }, address)
    await partner.kill()
    const { value: complaint } = await complaints.next()
    t.regex(String(complaint), new RegExp(`^partner ${partner.pid}: ${ENDED}`))
  }
  child.kill('SIGTERM')
  t.deepEqual(await exited, [0, null])
})

test('a send without a handler crashes no process when the peer is killed', async (t) => {
  const address = namedAddress(t)
  const [sender, doomed] = await Promise.all([Partner.start(t), Partner.start(t)])
  await Promise.all([sender.join(address, { capacity: 4096 }), doomed.join(address)])
  // One message is in the ring, and messages of all kinds wait for room.
  await sender.run((kit) => {
    for (const size of [10, 3000, 500, 10_000]) void kit.channel.send(Buffer.alloc(size))
  })
  await doomed.kill()
  const outcome = await sender.run(async (kit) => {
    const { reason } = await kit.channel.closed
    void kit.channel.send('between two')
    void kit.channel.send(Buffer.alloc(10_000))
    void kit.channel.send(Buffer.alloc(10))
    const awaited = await kit.channel.send('awaited').catch((error: { code: string }) => error.code)
    // Node reports unhandled rejections after the microtasks.
    await new Promise((resolve) => setImmediate(resolve))
    return { reason, awaited }
  })
  t.deepEqual(outcome, { reason: 'lost', awaited: 'ERR_RINGFENCE_PEER_LOST' })
})

test('a verify without a handler crashes no process when the channel has ended', async (t) => {
  const address = namedAddress(t)
  const [watcher, doomed] = await Promise.all([Partner.start(t), Partner.start(t)])
  await Promise.all([watcher.join(address), doomed.join(address)])
  await doomed.kill()
  const heard = await watcher.run(async (kit) => {
    const codes: string[] = []
    process.on('unhandledRejection', (error: { code: string }) => codes.push(error.code))
    // The event loop has not been notified of the end, so the check finds it.
    void kit.channel.verify()
    const awaited = await kit.channel.verify().catch((error: { code: string }) => error.code)
    await kit.channel.closed
    void kit.channel.verify()
    await new Promise((resolve) => setImmediate(resolve))
    return { codes, awaited }
  })
  t.deepEqual(heard, { codes: [], awaited: 'ERR_RINGFENCE_PEER_LOST' })
})

test('a wrong send without a handler is an unhandled rejection', async (t) => {
  const address = namedAddress(t)
  const [sender, peer] = await Promise.all([Partner.start(t), Partner.start(t)])
  await Promise.all([sender.join(address), peer.join(address)])
  const heard = await sender.run(async (kit) => {
    const codes: string[] = []
    process.on('unhandledRejection', (error: { code: string }) => codes.push(error.code))
    void kit.channel.send(5 as unknown as string)
    await kit.channel.end()
    void kit.channel.send('after the end')
    await new Promise((resolve) => setImmediate(resolve))
    return codes
  })
  t.deepEqual(heard, ['ERR_RINGFENCE_INVALID_ARGUMENT', 'ERR_RINGFENCE_CLOSED'])
})
