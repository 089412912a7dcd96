// The crate as crates.io and docs.rs would take it, and as the oldest compiler does that Cargo.toml promises.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, isInPath, root, run } from './lib.mjs'

if (!isInPath('rustup')) fail('✗ The oldest compiler comes from rustup, and there is no rustup here.', 127)
const oldest = /^rust-version = "(.*)"$/m.exec(readFileSync(join(root, 'Cargo.toml'), 'utf8'))[1]

// Directories of their own: what another compiler, or another set of flags, has built is of no use to the tests.
const apart = (name) => ({ CARGO_TARGET_DIR: join(root, 'build', 'crate', name) })

run(`Rust ${oldest}`, 'rustup', ['toolchain', 'install', oldest, '--profile', 'minimal', '--no-self-update'])
run('oldest compiler', 'cargo', [`+${oldest}`, 'check', '-p', 'ringfence', '--locked'], { env: apart('oldest') })
// A link that leads nowhere is an error here, and an empty place on docs.rs.
const docs = { ...apart('docs'), RUSTDOCFLAGS: '-D warnings' }
run('documentation', 'cargo', ['doc', '-p', 'ringfence', '--no-deps', '--locked'], { env: docs })
// It is packed, unpacked and built from what was packed.
const publish = ['publish', '--dry-run', '-p', 'ringfence', '--locked', '--allow-dirty']
run('publish', 'cargo', publish, { env: apart('publish') })
