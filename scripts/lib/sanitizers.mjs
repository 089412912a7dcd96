// Runs tests under ThreadSanitizer and AddressSanitizer: `npm run test:sanitizers`.

import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build, buildTests } from '../build.mjs'
import { fail, getNightly, root, run, tool } from './run.mjs'

const target = `${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-unknown-linux-gnu`
const home = join(root, 'build', 'sanitizers')

/** Tests with Loom, which switches stacks in a way that sanitizers do not support. */
const LOOM = ['orderings', 'parking::tests', 'many::tests']

const SANITIZERS = {
  address: {
    flags: ['-Zsanitizer=address'],
    /** Skipped unit tests. */
    skipped: LOOM,
    /** Node and its children load the sanitizer's library with LD_PRELOAD. */
    languages: 'rust,node',
    /** Its shadow memory reserves twenty terabytes of address space. */
    without: ['as', 'cgroup'],
    slow: 3,
    mistake: 'heap-use-after-free',
  },
  thread: {
    // It does not support fences: `ringfence_tsan` replaces them by orderings of the accesses.
    flags: ['-Zsanitizer=thread', '--cfg', 'ringfence_tsan'],
    // These tests race on purpose: a reader discards a copy that was overwritten during the read, and a hostile peer may write at any time.
    skipped: [...LOOM, 'overtaken_readers', 'fuzzing::', 'liars::'],
    // Node is not built with it.
    languages: 'rust',
    without: ['as', 'cgroup', 'idle'],
    slow: 10,
    mistake: 'data race',
  },
}

/** Excluded: this test loads no binding, or a package's, instead of the sanitizer's. */
const OF_PACKAGES = 'package.test.js'
/** Excluded: without address space, the sanitizer terminates the process. */
const WITHOUT_ADDRESS_SPACE = '*(RLIMIT_AS)*'

/** The parts of the run. */
const PARTS = { units: testUnits, node: testNode, soak: testSoak }

/**
 * Runs the crate's unit tests, the tests in Node, and the soak for some minutes. The standard library is rebuilt with the sanitizer:
 * `[address | thread …] [units | node | soak …] [--minutes N] [--seed S]`. See docs/internals/testing.md.
 */
export function testSanitizers(words) {
  const at = words.findIndex((word) => word.startsWith('--'))
  const named = at < 0 ? words : words.slice(0, at)
  const options = at < 0 ? [] : words.slice(at)
  const known = [...Object.keys(SANITIZERS), ...Object.keys(PARTS)]
  const unknown = named.filter((word) => !known.includes(word))
  if (unknown.length > 0) fail(`✗ There is no ${unknown.join(', ')}. Choose from ${known.join(', ')}.`)
  const chosen = (table) => {
    const all = Object.keys(table)
    const some = all.filter((name) => named.includes(name))
    return some.length > 0 ? some : all
  }
  getNightly(['rust-src'])
  mkdirSync(home, { recursive: true })
  for (const name of chosen(SANITIZERS)) {
    for (const part of chosen(PARTS)) PARTS[part](name, SANITIZERS[name], options)
  }
}

function testUnits(name, { flags, skipped }) {
  // This test leaks reservations on purpose.
  const leaks = join(home, 'leaks')
  writeFileSync(leaks, 'leak:no_call_sequence\n')
  const env = {
    RUSTFLAGS: flags.join(' '),
    CARGO_TARGET_DIR: join(home, name),
    LSAN_OPTIONS: `suppressions=${leaks}:print_suppressions=0`,
    PROPTEST_CASES: '16',
    PROPTEST_DISABLE_FAILURE_PERSISTENCE: 'true',
  }
  const test = ['+nightly', 'test', '-Zbuild-std', '--target', target, '-p', 'ringfence', '--lib']
  const skips = skipped.flatMap((pattern) => ['--skip', pattern])
  run(`unit tests under the ${name} sanitizer`, 'cargo', [...test, '--', ...skips], { env })
}

function testNode(name, sanitizer) {
  // ThreadSanitizer would need a Node that is built with it.
  if (name !== 'address') return
  const instrumented = prepare(name, sanitizer)
  buildTests()
  const tests = join('build', 'test')
  const files = readdirSync(join(root, tests)).filter((file) => file.endsWith('.test.js') && file !== OF_PACKAGES)
  const words = ['--timeout=10m', '--match=*', `--match=!${WITHOUT_ADDRESS_SPACE}`]
  run('tests in Node under the address sanitizer', tool('ava'), [...words, ...files.map((file) => join(tests, file))], {
    env: instrumented.env,
  })
  instrumented.checkReports()
}

function testSoak(name, sanitizer, options) {
  const instrumented = prepare(name, sanitizer)
  const { languages, without, slow } = sanitizer
  const words = [
    '--rust',
    join(instrumented.built, 'ringfence-soak'),
    '--languages',
    languages,
    '--without',
    without.join(','),
    '--slow',
    String(slow),
  ]
  const main = join('__test__', 'soak', 'main.mjs')
  run(`the soak under the ${name} sanitizer`, process.execPath, [main, ...words, ...options], { env: instrumented.env })
  instrumented.checkReports()
}

/**
 * Builds the binding with a sanitizer, and returns the environment of its processes. The reports go to files, since a process that crashes
 * for another reason would print none.
 */
