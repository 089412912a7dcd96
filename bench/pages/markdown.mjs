// What the pages share: tables, spreads, and where the two cores were.

import { quantity } from '../node/text.mjs'

export const table = (lines) => lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n')

/** The line below a head: the first column to the left, figures to the right. */
export const aligned = (head) => head.map((_, index) => (index === 0 ? '---' : '--:'))

const plain = (value) => quantity(value).trim()

/** A median, and below it the least and the most. */
export const spread = ({ median, min, max }, show, range = show) => `**${show(median)}**<br>${range(min)}–${range(max)}`

export const rate = (value) => spread(value, (shown) => quantity(shown, '/s'), plain)

/**
 * What was asked for, of rows `{ what, found, aim, reached, because }`: texts, whether it was reached, and what holds it where it was not. Rows without a
 * figure are left out.
 */
export function aims(rows) {
  const known = rows.filter(({ found }) => found !== null)
  if (known.length === 0) return ''
  const head = ['what', 'measured', 'aim', '']
  const answer = ({ reached, because }) => (reached ? 'reached' : ['not reached', because].filter(Boolean).join(': '))
  return table([head, aligned(head), ...known.map((row) => [row.what, row.found, row.aim, answer(row)])])
}

/** A row of {@link aims}, of what is the better the more it is; `because` says what holds it, where it is less than was asked for. */
export function atLeast(what, found, asked, show, because) {
  const shown = Number.isFinite(found) ? show(found) : null
  return { what, found: shown, aim: show(asked), reached: found >= asked, because }
}

/** The same of what is the better the less it is. */
export function atMost(what, found, asked, show, because) {
  const shown = Number.isFinite(found) ? show(found) : null
  return { what, found: shown, aim: `≤ ${show(asked)}`, reached: found <= asked, because }
}

export const millions = (perSecond) => `${Number((perSecond / 1e6).toFixed(1))} M/s`

export const asTimes = (ratio) => `${Number(ratio.toFixed(2))} ×`

/** A cell's figures in that placement; else in what there is, and then it says so. */
export function figures(cell, placement) {
  const there = cell?.by_placement ?? {}
  if (there[placement]) return { summary: there[placement], mark: '' }
  const [other] = Object.entries(there).sort(([, a], [, b]) => b.runs - a.runs)
  return other ? { summary: other[1], mark: ` (${other[0]})` } : null
}

/** The placement that most runs had: the one to compare in. */
export function usualPlacement(cells) {
  const counts = { near: 0, far: 0, moved: 0 }
  for (const { by_placement } of cells)
    for (const [name, { runs }] of Object.entries(by_placement)) counts[name] += runs
  return counts.far > counts.near ? 'far' : 'near'
}

/** Losing a core so often a second means that something else ran beside the measurement. */
const DISTURBED = 50

export function disturbed(cells) {
  const runs = cells.flatMap((cell) => cell.runs)
  const count = runs.filter(({ preempted, seconds }) => preempted / seconds > DISTURBED).length
  return `${count} of ${runs.length} runs lost a core more than ${DISTURBED} times a second`
}

export function machineRows({ machine, date, commit, node, load, runs, seconds }) {
  return [
    `| CPU | ${machine.cpu}${machine.hypervisor ? ', virtual' : ''}, ${machine.cores} cores |`,
    `| caches | ${machine.caches} |`,
    `| kernel | Linux ${machine.kernel} |`,
    `| versions | ${[node && `Node ${node}`, machine.rustc, `ringfence at ${commit}`].filter(Boolean).join('; ')} |`,
    `| runs | ${runs} of ${seconds} s each, in rounds; medians, and min–max below them; ${date} |`,
    `| load before | ${load.toFixed(1)} |`,
  ]
}
