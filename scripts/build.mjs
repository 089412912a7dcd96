// Everything that is made from the sources:
//
//     node scripts/build.mjs [--release]          the binding, then the face
//     node scripts/build.mjs binding [ARGUMENTS]  the native library; the arguments go to `napi build`
//     node scripts/build.mjs face [--unchecked]   ts/, compiled to dist/; --unchecked: into one that is there, types unseen
//     node scripts/build.mjs tests                __test__/, compiled to build/test/, and the Rust processes it starts
//     node scripts/build.mjs targets [NAME …]     the binding for each target that is published
//     node scripts/build.mjs docs [--built]       the documentation as pages
//     node scripts/build.mjs browser              a check of these pages in Chromium, which is installed if it is missing

import { chmodSync, cpSync, existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkPages } from './lib/browser.mjs'
import { checkLinks } from './lib/links.mjs'
import { fail, install, isInPath, root, run, subcommand, tool } from './lib/run.mjs'
import { buildTargets } from './lib/targets.mjs'

/** The binding, and the face, whose types rest on the binding's. */
export function build(...options) {
  install()
  if (!isInPath('cargo')) fail('The binding is built from Rust sources, and there is no cargo here: install Rust.')
  buildBinding(options)
  buildFace()
}

/**
 * The native library, in binding/:
 *
 *     index.cjs                    the loader; CommonJS, so that both builds of the face can require it
 *     index.d.cts                  its types
 *     ringfence.linux-x64-gnu.node the library, named for what it runs on
 *
 * The loader takes the library beside it, else the package ringfence-<platform>.
 */
export function buildBinding(options = [], env = {}) {
  const place = ['--platform', '--package', 'ringfence-node', '--manifest-path', 'crates/ringfence-node/Cargo.toml']
  const output = ['--output-dir', 'binding', '--js', 'index.cjs', '--dts', 'index.d.cts']
  const from = ['--package-json-path', 'package.json']
  run('binding', tool('napi'), ['build', ...place, ...from, ...output, ...options], { env })
}

/** Compiles ts/ twice, to dist/esm and dist/cjs. tsconfig.base.json tells how both find the native binding. */
export function buildFace(options = []) {
  const dist = join(root, 'dist')
  if (options.includes('--unchecked')) {
    // For mutants, which have no types: a second instead of ten.
    const how = ['--outbase=ts', `--outdir=${join(dist, 'esm')}`, '--target=node20.19', '--log-level=warning']
    run('TypeScript, unchecked', tool('esbuild'), ['ts/**/*.ts', ...how])
    bundleFace(dist)
    return
  }
  // tsc never removes what a source that is gone once became, and dist/ is what gets published.
  rmSync(dist, { recursive: true, force: true })
  run('TypeScript to ESM', tool('tsc'), ['-p', 'tsconfig.esm.json'])
  run('TypeScript to CommonJS', tool('tsc'), ['-p', 'tsconfig.cjs.json'])
  // The root says "type": "module"; without this Node and TypeScript would take these files for ESM.
  writeFileSync(join(dist, 'cjs', 'package.json'), '{ "type": "commonjs" }\n')
  bundleFace(dist)
  // npm sets this bit when it installs the package; here the file is run from a clone.
  const cli = join(dist, 'esm', 'cli.js')
  if (existsSync(cli)) chmodSync(cli, 0o755)
}

/**
 * Bundles the modules that a program imports into one file, since Node takes half a millisecond to load each. The types and the
 * loader of the binding stay separate files. So does the command line, which is its own program, with its modules.
 */
