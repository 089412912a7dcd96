// Input from another process, made up by a fuzzer: `npm run test:fuzz`.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { delimiter, join, parse, relative } from 'node:path'
import { fail, getNightly, isInPath, root, run } from './run.mjs'

/**
 * Each input is chosen by the ways that those before it took through the program, with AddressSanitizer watching. A minute for each target,
 * or as many seconds as asked for. What is learnt stays in fuzz/corpus/, so that the next run goes on from there.
 *
 * `--coverage` fuzzes nothing: it says which lines were run by what was learnt so far.
 */
export function testFuzz(words) {
  const measures = words[0] === '--coverage'
  const [seconds, ...named] = measures ? ['1', ...words.slice(1)] : words.length > 0 ? words : ['60']
  const all = readdirSync(join(root, 'fuzz', 'fuzz_targets')).map((file) => parse(file).name)
  const targets = named.length > 0 ? named : all
  if (!/^[1-9]\d*$/.test(seconds)) fail(`✗ ${seconds} is no number of seconds.`)
  const unknown = targets.filter((target) => !all.includes(target))
  if (unknown.length > 0) fail(`✗ There is no target ${unknown.join(', ')}, only ${all.join(', ')}.`)
  if (!isInPath('rustup')) fail('✗ The fuzzer takes the nightly toolchain, and there is no rustup here to get it.', 127)

  const home = join(root, 'build', 'cargo-fuzz')
  process.env.PATH += delimiter + join(home, 'bin')
  if (!isInPath('cargo-fuzz')) {
    run('get the fuzzer', 'cargo', ['install', '--quiet', '--locked', '--root', home, 'cargo-fuzz'])
  }
  getNightly(measures ? ['llvm-tools'] : [])
  if (measures) return measure(targets)
  run('build the targets', 'cargo', ['+nightly', 'fuzz', 'build'])

  const limits = [`-max_total_time=${seconds}`, '-timeout=20', '-rss_limit_mb=2048', '-verbosity=0']
  for (const target of targets) {
    run(`fuzz ${target}`, 'cargo', ['+nightly', 'fuzz', 'run', target, ...inputs(target), '--', ...limits])
  }
}

/** The folder of a target's inputs. The first folder gets what is found; what is checked in is only looked at. */
function inputs(target) {
  const corpus = join('fuzz', 'corpus', target)
  const seeds = join('fuzz', 'seeds', target)
  mkdirSync(join(root, corpus), { recursive: true })
  return existsSync(join(root, seeds)) ? [corpus, seeds] : [corpus]
}

/** The readers of the bytes, the words and the objects of a peer. */
const READERS = [
  ...[
    'ring',
    'handshake',
    'address/bound.rs',
    'channel/calls',
    'channel/inbound.rs',
    'channel/receiver.rs',
    'channel/sender.rs',
    'channel/end.rs',
  ],
  ...['accept', 'create', 'peer', 'map', 'copy', 'phase'].map((name) => `region/${name}.rs`),
  ...['signal/inbox.rs', 'sys/socket.rs', 'sys/file.rs', 'wake/attachments.rs', 'wake/doorbell.rs', 'wake/parking.rs'],
]

/** Of these folders, what belongs to tests. */
const OF_TESTS = /(^|\/)(lies|tests)(\.rs|\/)/

/** Of each reader, the lines that were run by what lies in the corpora and the seeds, and those that were not. */
function measure(targets) {
  rmSync(join(root, 'fuzz', 'coverage'), { recursive: true, force: true })
  const built = join('build', 'fuzz-coverage')
  const options = ['--sanitizer', 'none', '--target-dir', built]
  /** By file, the targets that have run each line. */
  const files = new Map()
  for (const target of targets) {
    run(`run ${target}`, 'cargo', ['+nightly', 'fuzz', 'coverage', ...options, target, ...inputs(target)])
    for (const { file, line, count } of linesOf(target, built)) {
      if (!files.has(file)) files.set(file, new Map())
      const lines = files.get(file)
      if (!lines.has(line)) lines.set(line, new Set())
      if (count > 0) lines.get(line).add(target)
    }
  }
  const share = (lines) => `${lines.filter(([, by]) => by.size > 0).length} of ${lines.length}`
  const total = []
  for (const [file, found] of [...files].sort()) {
    const lines = [...found].sort(([one], [other]) => one - other)
    total.push(...lines)
    const by = targets.filter((target) => lines.some(([, each]) => each.has(target)))
    console.log(`\n${file}: ${share(lines)}${by.length > 0 ? `, by ${by.join(', ')}` : ''}`)
    const missed = ranges(lines)
    if (missed.length > 0) console.log(`  not reached: ${missed.join(', ')}`)
  }
  console.log()
  for (const target of targets) console.log(`${target}: ${total.filter(([, by]) => by.has(target)).length} lines`)
  console.log(`all: ${share(total)} lines`)
}

/** What LLVM has counted for one target: the lines of the readers. */
function* linesOf(target, built) {
  const tool = (name, ...args) => {
    const { status, stdout, stderr } = spawnSync(name, args, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 30 })
    return status === 0 ? stdout : fail(`✗ ${name}: ${stderr}`)
  }
  const libraries = tool('rustc', '+nightly', '--print', 'target-libdir').trim()
  const triple = parse(parse(libraries).dir).name
  const binary = join(built, triple, 'release', target)
  const profile = join('fuzz', 'coverage', target, 'coverage.profdata')
  const sources = join(root, 'crates', 'ringfence', 'src')
  const wanted = READERS.map((reader) => join(sources, reader))
  const llvm = join(libraries, '..', 'bin', 'llvm-cov')
  let file
  for (const row of tool(llvm, 'export', '-format=lcov', `-instr-profile=${profile}`, binary, ...wanted).split('\n')) {
    if (row.startsWith('SF:')) file = relative(sources, row.slice(3))
    const [, line, count] = /^DA:(\d+),(\d+)/.exec(row) ?? []
    if (line && !OF_TESTS.test(file)) yield { file, line: Number(line), count: Number(count) }
  }
}

/** Lines in a row that no target has run; what lies between two of them and is no code does not part them. */
function ranges(lines) {
  const found = []
  let open
  for (const [line, by] of lines) {
    if (by.size > 0) open = undefined
    else if (open) open[1] = line
    else found.push((open = [line, line]))
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`))
}
