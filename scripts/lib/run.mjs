// Shared functions of the scripts. They import only Node's builtins, since they run before anything is installed.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { constants } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** Exits with a message for the user of the command, without a stack trace. */
export function fail(message, code = 1) {
  console.error(`\n${message}`)
  process.exit(code)
}

/** Milliseconds for a download. A mirror that stops responding must not block the other steps. */
export const FETCH_LIMIT = 180_000

/** Prints a command and runs it in the project's root. If it fails, this process exits with its exit code. */
export function run(title, command, args = [], { env, cwd = root, quiet = false, limit } = {}) {
  console.log(`\n▸ ${title}: ${[command, ...args].join(' ')}`)
  const started = performance.now()
  const result = spawnSync(command, args, {
    cwd,
    env: { ...process.env, ...env },
    // No command may ask a question.
    stdio: ['ignore', quiet ? 'ignore' : 'inherit', 'inherit'],
    timeout: limit,
    killSignal: 'SIGKILL',
  })
  const took = `${((performance.now() - started) / 1000).toFixed(1)} s`
  if (result.error?.code === 'ENOENT') fail(`✗ ${title}: ${command} is not installed`, 127)
  if (result.error?.code === 'ETIMEDOUT') fail(`✗ ${title}: timed out after ${took}`, 124)
  if (result.error) fail(`✗ ${title}: ${result.error.message}`)
  // The exit code that a shell would report, so that a caller can tell a crash from a failed check.
  if (result.signal)
    fail(`✗ ${title}: terminated by ${result.signal} after ${took}`, 128 + constants.signals[result.signal])
  if (result.status !== 0) fail(`✗ ${title}: exit code ${result.status} after ${took}`, result.status)
  console.log(`✓ ${title} (${took})`)
}

/**
 * Runs the subcommand that the command line names, with the arguments after the name. The subcommand '' runs if no name is given, with the
 * options.
 */
export async function subcommand(commands) {
  const [first = '', ...rest] = process.argv.slice(2)
  const plain = first === '' || first.startsWith('-')
  const command = commands[plain ? '' : first]
  const names = Object.keys(commands).filter(Boolean).join(', ')
  if (command === undefined)
    fail(`✗ ${first === '' ? 'Name a subcommand' : `There is no subcommand ${first}`}: ${names}.`, 2)
  await command(plain ? process.argv.slice(2) : rest)
}

/** The features that are off by default. They are also checked and tested. */
export const features = ['--features', 'ringfence/tokio,ringfence/tracing']

/** Returns the path of a development dependency's command. */
export function tool(name) {
  return join(root, 'node_modules', '.bin', name)
}

export function isInPath(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).error === undefined
}

/** Whether a folder has the packages of its lock file. Optional packages may be missing: some are for other platforms. */
function isInstalled(folder) {
  // npm writes this file last, so an interrupted install does not have it.
  const installed = join(folder, 'node_modules', '.package-lock.json')
  if (!existsSync(installed)) return false
  const packagesOf = (lock) => JSON.parse(readFileSync(lock, 'utf8')).packages
  const wanted = packagesOf(join(folder, 'package-lock.json'))
  // The folder's own package, which the list of installed packages lacks.
  delete wanted['']
  const found = packagesOf(installed)
  return Object.keys({ ...wanted, ...found }).every((name) =>
    found[name] ? found[name].version === wanted[name]?.version : wanted[name].optional,
  )
}

/** Installs the packages of a folder, by default the development dependencies, unless they are there. */
export function install(folder = root, options = []) {
  if (isInstalled(folder)) return
  run('install', 'npm', ['ci', '--no-audit', '--no-fund', ...options], { cwd: folder })
}

/** Creates a Python environment with these packages. */
export function python(home, ...packages) {
  run('Python environment', 'python3', ['-m', 'venv', home])
  run(packages[0], join(home, 'bin', 'pip'), ['install', '--quiet', ...packages], { limit: FETCH_LIMIT })
}

/**
 * Installs zig as a linker for cargo in build/zig once. It includes the C libraries of all architectures and versions. Returns the
 * environment with zig in the PATH.
 */
export function zig() {
  const home = join(root, 'build', 'zig')
  if (!existsSync(join(home, 'bin', 'cargo-zigbuild'))) python(home, 'ziglang', 'cargo-zigbuild')
  return { PATH: join(home, 'bin') + delimiter + process.env.PATH }
}

/** Installs the standard library of a target with rustup. */
export function addTarget(target) {
  if (!isInPath('rustup')) fail(`✗ The standard library of ${target} comes from rustup, which is not installed.`, 127)
  run(`standard library of ${target}`, 'rustup', ['target', 'add', target], { limit: FETCH_LIMIT })
}

/** Installs the nightly toolchain with these components, unless some version of it is already installed. */
export function getNightly(components = []) {
  const runs = (...command) => spawnSync(command[0], command.slice(1)).status === 0
  if (!runs('rustc', '+nightly', '--version')) {
    run('get nightly', 'rustup', ['toolchain', 'install', 'nightly', '--profile', 'minimal', '--no-self-update'])
  }
  const { stdout } = spawnSync('rustup', ['component', 'list', '--installed', '--toolchain', 'nightly'])
  const missing = components.filter((name) => !new RegExp(`^${name}(-|$)`, 'm').test(stdout?.toString() ?? ''))
  if (missing.length > 0) {
    run(`get ${missing.join(' and ')}`, 'rustup', ['component', 'add', ...missing, '--toolchain', 'nightly'])
  }
}

/** Downloads a version of Node from npm to build/nodes once. Returns the path of its executable. */
export function fetchNode(name, major) {
  const nodes = join(root, 'build', 'nodes')
  const home = join(nodes, `${name}-${major}`)
  const executable = join(home, 'bin', 'node')
  if (existsSync(executable)) return executable

  const unpacked = `${home}.partial`
  rmSync(unpacked, { recursive: true, force: true })
  mkdirSync(unpacked, { recursive: true })
  // `npm install` would refuse the binary of another architecture.
  const pack = ['pack', `${name}@${major}`, '--silent', '--pack-destination', unpacked]
  run(`fetch ${name} ${major}`, 'npm', pack, { quiet: true, limit: FETCH_LIMIT })
  // Only the executable: headers and manuals are twice as large.
  const unpack = 'tar -xzf *.tgz --strip-components=1 package/bin && rm *.tgz'
  run(`unpack ${name} ${major}`, 'sh', ['-c', unpack], { cwd: unpacked })
  // Atomic, so that an interrupted run leaves no incomplete Node.
  rmSync(home, { recursive: true, force: true })
  renameSync(unpacked, home)
  return executable
}
