// Launchers that a parent may put between itself and its child: each forks, changes namespaces or drops rights in its own way.

import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import { spawn, type ChildOptions, type RingfenceError } from 'ringfence'

import { compileConfinement, named, SANDBOX_FILTERS } from './support/filter.js'

/** Prints what it sees of its parent, and echoes. */
const ECHO = `
  import { fromParent } from 'ringfence'
  const channel = await fromParent({ handshakeTimeout: 60_000 })
  const hidden = channel.evidence.filter(({ outcome }) => outcome === 'not-visible').map(({ check }) => check)
  await channel.send(JSON.stringify({ pid: channel.peer.pid, hidden: [...new Set(hidden)] }))
  for await (const message of channel) await channel.send(message)
  await channel.end()
`
const SCRIPT = ['--input-type=module', '--eval', ECHO]

const BWRAP = ['bwrap', '--dev-bind', '/', '/']
const CLEAR = ['--clearenv', '--setenv', 'RINGFENCE_LINE']

interface Launcher {
  /** The command line before the program. */
  command: string[]
  /** The checks that the child cannot make of its parent. */
  hidden?: string[]
  line?: ChildOptions['line']
  /** Without root, bwrap always makes a user namespace, from which the parent's executable cannot be seen. */
  makesUserNamespace?: true
}

// By default, it limits files to 1 MiB, and shared memory counts as a file. It also limits descriptors to 32, and the kernel compares that with
// the descriptors on their way between all processes of the user.
const LIMITS = ['--rlimit_fsize', 'inf', '--rlimit_nofile', 'soft']
const NSJAIL = ['nsjail', '-Mo', '--really_quiet', '--chroot', '/', '--cwd', process.cwd(), ...LIMITS]
const CONFINED = ['--net=none', '--caps.drop=all', '--nonewprivs', '--seccomp']

/** The table of launchers in docs/guide/sandbox.md is made from this one: `UPDATE_TABLE=1 npx ava build/test/launchers.test.js`. */
const LAUNCHERS: Record<string, Launcher> = {
  'a shell': { command: ['sh', '-c', '"$@"; exit', 'sh'] },
  'a shell that exits': { command: ['sh', '-c', '"$@" &', 'sh'] },
  env: { command: ['env', 'ANY=thing'] },
  nice: { command: ['nice', '-n', '1'] },
  timeout: { command: ['timeout', '1000'] },
  setsid: { command: ['setsid', '-f'] },
  'setpriv with no_new_privs': { command: ['setpriv', '--no-new-privs'] },
  'unshare -Urpf': { command: ['unshare', '-Urpf', '--kill-child'], hidden: ['namespace', 'executable'] },
  'unshare -Urpf with /proc': {
    command: ['unshare', '-Urpf', '--mount-proc', '--kill-child'],
    hidden: ['namespace', 'executable'],
  },
  'a launcher that closes descriptors': { command: ['sh', '-c', 'exec 3>&-; "$@"; exit', 'sh'], line: 'stdin' },
  bwrap: { command: BWRAP, makesUserNamespace: true },
  'bwrap --unshare-user': { command: [...BWRAP, '--unshare-user'], hidden: ['executable'] },
  'bwrap --unshare-pid': { command: [...BWRAP, '--unshare-pid'], hidden: ['namespace'], makesUserNamespace: true },
  'bwrap --unshare-net': { command: [...BWRAP, '--unshare-net'], makesUserNamespace: true },
  'bwrap --unshare-ipc': { command: [...BWRAP, '--unshare-ipc'], makesUserNamespace: true },
  'bwrap --unshare-cgroup': { command: [...BWRAP, '--unshare-cgroup'], makesUserNamespace: true },
  'bwrap --unshare-all': {
    command: [...BWRAP, '--unshare-all', '--die-with-parent'],
    hidden: ['namespace', 'executable'],
  },
  'bwrap --unshare-all with its own /proc': {
    command: [...BWRAP, '--unshare-all', '--proc', '/proc', '--die-with-parent'],
    hidden: ['namespace', 'executable'],
  },
  'bwrap --unshare-all --clearenv': {
    command: [...BWRAP, '--unshare-all', '--die-with-parent', ...CLEAR, '3'],
    hidden: ['namespace', 'executable'],
  },
  'bwrap --unshare-all --clearenv, and the line on standard input': {
    command: [...BWRAP, '--unshare-all', '--die-with-parent', ...CLEAR, '0'],
    hidden: ['namespace', 'executable'],
    line: 'stdin',
  },
  'firejail --keep-fd=3': {
    command: ['firejail', '--quiet', '--noprofile', '--keep-fd=3', ...CONFINED],
    hidden: ['namespace', 'executable'],
  },
  firejail: {
    command: ['firejail', '--quiet', '--noprofile', ...CONFINED],
    hidden: ['namespace', 'executable'],
    line: 'stdin',
  },
  'systemd-run --user --scope': { command: ['systemd-run', '--user', '--scope', '--quiet'] },
  'systemd-run --user --pipe': {
    command: ['systemd-run', '--user', '--pipe', '--quiet', '--same-dir', '--setenv', 'RINGFENCE_LINE=0'],
    line: 'stdin',
  },
  // As root, with the manager of the system.
  'systemd-run --scope': { command: ['systemd-run', '--scope', '--quiet'] },
  'systemd-run --pipe': {
    command: ['systemd-run', '--pipe', '--quiet', '--same-dir', '--setenv', 'RINGFENCE_LINE=0'],
    line: 'stdin',
  },
  'nsjail --pass_fd 3': {
    command: [...NSJAIL, '--keep_env', '--pass_fd', '3', '--'],
    hidden: ['namespace', 'executable'],
  },
  'nsjail --env RINGFENCE_LINE=0': {
    command: [...NSJAIL, '--env', 'RINGFENCE_LINE=0', '--'],
    hidden: ['namespace', 'executable'],
    line: 'stdin',
  },
  'bwrap in a shell in bwrap': {
    command: [...BWRAP, '--unshare-pid', 'sh', '-c', '"$@"; exit', 'sh', ...BWRAP, '--unshare-user'],
    hidden: ['namespace', 'executable'],
  },
}

