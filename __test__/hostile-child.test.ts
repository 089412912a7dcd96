// Children that attack their parent: each is a real process, and the parent goes on.

import { spawn as start, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import { spawn, type ChildOptions, type RingfenceError } from 'ringfence'

import { temporaryDirectory } from './support/address.js'
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

/** A process that inherits the line as descriptor 3, and sends on it what a wakeup never is. */
const POST = `
import array, os, socket, struct, sys
line = socket.socket(fileno=3)
line.setblocking(False)
files = array.array('i', [os.open(sys.argv[1], os.O_RDONLY) for _ in range(100)])
rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, files)
# As another user than root, the kernel refuses these.
credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack('3i', 1, 0, 0))
for data in (b'\\0', b'\\2', b'\\2\\1' + b'\\xff' * 8, b'{junk}\\n'):
    for control in ([], [rights], [credentials], [rights, credentials]):
        try:
            line.sendmsg([data], control)
        except OSError:
            pass
`

const POSTS = (file: string) => `
  const channel = await answer()
  const [line] = sockets()
  const words = ['-c', ${JSON.stringify(POST)}, ${JSON.stringify(file)}]
  const other = spawn('python3', words, { stdio: ['ignore', 'ignore', 'inherit', line] })
  await new Promise((resolve) => other.once('exit', resolve))
  await channel.send('posted')
  for await (const message of channel) await channel.send(message)
`

/** The number of descriptors of this process that lead to the file. */
const descriptorsOf = (file: string) =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === file
    } catch {
      return false
    }
  }).length

const python = spawnSync('python3', ['-c', '']).status === 0 ? test : test.skip

python('junk, descriptors and forged credentials from a sibling change nothing on an open channel', async (t) => {
  const file = join(temporaryDirectory(t), 'passed')
  writeFileSync(file, '')
  const { channel } = await hostile(t, POSTS(file))
  for (const message of ['posted', 'one', 'x'.repeat(50_000)]) {
    if (message !== 'posted') await channel.send(message)
    t.is(String(await channel.receive()), message)
    t.is(descriptorsOf(file), 0)
  }
  t.is(channel.stats().attachmentsReceived, 0)
  await channel.close()
})

python('they end a channel that accepts attachments, and no descriptor is left', async (t) => {
  const file = join(temporaryDirectory(t), 'passed')
  writeFileSync(file, '')
  const { channel } = await hostile(t, POSTS(file), { attachments: { descriptors: true } })
  await t.throwsAsync(
    async () => {
      while ((await channel.receive()) !== undefined);
    },
    { code: 'ERR_RINGFENCE_RING_CORRUPT' },
  )
  t.is((await channel.closed).reason, 'corrupt')
  t.is(descriptorsOf(file), 0)
})

python("the same junk ends a parent that has a channel of Node's", async (t) => {
  const words = JSON.stringify(['-c', POST, '/dev/null'])
  const code = `
    const { spawn } = require('node:child_process')
    spawn('python3', ${words}, { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] }).on('message', () => {})
  `
  const plain = start(process.execPath, ['--eval', code], { stdio: 'ignore' })
  // Node throws, or aborts.
  t.notDeepEqual(await once(plain, 'exit'), [0, null])
})

/** A cgroup with this much memory, or `undefined` if this user may not make one. */
function limitedGroup(t: ExecutionContext, bytes: number): string | undefined {
  const limits = existsSync('/sys/fs/cgroup/cgroup.controllers')
    ? { 'memory.max': bytes, 'memory.swap.max': 0 }
    : { 'memory.limit_in_bytes': bytes }
  const root = 'memory.max' in limits ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory'
  const directory = join(root, `ringfence-test-${process.pid}`)
  try {
    mkdirSync(directory)
    for (const [file, value] of Object.entries(limits)) writeFileSync(join(directory, file), String(value))
  } catch (error) {
    if (existsSync(directory)) rmdirSync(directory)
    t.log(`skipped: this user may not limit a cgroup: ${(error as Error).message}`)
    return undefined
  }
  t.teardown(async () => {
    await until(() => readFileSync(join(directory, 'cgroup.procs'), 'utf8') === '', 'the cgroup is empty')
    rmdirSync(directory)
  })
  return directory
}

test('a child that exhausts its cgroup is lost, and everything that it has sent is read', async (t) => {
  const directory = limitedGroup(t, 256 << 20)
  if (directory === undefined) {
    t.pass()
    return
  }
  const code = `
    const channel = await answer()
    for (let number = 0; number < 100; number++) await channel.send(String(number).repeat(1000))
    const hoard = []
    for (;;) hoard.push(Buffer.alloc(16 << 20, 1))
  `
  const enter = 'echo $$ >"$GROUP/cgroup.procs"; exec "$0" "$@"'
  const words = ['-c', enter, process.execPath, '--input-type=module', '--eval', PRELUDE + code]
  const spawned = await spawn('sh', words, {
    handshakeTimeout: 60_000,
    capacity: 1 << 20,
    spawn: { stdio: ['ignore', 'ignore', 'inherit'], env: { ...process.env, GROUP: directory } },
  })
  t.teardown(() => spawned[Symbol.asyncDispose]())
  const { child, channel } = spawned
  const other = await hostile(t, `for await (const message of await answer()) console.log(message)`)
  // The kernel has killed it before the first message is read.
  if (child.signalCode === null) await once(child, 'exit')
  t.is(child.signalCode, 'SIGKILL')
  for (let number = 0; number < 100; number++) t.is(String(await channel.receive()), String(number).repeat(1000))
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
  t.is((await channel.closed).reason, 'lost')
  await other.channel.send('this channel is open')
  await other.channel.close()
})

