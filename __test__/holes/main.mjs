// Holes that the tests once did not find, put back one after the other, each as a patch: does a test of another kind than its own
// regression test find it now?
//
//     node main.mjs [NAME …]
//
// A patch says in its head what it breaks, and which options of __test__/conformance must fail of it. Each is applied to a copy of what is
// checked in, below build/holes; the same options must pass there before.

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join, parse } from 'node:path'

import { fail, root, run } from '../../scripts/lib/run.mjs'

const here = join(root, '__test__', 'holes')
const home = join(root, 'build', 'holes')
const tree = join(home, 'tree')
const env = { ...process.env, CARGO_TARGET_DIR: join(home, 'target'), PYTHONDONTWRITEBYTECODE: '1' }

const git = (...words) => run(`git ${words[0]}`, 'git', ['-C', tree, ...words])

function readHoles(names) {
  const all = readdirSync(here)
    .filter((file) => file.endsWith('.patch'))
    .map((file) => parse(file).name)
  const unknown = names.filter((name) => !all.includes(name))
  if (unknown.length > 0) fail(`✗ There is no hole ${unknown.join(', ')}, only ${all.join(', ')}.`)
  return (names.length > 0 ? names : all).map((name) => {
    const file = join(here, `${name}.patch`)
    const [what, by] = readFileSync(file, 'utf8').split('\n\n')
    const options = /^Found by: conformance (.+)$/.exec(by)?.[1]
    if (options === undefined) fail(`✗ ${name} does not say what finds it.`)
    return { name, file, what, options: options.split(' ') }
  })
}

/** How the conformance of what lies in the tree ended, and the last line that it printed. */
function conform(options) {
  // A hole must be one that the compiler does not find.
  run('build', 'cargo', ['build', '--quiet', '-p', 'ringfence-partner'], {
    cwd: tree,
    env: { ...env, RUSTFLAGS: '-Awarnings' },
  })
  const { status, stdout, stderr } = spawnSync('python3', ['__test__/conformance/main.py', ...options], {
    cwd: tree,
    env,
  })
  const lines = `${stdout}${stderr}`.trim().split('\n')
  return { passes: status === 0, last: lines.at(-1) }
}

if (!existsSync(tree)) run('a copy', 'git', ['-C', root, 'worktree', 'add', '--force', '--detach', tree, 'HEAD'])
const head = spawnSync('git', ['-C', root, 'rev-parse', 'HEAD']).stdout.toString().trim()
git('checkout', '--quiet', '--force', '--detach', head)

const holes = readHoles(process.argv.slice(2))
const sound = new Map()
const table = []
for (const { name, file, what, options } of holes) {
  const key = options.join(' ')
  if (!sound.has(key)) sound.set(key, conform(options))
  if (!sound.get(key).passes) fail(`✗ Without a hole, conformance ${key} fails: ${sound.get(key).last}`)
  git('apply', file)
  const { passes, last } = conform(options)
  git('checkout', '--quiet', '--', '.')
  table.push({ name, passes, text: `${passes ? '✗ not found' : '✓ found'}: ${name}: ${what}\n    ${last}` })
}
console.log(`\n${table.map(({ text }) => text).join('\n')}`)
const missed = table.filter(({ passes }) => passes)
if (missed.length > 0) fail(`✗ ${missed.length} of ${table.length} holes were not found.`)
console.log(`\nAll ${table.length} holes were found.`)
