// What the pages share: tables, spreads, and where the two cores were.

import { quantity } from '../node/text.mjs'

export const table = (lines) => lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n')

/** The line below a head: the first column to the left, figures to the right. */
export const aligned = (head) => head.map((_, index) => (index === 0 ? '---' : '--:'))

const plain = (value) => quantity(value).trim()

/** A median, and below it the least and the most. */
export const spread = ({ median, min, max }, show, range = show) => `**${show(median)}**<br>${range(min)}–${range(max)}`

export const rate = (value) => spread(value, (shown) => quantity(shown, '/s'), plain)

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
