// Children that attack their parent: each is a real process, and the parent goes on.

import { spawn as start } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'

import test, { type ExecutionContext } from 'ava'
import { spawn, type ChildOptions, type RingfenceError } from 'ringfence'

import { until } from './support/until.js'

/** Each child finds the number of its channel's socket as an attacker would. */
const PRELUDE = `
  import { spawn } from 'node:child_process'
  import { readdirSync, readlinkSync, readFileSync, writeSync } from 'node:fs'
  import { fromParent } from 'ringfence'
  // Standard error may be a socket.
  const sockets = () => readdirSync('/proc/self/fd').map(Number).filter((fd) => {
    try {
      return fd > 2 && readlinkSync('/proc/self/fd/' + fd).startsWith('socket:')
    } catch {
      return false
    }
  })
  const answer = () => fromParent({ handshakeTimeout: 60_000 })
`

const isRunning = (pid: number) => existsSync(`/proc/${pid}/exe`)

/** Starts such a child, and disposes of it with the test. */
async function hostile(t: ExecutionContext, code: string, options: ChildOptions = {}) {
  const spawned = await spawn(process.execPath, ['--input-type=module', '--eval', PRELUDE + code], {
    handshakeTimeout: 60_000,
    spawn: { stdio: ['ignore', 'ignore', 'inherit'] },
    ...options,
  })
  t.teardown(() => spawned[Symbol.asyncDispose]())
  return spawned
}

test('junk before the handshake is refused, and the child is killed', async (t) => {
  for (const junk of [`Buffer.alloc(1000, 7)`, `'RINGFENCE'.repeat(10)`]) {
    let pid = 0
    const code = `writeSync(Number(process.env.RINGFENCE_LINE), ${junk}); setInterval(() => {}, 1000)`
    const rejected = hostile(t, code, { onSpawn: (child) => (pid = child.pid!) })
    const error = await t.throwsAsync<RingfenceError>(rejected)
    t.regex(error!.code, /^ERR_RINGFENCE_(PROTOCOL|PEER_REFUSED|PEER_LOST)$/, junk)
    await until(() => !isRunning(pid), 'the child is killed')
  }
})

test('junk on the line of an open channel wakes the parent, and changes nothing', async (t) => {
  const { channel } = await hostile(
    t,
    `
    const channel = await answer()
    const [line] = sockets()
    writeSync(line, Buffer.alloc(1000, 7))
    for await (const message of channel) await channel.send(message)
    `,
  )
  for (const message of ['one', 'x'.repeat(50_000)]) {
    await channel.send(message)
    t.is(String(await channel.receive()), message)
  }
})

test("a flood of wakeups does not stop the parent's event loop", async (t) => {
  const { channel } = await hostile(
    t,
    `
    const channel = await answer()
    const [line] = sockets()
    const junk = Buffer.alloc(64)
    await channel.send('begins')
    for (;;)
      try {
        writeSync(line, junk)
      } catch (error) {
        if (error.code !== 'EAGAIN') process.exit()
      }
    `,
  )
  t.is(String(await channel.receive()), 'begins')
  const waiting = channel.receive().catch((error: RingfenceError) => error)
  // Each turn of the loop is a timer of its own.
  for (let turn = 0; turn < 50; turn += 1) await new Promise((resolve) => setTimeout(resolve, 1))
  t.is(channel.stats().messagesReceived, 1)
  t.true(channel.stats().sleeps >= 1)
  channel.destroy()
  await waiting
  await channel.closed
})

test('a stopped child delays no close, and is killed', async (t) => {
  const { child, channel, ...spawned } = await hostile(
    t,
    `
    await answer()
    process.kill(process.pid, 'SIGSTOP')
    `,
  )
  await channel.send('never read')
  await spawned[Symbol.asyncDispose]()
  t.is(child.signalCode, 'SIGKILL')
})

test('a child that forks and exits is lost, though its own child has all that it had', async (t) => {
  const { child, channel } = await hostile(
    t,
    `
    const channel = await answer()
    const inherited = sockets()
    const forked = spawn('sleep', ['1000'], { stdio: ['ignore', 'ignore', 'ignore', ...inherited] })
    await channel.send(String(forked.pid))
    process.kill(process.pid, 'SIGKILL')
    `,
  )
  const pid = Number(await channel.receive())
  t.teardown(() => process.kill(pid, 'SIGKILL'))
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
  t.is((await channel.closed).reason, 'lost')
  t.true(isRunning(pid))
  if (child.signalCode === null) await once(child, 'exit')
})

test('a process that has a copy of the line cannot speak for the child, as one that has a copy of a pipe can', async (t) => {
  const code = `
    const channel = await answer()
    const [line] = sockets()
    const other = spawn('sh', ['-c', 'printf "from another process" >&3'], { stdio: ['ignore', 'ignore', 'ignore', line] })
    await new Promise((resolve) => other.once('exit', resolve))
    await channel.send('from the child')
    await channel.receive()
  `
  const { channel } = await hostile(t, code)
  t.is(String(await channel.receive()), 'from the child')
  // The plain program cannot tell.
  const plain = start('sh', ['-c', '(printf "from another process" >&1) & wait'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const [said] = (await once(plain.stdout, 'data')) as [Buffer]
  t.is(String(said), 'from another process')
})

test('a child sees nothing of its parent but the line', async (t) => {
  const { channel } = await hostile(
    t,
    `
    const line = readlinkSync('/proc/self/fd/' + process.env.RINGFENCE_LINE)
    const channel = await answer()
    const shared = readFileSync('/proc/self/maps', 'utf8').split('\\n').filter((map) => /ringfence/.test(map) && !/\\.node|\\.so/.test(map))
    const writable = shared.filter((map) => / .w/.test(map.slice(map.indexOf(' '))))
    await channel.send(JSON.stringify({ line, sockets: sockets().length, shared: shared.length, writable: writable.length }))
    await channel.receive()
    `,
  )
  const seen = JSON.parse(String(await channel.receive())) as Record<string, number | string>
  t.regex(String(seen['line']), /^socket:/)
  // The channel's own line, and none of the parent's; its own ring to write and the parent's to read.
  t.is(seen['sockets'], 1)
  t.is(seen['writable'], 1)
  t.true(Number(seen['shared']) >= 2)
})
