// Shared functions of the pages: tables, spreads, aims, and the frame around each half's sections.

import { bytes, duration, quantity } from '../node/text.mjs'

/** Formats a table whose first column is text; the other columns are figures. */
export const table = (head, rows) =>
  [head, head.map((_, index) => (index === 0 ? '---' : '--:')), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n')

/** Formats the median; the minimum and the maximum are in the JSON. */
export const spread = ({ median }, show) => show(median)

export const rate = (value) => spread(value, (one) => quantity(one, '/s'))

export const times = ({ median, min, max }, by) => ({ median: median * by, min: min * by, max: max * by })

/** Converts a spread of messages per second to bytes per second. */
export const flow = (value, size) => spread(times(value, size), (one) => quantity(one, 'B/s'))

export const hasRun = (cell) =>
  Boolean(cell?.runs.length || cell?.failures?.length || Object.keys(cell?.by_placement ?? {}).length)

/** Returns a cell's figures in that placement, or else in another one, which the mark names. */
export function figures(cell, placement) {
  const there = cell?.by_placement ?? {}
  if (there[placement]) return { summary: there[placement], mark: '' }
  const [other] = Object.entries(there).sort(([, a], [, b]) => b.runs - a.runs)
  return other ? { summary: other[1], mark: ` (${other[0]})` } : null
}

function shown(cell, placement, show) {
  const found = figures(cell, placement)
  if (found === null) return cell?.failures?.length ? 'failed' : '–'
  return `${show(found.summary, cell)}${found.mark}`
}

const unique = (values) => [...new Set(values)].sort((a, b) => a - b)

/**
 * A row for each contender, and a column for each value of `column`, named by `name`. `show(summary, cell)`. `last`: a column of the
 * first one's processor time. Contenders without a run are left out.
 */
export function grid({ contenders }, cells, { column, name = String, show, head = '', last }, placement) {
  const keys = unique(cells.map((cell) => cell[column]))
  const rows = contenders
    .map(({ id }) => [id, keys.map((key) => cells.find((cell) => cell.contender === id && cell[column] === key))])
    .filter(([, row]) => row.some(hasRun))
  if (rows.length === 0) return ''
  const cpu = ([, [first]]) => figures(first, placement)?.summary.cpu_ns_per_message.median
  const hasCpu = last !== undefined && rows.some((row) => cpu(row))
  const ofRow = (row) =>
    [row[0]].concat(
      row[1].map((cell) => shown(cell, placement, show)),
      hasCpu ? [cpu(row) ? duration(cpu(row)) : '–'] : [],
    )
  return table([head, ...keys.map((key) => name(key)), ...(hasCpu ? [last] : [])], rows.map(ofRow))
}

/** A row for each cell, named by `name(cell)`, and for each figure a column `[head, show(summary, cell)]`. */
export function listing(cells, [head, name], columns, placement) {
  const rows = cells.filter(hasRun).map((cell) => {
    const found = figures(cell, placement)
    const texts = columns.map(([, show]) => (found === null ? 'failed' : show(found.summary, cell)))
    return [`${name(cell)}${found?.mark ?? ''}`].concat(texts)
  })
  return rows.length === 0 ? '' : table([head, ...columns.map(([title]) => title)], rows)
}

/** Formats a section of a heading, paragraphs and content; empty if the content is empty. */
export const block = (heading, ...parts) =>
  parts.at(-1) === '' ? [] : [heading, ...parts].filter(Boolean).flatMap((part) => [part, ''])

export const asTimes = (ratio) => `${Number(ratio.toFixed(2))} ×`

/** The placement of most runs, in which contenders are compared. */
export function usualPlacement(cells) {
  const counts = { near: 0, far: 0, moved: 0 }
  for (const { by_placement } of cells)
    for (const [name, { runs }] of Object.entries(by_placement)) counts[name] += runs
  return counts.far > counts.near ? 'far' : 'near'
}

function distance(runs) {
  const looks = runs.flatMap(({ before, after }) => [before, after].filter(Boolean))
  const ns = looks.map(({ line_ns }) => line_ns)
  const near = looks.filter((look) => look.near).length
  return `${Math.min(...ns).toFixed(0)} to ${Math.max(...ns).toFixed(0)} ns (near in ${near} of ${looks.length}), before and after each run`
}

const NAMES = { rust: 'Rust', node: 'Node', publish: 'Rust, one to many', scale: 'Rust, as work grows' }
export const nameOf = (half) => NAMES[half.name]

const stateOf = ({ steal, others }, { governor }) =>
  `${(steal * 100).toFixed(1)} % of the time stolen, other processes ${(others * 100).toFixed(0)} % of a core, governor ${governor}`

function facts({ machine, date, commit, node, rustc, load, runs, halves, state, disturbed }, more) {
  const all = halves.flatMap(({ cells }) => cells).flatMap((cell) => cell.runs)
  const seconds = unique(halves.map((half) => half.seconds)).join(', ')
  const placements = halves.map((half) => `${nameOf(half)}: ${usualPlacement(half.cells)}`).join('; ')
  return [
    ['machine', ''],
    ['---', '---'],
    ['CPU', `${machine.cpu}${machine.hypervisor ? ', virtual' : ''}, ${machine.cores} cores`],
    ['caches', machine.caches],
    ['memory', `${machine.memory_gib.toFixed(0)} GiB`],
    ['kernel', `Linux ${machine.kernel}`],
    ['versions', [node && `Node ${node}`, rustc, `ringfence at ${commit}`].filter(Boolean).join('; ')],
    ['runs', `${runs} of ${seconds} s each, in rounds; medians; ${date}`],
    ['load average before', load.toFixed(1)],
    ...(state ? [['state', stateOf(state, machine)]] : []),
    ...(disturbed ? [['quiet', disturbed.length === 0 ? 'yes' : `no: ${disturbed.join('; ')}`]] : []),
    ...more,
    ...(all.length > 0 ? [['cache line round trip', distance(all)]] : []),
    ['placement', `${placements}; a cell of another placement names it`],
  ].map((cells) => `| ${cells.join(' | ')} |`)
}

function credits({ contenders, cells }) {
  const took = ({ id }) => cells.some((cell) => cell.contender === id && hasRun(cell))
  const lines = contenders.map((contender) => {
    const { id, version, note } = contender
    const why = cells.find((cell) => cell.contender === id)?.skipped
    return `- **${id}** (${version}): ${note}${took(contender) || !why ? '' : `. Not run: ${why}`}`
  })
  return lines.join('\n')
}

/** The keys of a cell, as text. */
const keyOf = ({ contender, measure, subscribers, size, failure }) =>
  [contender, measure, subscribers && `${subscribers} subscribers`, size && bytes(size), failure]
    .filter(Boolean)
    .join(', ')

function failed({ cells }) {
  const rows = cells.filter(({ failures }) => failures?.length)
  return rows.map((cell) => `- ${keyOf(cell)}: ${cell.failures.length} (${cell.failures.at(-1)})`).join('\n')
}

/**
 * A page: its title, introduction and facts, then for each half its name, `section(half, placement)`, the contenders, and failed
 * runs. `lead`: lines before the facts. `single`: the page has one half, which needs no heading.
 */
export function render(results, { title, intro, lead = [], facts: more = [], section, single = false }) {
  const out = [`# ${title}`, '', ...intro, '', ...lead, ...facts(results, more), '']
  for (const half of results.halves) {
    const lines = section(half, usualPlacement(half.cells))
    out.push(...(single ? [] : [`## ${nameOf(half)}`, '']), ...lines)
    if (half.contenders.some(({ note }) => note)) out.push(...block('The contenders:', credits(half)))
    out.push(...block('Failed runs:', failed(half)))
  }
  return `${out.join('\n').trimEnd()}\n`
}
