// The documentation as pages, in build/docs: the documents, the TypeScript face (typedoc), and below rust/ the crate
// (rustdoc). A link that leads nowhere ends it; those to other places are not followed.

import { cpSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { install, root, run, script, tool } from './lib.mjs'

const pages = join(root, 'build', 'docs')
// As in check-crate.mjs: what is there already is not built again.
const target = join(root, 'build', 'crate', 'docs')

install()
// The face's types rest on the binding's.
if (!process.argv.includes('--built')) script('build.mjs', ['--release'])
rmSync(pages, { recursive: true, force: true })
run('pages', tool('typedoc'))

rmSync(join(target, 'doc'), { recursive: true, force: true })
const env = { CARGO_TARGET_DIR: target, RUSTDOCFLAGS: '-D warnings' }
run('pages of the crate', 'cargo', ['doc', '-p', 'ringfence', '--no-deps', '--locked'], { env })
cpSync(join(target, 'doc'), join(pages, 'rust'), { recursive: true })

// typedoc writes a navigation link the same on every page, wherever the page lies.
for (const page of readdirSync(pages, { recursive: true })) {
  const depth = page.split('/').length - 1
  if (depth === 0 || page.startsWith('rust/') || !page.endsWith('.html')) continue
  const file = join(pages, page)
  writeFileSync(file, readFileSync(file, 'utf8').replaceAll('href="rust/', `href="${'../'.repeat(depth)}rust/`))
}

const follow = (place, ...options) => {
  const elsewhere = String.raw`^https?://(?!localhost|127\.0\.0\.1)`
  run('links', tool('linkinator'), [place, '--recurse', '--verbosity', 'error', '--skip', elsewhere, ...options])
}
// rustdoc has checked the places within its pages itself, and many of them only its script finds.
follow('build/docs', '--check-fragments', '--skip', 'rust/src/', '--skip', 'rust/ringfence/(?!index)')
follow('rust/ringfence/index.html', '--server-root', 'build/docs')
console.log(`\nRead build/docs/index.html.`)
