// Runs other projects' behaviours over streams and ports, and compares what passes with expected.json: `npm run test:suites`.
//
//     node main.mjs [NAME …]        http, http2, …; all if none is named
//
// expected.json names each test, and says of one that does not pass why: `fails` must fail, `varies` may. So what breaks is found, what is
// mended as well, and a test that is gone. The table of docs/internals/suites.md is compared, too.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { run } from 'node:test'

const here = import.meta.dirname
const files = readdirSync(here).filter((name) => name.endsWith('.test.mjs'))
const all = files.map((name) => name.replace('.test.mjs', ''))
const named = process.argv.slice(2)
const unknown = named.filter((name) => !all.includes(name))
if (unknown.length > 0) throw new Error(`there is no suite ${unknown.join(', ')}, only ${all.join(', ')}`)
const chosen = named.length > 0 ? named : all
const expected = JSON.parse(readFileSync(join(here, 'expected.json'), 'utf8'))

/** Runs a file. Returns the outcome of each test. */
async function play(name) {
  const file = join(here, `${name}.test.mjs`)
  const tests = new Map()
  const stream = run({ files: [file] })
  const note = (passed) => (event) => {
    // The file itself is also reported as a test.
    if (event.name !== file) tests.set(event.name, { passed, error: event.details.error })
  }
  stream.on('test:pass', note(true))
  stream.on('test:fail', note(false))
  stream.on('test:stderr', ({ message }) => process.stderr.write(message))
  for await (const event of stream) void event
  return tests
}

const found = new Map()
const left = [...chosen]
const worker = async () => {
  for (let name = left.shift(); name !== undefined; name = left.shift()) found.set(name, await play(name))
}
await Promise.all([worker(), worker()])

let wrong = 0
const complain = (text) => {
  wrong += 1
  console.log(`✗ ${text}`)
}
for (const name of chosen) {
  const wanted = expected[name] ?? {}
  const tests = found.get(name)
  for (const [title, { passed, error }] of tests) {
    const how = wanted[title]
    if (how === undefined) complain(`${name}: "${title}" is not in expected.json; it ${passed ? 'passes' : 'fails'}`)
    else if (how === 'passes' && !passed) complain(`${name}: "${title}" fails: ${error?.cause?.stack ?? error}`)
    else if (how.fails !== undefined && passed)
      complain(`${name}: "${title}" passes now, and ought to fail: ${how.fails}`)
  }
  for (const title of Object.keys(wanted)) if (!tests.has(title)) complain(`${name}: "${title}" was not run`)
  const passes = [...tests.values()].filter(({ passed }) => passed).length
  console.log(`${name}: ${passes} of ${tests.size} pass`)
}

const table = readFileSync(join(here, '..', '..', 'docs', 'internals', 'suites.md'), 'utf8')
for (const name of all) {
  const how = Object.values(expected[name])
  const counts = `| ${how.filter((each) => each === 'passes').length} of ${how.length} |`
  const row = table.split('\n').find((line) => line.includes(`(../../__test__/suites/${name}.test.mjs)`))
  if (row === undefined || !row.includes(counts))
    complain(`docs/internals/suites.md has no row of ${name} with "${counts}"`)
}
if (wrong > 0) process.exitCode = 1
