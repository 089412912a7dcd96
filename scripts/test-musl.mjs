// The crate's tests as a musl build, which carries its C library with it and so runs on any machine of its
// architecture. The binding takes a Node that is built with musl: see test-install.mjs.

import { join } from 'node:path'
import { addTarget, root, run } from './lib.mjs'

const target = `${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-unknown-linux-musl`
addTarget(target)
// Beside what the tests of this machine's C library have built.
const env = { CARGO_TARGET_DIR: join(root, 'build', 'crate', 'musl') }
run('tests with musl', 'cargo', ['test', '-p', 'ringfence', '--target', target], { env })
