// Mutants of the TypeScript face, by StrykerJS: `npm run test:mutants:ts`.

import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build, buildTests } from '../build.mjs'
import { FETCH_LIMIT, fail, root, run } from './run.mjs'

// The last major version that runs on the oldest Node of this package. No development dependency: it is 64 MB that nothing else needs.
const STRYKER = '@stryker-mutator/core@9.6.1'

/**
 * The tests that are about a file: those that are quick, and look at what it promises. `cli/target.ts` has to be named, with its tests: run
 * as root, a mutant of it puts a file in the place of a device.
 */
const TESTS = {
  'accept-queue.ts': ['accept-queue'],
  'authorize.ts': ['authorizer'],
  'block.ts': ['block'],
  'broadcast/publisher.ts': ['publisher'],
  'broadcast/subscriber.ts': ['publisher'],
  'broadcast/subscription.ts': ['subscription'],
  'broadcast/typed.ts': ['typed-broadcast'],
  'channel.ts': ['channel-ends', 'ending', 'outcome'],
  'child.ts': ['child-line', 'child'],
  'cli.ts': ['command'],
  'cli/observed.ts': ['observed'],
  'cli/slow/activity.ts': ['activity'],
  'cli/slow/main.ts': ['doctor-pair'],
  'cli/top.ts': ['top'],
  'codec.ts': ['codec-values'],
  'deferred.ts': ['waiters'],
  'duplex.ts': ['duplex-ends'],
  'emit.ts': ['waiters'],
  'endpoint.ts': ['listener', 'member-ends'],
  'errors.ts': ['errors', 'options'],
  'exit.ts': ['listener', 'exit'],
  'fairness.ts': ['turns'],
  'flush-promise.ts': ['waiters'],
  'handshake.ts': ['begin'],
  'loops.ts': ['waiters'],
  'membership.ts': ['member-ends'],
  'memory.ts': ['allocation'],
  'merge.ts': ['merge-turns', 'merge-ends'],
  'options.ts': ['options'],
  'pair.ts': ['begin'],
  'port.ts': ['port-events'],
  'printable.ts': ['printable'],
  'receive-buffer.ts': ['receive-buffer', 'receive-waiting', 'receive-property'],
  'send-queue.ts': ['send-queue', 'send-copies', 'send-walk', 'fill', 'reserve'],
  'service.ts': ['listener'],
  'sockets.ts': ['sockets'],
  'tokens.ts': ['token-queue'],
  'turns.ts': ['turns'],
  'typed-merge.ts': ['typed'],
  'typed.ts': ['typed-channel'],
  'waiters.ts': ['waiters'],
  'weak-immediate.ts': ['turns'],
  'web.ts': ['web'],
}

/** Seconds without a result after which ava stops a test that hangs. */
const HANGS = 30

/** Milliseconds for the tests of one mutant, in addition to their normal time: for hangs that ava cannot stop. */
const PATIENCE = 120_000

/** In the copy: the tools, and the processes in Rust that tests start; then the face. */
const PREPARE = 'ln -s ../../../../node_modules ../../../../target . && node scripts/build.mjs face --unchecked'

/**
 * Each mutant of these files against the tests that are about them, or against those named behind `--`, where options of ava may stand
 * too (`--match=…`). A part of a file is `options.ts:40-90`. The face is built once with all mutants in it, of which an environment
 * variable switches on one.
 */
export function testFaceMutants(words) {
  const end = words.indexOf('--')
  const named = end < 0 ? words : words.slice(0, end)
  const parts = named.length > 0 ? named : Object.keys(TESTS)
  const files = parts.map((part) => part.replace(/:[\d:-]+$/, ''))
  for (const file of files) if (!existsSync(join(root, 'ts', file))) fail(`✗ There is no ts/${file}.`)
  const tests = end < 0 ? files.flatMap((file) => TESTS[file] ?? []) : words.slice(end + 1)
  if (tests.length === 0) fail(`✗ Which tests are about ${files.join(' and ')}? Name them behind --.`)
  const names = [...new Set(tests)].filter((word) => !word.startsWith('-'))
  const options = tests.filter((word) => word.startsWith('-'))
  const compiled = names.map((name) => `build/test/${name}.test.js`)
  const sources = names.map((name) => join('__test__', `${name}.test.ts`))
  for (const file of sources) if (!existsSync(join(root, file))) fail(`✗ There is no ${file}.`)
  if (!['binding/index.cjs', 'dist/cjs/binding.cjs'].every((file) => existsSync(join(root, file)))) build()
  buildTests()

  const home = join(root, 'build', 'stryker')
  const stryker = join(home, 'node_modules', '@stryker-mutator', 'core', 'bin', 'stryker.js')
  mkdirSync(home, { recursive: true })
  if (!existsSync(stryker)) {
    const install = ['install', '--prefix', home, '--no-audit', '--no-fund', '--save-exact', STRYKER]
    run('get StrykerJS', 'npm', install, { limit: FETCH_LIMIT })
  }
  const config = join(home, 'config.json')
  const report = join(home, 'report.json')
  writeFileSync(config, JSON.stringify(settings(report, parts, [...compiled, ...options]), null, 2))
  run('mutants', process.execPath, [stryker, 'run', config])
}

function settings(report, parts, words) {
  const quoted = words.map((word) => `'${word.replaceAll("'", `'\\''`)}'`)
  return {
    mutate: parts.map((part) => `ts/${part}`),
    mutator: {
      // Sentences of errors and labels, which no test has to the letter. A name that a program sees is a text too, and is left out with them.
      excludedMutations: ['StringLiteral'],
    },
    testRunner: 'command',
    commandRunner: { command: `node_modules/.bin/ava --fail-fast --timeout=${HANGS}s ${quoted.join(' ')}` },
    // The command says nothing of which test has run through what.
    coverageAnalysis: 'off',
    // Tests with several processes each: side by side they would take each other's time.
    concurrency: 1,
    timeoutMS: PATIENCE,
    // A copy: what is being worked on stays as it is. It needs the sources, what was built from them, and their tools.
    tempDirName: join('build', 'stryker', 'copy'),
    ignorePatterns: [
      '/*',
      ...['ava.config.mjs', 'package.json', 'binding', 'dist', 'scripts', 'ts'].map((name) => `!/${name}`),
      '!/build/test',
    ],
    // Its own links to node_modules are made after that, and to all that lie below the root.
    symlinkNodeModules: false,
    buildCommand: `sh -c ${PREPARE.replaceAll(' ', '\\ ')}`,
    reporters: ['clear-text', 'json'],
    jsonReporter: { fileName: report },
    // The survivors, and the score; not each file's tests, of which the command tells none.
    clearTextReporter: { logTests: false, reportTests: false, allowColor: false },
    disableTypeChecks: false,
    checkers: [],
    plugins: [],
    allowEmpty: false,
    cleanTempDir: 'always',
  }
}
