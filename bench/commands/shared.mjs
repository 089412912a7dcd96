// Shared functions of the commands: paths, builds, and the location of results.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import process from 'node:process'

import { install, root, run } from '../../scripts/lib/run.mjs'

export { root, run }
const rust = path.join(root, 'bench/rust')
export let program = path.join(rust, 'target/release/ringfence-bench')

export const say = (message) => console.log(message)

/** Shows the progress on one line, which the next call overwrites. Only on a terminal. */
export const progress = (doing) => {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${doing}`)
}

/** Returns the output of a command, or an empty string if it cannot run. */
export const answer = (command, arguments_, options = {}) =>
  spawnSync(command, arguments_, { cwd: root, encoding: 'utf8', ...options }).stdout?.trim() ?? ''

/** Splits the value of an option at commas; undefined without a value. */
export const list = (value, map = (item) => item) => value?.split(',').map((item) => map(item))

/** Whether the C++ compiler supports the parts of C++23 that Tachyon needs. */
function compilesTachyon() {
  const macros = answer(process.env.CXX ?? 'c++', ['-dM', '-E', '-x', 'c++', '/dev/null'])
  const version = (name) => Number(macros.match(new RegExp(`${name} (\\d+)`))?.[1] ?? 0)
  return version('__clang_major__') >= 17 || version('__GNUC__') >= 14
}

/** Builds the Rust program, with the rivals in C and C++ whose libraries or compilers are installed. */
export function buildRust() {
  const optional = {
    zmq: [spawnSync('pkg-config', ['--exists', 'libzmq']).status === 0, 'libzmq3-dev is not installed'],
    tachyon: [compilesTachyon(), 'it needs GCC 14 or Clang 17 (CXX)'],
  }
  for (const [name, [there, why]] of Object.entries(optional)) if (!there) say(`${name} is skipped in Rust: ${why}`)
  const features = Object.keys(optional).filter((name) => optional[name][0])
  const options = features.length > 0 ? ['--features', features.join(',')] : []
  run('the Rust half', 'cargo', ['build', '--release', ...options], { cwd: rust })
}

/** Builds the Rust program unoptimized and without rivals, for a smoke run. */
export function buildSmoke(isWanted) {
  const target = path.join(root, 'target')
  program = path.join(target, 'debug/ringfence-bench')
  const command = ['build', '--no-default-features', '--features', 'ringfence']
  if (isWanted) run('the Rust half', 'cargo', command, { cwd: rust, env: { CARGO_TARGET_DIR: target } })
}

export const buildNode = (cwd = root) => run('ringfence', 'npm', ['run', '--silent', 'build'], { cwd })

/** Installs the plot library and rivals from npm. They are a separate package, so that building ringfence never fetches them. */
export function fetchDeps() {
  // Without install scripts: zeromq ships its binaries.
  install(path.join(root, 'bench/deps'), ['--ignore-scripts'])
}

/** The last commit that changed the measured code. */
function revision() {
  const measured = ['--', 'crates', 'ts']
  const dirty = answer('git', ['status', '--porcelain', ...measured]) === '' ? '' : '-dirty'
  return `${answer('git', ['log', '-1', '--format=%h', ...measured])}${dirty}`
}

/** The origin of a page's figures: date, revision and load. */
export const origin = () => ({
  date: new Date().toISOString().slice(0, 10),
  commit: revision(),
  load: os.loadavg()[0],
})

export function write(out, files) {
  const folder = path.resolve(root, out)
  fs.mkdirSync(folder, { recursive: true })
  for (const [name, content] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), content)
  say(`\nwritten to ${path.relative(process.cwd(), folder) || '.'}`)
}
