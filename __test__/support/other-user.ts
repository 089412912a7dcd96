// Programs for other users: a copy that they can access, wherever this repository is.

import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, mkdtempSync, realpathSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Paths of the program for a process of another user. */
export interface Reachable {
  node: string
  script: string
  cwd: string
}

const root = fileURLToPath(new URL('../../..', import.meta.url))
let copied: string | undefined

/** Whether every user may execute a program, and search all directories above it. */
function isOpenToAll(program: string): boolean {
  if ((statSync(program).mode & 0o5) !== 0o5) return false
  for (let directory = dirname(program); ; directory = dirname(directory)) {
    if ((statSync(directory).mode & 0o1) === 0) return false
    if (directory === dirname(directory)) return true
  }
}

/** Copies the package and the scripts of the tests, once for all tests of a file, and removes them afterwards. */
function copy(): string {
  if (copied !== undefined) return copied
  const to = mkdtempSync(join(tmpdir(), 'ringfence-test-'))
  process.once('exit', () => rmSync(to, { recursive: true, force: true }))
  for (const part of ['package.json', 'dist', 'binding', 'build/test/support']) {
    cpSync(join(root, part), join(to, part), { recursive: true })
  }
  const node = realpathSync(process.execPath)
  if (!isOpenToAll(node)) cpSync(node, join(to, 'node'))
  // Independent of the umask.
  const opened = spawnSync('chmod', ['-R', 'a+rX', to])
  if (opened.status !== 0) throw new Error(String(opened.stderr))
  chmodSync(to, 0o755)
  copied = to
  return to
}

/** A script of the tests that another user can run. */
export function reachable(script: string): Reachable {
  const cwd = copy()
  const node = realpathSync(process.execPath)
  return { node: isOpenToAll(node) ? node : join(cwd, 'node'), script: join(cwd, relative(root, script)), cwd }
}