function prepare(name, { flags, mistake }) {
  if (!existsSync(join(root, 'dist', 'esm', 'index.js'))) build()
  const reports = join(home, `${name}-reports`)
  rmSync(reports, { recursive: true, force: true })
  mkdirSync(reports, { recursive: true })
  const options = [
    `log_path=${join(reports, 'report')}`,
    // V8 does not free its memory at exit.
    'detect_leaks=0',
    // Freed memory is quarantined, so that later accesses are detected. The default is 256 MiB for each process.
    ...(name === 'address' ? ['quarantine_size_mb=32'] : ['die_after_fork=0']),
  ].join(':')
  const env = { ASAN_OPTIONS: options, TSAN_OPTIONS: options }
  const rustFlags = [...flags]
  if (name === 'address') {
    const library = addressSanitizer()
    // As a shared library, so that executables with and without the sanitizer use the same runtime.
    rustFlags.push('-Zexternal-clangrt', `-Clink-arg=${library}`, `-Clink-arg=-Wl,-rpath,${home}`)
    env.LD_PRELOAD = library
    env.NAPI_RS_NATIVE_LIBRARY_PATH = join(home, 'ringfence.node')
  }
  const packages = ['ringfence-partner', 'ringfence-node', 'ringfence-frames', 'ringfence-ticker']
  const words = [
    '+nightly',
    'build',
    '--quiet',
    '-Zbuild-std',
    '--target',
    target,
    ...packages.flatMap((it) => ['-p', it]),
  ]
  const builtIn = { RUSTFLAGS: rustFlags.join(' '), CARGO_TARGET_DIR: join(home, `${name}-programs`) }
  run(`programs with the ${name} sanitizer`, 'cargo', words, { env: builtIn })
  const built = join(home, `${name}-programs`, target, 'debug')
  if (env.NAPI_RS_NATIVE_LIBRARY_PATH)
    copyFileSync(join(built, 'libringfence_node.so'), env.NAPI_RS_NATIVE_LIBRARY_PATH)
  makeMistake(name, rustFlags, env, reports, mistake)
  return { env, built, checkReports: () => checkReports(name, reports) }
}

/**
 * Links AddressSanitizer's runtime as a shared library, since Rust contains only the static one. Its `.preinit_array`, which is not allowed in
 * a shared library, is removed. The runtime then initializes on its first call.
 */
function addressSanitizer() {
  const { stdout } = spawnSync('rustc', ['+nightly', '--print', 'target-libdir', '--target', target])
  const folder = stdout.toString().trim()
  const archive = readdirSync(folder).find((file) => file.endsWith('_rt.asan.a'))
  if (archive === undefined) fail(`✗ This Rust has no AddressSanitizer in ${folder}.`)
  const copy = join(home, 'runtime.a')
  copyFileSync(join(folder, archive), copy)
  run('remove .preinit_array', 'ar', ['d', copy, 'asan_preinit.cpp.o'])
  const library = join(home, 'libringfence_asan.so')
  const whole = ['-Wl,--whole-archive', copy, '-Wl,--no-whole-archive', '-lpthread', '-ldl', '-lm', '-lrt']
  run('the sanitizer as a library', 'cc', ['-shared', '-o', library, ...whole])
  return library
}

const MISTAKES = {
  // A constructor, so that Node runs it when it loads the library.
  address: `
    #[used]
    #[unsafe(link_section = ".init_array")]
    static MISTAKE: extern "C" fn() = mistake;
    extern "C" fn mistake() {
        let freed = Box::into_raw(Box::new(std::process::id()));
        unsafe { drop(Box::from_raw(freed)) };
        println!("{}", unsafe { freed.read_volatile() });
    }`,
  thread: `
    static mut WORD: u32 = 0;
    fn main() {
        let other = std::thread::spawn(|| unsafe { (&raw mut WORD).write_volatile(1) });
        unsafe { (&raw mut WORD).write_volatile(2) };
        other.join().unwrap();
    }`,
}

/** Checks that the sanitizer reports a mistake in a process of this kind. Otherwise the absence of reports would prove nothing. */
function makeMistake(name, flags, env, reports, mistake) {
  const source = join(home, 'mistake.rs')
  writeFileSync(source, MISTAKES[name])
  const isLibrary = name === 'address'
  const made = join(home, isLibrary ? 'mistake.so' : 'mistake')
  const kind = isLibrary ? ['--crate-type', 'cdylib'] : []
  // The prebuilt standard library has no sanitizer, which is fine here.
  const plain = '-Cunsafe-allow-abi-mismatch=sanitizer'
  const words = [
    '+nightly',
    '--edition',
    '2024',
    plain,
    '--target',
    target,
    '-Copt-level=0',
    ...kind,
    '-o',
    made,
    source,
  ]
  run('a mistake', 'rustc', [...words, ...flags])
  const [command, ...rest] = isLibrary
    ? [process.execPath, '-e', `process.dlopen({ exports: {} }, ${JSON.stringify(made)})`]
    : [made]
  spawnSync(command, rest, { env: { ...process.env, ...env }, stdio: 'ignore' })
  const found = readdirSync(reports).map((file) => readFileSync(join(reports, file), 'utf8'))
  if (!found.some((text) => text.includes(mistake))) fail(`✗ The ${name} sanitizer does not see a ${mistake}.`)
  for (const file of readdirSync(reports)) rmSync(join(reports, file))
}

/** Fails if there is any report, whatever the exit code of its process. */
function checkReports(name, reports) {
  const found = readdirSync(reports)
  for (const file of found.slice(0, 5)) console.log(readFileSync(join(reports, file), 'utf8').slice(0, 6000))
  if (found.length > 0) fail(`✗ ${found.length} reports of the ${name} sanitizer in ${reports}.`)
  console.log('No report.')
}
