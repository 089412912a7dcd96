// The steps of a release beyond the checks:
//
//     node scripts/release.mjs notes TAG      what CHANGELOG.md says of that version

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root, subcommand } from './lib/run.mjs'

function printNotes([tag]) {
  const version = tag?.replace(/^v/, '')
  const [, ...sections] = readFileSync(join(root, 'CHANGELOG.md'), 'utf8').split(/^## /m)
  const section = sections.find((text) => text.startsWith(`[${version}]`))
  const notes = section?.slice(section.indexOf('\n')).trim()
  if (!notes) fail(`✗ CHANGELOG.md tells nothing of ${version}.`)
  console.log(notes)
}

await subcommand({ notes: printNotes })
