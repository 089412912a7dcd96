// Builds the project:
//
//     node scripts/build.mjs [--release]          builds the binding, then compiles ts/
//     node scripts/build.mjs binding [ARGUMENTS]  builds the native library; passes the arguments to `napi build`
//     node scripts/build.mjs ts [--unchecked]     compiles ts/ to dist/; --unchecked: over an existing dist/, without type checks
//     node scripts/build.mjs tests                compiles __test__/ to build/test/, and builds the Rust programs that tests start
//     node scripts/build.mjs targets [NAME …]     builds the binding for each published target
//     node scripts/build.mjs docs [--built]       builds the HTML documentation; --built: with the existing dist/
//     node scripts/build.mjs browser              checks the HTML pages in Chromium, and installs Chromium if it is missing

import { chmodSync, cpSync, existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkPages } from './lib/browser.mjs'
import { checkLinks } from './lib/links.mjs'
import { fail, install, isInPath, root, run, subcommand, tool } from './lib/run.mjs'
import { buildTargets } from './lib/targets.mjs'

/** Builds the binding, then ts/, which imports the binding's types. */
export function build(...options) {
  install()
  if (!isInPath('cargo')) fail('The binding is built from Rust sources, and there is no cargo here: install Rust.')
  buildBinding(options)
  buildTypeScript()
}

/**
 * Builds the native library in binding/:
 *
 *     index.cjs                    the loader; CommonJS, so that both builds of ts/ can require it
 *     index.d.cts                  its types
 *     ringfence.linux-x64-gnu.node the library for one platform
 *
 * The loader requires the library beside it, or else the package ringfence-<platform>.
 */
export function buildBinding(options = [], env = {}) {
  const place = ['--platform', '--package', 'ringfence-node', '--manifest-path', 'crates/ringfence-node/Cargo.toml']
  const output = ['--output-dir', 'binding', '--js', 'index.cjs', '--dts', 'index.d.cts']
  const from = ['--package-json-path', 'package.json']
  run('binding', tool('napi'), ['build', ...place, ...from, ...output, ...options], { env })
}

/** Compiles ts/ twice, to dist/esm and dist/cjs. tsconfig.base.json explains how both find the native binding. */
export function buildTypeScript(words = []) {
  const dist = join(root, 'dist')
  if (words.includes('--unchecked')) {
    // For mutation tests, whose mutants have type errors: takes one second instead of ten.
    const options = ['--outbase=ts', `--outdir=${join(dist, 'esm')}`, '--target=node20.19', '--log-level=warning']
    run('TypeScript, unchecked', tool('esbuild'), ['ts/**/*.ts', ...options])
    bundle(dist)
    return
  }
  // tsc does not remove the output of deleted sources, and dist/ is published.
  rmSync(dist, { recursive: true, force: true })
  run('TypeScript to ESM', tool('tsc'), ['-p', 'tsconfig.esm.json'])
  run('TypeScript to CommonJS', tool('tsc'), ['-p', 'tsconfig.cjs.json'])
  // Without this file, Node and TypeScript would treat these files as ESM, as the root's package.json says.
  writeFileSync(join(dist, 'cjs', 'package.json'), '{ "type": "commonjs" }\n')
  bundle(dist)
  // npm sets this bit when it installs the package; here the file is run from a clone.
  const cli = join(dist, 'esm', 'cli.js')
  if (existsSync(cli)) chmodSync(cli, 0o755)
}

/**
 * Bundles the modules that a program imports into one file, since Node takes half a millisecond to load each. The types and the
 * loader of the binding stay separate files. The command line is a separate program and keeps its own modules.
 */
function bundle(dist) {
  const [esm, cjs] = ['esm', 'cjs'].map((format) => join(dist, format, 'index.js'))
  const how = ['--bundle', '--platform=node', '--target=node20.19', '--external:*.cjs', '--log-level=warning']
  const more = ['--sourcemap', '--sources-content=false', '--allow-overwrite']
  // CommonJS first: the second step overwrites one of its inputs.
  run('bundle, CommonJS', tool('esbuild'), [esm, ...how, ...more, '--format=cjs', `--outfile=${cjs}`])
  run('bundle, ESM', tool('esbuild'), [esm, ...how, ...more, '--format=esm', `--outfile=${esm}`])
  for (const file of [esm, cjs]) keepNames(file)
  const bundled = readdirSync(join(dist, 'cjs'), { recursive: true }).filter((name) => /\.js(\.map)?$/.test(name))
  for (const name of bundled) if (!name.startsWith('index.js')) rmSync(join(dist, 'cjs', name))
}

