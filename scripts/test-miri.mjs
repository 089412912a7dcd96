// The ring's unsafe code under Miri: data races, bad pointers, reads of what was never written. Its tests
// use plain memory there, since Miri has no memfd.

import { spawnSync } from 'node:child_process'
import { fail, isInPath, root, run } from './lib.mjs'

const env = {
  MIRIFLAGS: [
    // A pointer made of an integer would hide from Miri what it may touch.
    '-Zmiri-strict-provenance',
    '-Zmiri-symbolic-alignment-check',
    // proptest looks at its environment.
    '-Zmiri-disable-isolation',
  ].join(' '),
  // Miri runs the unoptimised program, whatever Cargo.toml wants for tests.
  CARGO_PROFILE_TEST_OPT_LEVEL: '0',
  // A case takes a minute or two there; the full number of them runs natively.
  PROPTEST_CASES: '2',
  // A case that fails here fails again from its seed; nothing is to be written into the sources.
  PROPTEST_DISABLE_FAILURE_PERSISTENCE: 'true',
}
const test = ['+nightly', 'miri', 'test', '-p', 'ringfence', '--lib', 'ring::']

if (!isInPath('rustup')) fail('✗ Miri is part of the nightly toolchain, and there is no rustup here to get it.', 127)
run('get Miri', 'rustup', ['component', 'add', 'miri', 'rust-src', '--toolchain', 'nightly'])
run('the ring under Miri', 'cargo', test, { env })

// A filter that matches nothing passes too.
const list = spawnSync('cargo', [...test, '--', '--list'], { cwd: root, env: { ...process.env, ...env } })
if (!/: test$/m.test(list.stdout.toString())) fail('✗ the ring under Miri: no test is named for the ring')
