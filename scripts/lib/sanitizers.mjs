// Runs under ThreadSanitizer and AddressSanitizer: `npm run test:sanitizers`.

import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build, buildTests } from '../build.mjs'
import { fail, getNightly, root, run, tool } from './run.mjs'

const target = `${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-unknown-linux-gnu`
const home = join(root, 'build', 'sanitizers')

/** Loom switches stacks by itself, which no sanitizer follows. */
const LOOM = ['orderings', 'parking::tests', 'many::tests']

const SANITIZERS = {
  address: {
    flags: ['-Zsanitizer=address'],
    /** Unit tests that it is not shown. */
    skipped: LOOM,
    /** Both languages: Node is given the sanitizer's library before it begins, and so is each process that it starts. */
    languages: 'rust,node',
    /** Address space is what its shadow takes; it sets twenty terabytes aside. */
    without: ['as', 'cgroup'],
    slow: 3,
    mistake: 'heap-use-after-free',
  },
  thread: {
    // Fences are nothing that it knows: what they order is ordered by the accesses themselves here.
    flags: ['-Zsanitizer=thread', '--cfg', 'ringfence_tsan'],
    // Of what is written over while it is read, a reader throws its copy away; and a peer that lies may write at any moment.
    skipped: [...LOOM, 'readers_that_are_overtaken', 'fuzzing::', 'liars::'],
    // Node's own threads would have to be built with it.
    languages: 'rust',
    without: ['as', 'cgroup', 'idle'],
    slow: 10,
    mistake: 'data race',
  },
}

/** Excluded from the tests in Node: this one has no binding, or one of a package, instead of the sanitizer's. */
const OF_PACKAGES = 'package.test.js'
/** Without address space the sanitizer ends the process. */
const WITHOUT_ADDRESS_SPACE = '*(RLIMIT_AS)*'

/** What is run under each. */
const PARTS = { units: testUnits, node: testNode, soak: testSoak }

/**
 * The crate's unit tests, the tests in Node, and the soak for some minutes, with the standard library built anew, so that it is watched as
 * well: `[address | thread …] [units | node | soak …] [--minutes N] [--seed S]`. See docs/internals/testing.md.
 */
export function testSanitizers(words) {
  const at = words.findIndex((word) => word.startsWith('--'))
  const named = at < 0 ? words : words.slice(0, at)
  const options = at < 0 ? [] : words.slice(at)
  const known = [...Object.keys(SANITIZERS), ...Object.keys(PARTS)]
  const unknown = named.filter((word) => !known.includes(word))
  if (unknown.length > 0) fail(`✗ There is no ${unknown.join(', ')} here, only ${known.join(', ')}.`)
  const chosen = (of) => {
    const all = Object.keys(of)
    const these = all.filter((name) => named.includes(name))
    return these.length > 0 ? these : all
  }
  getNightly(['rust-src'])
  mkdirSync(home, { recursive: true })
  for (const name of chosen(SANITIZERS)) {
    for (const part of chosen(PARTS)) PARTS[part](name, SANITIZERS[name], options)
  }
}

function testUnits(name, { flags, skipped }) {
  // This test forgets reservations, as a program may.
  const leaks = join(home, 'leaks')
  writeFileSync(leaks, 'leak:no_order_of_calls\n')
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
  // Node's own threads are not built with the other one.
  if (name !== 'address') return
  const watched = prepare(name, sanitizer)
  buildTests()
  const tests = join('build', 'test')
  const files = readdirSync(join(root, tests)).filter((file) => file.endsWith('.test.js') && file !== OF_PACKAGES)
  const words = ['--timeout=10m', '--match=*', `--match=!${WITHOUT_ADDRESS_SPACE}`]
  run('tests in Node under the address sanitizer', tool('ava'), [...words, ...files.map((file) => join(tests, file))], {
    env: watched.env,
  })
  watched.look()
}

