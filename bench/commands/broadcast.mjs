// One that publishes and many that subscribe, in Rust and in Node.

import fs from 'node:fs'
import path from 'node:path'

import { runBroadcast } from '../node/broadcast/plan.mjs'
import { json, page } from '../pages/broadcast.mjs'
import { buildNode, buildRust, must, origin, program, progress, root, say, withScratch, write } from './shared.mjs'

const text = { type: 'string' }
export const options = {
  rust: { type: 'boolean' },
  node: { type: 'boolean' },
  only: text,
  subscribers: text,
  idle: text,
  sizes: text,
  seconds: text,
  runs: { ...text, default: '3' },
  out: { ...text, default: path.join(root, 'docs/bench') },
  build: { type: 'boolean', default: true },
}

export const help = `broadcast: ringfence and its rivals, one publisher and 1 to 16 subscribers; writes broadcast.md, broadcast.json

  --rust, --node       that half alone
  --only a,b           these rivals alone
  --subscribers 1,16   how many (1, 2, 4, 8 and 16; in Node 1, 4, 8 and 16)
  --idle 16,62         subscribers beside one that reads, which never read (0, 16 and 62; in Rust)
  --sizes 64,1024      bytes of a message (64, 1024 and 65536; in Node 64 and 1024); of 64 also in batches, in Rust
  --seconds 0.15       of one run (in Node 1)
  --runs 3             rounds
  --out docs/bench     --out '' writes none
  --no-build           what is built already is good enough`

const numbers = (list) => list.split(',').map(Number)

export async function run(values) {
  const both = !values.rust && !values.node
  if (values.build && (both || values.rust)) buildRust()
  if (values.build && (both || values.node)) buildNode()
  const results = { ...origin(), runs: Number(values.runs) }
  if (both || values.rust) {
    results.rust = await withScratch((scratch) => {
      const file = path.join(scratch, 'broadcast.json')
      const chosen = ['only', 'subscribers', 'idle', 'sizes', 'seconds', 'runs'].filter(
        (name) => values[name] !== undefined,
      )
      const seconds = values.seconds === undefined ? ['--seconds', '0.15'] : []
      must(program, ['broadcast', ...chosen.flatMap((name) => [`--${name}`, values[name]]), ...seconds, '--json', file])
      return JSON.parse(fs.readFileSync(file, 'utf8'))
    })
  }
  if (both || values.node) {
    const plan = { runs: Number(values.runs) }
    if (values.seconds !== undefined) plan.seconds = Number(values.seconds)
    if (values.only !== undefined) plan.only = values.only.split(',')
    for (const name of ['subscribers', 'sizes']) if (values[name] !== undefined) plan[name] = numbers(values[name])
    results.inNode = await runBroadcast(plan, progress)
    progress('')
  }
  const shown = page(results)
  if (values.out !== '') write(values.out, { 'broadcast.md': shown, 'broadcast.json': json(results) })
  say(`\n${shown}`)
}
