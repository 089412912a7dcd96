// Mutation tests of ts/, with StrykerJS: `npm run test:mutants:ts`.

import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build, buildTests } from '../build.mjs'
import { FETCH_LIMIT, fail, root, run } from './run.mjs'

// The last major version for the oldest supported Node. Not a development dependency, since it has 64 MB that nothing else needs.
const STRYKER = '@stryker-mutator/core@9.6.1'

/**
 * The quick tests of each file. `cli/target.ts` is not listed and must be named with its tests: as root, its mutants may replace a device by
 * a file.
 */
const TESTS = {
  'adapters/codec.ts': ['codec-values'],
  'adapters/duplex.ts': ['duplex-ends'],
  'adapters/port.ts': ['port-events'],
  'adapters/web.ts': ['web'],
  'channel/block.ts': ['block'],
  'channel/channel.ts': ['channel-ends', 'ending', 'outcome'],
  'channel/loops.ts': ['waiters'],
  'channel/memory.ts': ['allocation'],
  'channel/merge.ts': ['merge-turns', 'merge-ends'],
  'channel/receive-buffer.ts': ['receive-buffer', 'receive-waiting', 'receive-property'],
  'channel/send-promises.ts': ['waiters'],
  'channel/send-queue.ts': ['send-queue', 'send-copies', 'send-walk', 'fill', 'reserve'],
  'channel/subscription.ts': ['subscription'],
  'channel/tokens.ts': ['token-queue'],
  'channel/turns.ts': ['turns'],
  'channel/values.ts': ['values', 'typed'],
  'channel/waiters.ts': ['waiters'],
  'cli.ts': ['command'],
  'cli/observed.ts': ['observed'],
  'cli/slow/activity.ts': ['activity'],
  'cli/slow/main.ts': ['doctor-pair'],
  'cli/top.ts': ['top'],
  'endpoint/accept-queue.ts': ['accept-queue'],
  'endpoint/authorize.ts': ['authorizer'],
  'endpoint/child.ts': ['child-line', 'child'],
  'endpoint/endpoint.ts': ['listener', 'member-ends'],
  'endpoint/handshake.ts': ['begin'],
  'endpoint/membership.ts': ['member-ends'],
  'endpoint/options.ts': ['options'],
  'endpoint/pair.ts': ['begin'],
  'endpoint/publisher.ts': ['publisher'],
  'endpoint/service.ts': ['listener'],
  'endpoint/subscriber.ts': ['publisher'],
  'errors.ts': ['errors', 'options'],
  'runtime/deferred.ts': ['waiters'],
  'runtime/emit.ts': ['waiters'],
  'runtime/exit.ts': ['listener', 'exit'],
  'runtime/fairness.ts': ['turns'],
  'runtime/printable.ts': ['printable'],
  'runtime/sockets.ts': ['sockets'],
  'runtime/weak-immediate.ts': ['turns'],
}

/** Seconds without a result after which ava stops. */
const AVA_TIMEOUT = 30

/** Milliseconds for the tests of a mutant, in addition to their normal time, for hangs that ava cannot stop. */
const MUTANT_TIMEOUT = 120_000

/** Prepares the copy: links the tools and the Rust programs that tests start, and compiles ts/. */
const PREPARE = 'ln -s ../../../../node_modules ../../../../target . && node scripts/build.mjs ts --unchecked'

/**
 * Runs each mutant of these files against their tests, or against the tests that are named after `--`, with options of ava (`--match=…`).
 * `options.ts:40-90` is a part of a file. ts/ is compiled once with all mutants, and an environment variable enables one at a time.
 */
export function testTypeScriptMutants(words) {
  const end = words.indexOf('--')
  const named = end < 0 ? words : words.slice(0, end)
  const parts = named.length > 0 ? named : Object.keys(TESTS)
  const files = parts.map((part) => part.replace(/:[\d:-]+$/, ''))
  for (const file of files) if (!existsSync(join(root, 'ts', file))) fail(`✗ There is no ts/${file}.`)
  const tests = end < 0 ? files.flatMap((file) => TESTS[file] ?? []) : words.slice(end + 1)
  if (tests.length === 0) fail(`✗ No tests are listed for ${files.join(' and ')}: name them after --.`)
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
      // Error messages, which no test checks literally. Names that programs see are strings as well, and are excluded with them.
      excludedMutations: ['StringLiteral'],
    },
    testRunner: 'command',
    commandRunner: { command: `node_modules/.bin/ava --fail-fast --timeout=${AVA_TIMEOUT}s ${quoted.join(' ')}` },
    // The command does not report which test covers which code.
    coverageAnalysis: 'off',
    // The tests start several processes each, and would slow each other down in parallel.
    concurrency: 1,
    timeoutMS: MUTANT_TIMEOUT,
    // Works in a copy, which needs the sources, the build and the tools.
    tempDirName: join('build', 'stryker', 'copy'),
    ignorePatterns: [
      '/*',
      ...['ava.config.mjs', 'package.json', 'binding', 'dist', 'scripts', 'ts'].map((name) => `!/${name}`),
      '!/build/test',
    ],
    // Stryker would link every node_modules folder below the root, and only after `buildCommand`.
    symlinkNodeModules: false,
    buildCommand: `sh -c ${PREPARE.replaceAll(' ', '\\ ')}`,
    reporters: ['clear-text', 'json'],
    jsonReporter: { fileName: report },
    // Prints the survivors and the score. The command reports no tests.
    clearTextReporter: { logTests: false, reportTests: false, allowColor: false },
    disableTypeChecks: false,
    checkers: [],
    plugins: [],
    allowEmpty: false,
    cleanTempDir: 'always',
  }
}
