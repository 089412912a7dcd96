// What actionlint and zizmor say of .github: whether the workflows mean what they say, and whom they trust. Both are
// fetched below build/ once, from the registries of their languages.

import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fail, isInPath, root, run } from './lib.mjs'

const ACTIONLINT = 'github.com/rhysd/actionlint/cmd/actionlint@v1.7.12'
const ZIZMOR = 'zizmor==1.32.0'

const home = join(root, 'build', 'workflows')
const [actionlint, zizmor] = ['actionlint', 'zizmor'].map((name) => join(home, 'bin', name))
if (!existsSync(zizmor)) {
  run('Python environment', 'python3', ['-m', 'venv', home])
  run('zizmor', join(home, 'bin', 'pip'), ['install', '--quiet', ZIZMOR])
}
if (!existsSync(actionlint)) {
  if (!isInPath('go')) fail('✗ actionlint comes from the Go module proxy, and there is no go here.', 127)
  run('actionlint', 'go', ['install', ACTIONLINT], { env: { GOBIN: join(home, 'bin') } })
}
// By name: by itself it looks for them from the root of a git repository.
const workflows = join(root, '.github', 'workflows')
const files = readdirSync(workflows).map((name) => join(workflows, name))
run('actionlint', actionlint, ['-color', ...files])
// Offline: what it would ask GitHub for differs from one day to the next.
run('zizmor', zizmor, ['--offline', '--pedantic', '--no-progress', '.github'])