/** Whether the launcher works here. If not, the test is skipped with the reason. */
function works(t: ExecutionContext, name: string, [program, ...words]: string[]): boolean {
  try {
    execFileSync(program!, [...words, '/bin/true'], { stdio: 'ignore' })
    return true
  } catch (error) {
    t.log(`skipped: ${name} does not work here: ${(error as Error).message}`)
    t.pass()
    return false
  }
}

/** Starts the script by the launcher. `before`: words between the launcher and the program. */
function launch({ command, line }: Launcher, before: string[], options: ChildOptions) {
  const [program, ...words] = command
  return spawn(program!, [...words, ...before, process.execPath, ...SCRIPT], {
    admit: 'descendant',
    handshakeTimeout: 60_000,
    line,
    spawn: { stdio: ['ignore', 'pipe', 'inherit'] },
    ...options,
  })
}

for (const [name, launcher] of Object.entries(LAUNCHERS)) {
  const { command, hidden: always = [], makesUserNamespace } = launcher
  const hidden = makesUserNamespace && process.getuid!() !== 0 ? [...always, 'executable'] : always
  test(`a child of ${name} is admitted as a descendant`, async (t) => {
    if (!works(t, name, command)) return
    const { child, channel } = await launch(launcher, [], {})
    t.true(channel.evidence.some(({ check, outcome }) => check === 'child' && outcome === 'passed'))
    const seen = JSON.parse(String(await channel.receive())) as { pid: number; hidden: string[] }
    t.deepEqual(seen.hidden, hidden)
    t.is(seen.pid, hidden.includes('namespace') ? 0 : process.pid)
    await channel.send('a job')
    t.is(String(await channel.receive()), 'a job')
    await channel.close()
    t.is(await text(child.stdout!), '')
  })
}

const folder = mkdtempSync(join(tmpdir(), 'ringfence-launchers-'))
const library = join(folder, 'confine.so')
test.after.always(() => rmSync(folder, { recursive: true }))

