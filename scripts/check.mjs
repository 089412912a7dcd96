// Static checks:
//
//     node scripts/check.mjs                  checks the formatting, lints and types of both languages, and the npm package; needs a build
//     node scripts/check.mjs versions [TAG]   checks that all packages have one version: that of the tag, with a dated section in CHANGELOG.md
//     node scripts/check.mjs crate            builds and documents the crate like crates.io and docs.rs, and with its oldest compiler
//     node scripts/check.mjs links            checks the links of all Markdown pages to files and headings
//     node scripts/check.mjs workflows        runs actionlint and zizmor on .github

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
  run('Rust formatting', 'cargo', ['fmt', '--all', '--check'])
  run('Rust lints', 'cargo', ['clippy', '--workspace', '--all-targets', ...features, '--', '-D', 'warnings'])
  run('types', tool('tsc'), ['--noEmit'])
  run('lint', tool('oxlint'), ['--deny-warnings'])
  run('formatting', tool('prettier'), ['--check', '--log-level', 'warn', '.'])
  run('package', tool('publint'), ['--strict'])
  run('package types', tool('attw'), ['--pack', '.'])
}

/** Checks that the crate and all npm packages have one version. With a tag (v0.1.0), it is the tag's, and CHANGELOG.md has a date for it. */
export function checkVersions([tag] = []) {
  const wanted = JSON.parse(read('package.json')).version
  const wrong = []
  const expect = (place, found) => {
    if (found !== wanted) wrong.push(`${place} has ${found ?? 'no version'}`)
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
  if (wrong.length > 0) fail(`package.json has version ${wanted}, but ${wrong.join(', and ')}.`)
  console.log(`one version everywhere: ${wanted}`)
}

function checkCrate() {
  if (!isInPath('rustup')) fail('✗ The oldest compiler comes from rustup, and there is no rustup here.', 127)
  const oldest = /^rust-version = "(.*)"$/m.exec(read('Cargo.toml'))[1]
  // Separate target directories: other compilers or flags would invalidate the build of the tests.
  const targetDir = (name) => ({ CARGO_TARGET_DIR: join(root, 'build', 'crate', name) })

  run(`Rust ${oldest}`, 'rustup', ['toolchain', 'install', oldest, '--profile', 'minimal', '--no-self-update'])
  run('oldest compiler', 'cargo', [`+${oldest}`, 'check', '-p', 'ringfence', '--all-features', '--locked'], {
    env: targetDir('oldest'),
  })
  // Dead links are errors.
  const docs = { ...targetDir('docs'), RUSTDOCFLAGS: '-D warnings' }
  for (const more of [[], ['--document-private-items']]) {
    run('documentation', 'cargo', ['doc', '-p', 'ringfence', '--all-features', '--no-deps', '--locked', ...more], {
      env: docs,
    })
  }
  // Packs the crate, and builds the packed sources.
  const publish = ['publish', '--dry-run', '-p', 'ringfence', '--locked', '--allow-dirty']
  run('publish', 'cargo', publish, { env: targetDir('publish') })
}

/** Lints the workflows (actionlint) and audits their permissions (zizmor). Both tools are installed in build/workflows once. */
function checkWorkflows() {
  const home = join(root, 'build', 'workflows')
  const [actionlint, zizmor] = ['actionlint', 'zizmor'].map((name) => join(home, 'bin', name))
  if (!existsSync(zizmor)) python(home, ZIZMOR)
  if (!existsSync(actionlint)) {
    if (!isInPath('go')) fail('✗ actionlint comes from the Go module proxy, and there is no go here.', 127)
    run('actionlint', 'go', ['install', ACTIONLINT], { env: { GOBIN: join(home, 'bin') } })
  }
  // Without names, actionlint searches from the root of the git repository.
  const workflows = join(root, '.github', 'workflows')
  const files = readdirSync(workflows).map((name) => join(workflows, name))
  run('actionlint', actionlint, ['-color', ...files])
  // Offline, so that the result does not depend on GitHub.
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