/**
 * Undoes esbuild's renaming of classes that refer to themselves: `var Channel = class _Channel`. Errors and `inspect` would show the
 * underscore. esbuild's `--keep-names` would set the name of each function whenever it is created, which costs more than a message.
 */
function keepNames(file) {
  let code = readFileSync(file, 'utf8')
  for (const [, name] of code.matchAll(/^var (\w+) = class _\1\b/gm))
    code = code.replaceAll(new RegExp(`\\b_${name}\\b`, 'g'), name)
  writeFileSync(file, code)
}

/** Compiles __test__/ to build/test, where ava runs it. */
export function compileTests() {
  // The output of a deleted test must not run.
  rmSync(join(root, 'build', 'test'), { recursive: true, force: true })
  run('compile the tests', tool('tsc'), ['-p', 'tsconfig.test.json'])
}

/** Compiles the tests in Node, and builds the Rust programs that they start. */
export function buildTests() {
  compileTests()
  const partners = ['ringfence-partner', 'ringfence-frames', 'ringfence-ticker']
  run('build the Rust programs', 'cargo', ['build', '--quiet', ...partners.flatMap((name) => ['-p', name])])
}

/**
 * Builds the HTML documentation in build/docs: the documents, the TypeScript API (typedoc), and in rust/ the crate (rustdoc). A dead link
 * is an error. Links to other hosts are not followed.
 */
function buildDocs(options) {
  const pages = join(root, 'build', 'docs')
  // The directory of `check.mjs crate`, so that nothing is built twice.
  const target = join(root, 'build', 'crate', 'docs')
  checkLinks()
  install()
  // The types of ts/ import those of the binding.
  if (!options.includes('--built')) build('--release')
  rmSync(pages, { recursive: true, force: true })
  run('pages', tool('typedoc'))

  rmSync(join(target, 'doc'), { recursive: true, force: true })
  const env = { CARGO_TARGET_DIR: target, RUSTDOCFLAGS: '-D warnings' }
  run('pages of the crate', 'cargo', ['doc', '-p', 'ringfence', '--all-features', '--no-deps', '--locked'], { env })
  cpSync(join(target, 'doc'), join(pages, 'rust'), { recursive: true })

  // typedoc writes the same relative navigation link on every page, whatever the depth of the page.
  for (const page of readdirSync(pages, { recursive: true })) {
    const depth = page.split('/').length - 1
    if (depth === 0 || page.startsWith('rust/') || !page.endsWith('.html')) continue
    const file = join(pages, page)
    writeFileSync(file, readFileSync(file, 'utf8').replaceAll('href="rust/', `href="${'../'.repeat(depth)}rust/`))
  }

  const follow = (start, ...more) => {
    const otherHosts = String.raw`^https?://(?!localhost|127\.0\.0\.1)`
    run('links', tool('linkinator'), [start, '--recurse', '--verbosity', 'error', '--skip', otherHosts, ...more])
  }
  // rustdoc has already checked the anchors within its pages, many of which only its script resolves.
  follow('build/docs', '--check-fragments', '--skip', 'rust/src/', '--skip', 'rust/ringfence/(?!index)')
  follow('rust/ringfence/index.html', '--server-root', 'build/docs')
  console.log('\nThe documentation is in build/docs/index.html.')
}

if (process.argv[1] === import.meta.filename) {
  await subcommand({
    '': (options) => build(...options),
    binding: (options) => buildBinding(options),
    ts: buildTypeScript,
    tests: buildTests,
    targets: (names) => buildTargets(names, buildBinding),
    docs: buildDocs,
    browser: () => checkPages(join(root, 'build', 'docs')),
  })
}
