// ringfence alone, as channels, messages and rings grow.

import fs from 'node:fs'
import path from 'node:path'

import * as pages from '../pages/scale.mjs'
import { must, origin, program, root, rust, withScratch, write } from './shared.mjs'

const text = { type: 'string' }
export const options = {
  seconds: { ...text, default: '0.5' },
  runs: { ...text, default: '3' },
  pause: { ...text, default: '0' },
  out: { ...text, default: path.join(root, 'docs/bench') },
  build: { type: 'boolean', default: true },
}

export const help = `scale: 1 to 10,000 channels, also merged, 1 to 1,000 subscribers, 8 B to 64 MiB, rings of 64 KiB to 64 MiB; writes
scale.md, scale.json and its plots

  --seconds 0.5        of one measurement
  --runs 3             rounds
  --pause 0            seconds between two steps, for others on the same machine
  --out docs/bench     --out '' writes none
  --no-build           what is built already is good enough`

export async function run(values) {
  if (values.build) must('cargo', ['build', '--release'], { cwd: rust })
  await withScratch((scratch) => {
    const file = path.join(scratch, 'scale.json')
    const chosen = ['runs', 'seconds', 'pause'].flatMap((name) => [`--${name}`, values[name]])
    must(program, ['scale', ...chosen, '--json', file])
    const results = { ...origin(), ...JSON.parse(fs.readFileSync(file, 'utf8')) }
    const files = pages.plots(results)
    if (values.out !== '')
      write(values.out, { 'scale.json': pages.json(results), 'scale.md': pages.page(results, files), ...files })
  })
}
