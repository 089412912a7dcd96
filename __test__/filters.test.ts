// A Node child under the filters of common sandboxes. The lists are those of crates/ringfence/tests/filters, which has the same test for a
// child in Rust.

import { execFileSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import { spawn, type ChildOptions } from 'ringfence'

const lists = fileURLToPath(new URL('../../crates/ringfence/tests/filters', import.meta.url))
const linesOf = (name: string) =>
  readFileSync(join(lists, `${name}.txt`), 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
const calls = new Map(linesOf('calls').map((line) => line.split(' ').reverse() as [string, string]))

const ALLOW = 0x7fff0000
const FAIL = 0x00050000
const EPERM = 1

/** A classic BPF program (seccomp(2)): `NAME`, `NAME if INDEX&MASK=VALUE`, the same with `unless`, or `NAME fails ERRNO` on each line. */
function program(kind: string, lines: readonly string[]): Buffer {
  const [verdict, otherwise] = kind === 'deny' ? [FAIL | EPERM, ALLOW] : [ALLOW, FAIL | EPERM]
  const statements: [code: number, ifTrue: number, ifFalse: number, value: number][] = []
  const [LOAD, EQUALS, AND, RETURN] = [0x20, 0x15, 0x54, 0x06]
  statements.push([LOAD, 0, 0, 0])
  for (const line of lines) {
    const [name, word, rest = ''] = line.split(' ')
    const call = Number(calls.get(name!))
    if (Number.isNaN(call)) throw new Error(`no call has the name ${name}`)
    if (word === undefined || word === 'fails') {
      statements.push([EQUALS, 0, 1, call], [RETURN, 0, 0, word === 'fails' ? FAIL | Number(rest) : verdict])
      continue
    }
    const [index, mask, value] = rest.split(/[&=]/).map(Number)
    const [ifTrue, ifFalse] = word === 'if' ? [0, 1] : [1, 0]
    statements.push([EQUALS, 0, 5, call], [LOAD, 0, 0, 16 + 8 * index!], [AND, 0, 0, mask!])
    statements.push([EQUALS, ifTrue, ifFalse, value!], [RETURN, 0, 0, verdict], [LOAD, 0, 0, 0])
  }
  statements.push([RETURN, 0, 0, otherwise])
  const bytes = Buffer.alloc(8 * statements.length)
  for (const [at, [code, ifTrue, ifFalse, value]] of statements.entries()) {
    bytes.writeUInt16LE(code, 8 * at)
    bytes.set([ifTrue, ifFalse], 8 * at + 2)
    bytes.writeUInt32LE(value >>> 0, 8 * at + 4)
  }
  return bytes
}

const named = (name: string) => {
  const [kind, ...lines] = linesOf(name)
  return program(kind!, lines)
}

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
  'the filter of Codex': () => named('codex'),
  'the filter of sandbox-runtime': () => named('sandbox-runtime'),
  "Docker's default profile": () => named('docker'),
  "systemd's @system-service": () => named('system-service'),
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
    const directory = mkdtempSync(join(tmpdir(), 'ringfence-test-'))
    t.teardown(() => rmSync(directory, { recursive: true }))
    const file = join(directory, 'filter')
    writeFileSync(file, filter())
    const descriptor = openSync(file, 'r')
    t.teardown(() => closeSync(descriptor))
    // Without a line that the child has made, neither its executable nor its confinement is provable.
    const policy = title.endsWith('socketpair')
      ? ({ executable: 'any' } as const)
      : ({ confined: { noNewPrivs: true, seccomp: true } } as const)
    t.is(await echoes([...BWRAP, '--seccomp', '3'], policy, descriptor), 'closed')
  })
}

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
