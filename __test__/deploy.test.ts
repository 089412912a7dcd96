// The files of examples/deploy: docs/production.md shows them as they are, and the two programs survive a replacement.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { namedAddress } from './support/address.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const read = (file: string) => readFileSync(join(root, file), 'utf8')

for (const file of ['Dockerfile', 'compose.yaml', 'pod.yaml', 'orders.conf', 'orders.service']) {
  test(`docs/production.md shows examples/deploy/${file}`, (t) => {
    t.true(read('docs/production.md').includes(`\n${read(`examples/deploy/${file}`)}\`\`\`\n`))
  })
}

test('both units have the same sandbox', (t) => {
  const sandbox = (unit: string) => read(`examples/deploy/${unit}`).split('\n# ')[1]
  t.truthy(sandbox('orders.service'))
  t.is(sandbox('orders-agent.service'), sandbox('orders.service'))
})

/** Starts one of the programs. Returns its process and its lines. */
function start(t: ExecutionContext, program: string, address: string) {
  const child = spawn(process.execPath, [join(root, 'examples/deploy', program)], {
    env: { ...process.env, ORDERS_SOCKET: address, ORDERS_POLICY: '{ "executable": "any" }' },
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() }
}

test('an agent gets each order done while its service is replaced, first by SIGTERM and then by SIGKILL', async (t) => {
  const address = namedAddress(t)
  const agent = start(t, 'agent.mjs', address)
  let order = 1
  for (const signal of ['SIGTERM', 'SIGKILL', 'SIGTERM'] as const) {
    const service = start(t, 'service.mjs', address)
    t.is((await service.lines.next()).value, `process ${agent.child.pid} of user ${process.getuid!()} connected`)
    for (const until = order + 2; order < until; order++)
      t.is((await agent.lines.next()).value, `order ${order} is done`)
    const exited = once(service.child, 'exit')
    service.child.kill(signal)
    t.deepEqual(await exited, signal === 'SIGTERM' ? [0, null] : [null, signal])
  }
})
