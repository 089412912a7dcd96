// The crate and all npm packages carry one version. With a tag as argument (v0.1.0), that one, and the
// change log has a dated section for it.

import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root } from './lib.mjs'

const read = (path) => readFileSync(join(root, path), 'utf8')
const wanted = JSON.parse(read('package.json')).version
const wrong = []

function expect(place, found) {
  if (found !== wanted) wrong.push(`${place} says ${found ?? 'nothing'}`)
}

expect('package-lock.json', JSON.parse(read('package-lock.json')).version)
expect('Cargo.toml', /^\[workspace\.package\][^[]*?^version = "([^"]*)"$/m.exec(read('Cargo.toml'))?.[1])
for (const target of readdirSync(join(root, 'npm'))) {
  const manifest = `npm/${target}/package.json`
  expect(manifest, JSON.parse(read(manifest)).version)
}

const tag = process.argv[2]
if (tag !== undefined) {
  expect('the tag', tag.replace(/^v/, ''))
  if (
    !new RegExp(`^## \\[${wanted.replaceAll('.', '\\.')}\\] - \\d{4}-\\d\\d-\\d\\d$`, 'm').test(read('CHANGELOG.md'))
  ) {
    wrong.push(`CHANGELOG.md has no dated section for ${wanted}`)
  }
}

if (wrong.length > 0) fail(`package.json says ${wanted}, but ${wrong.join(', and ')}.`)
console.log(`one version everywhere: ${wanted}`)
