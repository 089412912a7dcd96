// `npm start [-- ARGUMENTS]`: from a fresh clone to the demonstration, which gets the arguments.

import { spawnSync } from 'node:child_process'
import { build, root } from './lib.mjs'

build('--release')

// Not through run(): the demonstration draws to the terminal and may be stopped by Ctrl-C.
console.log()
const demo = spawnSync(process.execPath, ['demo/main.mjs', ...process.argv.slice(2)], {
  cwd: root,
  stdio: 'inherit',
})
process.exitCode = demo.status ?? 1
