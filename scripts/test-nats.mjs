// examples/nats with a real server: two hosts' services, joined. The server comes from the Go module proxy; where there
// is no Go, this is left out, and says so. Needs a build.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { isInPath, root, run } from './lib.mjs'

const SERVER = 'github.com/nats-io/nats-server/v2@v2.15.2'

const home = join(root, 'build', 'nats')
const server = join(home, 'nats-server')
if (!existsSync(server) && !isInPath('go')) {
  console.log('Left out: examples/nats takes a NATS server, which is built with Go, and there is no go here.')
  process.exit(0)
}
if (!existsSync(server)) run('NATS server', 'go', ['install', SERVER], { env: { GOBIN: home } })
const cwd = join(root, 'examples', 'nats')
run('its client', 'npm', ['ci', '--no-audit', '--no-fund'], { cwd })
run('two hosts', process.execPath, ['main.mjs', '2000', server], { cwd })
