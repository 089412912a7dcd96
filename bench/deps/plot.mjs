// Line charts on logarithmic axes, readable on light and dark pages, drawn by Observable Plot.

import * as Plot from '@observablehq/plot'
import { parseHTML } from 'linkedom'

const WIDTH = 860
const HEIGHT = 480
const MARGIN = { top: 54, right: 190, bottom: 52, left: 76 }
const COLOURS = '#d6336c #1c7ed6 #2f9e44 #f08c00 #7048e8 #0c8599 #a61e4d #5c940d #868e96 #e8590c #3b5bdb #099268'.split(
  ' ',
)
/** The minimum distance between the names at the ends of lines. */
const GAP = 15

const STYLE = `
  text { font: 12px system-ui, sans-serif }
  .title { font-size: 16px; font-weight: 600; fill: #212529 }
  .note, [aria-label$="tick label"], [aria-label$="axis label"] { fill: #495057 }
  [aria-label$="grid"] { stroke: #ced4da; stroke-width: 0.7; stroke-opacity: 1 }
  .page { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    .title { fill: #f1f3f5 }
    .note, [aria-label$="tick label"], [aria-label$="axis label"] { fill: #adb5bd }
    [aria-label$="grid"] { stroke: #495057 }
    .page { fill: #16181d }
  }
`

const decades = (low, high) => {
  const ticks = []
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high * 1.0001; power++)
    if (10 ** power >= low * 0.9999) ticks.push(10 ** power)
  return ticks
}

/** Moves overlapping names apart, and back from the edges. */
function spreadNames(names, top, bottom) {
  names.sort((a, b) => a.at - b.at)
  for (let i = 1; i < names.length; i++) names[i].at = Math.max(names[i].at, names[i - 1].at + GAP)
  const over = names.length > 0 ? names.at(-1).at - bottom : 0
  if (over > 0) {
    names.at(-1).at -= over
    for (let i = names.length - 2; i >= 0; i--) names[i].at = Math.min(names[i].at, names[i + 1].at - GAP)
  }
  for (const name of names) name.at = Math.max(name.at, top)
}

function axis({ label, low, high, linear, ticks, text }) {
  const scale = { label: null, domain: [low, high], type: linear ? 'linear' : 'log' }
  const values = ticks?.map(([value]) => value) ?? (linear ? undefined : decades(low, high))
  const named = new Map(ticks ?? [])
  const mark = {
    ticks: values ?? 5,
    tickSize: 0,
    text: (value) => named.get(value) ?? text(value),
    label,
    labelArrow: 'none',
  }
  return { scale, mark, values }
}

const flat = (series) =>
  series.flatMap(({ name, strong, points }, index) =>
    points.map(([x, y, low, high]) => ({ name, strong, colour: COLOURS[index % COLOURS.length], x, y, low, high })),
  )

function marksOf(series, x, y) {
  const rows = flat(series)
  const common = { x: 'x', stroke: 'colour', z: 'name' }
  const line = (strong) =>
    Plot.line(
      rows.filter((row) => Boolean(row.strong) === strong),
      { ...common, y: 'y', strokeWidth: strong ? 3.2 : 1.6, strokeLinejoin: 'round' },
    )
  return [
    Plot.gridX({ ticks: x.values ?? 5 }),
    Plot.gridY({ ticks: y.values ?? 5 }),
    Plot.axisX({ ...x.mark, labelAnchor: 'center' }),
    Plot.axisY({ ...y.mark, labelAnchor: 'center' }),
    Plot.ruleX(
      rows.filter((row) => row.low !== undefined),
      { x: 'x', y1: 'low', y2: 'high', stroke: 'colour', strokeOpacity: 0.55 },
    ),
    line(false),
    line(true),
    Plot.dot(rows, { x: 'x', y: 'y', fill: 'colour', r: (row) => (row.strong ? 4 : 2.6) }),
  ]
}

/**
 * `series`: `{ name, points: [[x, y, low?, high?]], strong? }`, in the units of the axes.
 * `x`, `y`: `{ label, low, high, ticks?: [value, text][], text }`; `y.linear`: a linear axis from 0, for values that may be 0.
 */
export function chart({ title, subtitle, series, x, y }) {
  const { document } = parseHTML('<!doctype html><html><body></body></html>')
  const [across, up] = [axis(x), axis(y)]
  const frame = {
    document,
    width: WIDTH,
    height: HEIGHT,
    marginTop: MARGIN.top,
    marginRight: MARGIN.right,
    marginBottom: MARGIN.bottom,
    marginLeft: MARGIN.left,
    x: across.scale,
    y: up.scale,
    r: { type: 'identity' },
    style: { background: 'none' },
  }
  const svg = Plot.plot({ ...frame, marks: marksOf(series, across, up) })
  const element = (name, attributes, text = '') => {
    const made = document.createElementNS('http://www.w3.org/2000/svg', name)
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
    made.textContent = text
    return made
  }
  const scale = { x: svg.scale('x'), y: svg.scale('y') }
  const names = series.map(({ name, strong, points }, index) => {
    const [endX, endY] = points.at(-1)
    const from = { x: scale.x.apply(endX), y: scale.y.apply(endY) }
    return { name, strong, colour: COLOURS[index % COLOURS.length], from, at: from.y }
  })
  spreadNames(names, MARGIN.top, HEIGHT - MARGIN.bottom)
  const right = WIDTH - MARGIN.right
  for (const { name, strong, colour, from, at } of names) {
    const path = `M${(from.x + 5).toFixed(1)} ${from.y.toFixed(1)} L${right + 14} ${at.toFixed(1)}`
    svg.append(element('path', { d: path, stroke: colour, 'stroke-width': 0.8, opacity: 0.5, fill: 'none' }))
    const weight = strong ? { style: 'font-weight: 700' } : {}
    const place = { x: right + 18, y: (at + 4).toFixed(1), 'text-anchor': 'start' }
    svg.append(element('text', { ...place, fill: colour, stroke: 'none', ...weight }, name))
  }
  svg.append(element('text', { class: 'title', 'text-anchor': 'start', x: MARGIN.left, y: 24 }, title))
  svg.append(element('text', { class: 'note', 'text-anchor': 'start', x: MARGIN.left, y: 42 }, subtitle))
  for (const style of svg.querySelectorAll('style')) style.remove()
  svg.prepend(element('rect', { class: 'page', width: WIDTH, height: HEIGHT }))
  svg.prepend(element('style', {}, STYLE))
  svg.setAttribute('role', 'img')
  svg.setAttribute('aria-label', title)
  svg.setAttribute('xmlns', 'http://www.w3.org/2000/svg')
  return `${svg.outerHTML}\n`
}