function testSoak(name, sanitizer, options) {
  const watched = prepare(name, sanitizer)
  const { languages, without, slow } = sanitizer
  const words = [
    '--rust',
    join(watched.built, 'ringfence-soak'),
    '--languages',
    languages,
    '--without',
    without.join(','),
    '--slow',
    String(slow),
  ]
  const main = join('__test__', 'soak', 'main.mjs')
  run(`the soak under the ${name} sanitizer`, process.execPath, [main, ...words, ...options], { env: watched.env })
  watched.look()
}

/**
 * Builds the binding with a sanitizer, and returns the environment of its processes. The reports go to files, since a process
 * that dies of something else would print none.
 */
function prepare(name, { flags, mistake }) {
  if (!existsSync(join(root, 'dist', 'esm', 'index.js'))) build()
  const said = join(home, `${name}-reports`)
  rmSync(said, { recursive: true, force: true })
  mkdirSync(said, { recursive: true })
  const options = [
    `log_path=${join(said, 'report')}`,
    // V8 gives back nothing at its end.
    'detect_leaks=0',
    // Freed memory is kept for a while, so that a look at it is seen; by itself it is 256 MiB of each process.
    ...(name === 'address' ? ['quarantine_size_mb=32'] : ['die_after_fork=0']),
  ].join(':')
  const env = { ASAN_OPTIONS: options, TSAN_OPTIONS: options }
  const rustFlags = [...flags]
  if (name === 'address') {
    const library = addressSanitizer()
    // Not in each executable, but beside them, so that the one that was built with it and the one that was not have the same.
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
  makeMistake(name, rustFlags, env, said, mistake)
  return { env, built, look: () => look(name, said) }
}

/**
 * AddressSanitizer as a library of its own: Rust brings it only as what executables are linked with. Its part for an executable's first
 * moment, which no library may have, is left out; it begins with the first call then.
 */
function addressSanitizer() {
  const { stdout } = spawnSync('rustc', ['+nightly', '--print', 'target-libdir', '--target', target])
  const folder = stdout.toString().trim()
  const archive = readdirSync(folder).find((file) => file.endsWith('_rt.asan.a'))
  if (archive === undefined) fail(`✗ This Rust has no AddressSanitizer in ${folder}.`)
  const copy = join(home, 'runtime.a')
  copyFileSync(join(folder, archive), copy)
  run('without its first moment', 'ar', ['d', copy, 'asan_preinit.cpp.o'])
  const library = join(home, 'libringfence_asan.so')
  const whole = ['-Wl,--whole-archive', copy, '-Wl,--no-whole-archive', '-lpthread', '-ldl', '-lm', '-lrt']
  run('the sanitizer as a library', 'cc', ['-shared', '-o', library, ...whole])
  return library
}

const MISTAKES = {
  // As a constructor, so that Node makes it by loading this.
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

/** A mistake that must be seen, in a process of the kind that is watched: else what says nothing proves nothing. */
function makeMistake(name, flags, env, said, mistake) {
  const source = join(home, 'mistake.rs')
  writeFileSync(source, MISTAKES[name])
  const isLibrary = name === 'address'
  const made = join(home, isLibrary ? 'mistake.so' : 'mistake')
  const kind = isLibrary ? ['--crate-type', 'cdylib'] : []
  // The standard library that comes with Rust is not watched, and need not be.
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
  const found = readdirSync(said).map((file) => readFileSync(join(said, file), 'utf8'))
  if (!found.some((text) => text.includes(mistake))) fail(`✗ The ${name} sanitizer does not see a ${mistake}.`)
  for (const file of readdirSync(said)) rmSync(join(said, file))
}

/** The reports of all processes. Any report is a failure, whatever became of the process. */
function look(name, said) {
  const found = readdirSync(said)
  for (const file of found.slice(0, 5)) console.log(readFileSync(join(said, file), 'utf8').slice(0, 6000))
  if (found.length > 0) fail(`✗ ${found.length} reports of the ${name} sanitizer in ${said}.`)
  console.log('No report.')
}
