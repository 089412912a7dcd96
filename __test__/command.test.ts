// The command line in this process: which call each command makes, what signals do, and the exit codes. cli.test.ts
// runs it as a user does.

import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { abstractAddress, isBound, temporaryDirectory, untilBound } from './support/address.js'
import { captureHandshakes, FakePublisher } from './support/binding.js'
import { urlOf } from './support/internals.js'
import { captureOutput, type Output } from './support/output.js'
import { fakeHost, useFakeFiles } from './support/fake-proc.js'
import { turns, until } from './support/until.js'

const cli = urlOf('cli.js')
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

let runs = 0
/** Restores this process after the last run. */
let leave = () => {}

interface Run {
  output: Output
  complaints: Output
  /** The end of the process: signals that it sent to itself, the code that its listeners got, and its exit code. */
  ends: string[]
}

/** Runs the command line in this process. An exit is recorded, and the process continues. */
async function run(t: ExecutionContext, ...words: string[]): Promise<Run> {
  leave()
  const [output, complaints] = [captureOutput(t, 'stdout'), captureOutput(t, 'stderr')]
  const ends: string[] = []
  const { argv, kill, exit, emit } = process
  const before = SIGNALS.map((signal) => process.listeners(signal))
  leave = () => {
    Object.assign(process, { argv, kill, exit, emit, exitCode: undefined })
    for (const [at, signal] of SIGNALS.entries())
      for (const listener of process.listeners(signal))
        if (!before[at]!.includes(listener)) process.off(signal, listener)
    leave = () => {}
  }
  t.teardown(() => leave())
  Object.assign(process, {
    argv: ['node', 'ringfence', ...words],
    kill: (pid: number, signal: string) => ends.push(`${pid === process.pid ? 'itself' : pid}: ${signal}`),
    exit: (code: number) => ends.push(`exit ${code}`),
    emit(name: string, ...values: unknown[]) {
      if (name !== 'exit') return Reflect.apply(emit, process, [name, ...values])
      ends.push(`on exit: ${values.join()}, ${process.exitCode}`)
      return true
    },
  })
  await import(`${cli}?${(runs += 1)}`)
  return { output, complaints, ends }
}

const ended = (ends: string[]) => until(() => ends.length > 0, 'it has ended')

test.serial('--help names every command, and --version is that of the package', async (t) => {
  const help = await run(t, '--help')
  for (const command of ['send', 'receive', 'collect', 'publish', 'subscribe', 'ps', 'top', 'doctor'])
    t.regex(help.output.text, new RegExp(`^ {2}ringfence ${command} `, 'm'))
  t.true(help.output.text.endsWith('\n'))
  const version = await run(t, '--version')
  const { version: wanted } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  t.is(version.output.text, `${wanted}\n`)
  t.deepEqual([help.complaints.text, help.ends, version.complaints.text, version.ends], ['', [], '', []])
})

test.serial('bash completes commands, options and their values', async (t) => {
  const script = (await run(t, 'completion', 'bash')).output.text
  const complete = (...words: string[]) => {
    const asked = `COMP_WORDS=(${words.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${words.length - 1}; _ringfence`
    return execFileSync('bash', ['-c', `${script}\n${asked}\necho "\${COMPREPLY[*]}"`], { encoding: 'utf8' }).trim()
  }
  t.is(complete('ringfence', 'su'), 'subscribe')
  t.is(complete('ringfence', 'subscribe', '--c'), '--count')
  t.is(complete('ringfence', 'subscribe', '--delivery', ''), 'reliable best-effort latest')
  t.is(complete('ringfence', 'help', 'doc'), 'doctor')
  t.is(complete('ringfence', 'send', '--help', 'a-file'), '')
})

for (const [shell, check] of [
  ['zsh', '-n'],
  ['fish', '--no-execute'],
] as const)
  test.serial(`the completion script for ${shell} names every command and option`, async (t) => {
    const script = (await run(t, 'completion', shell)).output.text
    for (const word of ['publish', 'no-newline', 'best-effort']) t.true(script.includes(word), word)
    const file = join(temporaryDirectory(t), 'script')
    writeFileSync(file, script)
    const { error, status, stderr } = spawnSync(shell, [check, file], { encoding: 'utf8' })
    if (error === undefined) t.is(status, 0, stderr)
    else t.log(`${shell} is not installed: its syntax was not checked`)
  })

test.serial('an error in the arguments points to the help, and other errors do not', async (t) => {
  const usage = await run(t, 'listen')
  await ended(usage.ends)
  t.regex(usage.complaints.text, /^ringfence: there is no command listen: .*\nTry ringfence help\.\n$/)
  t.deepEqual(usage.ends, ['exit 2'])
  t.teardown(useFakeFiles(fakeHost()))
  const failure = await run(t, 'doctor', '7')
  await ended(failure.ends)
  t.is(failure.complaints.text, 'ringfence: process 7 has no channel, as far as this user may see\n')
  t.deepEqual(failure.ends, ['exit 1'])
})

test.serial('doctor, ps and top print what they find, as JSON on request', async (t) => {
  const text = async (...words: string[]) => {
    const { output, complaints, ends } = await run(t, ...words)
    await until(() => output.text.endsWith('\n'), 'it has printed')
    await turns(2)
    t.deepEqual([complaints.text, ends], ['', []], words.join(' '))
    return output.text
  }
  t.regex(await text('doctor'), /, Node /)
  t.true('findings' in (JSON.parse(await text('doctor', '--json')) as object))
  t.teardown(useFakeFiles(fakeHost()))
  t.regex(await text('ps'), /^pid +uid /)
  t.deepEqual(JSON.parse(await text('ps', '--json')), { processes: [] })
  t.regex(await text('top', '--once'), /^0 processes, sorted by messages/)
  t.deepEqual(JSON.parse(await text('top', '@x', '--once', '--json')), { processes: [] })
})

