// Compiles ts/ twice, to dist/esm and dist/cjs. tsconfig.base.json tells how both find the native binding.

import { chmodSync, existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root, run, tool } from './lib.mjs'

const dist = join(root, 'dist')

// tsc never removes what a source that is gone once became, and dist/ is what gets published.
rmSync(dist, { recursive: true, force: true })

run('TypeScript to ESM', tool('tsc'), ['-p', 'tsconfig.esm.json'])
run('TypeScript to CommonJS', tool('tsc'), ['-p', 'tsconfig.cjs.json'])

// The root says "type": "module"; without this Node and TypeScript would take these files for ESM.
writeFileSync(join(dist, 'cjs', 'package.json'), '{ "type": "commonjs" }\n')

// npm sets this bit when it installs the package; here the file is run from a clone.
const cli = join(dist, 'esm', 'cli.js')
if (existsSync(cli)) chmodSync(cli, 0o755)
