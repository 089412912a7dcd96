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
  subscribers: { ...text, default: '1,2,4,8,16' },
  sizes: { ...text, default: '64,1024,65536' },
  seconds: { ...text, default: '0.15' },
  runs: { ...text, default: '3' },
  out: { ...text, default: path.join(root, 'docs/bench') },
  build: { type: 'boolean', default: true },
}

export const help = `broadcast: ringfence and its rivals, one publisher and 1 to 16 subscribers; writes broadcast.md, broadcast.json

  --rust, --node       that half alone
  --only a,b           these rivals alone
  --subscribers 1,16   how many
  --sizes 64,1024      bytes of a message; of 64 also in batches, in Rust
  --seconds 0.15       of one run
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
      const chosen = ['only', 'subscribers', 'sizes', 'seconds', 'runs'].filter((name) => values[name] !== undefined)
      must(program, ['broadcast', ...chosen.flatMap((name) => [`--${name}`, values[name]]), '--json', file])
      return JSON.parse(fs.readFileSync(file, 'utf8'))
    })
  }
  if (both || values.node) {
    const plan = {
      only: values.only?.split(',') ?? [],
      subscribers: numbers(values.subscribers),
      sizes: numbers(values.sizes),
      seconds: Number(values.seconds),
      runs: Number(values.runs),
    }
    results.inNode = await runBroadcast(plan, progress)
    progress('')
  }
  const shown = page(results)
  if (values.out !== '') write(values.out, { 'broadcast.md': shown, 'broadcast.json': json(results) })
  say(`\n${shown}`)
}
