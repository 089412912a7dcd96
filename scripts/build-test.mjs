// Compiles __test__/ to build/test, from where ava runs it, and the Rust processes that it starts.

import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { root, run, tool } from './lib.mjs'

// A test whose source is gone must not go on passing.
rmSync(join(root, 'build', 'test'), { recursive: true, force: true })
run('compile the tests', tool('tsc'), ['-p', 'tsconfig.test.json'])
run('compile their partners', 'cargo', ['build', '--quiet', '-p', 'ringfence-partner', '-p', 'ringfence-frames'])
