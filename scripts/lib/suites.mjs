// Other projects' behaviours, over streams and ports: `npm run test:suites`.

import { join } from 'node:path'
import { FETCH_LIMIT, root, run } from './run.mjs'

/** Milliseconds for all suites: many times what they take. */
const LIMIT = 600_000

/** Their packages are installed as the lock file says; names of suites may follow. Needs a build. */
export function testSuites(words) {
  const cwd = join(root, '__test__', 'suites')
  // ssh2 is tried without the part that it builds, which is optional.
  const install = ['ci', '--no-audit', '--no-fund', '--ignore-scripts', '--omit=optional']
  run('packages of the suites', 'npm', install, { cwd, limit: FETCH_LIMIT })
  run('packages of socket.io', 'npm', ['ci', '--no-audit', '--no-fund'], {
    cwd: join(root, 'examples', 'socket.io'),
    limit: FETCH_LIMIT,
  })
  run('suites', process.execPath, ['main.mjs', ...words], { cwd, limit: LIMIT })
}
