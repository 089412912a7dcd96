// Plots of spreads over a step: sizes, channels, subscribers, capacities.

import { chart } from '../deps/plot.mjs'
import { duration, quantity } from '../node/text.mjs'

const tidy = (text) => text.replace('.00', '').replace('.0', '')
export const perSecond = { label: 'messages per second', text: (value) => tidy(quantity(value)) }
export const bytesPerSecond = { label: 'bytes per second', text: (value) => tidy(quantity(value, 'B')) }
export const nanoseconds = (label) => ({ label, text: (value) => tidy(duration(value)) })

/** A line through the spreads `pick(summary, cell)` of the cells that have one in that placement. */
export function line(name, cells, placement, pick, strong = false) {
  const points = cells
    .filter((cell) => cell.by_placement[placement])
    .sort((a, b) => a.size - b.size)
    .map((cell) => {
      const { median, min, max } = pick(cell.by_placement[placement], cell)
      return [cell.size, median, min, max]
    })
  return { name, strong, points }
}

/** A chart whose axes cover all points; null without a line. `y.linear`: from 0, and at least up to `y.least`. */
export function draw({ title, subtitle, series, label, name = String, every = 1, y }) {
  const lines = series.filter(({ points }) => points.length > 1)
  if (lines.length === 0) return null
  const all = lines.flatMap(({ points }) => points)
  const steps = [...new Set(all.map(([at]) => at))].sort((a, b) => a - b)
  const ticks = steps.filter((_, index) => index % every === 0 || index === steps.length - 1)
  const low = Math.min(...all.map((point) => point[2]))
  const high = Math.max(...all.map((point) => point[3]))
  const range = y.linear ? { low: 0, high: Math.max(high * 1.1, y.least) } : { low: low / 1.3, high: high * 1.3 }
  return chart({
    title,
    subtitle: `${subtitle}; median, bars from min to max`,
    series: lines,
    x: { label, low: steps[0], high: steps.at(-1), ticks: ticks.map((step) => [step, name(step)]) },
    y: { ...y, ...range },
  })
}

/** The files of the plots that have a line. */
export const filesOf = (plots) => Object.fromEntries(Object.entries(plots).filter(([, svg]) => svg !== null))
