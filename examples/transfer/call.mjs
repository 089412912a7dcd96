// A parent calls its child: one call is answered, and one times out, of which the child is notified.
// This file is also the child.

import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { fromParent, json, spawn } from '../../dist/esm/index.js'

const self = fileURLToPath(import.meta.url)

export async function call() {
  const { child, channel } = await spawn(process.execPath, [self, 'child'], {
    codec: json(),
    spawn: { stdio: 'inherit' },
  })
  const exited = once(child, 'exit')
  const started = performance.now()
  const sum = await channel.call({ add: [2, 3] }, { timeout: 10_000 })
  console.log(
    `The child, process ${child.pid}, answered in ${(performance.now() - started).toFixed(2)} ms: 2 + 3 is ${sum}.`,
  )
  const late = await channel.call({ wait: true }, { timeout: 200 }).then(
    () => undefined,
    (error) => error,
  )
  if (late?.code !== 'ERR_RINGFENCE_TIMEOUT') throw new Error(`the call has not timed out: ${late}`)
  const { reason } = await channel.call({ reason: true }, { timeout: 10_000 })
  console.log(`The next call timed out after 200 ms, and its handler was notified: ${reason}.`)
  await channel.close()
  const [code] = await exited
  if (code !== 0) throw new Error(`the child ended with code ${code}`)
}

async function serve() {
  const channel = await fromParent({ codec: json() })
  let notify
  const notified = new Promise((resolve) => (notify = resolve))
  await channel.serve(async ({ add, reason }, { signal }) => {
    if (add !== undefined) return add[0] + add[1]
    if (reason) return { reason: await notified }
    await once(signal, 'abort')
    notify(signal.reason.code)
    return null
  })
}

if (process.argv[1] === self && process.argv[2] === 'child') await serve()
