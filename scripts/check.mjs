// Checks of what is written, without running it:
//
//     node scripts/check.mjs                  layout, lints and types of both languages, and the package; needs a build
//     node scripts/check.mjs versions [TAG]   one version everywhere; that of the tag, and told in the change log
//     node scripts/check.mjs crate            as crates.io and docs.rs would take it, and its oldest compiler
//     node scripts/check.mjs links           links of all Markdown pages, to files and to headings
//     node scripts/check.mjs workflows        what actionlint and zizmor say of .github

import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { checkLinks } from './lib/links.mjs'
import { fail, features, isInPath, python, root, run, subcommand, tool } from './lib/run.mjs'

const ACTIONLINT = 'github.com/rhysd/actionlint/cmd/actionlint@v1.7.12'
const ZIZMOR = 'zizmor==1.32.0'

const read = (path) => readFileSync(join(root, path), 'utf8')

function checkSources() {
  checkVersions()
  checkLinks()
  run('Rust layout', 'cargo', ['fmt', '--all', '--check'])
  run('Rust lints', 'cargo', ['clippy', '--workspace', '--all-targets', ...features, '--', '-D', 'warnings'])
  run('types', tool('tsc'), ['--noEmit'])
  run('lint', tool('oxlint'), ['--deny-warnings'])
  run('layout', tool('prettier'), ['--check', '--log-level', 'warn', '.'])
  run('package', tool('publint'), ['--strict'])
  run('package types', tool('attw'), ['--pack', '.'])
}

/** The crate and all npm packages carry one version. With a tag (v0.1.0), that one, and the change log dates it. */
export function checkVersions([tag] = []) {
  const wanted = JSON.parse(read('package.json')).version
  const wrong = []
  const expect = (place, found) => {
    if (found !== wanted) wrong.push(`${place} says ${found ?? 'nothing'}`)
  }
  expect('package-lock.json', JSON.parse(read('package-lock.json')).version)
  expect('Cargo.toml', /^\[workspace\.package\][^[]*?^version = "([^"]*)"$/m.exec(read('Cargo.toml'))?.[1])
  for (const target of readdirSync(join(root, 'npm'))) {
    const manifest = `npm/${target}/package.json`
    expect(manifest, JSON.parse(read(manifest)).version)
  }
  if (tag !== undefined) {
    expect('the tag', tag.replace(/^v/, ''))
    const dated = new RegExp(`^## \\[${wanted.replaceAll('.', '\\.')}\\] - \\d{4}-\\d\\d-\\d\\d$`, 'm')
    if (!dated.test(read('CHANGELOG.md'))) wrong.push(`CHANGELOG.md has no dated section for ${wanted}`)
  }
  if (wrong.length > 0) fail(`package.json says ${wanted}, but ${wrong.join(', and ')}.`)
  console.log(`one version everywhere: ${wanted}`)
}

function checkCrate() {
  if (!isInPath('rustup')) fail('✗ The oldest compiler comes from rustup, and there is no rustup here.', 127)
  const oldest = /^rust-version = "(.*)"$/m.exec(read('Cargo.toml'))[1]
  // Directories of their own: what another compiler, or another set of flags, has built is of no use to the tests.
  const apart = (name) => ({ CARGO_TARGET_DIR: join(root, 'build', 'crate', name) })

  run(`Rust ${oldest}`, 'rustup', ['toolchain', 'install', oldest, '--profile', 'minimal', '--no-self-update'])
  run('oldest compiler', 'cargo', [`+${oldest}`, 'check', '-p', 'ringfence', '--all-features', '--locked'], {
    env: apart('oldest'),
  })
  // A link that leads nowhere is an error here, and an empty place on docs.rs.
  const docs = { ...apart('docs'), RUSTDOCFLAGS: '-D warnings' }
  for (const more of [[], ['--document-private-items']]) {
    run('documentation', 'cargo', ['doc', '-p', 'ringfence', '--all-features', '--no-deps', '--locked', ...more], {
      env: docs,
    })
  }
  // It is packed, unpacked and built from what was packed.
  const publish = ['publish', '--dry-run', '-p', 'ringfence', '--locked', '--allow-dirty']
  run('publish', 'cargo', publish, { env: apart('publish') })
}

/** Whether the workflows mean what they say, and whom they trust. Both tools are fetched below build/ once. */
function checkWorkflows() {
  const home = join(root, 'build', 'workflows')
  const [actionlint, zizmor] = ['actionlint', 'zizmor'].map((name) => join(home, 'bin', name))
  if (!existsSync(zizmor)) python(home, ZIZMOR)
  if (!existsSync(actionlint)) {
    if (!isInPath('go')) fail('✗ actionlint comes from the Go module proxy, and there is no go here.', 127)
    run('actionlint', 'go', ['install', ACTIONLINT], { env: { GOBIN: join(home, 'bin') } })
  }
  // By name: by itself it looks for them from the root of a git repository.
  const workflows = join(root, '.github', 'workflows')
  const files = readdirSync(workflows).map((name) => join(workflows, name))
  run('actionlint', actionlint, ['-color', ...files])
  // Offline: what it would ask GitHub for differs from one day to the next.
  run('zizmor', zizmor, ['--offline', '--pedantic', '--no-progress', '.github'])
}

if (process.argv[1] === import.meta.filename) {
  await subcommand({
    '': checkSources,
    versions: checkVersions,
    crate: checkCrate,
    links: checkLinks,
    workflows: checkWorkflows,
  })
}
