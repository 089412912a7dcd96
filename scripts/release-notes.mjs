// What CHANGELOG.md says of a version, for the release of its tag: `node scripts/release-notes.mjs v0.1.0`.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root } from './lib.mjs'

const version = process.argv[2]?.replace(/^v/, '')
const [, ...sections] = readFileSync(join(root, 'CHANGELOG.md'), 'utf8').split(/^## /m)
const section = sections.find((text) => text.startsWith(`[${version}]`))
const notes = section?.slice(section.indexOf('\n')).trim()
if (!notes) fail(`✗ CHANGELOG.md tells nothing of ${version}.`)
console.log(notes)
