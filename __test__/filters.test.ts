// A Node child under the filters of common sandboxes. The lists are those of crates/ringfence/tests/filters, which has the same test for a
// child in Rust.

import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import { spawn, type Channel, type ChildOptions } from 'ringfence'

import { temporaryDirectory } from './support/address.js'
import { compileConfinement, named, program, SANDBOX_FILTERS } from './support/filter.js'

const ECHO = `
  import { fromParent } from 'ringfence'
  const channel = await fromParent({ handshakeTimeout: 60_000 })
  for await (const message of channel) await channel.send(message)
  await channel.end()
`

const BWRAP = ['bwrap', '--dev-bind', '/', '/']

function runs(...[command, ...args]: string[]): boolean {
  try {
    execFileSync(command!, args, { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

const available = process.arch === 'x64' && runs(...BWRAP, 'true') ? test : test.skip

const DENIED = ['membarrier', 'pidfd_open', 'pidfd_send_signal', 'kcmp', 'sendto', 'recvfrom', 'shutdown', 'getsockopt']
DENIED.push('setsockopt', 'getsockname', 'socketpair', 'memfd_create', 'fallocate')

const FILTERS: Record<string, () => Buffer> = {
  ...Object.fromEntries(Object.entries(SANDBOX_FILTERS).map(([name, title]) => [title, () => named(name)])),
  ...Object.fromEntries(DENIED.map((call) => [`a filter that denies ${call}`, () => program('deny', [call])])),
}

async function echoes(launcher: readonly string[], policy: NonNullable<ChildOptions['policy']>, filter?: number) {
  const [command, ...args] = [...launcher, process.execPath, '--input-type=module', '--eval', ECHO]
  await using spawned = await spawn(command!, args, {
    admit: 'descendant',
    handshakeTimeout: 60_000,
    policy,
    spawn: { stdio: ['ignore', 'ignore', 'inherit', filter ?? 'ignore'] },
  })
  const { channel } = spawned
  for (let number = 0; number < 100; number++) {
    await channel.send(`job ${number}`)
    if (String(await channel.receive()) !== `job ${number}`) throw new Error('another message came back')
  }
  await channel.end()
  return (await channel.receive()) === undefined && (await channel.closed).reason
}

for (const [title, filter] of Object.entries(FILTERS)) {
  available(`a Node child has a channel under ${title}`, async (t) => {
    const file = join(temporaryDirectory(t), 'filter')
    writeFileSync(file, filter())
    const descriptor = openSync(file, 'r')
    t.teardown(() => closeSync(descriptor))
    // The parent can check executable and confinement only if the child has created the line.
    const policy = title.endsWith('socketpair')
      ? ({ executable: 'any' } as const)
      : ({ confined: { noNewPrivs: true, seccomp: true } } as const)
    t.is(await echoes([...BWRAP, '--seccomp', '3'], policy, descriptor), 'closed')
  })
}

available('a parent that its own filter denies a line reports that as UNSUPPORTED', async (t) => {
  const file = join(temporaryDirectory(t), 'filter')
  writeFileSync(file, program('deny', ['setsockopt']))
  const descriptor = openSync(file, 'r')
  t.teardown(() => closeSync(descriptor))
  const code = `
    import { spawn } from 'ringfence'
    await spawn('true').catch((error) => console.log(error.code, error.message))
  `
  const args = ['--seccomp', '3', process.execPath, '--input-type=module', '--eval', code]
  const stdio = ['ignore', 'pipe', 'inherit', descriptor] as const
  const output = execFileSync(BWRAP[0]!, [...BWRAP.slice(1), ...args], { encoding: 'utf8', stdio: [...stdio] })
  t.regex(output, /^ERR_RINGFENCE_UNSUPPORTED .*setsockopt/)
})

const SANDBOXES: [title: string, launcher: string[]][] = [
  ['no_new_privs', ['setpriv', '--no-new-privs']],
  ['a network namespace of its own', ['unshare', '-Urn']],
]
for (const [title, launcher] of SANDBOXES) {
  const possible = runs(...launcher, 'true') ? test : test.skip
  possible(`a Node child has a channel with ${title}`, async (t) => {
    t.is(await echoes(launcher, {}), 'closed')
  })
}

const SYSTEM_CALLS = fileURLToPath(new URL('../../docs/internals/system-calls.md', import.meta.url))

/** The calls of an open channel and of one that closes, by the lists in docs/internals/system-calls.md. */
function documented(): Buffer {
  const text = readFileSync(SYSTEM_CALLS, 'utf8')
  const list = (name: string) => text.split(`<!-- calls: ${name} -->`)[1]!.split('```')[1]!.trim().split(/\s+/).slice(1)
  return program('only', ['open', 'close', 'node'].flatMap(list))
}

/** A child that can confine itself, with a directory that holds the filter. */
async function confining(t: ExecutionContext, code: string, filter?: Buffer) {
  const directory = temporaryDirectory(t)
  const library = join(directory, 'confine.node')
  compileConfinement(library)
  if (filter) writeFileSync(join(directory, 'filter'), filter)
  const prelude = `
    import { fromParent } from 'ringfence'
    // It is no addon of Node's: it has done its work once it is loaded.
    const confine = () => {
      try {
        process.dlopen({ exports: {} }, ${JSON.stringify(library)})
      } catch (error) {
        if (!/self-register/.test(error.message)) throw error
      }
    }
    const echo = async (channel, each) => {
      for await (const message of channel) {
        each(String(message))
        await channel.send(message)
      }
      await channel.end()
      await channel.close()
    }
  `
  const spawned = await spawn(process.execPath, ['--input-type=module', '--eval', prelude + code], {
    handshakeTimeout: 60_000,
    spawn: {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, ...(filter && { RINGFENCE_TEST_FILTER: join(directory, 'filter') }) },
    },
  })
  t.teardown(() => spawned[Symbol.asyncDispose]())
  return spawned
}

/** Short and long messages, one at a time and in runs. Both sides fall asleep now and then. */
async function converse(channel: Channel, rounds: number) {
  for (let round = 0; round < rounds; round++) {
    const [count, most] = (
      [
        [10, 3000],
        [1, 100],
        [3, 60_000],
      ] as const
    )[round % 3]!
    for (let number = 0; number < count; number++) await channel.send(Buffer.alloc((round * 997) % most, number))
    for (let number = 0; number < count; number++) {
      const message = await channel.receive()
      if (message?.length !== (round * 997) % most || !message.every((byte) => byte === number))
        throw new Error('another message came back')
    }
    if (round % 10 === 0) await sleep(1)
  }
}

const compiles = process.arch === 'x64' && runs('cc', '--version') ? test : test.skip

compiles('an open channel of a Node child makes no call that is not documented', async (t) => {
  const code = `await echo(await fromParent(), (message) => message === 'confine' && confine())`
  const { child, channel } = await confining(t, code, documented())
  const exited = once(child, 'exit')
  await converse(channel, 100)
  await channel.send('confine')
  t.is(String(await channel.receive()), 'confine')
  await converse(channel, 1000)
  await channel.end()
  t.is(await channel.receive(), undefined)
  t.is((await channel.closed).reason, 'closed')
  t.deepEqual(await exited, [0, null])
})

compiles('a call of a Node child that is not documented kills it', async (t) => {
  const code = `
    await echo(await fromParent(), (message) => {
      confine()
      process.chdir('/')
    })
  `
  const { child, channel } = await confining(t, code, documented())
  const exited = once(child, 'exit')
  await channel.send('go')
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
  t.deepEqual(await exited, [null, 'SIGSYS'])
})

compiles('a Node child that may open no file has a channel', async (t) => {
  const code = `
    import { openSync } from 'node:fs'
    confine()
    let opened = true
    try {
      openSync('/dev/null')
    } catch (error) {
      opened = error.code !== 'EACCES'
    }
    const channel = await fromParent()
    await channel.send(opened ? 'not confined' : 'confined')
    await echo(channel, () => {})
  `
  const { child, channel } = await confining(t, code)
  const exited = once(child, 'exit')
  t.is(String(await channel.receive()), 'confined')
  await converse(channel, 100)
  await channel.end()
  t.is(await channel.receive(), undefined)
  t.deepEqual(await exited, [0, null])
})
