// The shared parts of the pages: tables, spreads, aims, and the frame around each half's sections.

import { bytes, duration, quantity } from '../node/text.mjs'

/** A table whose first column is text, and the others figures. */
export const table = (head, rows) =>
  [head, head.map((_, index) => (index === 0 ? '---' : '--:')), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n')

export const plain = (value) => quantity(value).trim()

/** A median, and below it the least and the most. */
export const spread = ({ median, min, max }, show, range = show) => `**${show(median)}**<br>${range(min)}–${range(max)}`

export const rate = (value) => spread(value, (one) => quantity(one, '/s'), plain)

export const times = ({ median, min, max }, by) => ({ median: median * by, min: min * by, max: max * by })

/** A spread of messages a second, as bytes a second. */
export const flow = (value, size) => spread(times(value, size), (one) => quantity(one, 'B/s'), plain)

export const hasRun = (cell) =>
  Boolean(cell?.runs.length || cell?.failures?.length || Object.keys(cell?.by_placement ?? {}).length)

/** A cell's figures in that placement; otherwise in another one, and then the mark says so. */
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

/** A heading, the paragraphs below it, and what they introduce; nothing if that is empty. */
export const block = (heading, ...parts) =>
  parts.at(-1) === '' ? [] : [heading, ...parts].filter(Boolean).flatMap((part) => [part, ''])

/** The aims, rows of {@link atLeast} and {@link atMost}; rows without a figure are left out. */
export function aims(rows) {
  const known = rows.filter(({ found }) => found !== null)
  if (known.length === 0) return ''
  const verdict = ({ reached, because }) => (reached ? 'reached' : ['not reached', because].filter(Boolean).join(': '))
  return table(
    ['what', 'measured', 'aim', ''],
    known.map((row) => [row.what, row.found, row.aim, verdict(row)]),
  )
}

const aim = (what, found, show, rest) => ({ what, found: Number.isFinite(found) ? show(found) : null, ...rest })

/** More is better; `because` says what limits it, if it is less than was asked for. */
export const atLeast = (what, found, asked, show, because) =>
  aim(what, found, show, { aim: show(asked), reached: found >= asked, because })

/** Less is better. */
export const atMost = (what, found, asked, show, because) =>
  aim(what, found, show, { aim: `≤ ${show(asked)}`, reached: found <= asked, because })

export const millions = (perSecond) => `${Number((perSecond / 1e6).toFixed(1))} M/s`
export const asTimes = (ratio) => `${Number(ratio.toFixed(2))} ×`

/** The placement that most runs had: the one to compare in. */
export function usualPlacement(cells) {
  const counts = { near: 0, far: 0, moved: 0 }
  for (const { by_placement } of cells)
    for (const [name, { runs }] of Object.entries(by_placement)) counts[name] += runs
  return counts.far > counts.near ? 'far' : 'near'
}

/** Losing a core so often a second means that something else ran beside the measurement. */
const DISTURBED = 50

const losses = (run) =>
  run.preempted === undefined
    ? Object.values(run).flatMap((part) => part?.preempted_per_second ?? [])
    : [run.preempted / run.seconds]

function disturbed(runs) {
  const lost = runs.flatMap(losses)
  const count = lost.filter((each) => each > DISTURBED).length
  return `${count} of ${lost.length} runs lost a core more than ${DISTURBED} times a second`
}

function distance(runs) {
  const looks = runs.flatMap(({ before, after }) => [before, after].filter(Boolean))
  const ns = looks.map(({ line_ns }) => line_ns)
  const near = looks.filter((look) => look.near).length
  return `${Math.min(...ns).toFixed(0)} to ${Math.max(...ns).toFixed(0)} ns (near in ${near} of ${looks.length}), before and after each run`
}

const NAMES = { rust: 'Rust', node: 'Node' }
export const nameOf = (half) => NAMES[half.name]

function facts({ machine, date, commit, node, rustc, load, runs, halves }, more) {
  const all = halves.flatMap(({ cells }) => cells).flatMap((cell) => cell.runs)
  const seconds = unique(halves.map((half) => half.seconds)).join(', ')
  const placements = halves.map((half) => `${nameOf(half)}: ${usualPlacement(half.cells)}`).join(', ')
  return [
    ['machine', ''],
    ['---', '---'],
    ['CPU', `${machine.cpu}${machine.hypervisor ? ', virtual' : ''}, ${machine.cores} cores`],
    ['caches', machine.caches],
    ['memory', `${machine.memory_gib.toFixed(0)} GiB`],
    ['kernel', `Linux ${machine.kernel}`],
    ['versions', [node && `Node ${node}`, rustc, `ringfence at ${commit}`].filter(Boolean).join('; ')],
    ['runs', `${runs} of ${seconds} s each, in rounds; medians, and min–max below them; ${date}`],
    ['load before', load.toFixed(1)],
    ...more,
    ...(all.length > 0 ? [['cache line to and fro', distance(all)]] : []),
    ['disturbed', disturbed(all)],
    ['placement shown', `${placements}; a cell without such a run says in brackets which it had`],
  ].map((cells) => `| ${cells.join(' | ')} |`)
}

function credits({ contenders, cells, absent = {} }) {
  const took = ({ id }) => cells.some((cell) => cell.contender === id && hasRun(cell))
  const lines = contenders.map((contender) => {
    const { id, version, note } = contender
    const why = cells.find((cell) => cell.contender === id)?.skipped
    return `- **${id}** (${version}): ${note}${took(contender) || !why ? '' : `. Not run: ${why}`}`
  })
  return [...lines, ...Object.entries(absent).map(([id, why]) => `- **${id}**: not run: ${why}`)].join('\n')
}

/** The keys of a cell, as text. */
const keyOf = ({ contender, measure, subscribers, size, harm }) =>
  [contender, measure, subscribers && `${subscribers} subscribers`, size && bytes(size), harm]
    .filter(Boolean)
    .join(', ')

function failed({ cells }) {
  const rows = cells.filter(({ failures }) => failures?.length)
  return rows.map((cell) => `- ${keyOf(cell)}: ${cell.failures.length} (${cell.failures.at(-1)})`).join('\n')
}

/**
 * A page: its title, introduction and facts, then for each half its name, `section(half, placement)`, the contenders, and failed
 * runs. `single`: the page has one half, which needs no heading.
 */
export function render(results, { title, intro, facts: more = [], section, single = false }) {
  const out = [`# ${title}`, '', ...intro, '', ...facts(results, more), '']
  for (const half of results.halves) {
    const lines = section(half, usualPlacement(half.cells))
    out.push(...(single ? [] : [`## ${nameOf(half)}`, '']), ...lines)
    if (half.contenders.some(({ note }) => note)) out.push(...block('The contenders:', credits(half)))
    out.push(...block('Failed runs:', failed(half)))
  }
  return `${out.join('\n').trimEnd()}\n`
}
