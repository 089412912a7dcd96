// Applies patches that break the code, one after the other, and checks that the tests notice. No test found these bugs when they
// were real. So each is now looked for by tests of another kind than its own regression test.
//
//     node main.mjs [NAME …]
//
// The head of a patch says what it breaks, and which tests must fail because of it. Each is applied to a copy of the commit
// below build/holes. The same tests must pass in that copy first. At the end a table of them is printed.

import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join, parse } from 'node:path'

import { fail, root, run } from '../../scripts/lib/run.mjs'

const here = join(root, '__test__', 'holes')
const home = join(root, 'build', 'holes')
const tree = join(home, 'tree')
const target = join(home, 'target')
const env = {
  ...process.env,
  CARGO_TARGET_DIR: target,
  // The compiler must not find it.
  RUSTFLAGS: '-Awarnings',
  PYTHONDONTWRITEBYTECODE: '1',
}
/** Milliseconds after which a test has failed: some bugs make tests hang. */
const LIMIT = 300_000

const cargo = (...words) => ({ command: 'cargo', words })
const program = (name, ...words) => ({ command: join(target, 'debug', name), words })

/** The kinds of test: what each needs to have built, and how to run it. */
const KINDS = {
  attacks: (words) => ({
    builds: [['build', '-p', 'ringfence-attacks']],
    test: program('ringfence-attacks', ...words),
  }),
  conformance: (words) => ({
    builds: words.includes('node') ? [] : [['build', '-p', 'ringfence-partner']],
    // The binding is that of the root directory: patches of the TypeScript code are tested in Node, and those of the core are
    // not.
    isInNode: words.includes('node'),
    test: { command: 'python3', words: ['__test__/conformance/main.py', ...words] },
  }),
  faults: (words) => ({ builds: [['build', '-p', 'ringfence-faults']], test: program('ringfence-faults', ...words) }),
  models: (words) => ({
    builds: [['test', '--no-run', '-p', 'ringfence-model']],
    test: cargo('test', '--quiet', '-p', 'ringfence-model', ...words),
  }),
  // Interleavings (loom), random calls of a ring compared with a model (proptest), and other tests beside the code.
  unit: (words) => ({
    builds: [['test', '--no-run', '-p', 'ringfence', '--lib']],
    test: cargo('test', '--quiet', '-p', 'ringfence', '--lib', ...words),
  }),
}

const git = (...words) => run(`git ${words[0]}`, 'git', ['-C', tree, ...words], { quiet: true })
/** Words. A word in quotation marks may contain blanks. */
const split = (line) => [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain)

function readHoles(names) {
  const all = readdirSync(here)
    .filter((file) => file.endsWith('.patch'))
    .map((file) => parse(file).name)
  const unknown = names.filter((name) => !all.includes(name))
  if (unknown.length > 0) fail(`✗ There is no hole ${unknown.join(', ')}, only ${all.join(', ')}.`)
  return (names.length > 0 ? names : all).map((name) => {
    const file = join(here, `${name}.patch`)
    const [what, by] = readFileSync(file, 'utf8').split('\n\n')
    const finders = [...by.matchAll(/^Found by: (\w+) (.+)$/gm)].map(([, kind, words]) => ({ kind, words }))
    if (finders.length === 0) fail(`✗ ${name} does not say what finds it.`)
    for (const { kind } of finders) if (!(kind in KINDS)) fail(`✗ ${name}: there is no kind of test ${kind}.`)
    return { name, file, what, finders }
  })
}

/** Builds the current tree, and runs a test: whether it passed, how long it took, and the most telling line of its output. */
function play({ kind, words }) {
  const { builds, test, isInNode } = KINDS[kind](split(words))
  if (isInNode) run('TypeScript', process.execPath, ['scripts/build.mjs', 'ts'], { cwd: tree, quiet: true })
  for (const build of builds)
    run(`build for ${kind}`, 'cargo', [build[0], '--quiet', ...build.slice(1)], { cwd: tree, env })
  const started = performance.now()
  const options = { cwd: tree, env, timeout: LIMIT, killSignal: 'SIGKILL', maxBuffer: 1 << 28 }
  const { status, stdout, stderr } = spawnSync(test.command, test.words, options)
  const text = `${stdout}${stderr}`
  const telling = text.split('\n').find((line) => /✘|FAIL OPEN|panicked|HARM|Failure:|wrong: \[$/.test(line))
  return {
    passes: status === 0,
    seconds: (performance.now() - started) / 1000,
    last: (telling ?? text.trim().split('\n').at(-1)).trim().slice(0, 300),
    text,
  }
}

if (!existsSync(tree)) run('a copy', 'git', ['-C', root, 'worktree', 'add', '--force', '--detach', tree, 'HEAD'])
const head = spawnSync('git', ['-C', root, 'rev-parse', 'HEAD']).stdout.toString().trim()
git('checkout', '--quiet', '--force', '--detach', head)

if (!existsSync(join(root, 'binding'))) fail('✗ There is no binding: npm run build.')
cpSync(join(root, 'binding'), join(tree, 'binding'), { recursive: true })
if (!existsSync(join(tree, 'node_modules'))) symlinkSync(join(root, 'node_modules'), join(tree, 'node_modules'))

const holes = readHoles(process.argv.slice(2))
const sound = new Map()
const table = []
for (const { name, file, what, finders } of holes) {
  for (const finder of finders) {
    const by = `${finder.kind} ${finder.words}`
    if (!sound.has(by)) sound.set(by, play(finder))
    const before = sound.get(by)
    if (!before.passes) {
      writeFileSync(join(home, `${name}.log`), before.text)
      tell({ name, what, by, found: null }, `fails without the hole: ${before.last}`)
      continue
    }
    git('apply', file)
    const { passes, seconds, last, text } = play(finder)
    git('checkout', '--quiet', '--', '.')
    writeFileSync(join(home, `${name}.log`), text)
    tell({ name, what, by, found: passes ? null : `${seconds.toFixed(1)} s` }, last)
  }
}

function tell(row, last) {
  console.log(
    `${row.found === null ? '✗ not found' : `✓ found after ${row.found}`}: ${row.name}, by ${row.by}\n    ${last}`,
  )
  table.push(row)
}

console.log('\n| hole | what it breaks | found by | after |\n| --- | --- | --- | ---: |')
for (const { name, what, by, found } of table)
  console.log(`| \`${name}\` | ${what.replaceAll('\n', ' ')} | ${by} | ${found ?? 'not found'} |`)
const missed = table.filter(({ found }) => found === null)
if (missed.length > 0) fail(`✗ ${missed.length} of ${table.length} times a hole was not found.`)
console.log(`\nAll ${holes.length} holes were found.`)
