// Steps of a release:
//
//     node scripts/release.mjs notes TAG      prints the section of CHANGELOG.md for that version

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root, subcommand } from './lib/run.mjs'

function printNotes([tag]) {
  const version = tag?.replace(/^v/, '')
  const [, ...sections] = readFileSync(join(root, 'CHANGELOG.md'), 'utf8').split(/^## /m)
  const section = sections.find((text) => text.startsWith(`[${version}]`))
  const notes = section?.slice(section.indexOf('\n')).trim()
  if (!notes) fail(`✗ CHANGELOG.md has no section for ${version}.`)
  console.log(notes)
}

await subcommand({ notes: printNotes })
