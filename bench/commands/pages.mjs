// The pages anew, from the results that are there.

import fs from 'node:fs'
import path from 'node:path'

import { PAGES, pageOf } from './experiment.mjs'
import { fetchDeps, root, write } from './shared.mjs'

export const about = 'renders every page anew from its JSON; measures nothing'
export const options = { out: ['where the JSON is and the pages go', 'docs/internals/bench'] }

export async function run({ out }) {
  fetchDeps()
  for (const data of Object.keys(PAGES)) {
    const file = path.resolve(root, out, `${data}.json`)
    if (fs.existsSync(file)) write(out, await pageOf(data, JSON.parse(fs.readFileSync(file, 'utf8'))))
  }
}
