// Dead links in the Markdown of the repository: to files that do not exist, and to headings that no page has.

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import { fail, root } from './run.mjs'

/** The anchor that GitHub gives a heading. */
const slug = (heading) =>
  heading
    .replaceAll(/!?\[([^\]]*)\]\([^)]*\)/g, '$1')
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\p{Pc} -]/gu, '')
    .trim()
    .replaceAll(' ', '-')

/** Code can contain brackets and hashes that are neither links nor headings. */
const withoutCode = (text) => text.replaceAll(/^ *(```+)[^\n]*\n[\s\S]*?^ *\1 *$/gm, '')

function anchorsOf(text) {
  const anchors = new Set([...text.matchAll(/\b(?:id|name)="([^"]+)"/g)].map(([, name]) => name))
  for (const [, heading] of withoutCode(text).matchAll(/^#{1,6} +(.*?)(?: +#+)? *$/gm)) {
    const first = slug(heading)
    let anchor = first
    for (let again = 1; anchors.has(anchor); again += 1) anchor = `${first}-${again}`
    anchors.add(anchor)
  }
  return anchors
}

/** Returns the links of a page within the repository, without those in code. */
function linksOf(text) {
  const plain = withoutCode(text).replaceAll(/`[^`\n]*`/g, '')
  const found = [
    ...plain.matchAll(/\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)/g),
    ...plain.matchAll(/^ *\[[^\]]+\]: +(\S+)/gm),
    ...plain.matchAll(/<[^>]*\b(?:href|src|srcset)="([^"\s]+)"/g),
  ]
  return found.map(([, target]) => target).filter((target) => !/^[a-z]+:/.test(target))
}

/** Ends the process with a list of the dead links, if there are any. */
export function checkLinks() {
  const listed = spawnSync('git', ['ls-files', '-z', '--', '*.md'], { cwd: root, encoding: 'utf8' })
  if (listed.status !== 0) fail(`✗ git ls-files: ${listed.error?.message ?? listed.stderr}`)
  const pages = listed.stdout.split('\0').filter((page) => page !== '' && existsSync(join(root, page)))
  const read = (page) => readFileSync(join(root, page), 'utf8')
  const anchors = new Map()
  const dead = []
  let count = 0
  for (const page of pages) {
    for (const target of linksOf(read(page))) {
      count += 1
      const [path, anchor] = decodeURI(target).split('#')
      const file = path === '' ? page : posix.normalize(posix.join(dirname(page), path))
      // typedoc does not support links to folders.
      if (file.startsWith('..') || !statSync(join(root, file), { throwIfNoEntry: false })?.isFile()) {
        dead.push(`${page}: ${target} (no such file)`)
        continue
      }
      if (anchor === undefined || !file.endsWith('.md')) continue
      if (!anchors.has(file)) anchors.set(file, anchorsOf(read(file)))
      if (!anchors.get(file).has(anchor)) dead.push(`${page}: ${target} (no such heading)`)
    }
  }
  // A check that finds no links has failed itself.
  if (count < 100) fail(`✗ links: only ${count} found in ${pages.length} pages`)
  if (dead.length > 0) fail(`✗ links: ${dead.length} are dead:\n${dead.join('\n')}`)
  console.log(`links: ${count} in ${pages.length} Markdown pages are valid`)
}
