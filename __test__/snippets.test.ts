// Every code block of README.md and docs/ compiles as strict TypeScript, as does every example in the comments of ts/. The blocks that are
// programs run, and print what the page says.

import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'

import test from 'ava'
import ts from 'typescript'

import { canSandbox, runTogether } from './support/snippet-run.js'
import { examples, pages, parsePage, readPage, root, type Example, type Snippet } from './support/snippets.js'

const all = new Map(pages().map((page) => [page, readPage(page)]))

/** The declarations above an example of a comment, which is a fragment. */
const CONTEXT = `import { createReadStream, createWriteStream } from 'node:fs'
import * as net from 'node:net'
import { pipeline } from 'node:stream/promises'
import {
  SealedBuffer, ReceivedDescriptor, RingfenceError, RemoteError, connect, doctor, fromParent, harden, join, json, listen, member, merge, observe, publish,
  spawn, structured, subscribe, toMetrics,
} from 'ringfence'
import type { Channel, Codec, Listener, Membership, Merge, Message, Publisher, Subscriber, Subscription } from 'ringfence'
declare const channel: Channel, publisher: Publisher, subscriber: Subscriber, subscription: Subscription, message: Message
declare const listener: Listener, membership: Membership
declare const [first, second, third]: [Channel, Channel, Channel], inbox: Merge<Channel, Message>
declare const camera: { read(into: Uint8Array): Promise<void> }
declare const sink: WritableStream<string>
declare function handle(value: unknown): Promise<void>
`

/** A source of the program that checks all of them, and the page that its lines come from. */
interface Source {
  readonly text: string
  readonly page: string
  /** The page's number of the source's first line. */
  readonly offset: number
}

const place = path.join(root, 'build', 'snippets', 'types')

function sourceOf({ page, line, section, code, name, declarations }: Snippet): [string, Source] {
  const file = path.join(place, page, String(section), (name ?? `line-${line}.mjs`).replace(/js$/, 'ts'))
  const above = `${declarations}\nexport {}\n`
  return [file, { text: above + code, page, offset: line - above.split('\n').length + 1 }]
}

function sourceOfExample({ file, line, code }: Example): [string, Source] {
  const imports = code.split('\n').filter((words) => words.startsWith('import '))
  const body = code.replaceAll(/^import .*/gm, '')
  const above = `${CONTEXT}${imports.join('\n')}\nexport async function example() {\n`
  const source = { text: `${above}${body}\n}\n`, page: file, offset: line - above.split('\n').length + 1 }
  return [path.join(place, file, `line-${line}.mts`), source]
}

test('every block is a program, or says what it is', (t) => {
  t.deepEqual(
    [...all.values()].flatMap(({ problems }) => problems),
    [],
  )
  t.true(all.get('README.md')!.snippets.length > 0)
  t.true(examples().length > 50)
})

test('the doctests of the crate include each page with Rust', (t) => {
  const library = readFileSync(path.join(root, 'crates/ringfence/src/lib.rs'), 'utf8')
  for (const [page, { hasRust }] of all) t.is(library.includes(`include_str!("../../../${page}")`), hasRust, page)
})

test('a block that cannot be classified is reported', (t) => {
  const page = (block: string) => parsePage('page.md', `# Page\n\n${block}\n`).problems
  t.deepEqual(page("```js\nimport 'ringfence'\n```"), [])
  t.regex(page('```js\nawait channel.end()\n```').join(), /^page\.md:3: neither a program/)
  t.regex(
    page("<!-- snippet: later -->\n```js\nimport 'ringfence'\n```").join(),
    /unknown comment <!-- snippet: later -->/,
  )
  t.regex(page('```\nx\n```').join(), /unknown language ''/)
  t.regex(page("```ts\n// a.ts\nimport 'ringfence'\n```").join(), /a\.ts is not named/)
  t.regex(page("```js\n// a.mjs\nimport 'a'\n```\n```js\n// a.mjs\nimport 'a'\n```").join(), /a second a\.mjs/)
  t.regex(page('```text\n$ node b.mjs\nhello\n```').join(), /the output of b\.mjs/)
})

test('every block and every example compiles', (t) => {
  rmSync(place, { recursive: true, force: true })
  const sources = new Map([
    ...[...all.values()].flatMap(({ snippets }) => snippets.map(sourceOf)),
    ...examples().map(sourceOfExample),
  ])
  for (const [file, { text }] of sources) {
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, text)
  }
  // As a program that sets `strict` and nothing else, with the symbols of `await using`.
  const program = ts.createProgram([...sources.keys()], {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    lib: ['lib.es2022.d.ts', 'lib.esnext.disposable.d.ts', 'lib.dom.d.ts', 'lib.dom.asynciterable.d.ts'],
    types: ['node'],
  })
  const complaints = [...sources].flatMap(([file, { page, offset }]) => {
    const source = program.getSourceFile(file)!
    return [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)].map((one) => {
      const { line } = source.getLineAndCharacterOfPosition(one.start ?? 0)
      return `${page}:${offset + line}: ${ts.flattenDiagnosticMessageText(one.messageText, '\n')}`
    })
  })
  t.deepEqual(complaints, [])
  t.deepEqual(program.getGlobalDiagnostics(), [])
})

for (const [page, { snippets, expected }] of all)
  for (const section of new Set(snippets.map((one) => one.section))) {
    const here = snippets.filter((one) => one.section === section && (one.kind === 'program' || one.kind === 'twice'))
    if (here.length === 0) continue
    test(`${page}: the programs of "${here[0]!.heading}" run`, async (t) => {
      if (here.some(({ code }) => code.includes("'bwrap'")) && !canSandbox()) {
        t.log('skipped: bwrap does not work here')
        t.pass()
        return
      }
      const named = here.filter(({ name }) => name !== undefined)
      const outputs = expected.filter((one) => one.section === section)
      if (named.length > 0) t.deepEqual(await runTogether(t, named, outputs), [])
      for (const alone of here) if (alone.name === undefined) t.deepEqual(await runTogether(t, [alone], []), [])
    })
  }
