// A child that inherits a private line: no address, and no other process can take its place.

import childProcess, { spawn as start, type ChildProcess, type SpawnOptions } from 'node:child_process'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { EventEmitter, once } from 'node:events'
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { Worker } from 'node:worker_threads'

import test, { type ExecutionContext } from 'ava'
import { fromParent, spawn, type ChildOptions, type LineOptions, type RingfenceError } from 'ringfence'

import { temporaryDirectory } from './support/address.js'
import { internals } from './support/internals.js'
import { Partner } from './support/partner.js'
import { RustPartner, rustPartner } from './support/rust.js'
import { blockUntil, until } from './support/until.js'

/** Node's arguments to run a script. Imports are resolved from here. */
const script = (code: string) => ['--input-type=module', '--eval', code]

const ECHO = `
  import { fromParent } from 'ringfence'
  const channel = await fromParent({ handshakeTimeout: 60_000 })
  for await (const message of channel) await channel.send(message)
  await channel.end()
`
const NEVER_ANSWERS = `console.log('here'); setInterval(() => {}, 1000)`
/** Prints the outcome. */
const REPORT = `
  import { fromParent } from 'ringfence'
  await fromParent({ handshakeTimeout: 60_000 }).then(
    (channel) => console.log('a channel as', channel.role),
    (error) => console.log(error.code, error.message),
  )
`
/** The number that a shell printed. */
async function printed({ stdout }: ChildProcess): Promise<number> {
  const [line] = (await once(stdout!, 'data')) as [Buffer]
  return Number(String(line).split('\n')[0])
}
const isRunning = (pid: number) => existsSync(`/proc/${pid}/exe`)
const hasEnded = ({ exitCode, signalCode }: ChildProcess) => exitCode !== null || signalCode !== null

