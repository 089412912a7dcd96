// The code blocks of the pages, and the examples of the API's comments.
//
// A block of TypeScript or JavaScript is a complete program, unless a comment directly above it says otherwise:
//
//     <!-- snippet: declare const channel: import('ringfence').Channel -->   a fragment, checked below these declarations
//     <!-- snippet: types only -->                                           a program that is checked and not run
//     <!-- snippet: twice -->                                                a program that is started twice
//
// Programs whose first line is their name (`// service.mjs`) belong to the other named programs of their section. In a block of text,
// the lines below `$ node service.mjs` are the expected output of that program, which gets the arguments of the command. In a block
// that is marked as ```text any-order, the lines may come in any order.

import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../../..', import.meta.url))

export interface Snippet {
  readonly page: string
  /** The line of the page on which the code starts. */
  readonly line: number
  /** The number of headings before it: the programs of one section run together. */
  readonly section: number
  readonly heading: string
  readonly code: string
  readonly name: string | undefined
  readonly isTypeScript: boolean
  readonly kind: 'program' | 'twice' | 'types only' | 'fragment'
  /** The declarations that a fragment needs. */
  readonly declarations: string
}

/** The output of a program, according to its page. */
export interface Expected {
  readonly section: number
  readonly name: string
  readonly words: readonly string[]
  readonly output: string
  readonly anyOrder: boolean
}

export interface Page {
  readonly snippets: readonly Snippet[]
  readonly expected: readonly Expected[]
  /** Blocks that no test can classify, each with the reason. */
  readonly problems: readonly string[]
  readonly hasRust: boolean
}

const OURS = new Set(['js', 'ts', 'javascript', 'typescript', 'mjs'])
const OTHERS = new Set([
  'c',
  'console',
  'css',
  'diff',
  'dockerfile',
  'html',
  'ini',
  'json',
  'jsonc',
  'mermaid',
  'python',
  'rust',
  'sh',
  'text',
  'toml',
  'yaml',
])

/** README.md, and every page below docs/. */
export function pages(): string[] {
  const below = readdirSync(join(root, 'docs'), { recursive: true }).map(String)
  return ['README.md', ...below.filter((name) => name.endsWith('.md')).map((name) => `docs/${name}`)].sort()
}

export function readPage(page: string): Page {
  return parsePage(page, readFileSync(join(root, page), 'utf8'))
}

export function parsePage(page: string, text: string): Page {
  const lines = text.split('\n')
  const snippets: Snippet[] = []
  const expected: Expected[] = []
  const problems: string[] = []
  let [section, heading, hasRust] = [0, page, false]
  for (let at = 0; at < lines.length; at += 1) {
    const title = /^#+ (.+)/.exec(lines[at]!)
    if (title !== null) [section, heading] = [section + 1, title[1]!]
    const fence = /^( *)(`{3,})([^`]*)$/.exec(lines[at]!)
    if (fence === null) continue
    const [, indent, ticks, words] = fence
    const [language = ''] = words!.trim().split(/[ ,]/)
    const start = at + 1
    do at += 1
    while (at < lines.length && lines[at]!.trim() !== ticks)
    const code = lines
      .slice(start, at)
      .map((line) => (line.startsWith(indent!) ? line.slice(indent!.length) : line))
      .join('\n')
    const place = `${page}:${start}`
    hasRust ||= language === 'rust'
    if (language === 'text' || language === 'console')
      for (const [, command, output] of `${code}\n`.matchAll(/^\$ node (.+)\n((?:(?!\$ ).*\n?)*)/gm)) {
        const [name, ...more] = command!.split(' ')
        expected.push({ section, name: name!, words: more, output: output!, anyOrder: words!.includes('any-order') })
      }
    if (!OURS.has(language)) {
      if (!OTHERS.has(language)) problems.push(`${place}: a block of the unknown language '${language}'`)
      continue
    }
    const directive = directiveAbove(lines, start - 1)
    const kind = kindOf(directive)
    const [, name] = /^\/\/ ([\w.-]+\.\w+)\b/.exec(code) ?? []
    if (kind === undefined) problems.push(`${place}: the unknown comment <!-- snippet: ${directive} -->`)
    else if (kind !== 'fragment' && !/^import /m.test(code))
      problems.push(
        `${place}: neither a program (it imports nothing) nor a fragment (no declarations in a comment above it)`,
      )
    else if (name !== undefined && !/\.m?js$/.test(name)) problems.push(`${place}: ${name} is not named .mjs or .js`)
    else if (name !== undefined && snippets.some((other) => other.section === section && other.name === name))
      problems.push(`${place}: a second ${name} in one section`)
    else
      snippets.push({
        page,
        line: start + 1,
        section,
        heading,
        code,
        name,
        isTypeScript: language.startsWith('t'),
        kind,
        declarations: kind === 'fragment' ? directive! : '',
      })
  }
  for (const { section: where, name } of expected)
    if (!snippets.some((one) => one.section === where && one.name === name))
      problems.push(`${page}: the output of ${name}, which is not in the same section`)
  return { snippets, expected, problems, hasRust }
}

/** The text of the comment `<!-- snippet: … -->` that ends directly above a line. */
function directiveAbove(lines: string[], line: number): string | undefined {
  let first = line - 1
  if (!lines[first]?.trimEnd().endsWith('-->')) return undefined
  while (first > 0 && !lines[first]!.includes('<!--')) first -= 1
  return /<!-- snippet: (.*) -->\s*$/s.exec(lines.slice(first, line).join('\n'))?.[1]
}

function kindOf(directive: string | undefined): Snippet['kind'] | undefined {
  if (directive === undefined) return 'program'
  if (directive === 'types only' || directive === 'twice') return directive
  return /^\s*(declare|import|type|interface) /.test(directive) ? 'fragment' : undefined
}

/** An `@example` of a comment in ts/. */
export interface Example {
  readonly file: string
  readonly line: number
  readonly code: string
}

export function examples(): Example[] {
  const files = readdirSync(join(root, 'ts'), { recursive: true }).map(String)
  return files.filter((name) => name.endsWith('.ts')).flatMap((name) => examplesOf(`ts/${name}`))
}

function examplesOf(file: string): Example[] {
  const lines = readFileSync(join(root, file), 'utf8').split('\n')
  const found: Example[] = []
  for (let at = 0; at < lines.length; at += 1) {
    if (!/^\s*\* @example\b/.test(lines[at]!)) continue
    const start = at + 1
    do at += 1
    while (!/^\s*(\* @|\*\/)/.test(lines[at]!))
    const code = lines.slice(start, at).map((line) => line.replace(/^\s*\* ?/, '').replace(/^```.*/, ''))
    found.push({ file, line: start + 1, code: code.join('\n') })
    at -= 1
  }
  return found
}
