// Runs test suites of other projects over streams and ports: `npm run test:suites`.

import { join } from 'node:path'
import { FETCH_LIMIT, root, run } from './run.mjs'

/** Milliseconds for all suites, many times their usual duration. */
const LIMIT = 600_000

/** Installs the packages by their lock files, and runs the named suites, or all. Needs a build. */
export function testSuites(words) {
  const cwd = join(root, '__test__', 'suites')
  // Without ssh2's optional native part.
  const install = ['ci', '--no-audit', '--no-fund', '--ignore-scripts', '--omit=optional']
  run('packages of the suites', 'npm', install, { cwd, limit: FETCH_LIMIT })
  run('packages of socket.io', 'npm', ['ci', '--no-audit', '--no-fund'], {
    cwd: join(root, 'examples', 'socket.io'),
    limit: FETCH_LIMIT,
  })
  run('suites', process.execPath, ['main.mjs', ...words], { cwd, limit: LIMIT })
}