/** The open sockets of a process. */
const sockets = (pid: number | undefined) =>
  readdirSync(`/proc/${pid}/fd`)
    .map((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`)
      } catch {
        return ''
      }
    })
    .filter((target) => target.startsWith('socket:'))

/** Many processes start here at the same time, possibly on a slow machine. */
const PATIENT: LineOptions = { handshakeTimeout: 60_000 }

/** Starts a child, and kills it at the end of the test. */
function child(t: ExecutionContext, code: string, settings: SpawnOptions = {}, options?: LineOptions) {
  const begun = begin(process.execPath, script(code), { ...PATIENT, ...options, spawn: settings })
  t.teardown(async () => {
    if (begun.child.exitCode !== null || begun.child.signalCode !== null) return
    begun.child.kill('SIGKILL')
    await once(begun.child, 'exit')
  })
  return begun
}

/** Returns the child at once, and a promise of its channel. */
function begin(command: string, words: readonly string[], options: ChildOptions) {
  let started!: ChildProcess
  const channel = spawn(command, words, { ...options, onSpawn: (process) => (started = process) }).then(
    (spawned) => spawned.channel,
  )
  channel.catch(() => {})
  return { child: started, channel }
}

test('a parent and its child have a channel, with the same evidence as others', async (t) => {
  const { child: process, channel } = child(t, ECHO, { stdio: ['ignore', 'ignore', 'inherit'] })
  const open = await channel
  t.is(open.role, 'host')
  t.is(open.peer.pid, process.pid!)
  const checks = new Set(open.evidence.map(({ step, check }) => `${step} ${check}`))
  for (const wanted of ['rendezvous line', 'credentials child', 'executable executable', 'final executable']) {
    t.true(checks.has(wanted), wanted)
  }
  t.true(open.evidence.some(({ check, outcome }) => check === 'child' && outcome === 'passed'))
  for (const one of open.evidence) {
    t.true(one.wanted !== undefined && one.found !== undefined, `${one.step} ${one.check}`)
    t.is(one.wanted === 'not asked for', one.outcome === 'not-asked', `${one.step} ${one.check}`)
  }
  const messages = ['', 'grüße', 'x'.repeat(100_000)]
  for (const message of messages) await open.send(message)
  await open.end()
  const found: string[] = []
  for await (const message of open) found.push(message.toString())
  t.deepEqual(found, messages)
  t.is((await open.closed).reason, 'closed')
  if (process.exitCode === null) await once(process, 'exit')
  t.is(process.exitCode, 0)
})

test("the standard descriptors, a channel of Node's and the environment are as they were asked for", async (t) => {
  const code = `
    import { fromParent } from 'ringfence'
    const channel = await fromParent({ handshakeTimeout: 60_000 })
    process.send('by IPC')
    console.log(process.env.GIVEN, process.env.PATH)
    await channel.send(process.argv.length.toString())
    await channel.close()
    process.disconnect()
  `
  const { child: process, channel } = child(t, code, {
    stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
    env: { GIVEN: 'given' },
  })
  const output = text(process.stdout!)
  const [said] = await once(process, 'message')
  t.is(said, 'by IPC')
  t.is((await (await channel).receive())?.toString(), '1')
  t.is(await output, 'given undefined\n')
})

test('the arguments may be left out, and the outcome is disposable', async (t) => {
  const file = join(temporaryDirectory(t), 'echo.js')
  writeFileSync(file, `import('ringfence').then(({ fromParent }) => fromParent({ handshakeTimeout: 60_000 }))`)
  // Node without arguments runs the script on its standard input.
  const code = openSync(file, 'r')
  const settings: SpawnOptions = { stdio: [code, 'ignore', 'inherit'] }
  const spawned = await spawn(process.execPath, undefined, { ...PATIENT, spawn: settings })
  closeSync(code)
  t.is(spawned.channel.peer.pid, spawned.child.pid!)
  const exited = once(spawned.child, 'exit')
  await spawned[Symbol.asyncDispose]()
  await exited
  t.is((await spawned.channel.closed).reason, 'closed')
})

test('the line is taken once, and closed in the child after that', async (t) => {
  const code = `
    import { fromParent } from 'ringfence'
    const channel = await fromParent({ handshakeTimeout: 60_000 })
    const again = await fromParent().catch((error) => error)
    await channel.send(again.code + ' ' + again.message)
    await channel.receive()
  `
  const { child: process, channel } = child(t, code, { stdio: 'ignore' })
  const open = await channel
  t.regex(String(await open.receive()), /^ERR_RINGFENCE_ADDRESS_INVALID .*taken its line already/)
  // The channel's own.
  t.is(sockets(process.pid).length, 1)
  await open.close()
})

test('a process without a line gets an error that says so', async (t) => {
  await t.throwsAsync(fromParent(), {
    code: 'ERR_RINGFENCE_ADDRESS_INVALID',
    message: /no ringfence parent has started this process; start this program with `spawn`/,
  })
})

test('a child that exits before it answers is CHILD_EXITED, with everything known about its exit', async (t) => {
  const exits: [code: string, exitCode: number | null, signalCode: string | null, stderr: string | undefined][] = [
    ['', 0, null, undefined],
    ['process.exitCode = 7', 7, null, undefined],
    [`process.kill(process.pid, 'SIGKILL')`, null, 'SIGKILL', undefined],
    [`process.stderr.write('x'.repeat(5000) + 'the end'); process.exitCode = 1`, 1, null, `${'x'.repeat(4089)}the end`],
  ]
  for (const [code, exitCode, signalCode, stderr] of exits) {
    const { child: process, channel } = child(t, code, { stdio: ['ignore', 'ignore', stderr ? 'pipe' : 'ignore'] })
    const error = await t.throwsAsync<RingfenceError>(channel, { code: 'ERR_RINGFENCE_CHILD_EXITED' })
    t.is(error!.exitCode, exitCode)
    t.is(error!.signalCode, signalCode)
    t.is(error!.stderr, stderr)
    t.regex(error!.message, /^the child, process \d+, exited (with code \d|by SIGKILL) before the handshake; /)
    t.deepEqual([process.exitCode, process.signalCode], [exitCode, signalCode])
  }
})

test('a child may fill its pipes before it answers, and no output is lost', async (t) => {
  const code = `
    import { writeSync } from 'node:fs'
    const part = Buffer.alloc(50_000, 'x')
    for (const fd of [1, 2])
      for (let left = 300_000; left > 0; )
        try {
          left -= writeSync(fd, part, 0, Math.min(left, part.length))
        } catch {}
  ${ECHO}`
  const { child: process, channel } = child(t, code, { stdio: ['ignore', 'pipe', 'pipe'] })
  const open = await channel
  const output = Promise.all([text(process.stdout!), text(process.stderr!)])
  await open.close()
  t.deepEqual(
    (await output).map(({ length }) => length),
    [300_000, 300_000],
  )
})

test('a child that never answers is killed at the deadline, and at the abort', async (t) => {
  const late = child(t, NEVER_ANSWERS, { stdio: 'ignore' }, { handshakeTimeout: 20 })
  await t.throwsAsync(late.channel, {
    code: 'ERR_RINGFENCE_HANDSHAKE_TIMEOUT',
    message: /\(last step: the child's call of `fromParent`\)/,
  })
  const slow = child(t, NEVER_ANSWERS, { stdio: 'ignore' }, { handshakeTimeout: 1e6, timeout: 20 })
  await t.throwsAsync(slow.channel, { code: 'ERR_RINGFENCE_TIMEOUT' })
  const over = new AbortController()
  const calledOff = child(
    t,
    NEVER_ANSWERS,
    { stdio: ['ignore', 'pipe', 'inherit'] },
    { signal: over.signal, handshakeTimeout: 1e6 },
  )
  await once(calledOff.child.stdout!, 'data')
  over.abort('enough')
  const error = await t.throwsAsync(calledOff.channel, { code: 'ABORT_ERR' })
  t.is(error?.cause, 'enough')
  for (const { child: process } of [late, slow, calledOff])
    await until(() => process.signalCode === 'SIGKILL', 'the child is killed')
})

test('a signal that is already aborted starts nothing', async (t) => {
  const onSpawn = () => t.fail()
  const aborting = spawn(process.execPath, [], { signal: AbortSignal.abort('before'), onSpawn })
  t.is((await t.throwsAsync(aborting, { code: 'ABORT_ERR' }))?.cause, 'before')
})

test('an abort of `spawn.signal` before the handshake is CHILD_EXITED, and no uncaught error', async (t) => {
  const over = new AbortController()
  const onSpawn = () => over.abort()
  const settings: SpawnOptions = { stdio: 'ignore', signal: over.signal }
  const spawning = spawn(process.execPath, script(NEVER_ANSWERS), { ...PATIENT, spawn: settings, onSpawn })
  const error = await t.throwsAsync<RingfenceError>(spawning, { code: 'ERR_RINGFENCE_CHILD_EXITED' })
  t.is(error?.signalCode, 'SIGTERM')
})

test('an exception of onSpawn kills the child, and spawn rejects with it', async (t) => {
  let started!: ChildProcess
  const thrown = new Error('of the callback')
  const settings: SpawnOptions = { stdio: 'ignore' }
  const onSpawn = (process: ChildProcess) => {
    started = process
    throw thrown
  }
  t.is(await t.throwsAsync(spawn(process.execPath, script(NEVER_ANSWERS), { spawn: settings, onSpawn })), thrown)
  await until(() => started.signalCode === 'SIGKILL', 'the child is killed')
})

test('an exception of onSpawn kills what the child has started before', async (t) => {
  const file = join(temporaryDirectory(t), 'pid')
  const written = () => (existsSync(file) ? readFileSync(file, 'utf8') : '')
  const onSpawn = () => {
    blockUntil(() => written().endsWith('\n'), 'the shell has started the process')
    throw new Error('of the callback')
  }
  const run = 'sleep 1000 & echo $! > "$0"; wait'
  await t.throwsAsync(spawn('/bin/sh', ['-c', run, file], { spawn: { stdio: 'ignore' }, onSpawn }), {
    message: 'of the callback',
  })
  await until(() => !isRunning(Number(written())), 'the process is killed')
})

for (const [moment, call] of [
  ['during the handshake', 'setImmediate(report, child)'],
  ['in onSpawn', 'report(child); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)'],
]) {
  test(`a worker that is terminated ${moment} leaves no processes of its child`, async (t) => {
    const worker = new Worker(
      `const { parentPort } = require('node:worker_threads')
       import('ringfence').then(({ spawn }) => {
         const report = ({ pid }) => parentPort.postMessage(pid)
         const onSpawn = (child) => { ${call} }
         spawn('/bin/sh', ['-c', 'sleep 1000 & wait'], { handshakeTimeout: 1e6, spawn: { stdio: 'ignore' }, onSpawn })
       })`,
      { eval: true },
    )
    const [pid] = (await once(worker, 'message')) as [number]
    const children = () => readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
    await until(() => children() !== '', 'the shell has started a process')
    const descendant = Number(children())
    t.true(isRunning(pid) && isRunning(descendant))
    await worker.terminate()
    await until(() => !isRunning(pid) && !isRunning(descendant), 'both are killed')
  })
}

test('a failure to kill the child does not hide the original error', async (t) => {
  const thrown = new Error('of the callback')
  const onSpawn = (process: ChildProcess) => {
    const { kill } = process
    // Node throws this for a process of another user. Root never gets it.
    process.kill = (signal) => {
      kill.call(process, signal)
      return !process.emit('error', Object.assign(new Error('kill EPERM'), { code: 'EPERM' }))
    }
    throw thrown
  }
  interface Line {
    kill(done: (nothing: null, killed: boolean) => void): void
  }
  const { native } = await internals<{ native: { privateLine(): Line } }>('native.js')
  const { privateLine } = native
  native.privateLine = () =>
    Object.assign(privateLine(), { kill: (done: Parameters<Line['kill']>[0]) => done(null, false) })
  const settings: SpawnOptions = { stdio: 'ignore' }
  const spawning = spawn(process.execPath, script(NEVER_ANSWERS), { spawn: settings, onSpawn })
  native.privateLine = privateLine
  t.is(await t.throwsAsync(spawning), thrown)
})

test.serial('a user at the process limit gets NO_SPACE', async (t) => {
  const { spawn: own } = childProcess
  t.teardown(() => void (childProcess.spawn = own))
  childProcess.spawn = (() => {
    const none = new EventEmitter()
    // Node reports it like this. Root never gets it.
    setImmediate(() => none.emit('error', Object.assign(new Error('spawn EAGAIN'), { code: 'EAGAIN' })))
    return none
  }) as unknown as typeof own
  await t.throwsAsync(spawn('/bin/true'), {
    code: 'ERR_RINGFENCE_NO_SPACE',
    message: /cannot be started: spawn EAGAIN/,
  })
})

test('a command that cannot be started', async (t) => {
  const onSpawn = () => t.fail()
  const error = await t.throwsAsync<RingfenceError>(spawn('/no/such/program', [], { onSpawn }), {
    code: 'ERR_RINGFENCE_INVALID_ARGUMENT',
  })
  t.regex(error?.message ?? '', /no\/such\/program/)
  t.like(error?.cause, { code: 'ENOENT' })
  for (const [command, advice] of [
    ['no-such-program', /ENOENT: not found in PATH, or no such `cwd`; install it, or give its path$/],
    ['/no/such/program', /ENOENT: the file, its interpreter or `cwd` does not exist; install it, or give its path$/],
  ] as const)
    await t.throwsAsync(spawn(command), { message: advice })
})

test('a child that cannot start for lack of descriptors is NO_SPACE, and the next one starts', async (t) => {
  const parent = `
    import { closeSync, openSync } from 'node:fs'
    import { spawn } from 'ringfence'
    const most = []
    const tell = async () => {
      let started = false
      const onSpawn = () => (started = true)
      const { code, cause } = await spawn('/bin/true', [], { spawn: { stdio: 'ignore' }, onSpawn }).catch((error) => error)
      return [code, cause?.code, !started]
    }
    const told = [await tell()]
    try {
      for (;;) most.push(openSync('/dev/null'))
    } catch {}
    while (most.length > 0 && (told.length < 2 || told.at(-1)[2])) {
      closeSync(most.pop())
      try {
        told.push(await tell())
      } catch (error) {
        told.push([error.code, error.cause?.code, true])
      }
    }
    console.log(JSON.stringify(told))`
  const run = `ulimit -n 100 && exec "$0" "$@"`
  const process = start('/bin/sh', ['-c', run, ...[globalThis.process.execPath, ...script(parent)]], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const reported = JSON.parse(await text(process.stdout!)) as [string, string | undefined, boolean][]
  const [first, ...others] = reported
  t.false(first![2])
  const last = others.pop()
  t.false(last![2])
  t.deepEqual([...new Set(others.map(([code]) => code))], ['ERR_RINGFENCE_NO_SPACE'])
  t.true(others.some(([, cause]) => cause === 'EMFILE'))
})

test('wrong arguments are reported before anything is started', async (t) => {
  const wrong = { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }
  const onSpawn = () => t.fail()
  await t.throwsAsync(spawn('true', [], { capacity: -1, onSpawn }), wrong)
  await t.throwsAsync(spawn('true', [], { stdio: 'ignore', onSpawn } as never), {
    ...wrong,
    message: /no option stdio/,
  })
  await t.throwsAsync(spawn('true', [], { spawn: null, onSpawn } as never), wrong)
  await t.throwsAsync(spawn('true', [], { onSpawn: 5 } as never), wrong)
  await t.throwsAsync(spawn('true', 'an argument' as never, { onSpawn }), wrong)
  const error = await t.throwsAsync(spawn(7 as never, [], { onSpawn }), wrong)
  t.is((error!.cause as NodeJS.ErrnoException).code, 'ERR_INVALID_ARG_TYPE')
})

test('a process to which a child passes its line is refused, and both are killed', async (t) => {
  // Node opens its descriptors close-on-exec; a shell does not.
  const code = `${process.execPath} --input-type=module --eval "$0" & echo $!; wait`
  const answers = `
    import { fromParent } from 'ringfence'
    await fromParent({ handshakeTimeout: 60_000 }).catch(() => {})
    setInterval(() => {}, 1000)
  `
  const shell = begin('/bin/sh', ['-c', code, answers], {
    ...PATIENT,
    spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
  })
  const pid = await printed(shell.child)
  const error = await t.throwsAsync<RingfenceError>(shell.channel, { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  t.is(error?.check, 'child')
  t.is(error?.wanted, `pid ${shell.child.pid}, the process that was started`)
  await until(() => hasEnded(shell.child) && !isRunning(pid), 'both are killed')
})

test('a launcher may fork and exit if any descendant is admitted', async (t) => {
  const node = `${process.execPath} --input-type=module --eval "$0"`
  for (const run of [`${node}; exit`, `(${node} &) & wait`, `timeout 1000 nice env ${node}`, `setsid -f ${node}`]) {
    const shell = begin('/bin/sh', ['-c', run, ECHO], {
      ...PATIENT,
      admit: 'descendant',
      spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
    })
    const open = await shell.channel
    t.not(open.peer.pid, shell.child.pid!, run)
    await open.send('a job')
    t.is(String(await open.receive()), 'a job')
    await open.close()
    t.is(await text(shell.child.stdout!), '')
  }
})

test('one descendant is admitted, and a second one is refused', async (t) => {
  const node = `${process.execPath} --input-type=module --eval "$0"`
  const shell = begin('/bin/sh', ['-c', `${node} & ${node} & wait`, REPORT], {
    ...PATIENT,
    admit: 'descendant',
    spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
  })
  await (await shell.channel).close()
  const reported = (await text(shell.child.stdout!)).trim().split('\n').sort()
  t.is(reported.length, 2)
  t.regex(reported[0]!, /^ERR_RINGFENCE_PEER_REFUSED .*checks child/)
  t.is(reported[1], 'a channel as guest')
})

test('a descendant that is refused is killed with its launcher', async (t) => {
  const run = `${process.execPath} --input-type=module --eval "$0" & echo $!; wait`
  const policy = { executable: '/bin/true' }
  const code = `
    import { fromParent } from 'ringfence'
    await fromParent({ handshakeTimeout: 60_000 }).catch(() => {})
    setInterval(() => {}, 1000)
  `
  const shell = begin('/bin/sh', ['-c', run, code], {
    ...PATIENT,
    policy,
    admit: 'descendant',
    spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
  })
  const pid = await printed(shell.child)
  await t.throwsAsync(shell.channel, { code: 'ERR_RINGFENCE_PEER_REFUSED', message: /executable/ })
  await until(() => hasEnded(shell.child) && !isRunning(pid), 'both are killed')
})

const NODE = `${process.execPath} --input-type=module --eval "$0"`

for (const [title, run] of [
  ['a child of the launcher', `${NODE} & echo $!; wait`],
  ['a grandchild', `(${NODE} & echo $!; wait); exit`],
  ['a process whose launcher has exited', `${NODE} & echo $!`],
] as const) {
  test(`a rejected spawn kills a descendant that never answered: ${title}`, async (t) => {
    const over = new AbortController()
    const shell = begin('/bin/sh', ['-c', run, NEVER_ANSWERS], {
      handshakeTimeout: 1e6,
      signal: over.signal,
      admit: 'descendant',
      spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
    })
    const pid = await printed(shell.child)
    t.true(isRunning(pid))
    over.abort()
    await t.throwsAsync(shell.channel, { code: 'ABORT_ERR' })
    await until(() => hasEnded(shell.child) && !isRunning(pid), 'both have ended')
  })
}

test.serial('a descendant that has answered as the abort came is killed', async (t) => {
  const over = new AbortController()
  let pid = 0
  const abort = (message: unknown) => {
    pid = (message as { channel: { peer: { pid: number } } }).channel.peer.pid
    over.abort()
  }
  subscribe('ringfence:channel:open', abort)
  t.teardown(() => unsubscribe('ringfence:channel:open', abort))
  const stays = `${ECHO}\nsetInterval(() => {}, 1000)`
  const shell = begin('/bin/sh', ['-c', `${NODE}; exit`, stays], {
    ...PATIENT,
    signal: over.signal,
    admit: 'descendant',
    spawn: { stdio: 'ignore' },
  })
  await t.throwsAsync(shell.channel, { code: 'ABORT_ERR' })
  t.not(pid, shell.child.pid)
  await until(() => hasEnded(shell.child) && !isRunning(pid), 'both are killed')
})

test('disposing kills the child, the process that answered, and what it has started', async (t) => {
  const code = `
    import { fromParent } from 'ringfence'
    import { spawn } from 'node:child_process'
    const channel = await fromParent({ handshakeTimeout: 60_000 })
    await channel.send(String(spawn('sleep', ['1000'], { stdio: 'ignore' }).pid))
    setInterval(() => {}, 1000)
  `
  for (const run of [`${NODE}; exit`, `setsid -f ${NODE}`]) {
    const {
      child: process,
      channel,
      ...spawned
    } = await spawn('/bin/sh', ['-c', run, code], {
      ...PATIENT,
      admit: 'descendant',
      spawn: { stdio: 'ignore' },
    })
    const pids = [channel.peer.pid, Number(await channel.receive())]
    t.true(pids.every(isRunning))
    const dispose = spawned[Symbol.asyncDispose]
    await Promise.all([dispose(), dispose()])
    t.true(hasEnded(process))
    await until(() => !pids.some(isRunning), 'all are killed')
  }
})

test('disposing kills what a child has started that exits when the channel ends', async (t) => {
  const code = `
    import { fromParent } from 'ringfence'
    import { spawn } from 'node:child_process'
    const channel = await fromParent({ handshakeTimeout: 60_000 })
    const sleeping = spawn('sleep', ['1000'], { stdio: 'ignore' })
    sleeping.unref()
    await channel.send(String(sleeping.pid))
    for await (const message of channel);
  `
  const spawned = await spawn(process.execPath, ['--input-type=module', '-e', code], PATIENT)
  const { channel, child: started } = spawned
  const pid = Number(await channel.receive())
  t.true(isRunning(pid))
  const close = channel.close.bind(channel)
  channel.close = async () => {
    await close()
    if (!hasEnded(started)) await once(started, 'exit')
  }
  await spawned[Symbol.asyncDispose]()
  t.is(started.exitCode, 0, 'it was not killed')
  await until(() => !isRunning(pid), 'its child is killed')
})

test('a descendant that dies in the handshake is not blamed on its launcher', async (t) => {
  const shell = begin('/bin/sh', ['-c', `${NODE}; exit 3`, REPORT], {
    ...PATIENT,
    admit: 'descendant',
    policy: {
      authorize: ({ pid }) => {
        process.kill(pid, 'SIGKILL')
        return true
      },
    },
    spawn: { stdio: 'ignore' },
  })
  await t.throwsAsync(shell.channel, {
    code: 'ERR_RINGFENCE_PEER_LOST',
    message: /process \d+, to which the child had handed the line, exited during the handshake/,
  })
})

test('a child that dies during the handshake is CHILD_EXITED', async (t) => {
  const authorize = ({ pid }: { pid: number }) => process.kill(pid, 'SIGKILL')
  const started = child(t, REPORT, { stdio: 'ignore' }, { policy: { authorize } })
  const error = await t.throwsAsync<RingfenceError>(started.channel, { code: 'ERR_RINGFENCE_CHILD_EXITED' })
  t.is(error?.signalCode, 'SIGKILL')
})

test('a child that leaves its line to another process is not CHILD_EXITED', async (t) => {
  const shell = begin('/bin/sh', ['-c', `${NODE} & echo $!`, NEVER_ANSWERS], {
    ...PATIENT,
    spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
  })
  const pid = await printed(shell.child)
  await t.throwsAsync(shell.channel, {
    code: 'ERR_RINGFENCE_PEER_LOST',
    message: /has exited and left its end of the line to another process/,
  })
  await until(() => !isRunning(pid), 'that process is killed')
})

test('a shell that executes the program in its own place has passed the line on', async (t) => {
  const code = `exec ${process.execPath} --input-type=module --eval "$0"`
  const shell = begin('/bin/sh', ['-c', code, REPORT], { ...PATIENT, spawn: { stdio: ['ignore', 'pipe', 'inherit'] } })
  const open = await shell.channel
  t.is(open.peer.pid, shell.child.pid!)
  await open.close()
  t.is(await text(shell.child.stdout!), 'a channel as guest\n')
})

test("children that are started at the same time get nothing of each other's lines", async (t) => {
  const count = 6
  const lines = Array.from({ length: count }, () => {
    const spawned = child(t, NEVER_ANSWERS, { stdio: ['ignore', 'pipe', 'ignore'] }, { handshakeTimeout: 1e6 })
    const plain = start(process.execPath, script(NEVER_ANSWERS), { stdio: ['ignore', 'pipe', 'ignore'] })
    t.teardown(() => plain.kill('SIGKILL'))
    return { spawned, plain }
  })
  const seen = new Set<string>()
  for (const { spawned, plain } of lines) {
    await Promise.all([once(spawned.child.stdout!, 'data'), once(plain.stdout!, 'data')])
    // Node's pipes to a child are sockets: one for each stream.
    const [own, other] = [sockets(spawned.child.pid), sockets(plain.pid)]
    t.is(other.length, 1, 'a child that was left no line')
    t.is(own.length, 2, 'its own line alone')
    for (const socket of [...own, ...other]) {
      t.false(seen.has(socket))
      seen.add(socket)
    }
  }
})

test('failed attempts leave no descriptors behind', async (t) => {
  const partner = await Partner.start(t)
  await partner.run(async ({ ringfence, require, until: waiting }) => {
    const { readdirSync: list } = require('node:fs') as typeof import('node:fs')
    const { once: event } = require('node:events') as typeof import('node:events')
    const attempt = async () => {
      let exited: Promise<unknown> | undefined
      const onSpawn = (ended: ChildProcess) => void (exited = event(ended, 'exit'))
      await ringfence.spawn('/bin/true', [], { spawn: { stdio: 'ignore' }, onSpawn }).catch(() => {})
      await exited
      await ringfence.spawn('/no/such/program').catch(() => {})
      await ringfence.spawn('/bin/true', [], { signal: AbortSignal.abort() }).catch(() => {})
    }
    // The first attempt creates what is kept for the whole process.
    await attempt()
    const before = list('/proc/self/fd').length
    for (let round = 0; round < 5; round += 1) await attempt()
    // A thread of the core closes a line shortly after the program was notified.
    await waiting.until(() => list('/proc/self/fd').length <= before, 'all descriptors are closed')
  })
  t.pass()
})

test('a process that escapes a failed attempt does not keep the program running', async (t) => {
  // Runs in a session of its own, and holds the standard error of the attempt, but not its line.
  const escapes = `pid=$(setsid sh -c 'echo $$; exec sleep 1000 >&2 3>&-' &); echo $pid >&2; exit 3`
  const code = `
    import { spawn } from 'ringfence'
    const { stderr } = await spawn('sh', ['-c', ${JSON.stringify(escapes)}], { handshakeTimeout: 60_000 }).catch((error) => error)
    console.log(stderr)`
  const program = start(process.execPath, script(code), { stdio: ['ignore', 'pipe', 'inherit'] })
  // May be reported before the output.
  const exited = once(program, 'exit')
  const pid = await printed(program)
  t.teardown(() => process.kill(pid, 'SIGKILL'))
  await exited
  t.true(isRunning(pid))
})

test('a descendant that outlives its channel costs no descriptor, and is killed all the same', async (t) => {
  const partner = await Partner.start(t)
  const code = `
    import { fromParent } from 'ringfence'
    await fromParent({ handshakeTimeout: 60_000 })
    setInterval(() => {}, 1000)
  `
  const pid = await partner.run(
    async ({ ringfence, require, keep, until: waiting }, run: string, words: string) => {
      const fs = require('node:fs') as typeof import('node:fs')
      const { once: event } = require('node:events') as typeof import('node:events')
      const spawned = await ringfence.spawn('/bin/sh', ['-c', run, words], {
        admit: 'descendant',
        handshakeTimeout: 60_000,
        spawn: { stdio: 'ignore' },
      })
      const { child: launcher, channel } = spawned
      keep['spawned'] = spawned
      if (launcher.exitCode === null) await event(launcher, 'exit')
      await channel.close()
      const pidfds = () =>
        fs.readdirSync('/proc/self/fd').filter((fd) => {
          try {
            return fs.readlinkSync(`/proc/self/fd/${fd}`).includes('pidfd')
          } catch {
            return false
          }
        })
      await waiting.until(() => pidfds().length === 0, 'all pidfds are closed')
      return channel.peer.pid
    },
    `${NODE} &`,
    code,
  )
  t.true(isRunning(pid))
  await partner.run(async ({ keep }) => {
    await (keep['spawned'] as AsyncDisposable)[Symbol.asyncDispose]()
  })
  await until(() => !isRunning(pid), 'the descendant is killed')
})

test('a parent that may start no thread kills the descendants all the same', async (t) => {
  const partner = await Partner.start(t)
  const code = `
    import { fromParent } from 'ringfence'
    await fromParent({ handshakeTimeout: 60_000, policy: { executable: 'any' } })
    setInterval(() => {}, 1000)
  `
  const pid = await partner.run(
    async ({ ringfence, require, keep }, run: string, words: string) => {
      const { execFileSync } = require('node:child_process') as typeof import('node:child_process')
      // Root has no such limit.
      if (process.getuid!() === 0) process.setuid!(54_331)
      const spawned = await ringfence.spawn('/bin/sh', ['-c', run, words], {
        admit: 'descendant',
        handshakeTimeout: 60_000,
        spawn: { stdio: 'ignore' },
      })
      keep['spawned'] = spawned
      // Fewer processes than its user has.
      execFileSync('prlimit', ['--pid', String(process.pid), '--nproc=1'])
      return spawned.channel.peer.pid
    },
    `${NODE}; exit`,
    code,
  )
  t.true(isRunning(pid))
  await partner.run(async ({ keep }) => {
    await (keep['spawned'] as AsyncDisposable)[Symbol.asyncDispose]()
  })
  await until(() => !isRunning(pid), 'the descendant is killed')
})

test('a child learns that its parent was killed', async (t) => {
  const reported = join(temporaryDirectory(t), 'told')
  const partner = await Partner.start(t)
  await partner.run(
    async ({ ringfence }, node: string, words: string[]) => {
      const { channel } = await ringfence.spawn(node, words, { handshakeTimeout: 60_000, spawn: { stdio: 'ignore' } })
      await channel.receive()
    },
    process.execPath,
    [
      ...script(`
        import { writeFileSync, renameSync } from 'node:fs'
        import { fromParent } from 'ringfence'
        const channel = await fromParent({ handshakeTimeout: 60_000 })
        await channel.send('here')
        const { code } = await channel.receive().catch((error) => error)
        writeFileSync(${JSON.stringify(reported)} + '.new', code + ' ' + (await channel.closed).reason)
        renameSync(${JSON.stringify(reported)} + '.new', ${JSON.stringify(reported)})
      `),
    ],
  )
  await partner.kill()
  await until(() => existsSync(reported), 'the child has told of its parent')
  t.is(readFileSync(reported, 'utf8'), 'ERR_RINGFENCE_PEER_LOST lost')
})

test('a Node parent and a Rust child, each naming the other', async (t) => {
  const words = ['echo', 'parent', process.execPath, '8192', '100000']
  const stdio: SpawnOptions['stdio'] = ['ignore', 'pipe', 'inherit']
  const refused = spawn(rustPartner, words, { ...PATIENT, spawn: { stdio } })
  await t.throwsAsync(refused, { code: 'ERR_RINGFENCE_PEER_REFUSED', message: /executable/ })

  const policy = { executable: rustPartner }
  const { child: rust, channel: open } = await spawn(rustPartner, words, { ...PATIENT, policy, spawn: { stdio } })
  const output = text(rust.stdout!)
  await open.send('x'.repeat(50_000))
  t.is((await open.receive())?.length, 50_000)
  await open.end()
  t.is(await open.receive(), undefined)
  t.is((await open.closed).reason, 'closed')
  t.is(await output, `guest ${process.pid}\nover closed\n`)
})

test('a Rust parent and a Node child, each naming the other', async (t) => {
  const code = `
    import { fromParent } from 'ringfence'
    const channel = await fromParent({ handshakeTimeout: 60_000, policy: { executable: ${JSON.stringify(rustPartner)} } })
    await channel.send('from Node')
    const answer = await channel.receive()
    if (String(answer) !== 'from Node' || channel.role !== 'guest') throw new Error('an echo as ' + channel.role)
    await channel.end()
    await channel.receive()
  `
  const rust = new RustPartner(t, { deed: 'echo', address: `child:${code}`, capacity: 4096, longest: 4096 })
  t.regex(await rust.readLine(), /^host \d+$/)
  t.is(await rust.readLine(), 'over closed')
  t.deepEqual(await rust.exited, [0, null])
})