let compiles = process.arch === 'x64'
try {
  if (compiles) compileConfinement(library)
} catch {
  compiles = false
}

for (const [filter, title] of Object.entries(SANDBOX_FILTERS)) {
  const file = join(folder, filter)
  writeFileSync(file, named(filter))
  // The program loads the filter itself, because most launchers cannot: it is in place before the first line of Node runs.
  const before = ['/usr/bin/env', `LD_PRELOAD=${library}`, `RINGFENCE_TEST_FILTER=${file}`]
  // One after the other: all these processes at once would starve the tests of other files.
  for (const [name, launcher] of Object.entries(LAUNCHERS))
    (compiles ? test.serial : test.skip)(`a child of ${name} has a channel under ${title}`, async (t) => {
      if (!works(t, name, launcher.command)) return
      const { child, channel } = await launch(launcher, before, {
        policy: { confined: { noNewPrivs: true, seccomp: true } },
      })
      await channel.receive()
      for (const message of ['a job', 'x'.repeat(100_000)]) {
        await channel.send(message)
        t.is(String(await channel.receive()), message)
      }
      await channel.close()
      t.is(await text(child.stdout!), '')
    })
}

const PAGE = fileURLToPath(new URL('../../docs/guide/sandbox.md', import.meta.url))
const BEGIN = '| launcher | `line` | what the child cannot see of its parent |'
const SEEN: Record<string, string> = { namespace: 'its pid', executable: 'its executable' }

test('docs/guide/sandbox.md has the table of these launchers', (t) => {
  const rows = Object.entries(LAUNCHERS).map(([name, { command, hidden = [], makesUserNamespace, line }]) => {
    const shown = name.replace(command[0] === 'bwrap' ? /^bwrap( --[\w-]+)*/ : /^(?!a )[^,]+?(?= with |$)/, '`$&`')
    const unseen = hidden.map((check) => SEEN[check]!)
    if (makesUserNamespace) unseen.push('its executable, without root')
    return `| ${shown} | ${line ? '`stdin`' : ''} | ${unseen.join(', ')} |`
  })
  const table = [BEGIN, '| --- | --- | --- |', ...rows, ''].join('\n')
  const page = readFileSync(PAGE, 'utf8')
  const start = page.indexOf(BEGIN)
  const end = page.indexOf('\n\n', start) + 1
  if (process.env['UPDATE_TABLE']) writeFileSync(PAGE, page.slice(0, start) + table + page.slice(end))
  else t.is(page.slice(start, end), table)
  t.true(start > 0)
})

test('a child that names a check that it cannot make refuses its parent', async (t) => {
  const code = `
    import { fromParent } from 'ringfence'
    const error = await fromParent({ handshakeTimeout: 60_000, policy: { executable: 'same' } }).catch((error) => error)
    if (error.check !== 'executable') throw error
  `
  const command = ['unshare', '-Urpf', '--kill-child']
  try {
    execFileSync(command[0]!, [...command.slice(1), 'true'], { stdio: 'ignore' })
  } catch (error) {
    t.log(`skipped: this user may not make namespaces: ${(error as Error).message}`)
    t.pass()
    return
  }
  const spawned = spawn(command[0]!, [...command.slice(1), process.execPath, '--input-type=module', '--eval', code], {
    admit: 'descendant',
    handshakeTimeout: 60_000,
    spawn: { stdio: ['ignore', 'ignore', 'inherit'] },
  })
  const error = await t.throwsAsync<RingfenceError>(spawned, { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  t.is(error?.check, 'executable')
})

test('a launcher that fails is CHILD_EXITED, with its exit code', async (t) => {
  const failing = spawn('sh', ['-c', '(exit 0) & wait; echo reason >&2; exit 3'], {
    admit: 'descendant',
    handshakeTimeout: 60_000,
    spawn: { stdio: ['ignore', 'ignore', 'pipe'] },
  })
  const error = await t.throwsAsync<RingfenceError>(failing, { code: 'ERR_RINGFENCE_CHILD_EXITED' })
  t.is(error?.exitCode, 3)
  t.is(error?.stderr, 'reason\n')
})
