// `npm test`: all that must hold before a change is taken. The first step that fails ends it with its
// exit code; each prints one line before it runs and one after.

import { build, run, script, tool } from './lib.mjs'

const started = performance.now()

build('--release')

run('Rust layout', 'cargo', ['fmt', '--all', '--check'])
run('Rust lints', 'cargo', ['clippy', '--workspace', '--all-targets', '--', '-D', 'warnings'])
run('Rust tests', 'cargo', ['test', '--workspace'])

script('check-versions.mjs')
run('types', tool('tsc'), ['--noEmit'])
run('lint', tool('oxlint'), ['--deny-warnings'])
run('layout', tool('prettier'), ['--check', '--log-level', 'warn', '.'])
run('package', tool('publint'), ['--strict'])
run('package types', tool('attw'), ['--pack', '.'])

script('build-test.mjs')
run('tests in Node', tool('ava'))
// As in Electron, which forbids memory that is not the engine's own; what moves messages is the same anywhere else.
const moving = ['reserve', 'sending', 'reading'].map((name) => `build/test/${name}.test.js`)
run('tests without external buffers', tool('ava'), moving, { env: { RINGFENCE_NO_EXTERNAL_BUFFERS: '1' } })

console.log(`\nAll passed in ${Math.round((performance.now() - started) / 1000)} s.`)
