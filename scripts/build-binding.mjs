// Builds the native binding into binding/:
//
//     index.cjs                    the loader; CommonJS, so that both builds of the face can require it
//     index.d.cts                  its types
//     ringfence.linux-x64-gnu.node the library, named for what it runs on
//
// The loader takes the library beside it, else the package ringfence-<platform>. Arguments are handed on
// to `napi build`: --release, or -x --target aarch64-unknown-linux-gnu.

import { run, tool } from './lib.mjs'

run('binding', tool('napi'), [
  'build',
  '--platform',
  '--manifest-path',
  'crates/ringfence-node/Cargo.toml',
  '--package',
  'ringfence-node',
  '--package-json-path',
  'package.json',
  '--output-dir',
  'binding',
  '--js',
  'index.cjs',
  '--dts',
  'index.d.cts',
  ...process.argv.slice(2),
])
