// The last results of each runtime, in expected.json: 'pass', or the reason of a failure. A run with worse results has found a
// regression.

import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const FILE = fileURLToPath(new URL('expected.json', import.meta.url))
const WIDE = 12

const expected = JSON.parse(readFileSync(FILE, 'utf8'))

/** The known result of a cell. A new cell is expected to pass. */
const known = (key, name) => expected[key]?.[name] ?? 'pass'

/** The reason of a failure: the recorded explanation of a known one, or the first line of a new one. */
function reason(key, name, why) {
  return known(key, name) === 'pass' ? why.split('\n')[0] : known(key, name)
}

/** Rows have a `key`, and either `results`, with null for a pass and otherwise the failure, or `untried`. */
export function report(rows) {
  const columns = Object.keys(rows.find(({ results }) => results).results)
  const width = (texts) => Math.max(...texts.map((text) => text.length)) + 2
  const [first, second] = [width(rows.map(({ title }) => title)), width(rows.map(({ platform }) => platform))]
  const line = (...cells) => console.log(cells.join('').trimEnd())
  const notes = []
  const cell = (key, name, why) => {
    if (why === null) return 'pass'
    const note = reason(key, name, why)
    if (!notes.includes(note)) notes.push(note)
    return `fails [${notes.indexOf(note) + 1}]`
  }
  console.log()
  line('runtime'.padEnd(first), 'on'.padEnd(second), ...columns.map((name) => name.padEnd(WIDE)))
  for (const { key, title, platform, results, untried } of rows) {
    const cells = results
      ? columns.map((name) => cell(key, name, results[name]).padEnd(WIDE))
      : [`not tried: ${untried}`]
    line(title.padEnd(first), platform.padEnd(second), ...cells)
  }
  for (const [index, note] of notes.entries()) console.log(`[${index + 1}] ${note}`)
}

/** New failures, and known failures that now pass. */
export function compare(rows) {
  const [broken, mended] = [[], []]
  for (const { key, results } of rows) {
    for (const [name, why] of Object.entries(results ?? {})) {
      if (why !== null && known(key, name) === 'pass') broken.push(`${key}, ${name}: ${why}`)
      if (why === null && known(key, name) !== 'pass') mended.push(`${key}, ${name}: known as "${known(key, name)}"`)
    }
  }
  return { broken, mended }
}

/** Saves the results of this run, and keeps those that were not tried. */
export function remember(rows) {
  const entries = rows.map(({ key, results }) => {
    if (!results) return [key, expected[key]]
    const said = Object.entries(results).map(([name, why]) => [name, why === null ? 'pass' : reason(key, name, why)])
    return [key, Object.fromEntries(said)]
  })
  writeFileSync(FILE, `${JSON.stringify(Object.fromEntries(entries), null, 2)}\n`)
}
