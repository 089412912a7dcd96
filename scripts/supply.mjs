// Supply chain checks of a release:
//
//     node scripts/supply.mjs reproducible [ARGUMENTS]   builds the binding in two folders and compares; passes the arguments to `napi build`
//     node scripts/supply.mjs reproducible --all         does the same for each binding of a release
//     node scripts/supply.mjs sbom                       lists the contents of the packages and the crate, as CycloneDX, in build/sbom

import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { spawnSync } from 'node:child_process'
import { fail, install, isInPath, root, run, subcommand, zig } from './lib/run.mjs'
import { targetsOfRelease } from './lib/targets.mjs'

const CYCLONEDX = '0.5.9'

/** Copies the committed sources to a folder, with a link to the root's node_modules. */
function copyTo(folder) {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  run('copy the sources', 'sh', ['-c', `git archive HEAD | tar -x -C '${folder}'`])
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
}

/**
 * Checks that the same sources give the same bytes in any folder. A published binding can then be compared with any other build by the
 * same compiler.
 */
function checkReproducible(words) {
  install()
  if (words[0] !== '--all') return buildTwice(words)
  const environment = zig()
  for (const target of targetsOfRelease()) buildTwice(target, environment)
}

function buildTwice(words, environment = {}) {
  const home = join(root, 'build', 'reproducible')
  // Folder names of different length: a path in the binding would shift all bytes after it.
  const found = ['one', 'another-and-longer'].map((name) => {
    const folder = join(home, name)
    copyTo(folder)
    const env = { ...environment, CARGO_TARGET_DIR: join(folder, 'target') }
    run(`build in ${name}`, process.execPath, ['scripts/build.mjs', 'binding', '--release', ...words], {
      cwd: folder,
      env,
    })
    const place = join(folder, 'binding')
    const files = readdirSync(place).filter((file) => file.endsWith('.node'))
    return new Map(files.map((file) => [file, readFileSync(join(place, file))]))
  })
  const [one, other] = found
  if (one.size === 0) fail('✗ No binding was built.')
  for (const [file, bytes] of one) {
    const digest = (content) => createHash('sha256').update(content).digest('hex')
    const again = other.get(file)
    if (again === undefined) fail(`✗ Only one of the two builds has ${file}.`)
    const at = bytes.findIndex((byte, place) => byte !== again[place])
    if (at >= 0 || bytes.length !== again.length) {
      fail(`✗ ${file} has ${bytes.length} and ${again.length} bytes, first difference at ${at}: ${home} has both.`)
    }
    console.log(`✓ ${file}: ${bytes.length} bytes, SHA-256 ${digest(bytes)}, in both builds`)
  }
}

/** Writes a list for the npm packages, which have no runtime dependencies, and one for the binding, which contains crates. */
function listContents() {
  install()
  const out = join(root, 'build', 'sbom')
  mkdirSync(out, { recursive: true })
  const { status, stdout, stderr } = spawnSync('npm', ['sbom', '--sbom-format', 'cyclonedx', '--omit', 'dev'], {
    cwd: root,
  })
  if (status !== 0) fail(`✗ npm sbom: ${stderr}`)
  const npm = join(out, 'ringfence.cdx.json')
  writeFileSync(npm, stdout)

  const home = join(root, 'build', 'cargo-cyclonedx')
  process.env.PATH += delimiter + join(home, 'bin')
  if (!isInPath('cargo-cyclonedx')) {
    const which = ['--locked', '--root', home, `cargo-cyclonedx@${CYCLONEDX}`]
    run('get cargo-cyclonedx', 'cargo', ['install', '--quiet', ...which])
  }
  const crate = join(root, 'crates', 'ringfence-node')
  const words = ['--format', 'json', '--override-filename', 'ringfence-node.cdx', '--target', 'all']
  run('crates of the binding', 'cargo', ['cyclonedx', '--manifest-path', join(crate, 'Cargo.toml'), ...words])
  const listed = join(crate, 'ringfence-node.cdx.json')
  const rust = join(out, 'ringfence-node.cdx.json')
  writeFileSync(rust, readFileSync(listed))
  // cargo-cyclonedx writes a file for each member of the workspace.
  const { stdout: written } = spawnSync('git', ['ls-files', '--others', '--', '*/ringfence-node.cdx.json'], {
    cwd: root,
  })
  for (const file of written.toString().split('\n').filter(Boolean)) rmSync(join(root, file))
  for (const file of [npm, rust]) {
    const { components = [] } = JSON.parse(readFileSync(file, 'utf8'))
    console.log(`✓ ${file}: ${components.length} components`)
  }
}

await subcommand({ reproducible: checkReproducible, sbom: listContents })