function bundleFace(dist) {
  const [esm, cjs] = ['esm', 'cjs'].map((format) => join(dist, format, 'index.js'))
  const how = ['--bundle', '--platform=node', '--target=node20.19', '--external:*.cjs', '--log-level=warning']
  const more = ['--sourcemap', '--sources-content=false', '--allow-overwrite']
  // First, from the modules that the second puts into one file.
  run('bundle, CommonJS', tool('esbuild'), [esm, ...how, ...more, '--format=cjs', `--outfile=${cjs}`])
  run('bundle, ESM', tool('esbuild'), [esm, ...how, ...more, '--format=esm', `--outfile=${esm}`])
  for (const file of [esm, cjs]) keepNames(file)
  const bundled = readdirSync(join(dist, 'cjs'), { recursive: true }).filter((name) => /\.js(\.map)?$/.test(name))
  for (const name of bundled) if (!name.startsWith('index.js')) rmSync(join(dist, 'cjs', name))
}

/**
 * A class that speaks of itself gets another name from esbuild, with a line before its own: `var Channel = class _Channel`. Errors and
 * `inspect` would show that. Its own way to keep names has each function named anew each time that it is made, which costs more than a message.
 */
function keepNames(file) {
  let code = readFileSync(file, 'utf8')
  for (const [, name] of code.matchAll(/^var (\w+) = class _\1\b/gm))
    code = code.replaceAll(new RegExp(`\\b_${name}\\b`, 'g'), name)
  writeFileSync(file, code)
}

/** Compiles __test__/ to build/test, from where ava runs it, and the Rust processes that it starts. */
export function buildTests() {
  // A test whose source is gone must not go on passing.
  rmSync(join(root, 'build', 'test'), { recursive: true, force: true })
  run('compile the tests', tool('tsc'), ['-p', 'tsconfig.test.json'])
  const partners = ['ringfence-partner', 'ringfence-frames', 'ringfence-ticker']
  run('compile their partners', 'cargo', ['build', '--quiet', ...partners.flatMap((name) => ['-p', name])])
}

/**
 * The documentation as pages, in build/docs: the documents, the TypeScript face (typedoc), and below rust/ the crate
 * (rustdoc). A link that leads nowhere ends it; those to other places are not followed.
 */
function buildDocs(options) {
  const pages = join(root, 'build', 'docs')
  // As in `check.mjs crate`: what is there already is not built again.
  const target = join(root, 'build', 'crate', 'docs')
  checkLinks()
  install()
  // The face's types rest on the binding's.
  if (!options.includes('--built')) build('--release')
  rmSync(pages, { recursive: true, force: true })
  run('pages', tool('typedoc'))

  rmSync(join(target, 'doc'), { recursive: true, force: true })
  const env = { CARGO_TARGET_DIR: target, RUSTDOCFLAGS: '-D warnings' }
  run('pages of the crate', 'cargo', ['doc', '-p', 'ringfence', '--all-features', '--no-deps', '--locked'], { env })
  cpSync(join(target, 'doc'), join(pages, 'rust'), { recursive: true })

  // typedoc writes a navigation link the same on every page, wherever the page lies.
  for (const page of readdirSync(pages, { recursive: true })) {
    const depth = page.split('/').length - 1
    if (depth === 0 || page.startsWith('rust/') || !page.endsWith('.html')) continue
    const file = join(pages, page)
    writeFileSync(file, readFileSync(file, 'utf8').replaceAll('href="rust/', `href="${'../'.repeat(depth)}rust/`))
  }

  const follow = (place, ...more) => {
    const elsewhere = String.raw`^https?://(?!localhost|127\.0\.0\.1)`
    run('links', tool('linkinator'), [place, '--recurse', '--verbosity', 'error', '--skip', elsewhere, ...more])
  }
  // rustdoc has checked the places within its pages itself, and many of them only its script finds.
  follow('build/docs', '--check-fragments', '--skip', 'rust/src/', '--skip', 'rust/ringfence/(?!index)')
  follow('rust/ringfence/index.html', '--server-root', 'build/docs')
  console.log(`\nRead build/docs/index.html.`)
}

if (process.argv[1] === import.meta.filename) {
  await subcommand({
    '': (options) => build(...options),
    binding: (options) => buildBinding(options),
    face: buildFace,
    tests: buildTests,
    targets: (names) => buildTargets(names, buildBinding),
    docs: buildDocs,
    browser: () => checkPages(join(root, 'build', 'docs')),
  })
}
