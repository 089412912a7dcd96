// Six programs written from README.md alone: each compiles as strict TypeScript, and runs as JavaScript.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import { transform } from 'esbuild'

import { namedAddress } from './support/address.js'

const home = fileURLToPath(new URL('../..', import.meta.url))

/** The lines that each program prints, in any order. */
const programs: Record<string, string[]> = {
  pair: ['the first reads: hello from the second', 'the second reads: hello from the first'],
  service: [
    '1 + 2 + 3 = 6',
    '4 + 5 + 6 = 15',
    'an agent has disconnected: closed',
    'an agent has disconnected: closed',
    '2 agents were served',
  ],
  broadcast: [
    'one: price 101, price 102, price 103',
    'two: price 101, price 102, price 103',
    '3 messages were published: closed',
  ],
  child: ['done: sweep', 'done: mop', 'the channel has ended: closed, and the peer was the child'],
  file: ['the copy is equal'],
  refused: [
    'the service refused process number: ERR_RINGFENCE_PEER_REFUSED, authorize',
    'refused: ERR_RINGFENCE_PEER_REFUSED, authorize',
    'the agent says: I am here',
    'the loop has failed: ERR_RINGFENCE_PEER_LOST',
    'the channel has ended: lost, ERR_RINGFENCE_PEER_LOST',
  ],
}

for (const [name, wanted] of Object.entries(programs))
  test(`the program ${name} works`, async (t) => {
    // Inside the package, so that imports of its own name work.
    const place = mkdtempSync(path.join(home, 'build', 'program-'))
    t.teardown(() => rmSync(place, { recursive: true }))
    const source = readFileSync(path.join(home, '__test__', 'programs', `${name}.ts`), 'utf8')
    const program = path.join(place, `${name}.mjs`)
    writeFileSync(program, (await transform(source, { loader: 'ts', target: 'node20' })).code)
    const child = spawn(process.execPath, [program, namedAddress(t)])
    t.teardown(() => child.kill('SIGKILL'))
    const [output, errors, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')])
    t.is(errors, '')
    t.is(code, 0)
    t.deepEqual(output.trimEnd().split('\n').sort(), [...wanted].sort())
  })
