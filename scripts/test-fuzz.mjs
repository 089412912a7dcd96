// What comes from another process, made up by a fuzzer that looks which way each input takes through the program, with
// AddressSanitizer watching. A minute for each target, or as many seconds as the first argument says; the names of
// targets after it run those alone. What it learns stays in fuzz/corpus/, so that the next run goes on from there.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { delimiter, join, parse } from 'node:path'
import { fail, isInPath, root, run } from './lib.mjs'

const [seconds = '60', ...named] = process.argv.slice(2)
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
// One that is there serves, whatever its age.
if (spawnSync('rustc', ['+nightly', '--version']).status !== 0) {
  run('get its toolchain', 'rustup', ['toolchain', 'install', 'nightly', '--profile', 'minimal', '--no-self-update'])
}
run('build the targets', 'cargo', ['+nightly', 'fuzz', 'build'])

const limits = [`-max_total_time=${seconds}`, '-timeout=20', '-rss_limit_mb=2048', '-verbosity=0']
for (const target of targets) {
  // The first folder gets what is found; what is checked in is only looked at.
  const corpus = join('fuzz', 'corpus', target)
  const seeds = join('fuzz', 'seeds', target)
  mkdirSync(join(root, corpus), { recursive: true })
  const folders = existsSync(join(root, seeds)) ? [corpus, seeds] : [corpus]
  run(`fuzz ${target}`, 'cargo', ['+nightly', 'fuzz', 'run', target, ...folders, '--', ...limits])
}
