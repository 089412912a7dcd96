// Renders the pages again from the existing results.

import fs from 'node:fs'
import path from 'node:path'

import { PAGES, pageOf } from './experiment.mjs'
import { fetchDeps, root, write } from './shared.mjs'

export const about = 'renders every page again from its JSON, without measuring'
export const options = { out: ['the folder of the JSON files and the pages', 'docs/internals/bench'] }

export async function run({ out }) {
  fetchDeps()
  for (const data of Object.keys(PAGES)) {
    const file = path.resolve(root, out, `${data}.json`)
    if (fs.existsSync(file)) write(out, await pageOf(data, JSON.parse(fs.readFileSync(file, 'utf8'))))
  }
}
