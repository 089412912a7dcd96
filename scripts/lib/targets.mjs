// Builds the binding for the four published targets, and checks each file: symbols that older C libraries lack, an executable stack,
// writable relocation tables, and paths of the build machine. The files go to binding/, under the names that `napi artifacts` expects.

import { spawnSync } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { addTarget, fail, install, isInPath, root, zig } from './run.mjs'

/** The oldest supported glibc, of 2012: Debian 8, CentOS 7, Amazon Linux 2. musl has no symbol versions. */
const GLIBC = [2, 17]
/** Bytes of the largest binding, compressed as npm downloads it. */
const LIMIT = 1_500_000

/** The published targets. */
const all = [
  { target: 'x86_64-unknown-linux-gnu', name: 'linux-x64-gnu', machine: 'X86-64' },
  { target: 'x86_64-unknown-linux-musl', name: 'linux-x64-musl', machine: 'X86-64' },
  { target: 'aarch64-unknown-linux-gnu', name: 'linux-arm64-gnu', machine: 'AArch64' },
  { target: 'aarch64-unknown-linux-musl', name: 'linux-arm64-musl', machine: 'AArch64' },
]

const home = process.env.CARGO_HOME ?? join(homedir(), '.cargo')
/** Paths of this machine, and their replacements in the published files. */
const places = [
  [root.replace(/\/$/, ''), '/ringfence'],
  [home, '/cargo'],
  [process.env.RUSTUP_HOME ?? join(homedir(), '.rustup'), '/rustup'],
]

/** The arguments for `napi build` to build a target with zig, for the oldest supported C library. */
const argumentsOf = ({ target }) => ['-x', '--target', target + (target.endsWith('-gnu') ? `.${GLIBC.join('.')}` : '')]

/** Installs the targets, and returns the arguments for each. */
export function targetsOfRelease() {
  for (const { target } of all) addTarget(target)
  return all.map(argumentsOf)
}

/** Builds the named targets (`linux-x64-gnu`, …), or all. `buildBinding` builds one, with options and environment. */
export function buildTargets(names, buildBinding) {
  const targets = names.length === 0 ? all : all.filter(({ name }) => names.includes(name))
  const unknown = names.filter((wanted) => !all.some(({ name }) => name === wanted))
  if (unknown.length > 0)
    fail(`✗ There is no target ${unknown.join(', ')}. The targets are ${all.map(({ name }) => name).join(', ')}.`)

  install()
  if (!isInPath('readelf')) fail('✗ readelf is missing: install binutils.', 127)
  const environment = zig()
  const remap = places.map(([from, to]) => `--remap-path-prefix=${from}=${to}`).join(' ')

  const rows = targets.map((each) => {
    const { target, name, machine } = each
    const gnu = target.endsWith('-gnu')
    addTarget(target)
    // A library that Node loads must use Node's C library, so it is linked dynamically, also for musl.
    const flags = gnu ? remap : `${remap} -C target-feature=-crt-static`
    buildBinding(['--release', ...argumentsOf(each)], { ...environment, RUSTFLAGS: flags })
    const file = join(root, 'binding', `ringfence.${name}.node`)
    const { needed, wrong } = inspect(file, gnu, machine)
    const packed = gzipSync(readFileSync(file), { level: 9 }).length
    if (packed > LIMIT) wrong.push(`it has more than ${LIMIT} bytes compressed`)
    return { name, size: statSync(file).size, packed, needed, wrong }
  })

  console.log('\ntarget              bytes   packed  needs')
  for (const { name, size, packed, needed, wrong } of rows) {
    console.log(`${name.padEnd(17)} ${String(size).padStart(7)}  ${String(packed).padStart(7)}  ${needed}`)
    for (const what of wrong) console.log(`  ✗ ${what}`)
  }
  if (rows.some(({ wrong }) => wrong.length > 0)) fail('✗ These must not be published.')
}

/** Returns the libraries that the file needs, and its problems. */
function inspect(file, gnu, machine) {
  const read = (option) => {
    const { status, stdout, stderr } = spawnSync('readelf', ['--wide', option, file], { encoding: 'utf8' })
    if (status !== 0) fail(`✗ readelf ${option} ${file}: ${stderr}`)
    return stdout
  }
  const wrong = []
  const expect = (holds, what) => holds || wrong.push(what)

  expect(read('--file-header').includes(machine), `it is not for ${machine}`)
  const dynamic = read('--dynamic')
  const libraries = [...dynamic.matchAll(/NEEDED.*\[(.*)\]/g)].map(([, library]) => library)
  const versions = [...read('--version-info').matchAll(/Name: GLIBC_([\d.]+)/g)].map(([, version]) =>
    version.split('.').map(Number),
  )
  const newest = versions.sort((a, b) => a[0] - b[0] || a[1] - b[1]).at(-1)
  if (gnu) {
    const known = new Set(['libc.so.6', 'libdl.so.2', 'libgcc_s.so.1', 'libm.so.6', 'libpthread.so.0', 'librt.so.1'])
    const strange = libraries.filter((library) => !known.has(library) && !library.startsWith('ld-linux'))
    expect(strange.length === 0, `it needs ${strange.join(', ')}`)
    const old = newest && (newest[0] < GLIBC[0] || (newest[0] === GLIBC[0] && newest[1] <= GLIBC[1]))
    expect(old, `it needs GLIBC_${newest?.join('.')}, above ${GLIBC.join('.')}`)
  } else {
    expect(
      libraries.every((library) => library === 'libc.so'),
      `it needs ${libraries.join(', ')}`,
    )
    expect(!newest, `it needs GLIBC_${newest?.join('.')}`)
  }
  expect(/\bBIND_NOW\b|FLAGS_1.*\bNOW\b/.test(dynamic), 'its symbols are not bound at once (BIND_NOW)')
  const segments = read('--program-headers')
  expect(/GNU_RELRO/.test(segments), 'its tables stay writable (RELRO)')
  expect(!/GNU_STACK.*RWE/.test(segments) && /GNU_STACK/.test(segments), 'its stack can be executed')
  const text = readFileSync(file, 'latin1')
  for (const [place] of places) expect(!text.includes(place), `it names ${place}, a path of this machine`)
  expect(!read('--sections').includes('.symtab'), 'it is not stripped')

  const version = newest ? `GLIBC_${newest.join('.')}` : ''
  return { needed: [...libraries, version].filter(Boolean).join(' '), wrong }
}