/** A child that exits while a process of its own traces it, prints that one's number, and never reports the exit. */
const TRACED = `
import ctypes, os, time
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
SEIZE, child = 0x4206, os.getpid()
ready, seized = os.pipe()
go, goes = os.pipe()
first = os.fork()
if first == 0:
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    # It is found neither by its parent, its session nor its copy of the line.
    os.close(3)
    os.read(go, 1)
    os.write(seized, b'%d' % (os.getpid() if ptrace(SEIZE, child, 0, 0) == 0 else 0))
    os.closerange(0, 100)
    time.sleep(1000)
# SIGCHLD would stop a process that is traced.
os.waitpid(first, 0)
os.write(goes, b'.')
os.write(1, os.read(ready, 100))
os._exit(7)
`

python(
  'a child whose exit is concealed by its tracer is CHILD_EXITED, and a plain parent waits for ever',
  async (t) => {
    const tracer = async ({ stdout }: ChildProcess) => {
      const pid = Number(String((await once(stdout!, 'data'))[0]))
      if (pid > 0) t.teardown(() => process.kill(pid, 'SIGKILL'))
      return pid
    }
    let traced!: Promise<number>
    const rejected = spawn('python3', ['-c', TRACED], {
      handshakeTimeout: 60_000,
      spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
      onSpawn: (child) => (traced = tracer(child)),
    })
    const error = await t.throwsAsync<RingfenceError>(rejected, { code: 'ERR_RINGFENCE_CHILD_EXITED' })
    if ((await traced) === 0) {
      t.log('skipped: this user may not trace its processes')
      return
    }
    t.is(error?.exitCode, null)
    t.regex(error!.message, /exited before the handshake/)
    const plain = start('python3', ['-c', TRACED], { stdio: ['ignore', 'pipe', 'inherit', 'ignore'] })
    await tracer(plain)
    await until(() => readFileSync(`/proc/${plain.pid}/stat`, 'latin1').includes(') Z '), 'it has exited')
    t.is(plain.exitCode, null)
  },
)

/** Processes whose command line has this mark. */
function marked(mark: string): string[] {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(mark)
    } catch {
      return false
    }
  })
}

/** A parent that is killed at this moment, or that says when it has started its child and goes on. */
const DOOMED = `
  import { writeSync } from 'node:fs'
  import { spawn } from 'ringfence'
  const [moment, command, ...words] = process.argv.slice(1)
  const reach = (name) => name === moment && process.kill(process.pid, 'SIGKILL')
  const { channel } = await spawn(command, words, {
    admit: 'descendant',
    handshakeTimeout: 600_000,
    spawn: { stdio: ['ignore', 'ignore', 'inherit'] },
    onSpawn() {
      reach('it has started its child')
      writeSync(1, 'started')
    },
  })
  reach('the channel is open')
  const call = channel.call('a job')
  setImmediate(reach, 'its call waits')
  await call
  reach('its call was answered')
  const sending = (async () => {
    for (;;) await channel.send('x'.repeat(1000))
  })()
  setTimeout(reach, 5, 'it sends')
  await sending
`

/** It never exits of its own accord while its parent lives. */
const FAITHFUL = `
  import { fromParent } from 'ringfence'
  try {
    await (await fromParent({ handshakeTimeout: 600_000 })).serve((job) => job)
  } catch (error) {
    if (error.code !== 'ERR_RINGFENCE_PEER_LOST') throw error
  }
`

const MOMENTS = [
  'it has started its child',
  'the channel is open',
  'its call waits',
  'its call was answered',
  'it sends',
  ...[0, 50, 100, 200].map((delay) => `${delay} ms after the start`),
]
const LAUNCHED: [title: string, command: string[]][] = [
  ['by itself', []],
  ['by a shell', ['sh', '-c', '"$@"; exit', 'sh']],
]

for (const [title, launcher] of LAUNCHED) {
  test(`nothing is left of a child that was started ${title}, whenever its parent is killed`, async (t) => {
    for (const moment of MOMENTS) {
      const mark = `ringfence-doomed-${process.pid}-${title}-${moment}`
      const child = [...launcher, process.execPath, '--input-type=module', '--eval', FAITHFUL, mark]
      const words = ['--input-type=module', '--eval', DOOMED, moment, ...child]
      const parent = start(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] })
      const exited = once(parent, 'exit')
      const delay = Number.parseInt(moment, 10)
      if (!Number.isNaN(delay)) {
        await once(parent.stdout, 'data')
        setTimeout(() => parent.kill('SIGKILL'), delay)
      }
      const [, signal] = (await exited) as [number, string]
      t.is(signal, 'SIGKILL', moment)
      await until(() => marked(mark).length === 0, `the child has ended: ${moment}`)
    }
  })
}
