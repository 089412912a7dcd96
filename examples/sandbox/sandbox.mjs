// Starts a program in a sandbox with a channel: bubblewrap's namespaces, a seccomp filter, and a cgroup if this user may create one.

import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { spawn, structured } from 'ringfence'

import { filter } from './filter.mjs'

const project = fileURLToPath(new URL('../..', import.meta.url))
const guest = fileURLToPath(new URL('guest.mjs', import.meta.url))

/** The limits of all processes of one sandbox together. */
const MEMORY = 512 << 20
const PROCESSES = 64

/** The arguments of bwrap. The program can read the system's programs and this project, can write nothing, and has no network. */
export const view = [
  ...['--unshare-all', '--unshare-user', '--die-with-parent', '--new-session', '--cap-drop', 'ALL'],
  ...['--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp'],
  ...['/usr', '/bin', '/lib', '/lib64', dirname(process.execPath), project].flatMap((path) => [
    '--ro-bind-try',
    path,
    path,
  ]),
  ...['--clearenv', '--setenv', 'PATH', '/usr/bin:/bin', '--setenv', 'RINGFENCE_LINE', '4'],
]

/** Joins the cgroup first, and then executes bwrap. */
const enter = 'for group in $GROUPS_TO_JOIN; do echo $$ >"$group/cgroup.procs"; done; exec bwrap "$@"'

/** The policy: a process that is not confined gets no channel. */
const policy = {
  confined: {
    noNewPrivs: true,
    seccomp: true,
    noCapabilities: true,
    userNamespace: 'other',
    networkNamespace: 'other',
  },
}

/** Runs `[guest.mjs]`, or another Node program with its arguments. */
export async function sandbox(program = [guest], { codec = structured() } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'ringfence-sandbox-'))
  writeFileSync(join(folder, 'filter'), filter())
  const seccomp = openSync(join(folder, 'filter'))
  const groups = makeGroups()
  try {
    const started = await spawn('sh', ['-c', enter, 'sh', '--seccomp', '3', ...view, process.execPath, ...program], {
      admit: 'descendant',
      codec,
      policy,
      spawn: {
        stdio: ['ignore', 'inherit', 'inherit', seccomp],
        env: { ...process.env, GROUPS_TO_JOIN: groups.join(' ') },
      },
    })
    return {
      ...started,
      limited: groups.length > 0,
      async [Symbol.asyncDispose]() {
        await started[Symbol.asyncDispose]()
        await removeGroups(groups)
      },
    }
  } catch (error) {
    await removeGroups(groups)
    throw error
  } finally {
    closeSync(seccomp)
    rmSync(folder, { recursive: true })
  }
}

let made = 0

/** Creates a cgroup below this process's own: one of version 2, or two of version 1, for memory and processes. Returns none without permission. */
function makeGroups() {
  const own = readFileSync('/proc/self/cgroup', 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(':'))
  const name = `ringfence-sandbox-${process.pid}-${made++}`
  const limits = { memory: { 'memory.limit_in_bytes': MEMORY }, pids: { 'pids.max': PROCESSES } }
  const kinds = existsSync('/sys/fs/cgroup/cgroup.controllers')
    ? [['', { 'memory.max': MEMORY, 'memory.swap.max': 0, 'pids.max': PROCESSES }]]
    : Object.entries(limits)
  const groups = []
  for (const [controller, files] of kinds) {
    const path = own.find(([, controllers]) => controllers.split(',').includes(controller))?.[2]
    const group = join('/sys/fs/cgroup', controller, path ?? '', name)
    try {
      mkdirSync(group)
      groups.push(group)
      for (const [file, value] of Object.entries(files)) writeFileSync(join(group, file), String(value))
    } catch {
      groups.splice(0).forEach((one) => rmdirSync(one))
      break
    }
  }
  return groups
}

/** Removes a cgroup once its last process has exited. */
async function removeGroups(groups) {
  for (const group of groups) {
    while (readFileSync(join(group, 'cgroup.procs'), 'utf8') !== '') await sleep(5)
    rmdirSync(group)
  }
}
