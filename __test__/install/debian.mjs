// Files of Debian packages, below build/ and not in the system: the caller need not be root, and the machine stays as it is.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { FETCH_LIMIT, fail, isInPath, root, run } from '../../scripts/lib/run.mjs'

/**
 * Not the machine's own release: Debian 12 has musl 1.2.3, which does not support the relocations (RELR) in the libraries of a
 * Node built with musl. 1.2.4 is the first that does. And here qemu is one file without libraries.
 */
const RELEASE = 'trixie'
const KEYS = '/usr/share/keyrings/debian-archive-keyring.gpg'

/** Why the packages are not available on this machine, or null. */
export function noDebian() {
  if (!isInPath('apt-get') || !isInPath('dpkg-deb')) return 'what it takes comes with apt-get, and there is none here'
  return mirror() === null ? "what it takes comes from Debian's mirror, and this machine knows none" : null
}

/** The source of this machine that serves its release. It serves the other releases too. */
function mirror() {
  if (!existsSync(KEYS) || !existsSync('/etc/os-release')) return null
  const codename = /^VERSION_CODENAME=(\w+)$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1]
  const { stdout } = spawnSync('apt-get', ['update', '--print-uris'], { encoding: 'utf8' })
  return new RegExp(`^'(\\S+)/dists/${codename}/InRelease'`, 'm').exec(stdout)?.[1] ?? null
}

/**
 * Unpacks a part of each package for an architecture, which has Debian's name. Returns the directory that replaces the root of
 * the system.
 */
export function fromDebian(architecture, packages) {
  const home = join(root, 'build', 'debian', architecture)
  const [place, state] = [join(home, 'root'), join(home, 'state')]
  const done = (name) => join(home, `${name}.unpacked`)
  const names = Object.keys(packages).filter((name) => !existsSync(done(name)))
  if (names.length === 0) return place

  for (const folder of ['lists/partial', 'cache/archives/partial']) mkdirSync(join(state, folder), { recursive: true })
  mkdirSync(place, { recursive: true })
  const sources = join(state, 'sources.list')
  writeFileSync(sources, `deb [arch=${architecture} signed-by=${KEYS}] ${mirror()} ${RELEASE} main\n`)
  const options = {
    'Dir::Etc::sourcelist': sources,
    'Dir::Etc::sourceparts': '/dev/null',
    'Dir::State::lists': join(state, 'lists'),
    'Dir::Cache': join(state, 'cache'),
    'APT::Architecture': architecture,
    'APT::Architectures': architecture,
    'Acquire::Languages': 'none',
    'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled': 'false',
    // Otherwise root's apt would download as an unprivileged user, and could not write here.
    'APT::Sandbox::User': 'root',
  }
  // The configuration is in a file, since the command would be too long.
  const config = join(state, 'apt.conf')
  const lines = Object.entries(options).map(([name, value]) => `${name} "${value}";\n`)
  writeFileSync(config, lines.join(''))
  const settings = { cwd: state, env: { APT_CONFIG: config }, limit: FETCH_LIMIT }
  run(`package lists of ${RELEASE} for ${architecture}`, 'apt-get', ['update', '-qq'], settings)
  run('download', 'apt-get', ['download', '-qq', ...names], settings)
  for (const name of names) {
    const file = readdirSync(state).find((entry) => entry.startsWith(`${name}_`))
    if (file === undefined) fail(`✗ apt-get has not downloaded ${name}.`)
    const unpack = `dpkg-deb --fsys-tarfile '${file}' | tar -x -C '${place}' '${packages[name]}'`
    run(`unpack ${name}`, 'sh', ['-c', unpack], { cwd: state, limit: FETCH_LIMIT })
    writeFileSync(done(name), '')
  }
  rmSync(state, { recursive: true })
  return place
}
