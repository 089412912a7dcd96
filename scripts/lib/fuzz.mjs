// Fuzzes the input from other processes: `npm run test:fuzz`.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { delimiter, join, parse, relative } from 'node:path'
import { fail, getNightly, isInPath, root, run } from './run.mjs'

/**
 * Runs coverage-guided fuzzing with AddressSanitizer, for a minute or the given number of seconds for each target. New inputs are stored in
 * fuzz/corpus/, where the next run continues.
 *
 * `--coverage` does not fuzz. It prints the lines that the stored inputs reach.
 */
export function testFuzz(words) {
  const measures = words[0] === '--coverage'
  const [seconds, ...named] = measures ? ['1', ...words.slice(1)] : words.length > 0 ? words : ['60']
  const all = readdirSync(join(root, 'fuzz', 'fuzz_targets')).map((file) => parse(file).name)
  const targets = named.length > 0 ? named : all
  if (!/^[1-9]\d*$/.test(seconds)) fail(`✗ The number of seconds must be a whole number, not ${seconds}.`)
  const unknown = targets.filter((target) => !all.includes(target))
  if (unknown.length > 0) fail(`✗ There is no target ${unknown.join(', ')}. The targets are ${all.join(', ')}.`)
  if (!isInPath('rustup')) fail('✗ The fuzzer needs the nightly toolchain: install rustup.', 127)

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

/** The folders of a target's inputs. New inputs are stored in the first; the second is committed, and only read. */
function inputs(target) {
  const corpus = join('fuzz', 'corpus', target)
  const seeds = join('fuzz', 'seeds', target)
  mkdirSync(join(root, corpus), { recursive: true })
  return existsSync(join(root, seeds)) ? [corpus, seeds] : [corpus]
}

/** The modules that read data and objects of a peer. */
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

/** Test code in these modules. */
const OF_TESTS = /(^|\/)(lies|tests)(\.rs|\/)/

/** Prints the lines of each reader that the corpora and seeds reach, and those that they do not. */
function measure(targets) {
  rmSync(join(root, 'fuzz', 'coverage'), { recursive: true, force: true })
  const built = join('build', 'fuzz-coverage')
  const options = ['--sanitizer', 'none', '--target-dir', built]
  /** The targets that reach each line, by file. */
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

/** Yields LLVM's execution counts of the readers' lines, for one target. */
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

/** Returns the ranges of lines that no target reaches. Lines without code do not interrupt a range. */
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
