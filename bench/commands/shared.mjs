// What the commands share: where things are, how they are built, where results go.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import process from 'node:process'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))
export const rust = path.join(root, 'bench/rust')
export const program = path.join(rust, 'target/release/ringfence-bench')

export const say = (message) => console.log(message)

/** Ends the program where the command fails. */
export function must(command, arguments_, options = {}) {
  const { status, error } = spawnSync(command, arguments_, { cwd: root, stdio: 'inherit', ...options })
  if (error || status !== 0) {
    console.error(`${command} ${arguments_.join(' ')}: ${error?.message ?? `ended with ${status}`}`)
    process.exit(1)
  }
}

/** What a command says, or nothing where it cannot be run. */
export const answer = (command, arguments_, options = {}) =>
  spawnSync(command, arguments_, { cwd: root, encoding: 'utf8', ...options }).stdout?.trim() ?? ''

/** The Rust half. ZeroMQ takes part where its library and headers are there. */
export function buildRust() {
  const zmq = spawnSync('pkg-config', ['--exists', 'libzmq']).status === 0
  if (!zmq) say('zeromq is left out in Rust: libzmq and its headers are not there (libzmq3-dev)')
  must('cargo', ['build', '--release', ...(zmq ? ['--features', 'zmq'] : [])], { cwd: rust })
}

export const buildNode = () => must('npm', ['run', '--silent', 'build'])

/** What draws the plots, and rivals of npm: a package of its own, so that building ringfence never fetches it. */
export function fetchDeps() {
  const deps = path.join(root, 'bench/deps')
  if (fs.existsSync(path.join(deps, 'node_modules'))) return
  // Without its scripts: zeromq brings its binaries.
  must('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], { cwd: deps })
}

/** The last change of what is measured. */
function revision() {
  const measured = ['--', 'crates', 'ts']
  const dirty = answer('git', ['status', '--porcelain', ...measured]) === '' ? '' : '-dirty'
  return `${answer('git', ['log', '-1', '--format=%h', ...measured])}${dirty}`
}

/** What every page says of where it comes from. */
export const origin = () => ({
  date: new Date().toISOString().slice(0, 10),
  commit: revision(),
  node: process.version,
  load: os.loadavg()[0],
})

export function write(out, files) {
  fs.mkdirSync(out, { recursive: true })
  for (const [name, content] of Object.entries(files)) fs.writeFileSync(path.join(out, name), content)
  say(`\nwritten to ${path.relative(process.cwd(), out) || '.'}`)
}

/** Calls `use` with a directory that is gone afterwards. */
export async function withScratch(use) {
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'ringfence-bench-'))
  try {
    return await use(scratch)
  } finally {
    fs.rmSync(scratch, { recursive: true, force: true })
  }
}

/** On one line, where a terminal is. */
export const progress = (doing) => {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${doing}`)
}
