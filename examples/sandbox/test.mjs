// Checks that the example runs, and that each attack fails as README.md describes.

import { spawn } from 'node:child_process'
import { match, equal } from 'node:assert/strict'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import test from 'node:test'
import { fileURLToPath } from 'node:url'

const outcomes = [
  /confined\.seccomp +a filter in every thread/,
  /opens the network +refused: EPERM/,
  /reads a file of yours +refused: ENOENT/,
  /kills the host +refused: ESRCH/,
  /corrupts the ring +the channel is closed as corrupt: ERR_RINGFENCE_RING_CORRUPT/,
  /floods the host +\d+ messages in 2 s/,
  /never answers +ERR_RINGFENCE_TIMEOUT/,
  /takes all memory +(the channel is closed as lost|not tried)/,
  /outlives its parent +its daemon was killed with it/,
  /a channel +[\d,]+ a second/,
  /in the sandbox +[\d,]+ a second, [\d.]+ µs a round trip/,
  /without a sandbox +[\d,]+ a second, [\d.]+ µs a round trip/,
]

test('hostile code in the sandbox fails in each way', async () => {
  const child = spawn(process.execPath, [fileURLToPath(new URL('main.mjs', import.meta.url)), '1'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [output, [code]] = await Promise.all([text(child.stdout), once(child, 'exit')])
  for (const outcome of outcomes) match(output, outcome)
  equal(code, 0)
})