/** Each command that meets another process, and the call that it makes. */
const MEETS = { send: 'join', receive: 'join', publish: 'publish', subscribe: 'subscribe' } as const

/** Starts such a command, with a file if it takes one. */
async function start(t: ExecutionContext, command: keyof typeof MEETS, ...more: string[]) {
  const file = join(temporaryDirectory(t), 'file')
  writeFileSync(file, 'as it was')
  const all = captureHandshakes(t)
  const words = command === 'subscribe' ? [] : [file]
  return { ...(await run(t, command, '@x', ...words, ...more)), file, all }
}

/** Starts such a command, and waits until it waits for the other side. */
async function waiting(t: ExecutionContext, command: keyof typeof MEETS) {
  const started = await start(t, command)
  await until(() => started.all.length === 1, 'it begins')
  return { ...started, call: started.all[0]! }
}

test.serial('each command waits for the other side at the address, and a signal ends it at once', async (t) => {
  for (const command of Object.keys(MEETS) as (keyof typeof MEETS)[])
    for (const [signal, code] of [
      ['SIGINT', 130],
      ['SIGTERM', 143],
      ['SIGHUP', 129],
    ] as const) {
      const { call, ends, file } = await waiting(t, command)
      t.deepEqual([call.name, call.address], [MEETS[command], '@x'])
      // Received data is in a file beside the target until all of it has arrived.
      t.is(readdirSync(join(file, '..')).length, command === 'receive' ? 2 : 1)
      t.deepEqual(ends, [])
      process.emit(signal)
      t.deepEqual(ends, [`on exit: ${code}, ${code}`, `itself: ${signal}`, `exit ${code}`], command)
      // A second signal has no listener, so it must do nothing here.
      ends.length = 0
      process.emit(signal)
      t.deepEqual(ends, [])
      call.done({ code: 'ABORTED', message: 'the end of this test' }, null)
      await ended(ends)
    }
})

test.serial('--timeout cancels the wait, with its own exit code', async (t) => {
  for (const command of ['send', 'receive', 'subscribe'] as const) {
    const { all, ends, complaints, file } = await start(t, command, '--timeout', '0.001')
    // The timeout may pass before the command has started to wait.
    await until(() => ends.length > 0 || all[0]?.calls.includes('cancel') === true, 'it is called off')
    all[0]?.done({ code: 'ABORTED', message: 'called off' }, null)
    await ended(ends)
    t.deepEqual(ends, ['exit 6'])
    t.regex(complaints.text, /^ringfence: no process (connected to|published at) @x in time\n$/)
    t.deepEqual([readFileSync(file, 'utf8'), readdirSync(join(file, '..'))], ['as it was', ['file']])
  }
})

test.serial('publish sends the file, and succeeds', async (t) => {
  const { call, ends, complaints } = await waiting(t, 'publish')
  const below = new FakePublisher()
  call.done(null, below)
  await until(() => below.calls.includes('end'), 'it has ended')
  t.deepEqual([below.sent, ends], [1, []])
  await until(() => below.calls.includes('close'), 'it has closed')
  await turns(2)
  t.regex(complaints.text, /^ringfence: no process has subscribed: .*\n$/)
})

test.serial(
  'collect finishes its work after the first signal, and ends at once after the second or SIGHUP',
  async (t) => {
    for (const [first, second, code] of [
      ['SIGINT', 'SIGINT', 130],
      ['SIGINT', 'SIGTERM', 143],
      ['SIGTERM', 'SIGINT', 130],
      ['SIGTERM', 'SIGTERM', 143],
    ] as const) {
      const address = abstractAddress()
      const { ends } = await run(t, 'collect', address)
      await untilBound(address)
      process.emit(first)
      t.deepEqual(ends, [])
      process.emit(second)
      t.deepEqual(ends, [`on exit: ${code}, ${code}`, `itself: ${second}`, `exit ${code}`], `${first} ${second}`)
      await until(() => !isBound(address), 'it has gone')
    }
    const address = abstractAddress()
    const { ends, complaints } = await run(t, 'collect', address)
    await untilBound(address)
    process.emit('SIGHUP')
    t.deepEqual(ends, ['on exit: 129, 129', 'itself: SIGHUP', 'exit 129'])
    process.emit('SIGTERM')
    await until(() => !isBound(address), 'it has gone')
    t.is(complaints.text, '')
  },
)

test.serial('a command ends if the reader of its data leaves, and not if that of its messages does', async (t) => {
  const { output, complaints, ends } = await run(t, '--version')
  const left = Object.assign(new Error('its reader has left'), { code: 'EPIPE' })
  complaints.stream.emit('error', left)
  t.deepEqual(ends, [])
  output.stream.emit('error', left)
  t.deepEqual(ends, ['on exit: 141, 141', 'itself: SIGPIPE', 'exit 141'])
  t.is(complaints.text, '')
  ends.length = 0
  output.stream.emit('error', new Error('no room'))
  t.deepEqual(ends, ['exit 1'])
  t.is(complaints.text, 'ringfence: no room\n')
})
