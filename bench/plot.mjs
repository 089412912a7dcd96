// A small SVG writer: line charts on logarithmic axes, readable on light and dark pages.

const WIDTH = 860
const HEIGHT = 480
const MARGIN = { top: 54, right: 190, bottom: 52, left: 76 }
const COLOURS = [
  '#d6336c',
  '#1c7ed6',
  '#2f9e44',
  '#f08c00',
  '#7048e8',
  '#0c8599',
  '#a61e4d',
  '#5c940d',
  '#868e96',
  '#e8590c',
  '#3b5bdb',
  '#099268',
]

const escape = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
const round = (value) => Math.round(value * 10) / 10

function scale({ low, high, linear }, from, to) {
  if (linear) return (value) => from + ((value - low) / (high - low)) * (to - from)
  const [a, b] = [Math.log10(low), Math.log10(high)]
  return (value) => from + ((Math.log10(value) - a) / (b - a)) * (to - from)
}

const decades = (low, high) => {
  const ticks = []
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high * 1.0001; power++)
    if (10 ** power >= low * 0.9999) ticks.push(10 ** power)
  return ticks
}

/** Round values from nothing on, four or five of them. */
function steps(high) {
  const power = 10 ** Math.floor(Math.log10(high))
  const step = [0.2, 0.5, 1, 2].map((part) => part * power).find((size) => high / size <= 5) ?? power
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, index) => Number((index * step).toPrecision(6)))
}

/** Labels beside the ends of their lines, moved apart where they would cover each other. */
function spreadLabels(labels, top, bottom) {
  const gap = 15
  labels.sort((a, b) => a.y - b.y)
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + gap)
  const over = labels.length > 0 ? labels.at(-1).y - bottom : 0
  if (over > 0) {
    labels.at(-1).y -= over
    for (let i = labels.length - 2; i >= 0; i--) labels[i].y = Math.min(labels[i].y, labels[i + 1].y - gap)
  }
  return labels.map((label) => ({ ...label, y: Math.max(label.y, top) }))
}

/**
 * `series`: `{ name, points: [[x, y, low?, high?]], strong? }`, in the units of the axes.
 * `x`, `y`: `{ label, low, high, ticks?: [value, text][], text }`; `y.linear`: from nothing on, where a value may be none.
 */
export function chart({ title, subtitle, series, x, y }) {
  const [left, right, top, bottom] = [MARGIN.left, WIDTH - MARGIN.right, MARGIN.top, HEIGHT - MARGIN.bottom]
  const atX = scale(x, left, right)
  const atY = scale(y, bottom, top)
  const out = []
  const ticksX = x.ticks ?? decades(x.low, x.high).map((value) => [value, x.text(value)])
  const valuesY = y.linear ? steps(y.high) : decades(y.low, y.high)
  const ticksY = y.ticks ?? valuesY.map((value) => [value, y.text(value)])
  for (const [value, text] of ticksX) {
    const at = round(atX(value))
    out.push(
      `<line class="grid" x1="${at}" y1="${top}" x2="${at}" y2="${bottom}"/>`,
      `<text class="tick" x="${at}" y="${bottom + 18}" text-anchor="middle">${escape(text)}</text>`,
    )
  }
  for (const [value, text] of ticksY) {
    const at = round(atY(value))
    out.push(
      `<line class="grid" x1="${left}" y1="${at}" x2="${right}" y2="${at}"/>`,
      `<text class="tick" x="${left - 8}" y="${at + 4}" text-anchor="end">${escape(text)}</text>`,
    )
  }
  const labels = []
  series.forEach(({ name, points, strong }, index) => {
    if (points.length === 0) return
    const colour = COLOURS[index % COLOURS.length]
    const path = points.map(([a, b], i) => `${i === 0 ? 'M' : 'L'}${round(atX(a))} ${round(atY(b))}`).join(' ')
    out.push(
      `<path d="${path}" fill="none" stroke="${colour}" stroke-width="${strong ? 3.2 : 1.6}" stroke-linejoin="round"/>`,
    )
    for (const [a, b, low, high] of points) {
      if (low !== undefined)
        out.push(
          `<line x1="${round(atX(a))}" y1="${round(atY(low))}" x2="${round(atX(a))}" y2="${round(atY(high))}" stroke="${colour}" stroke-width="1" opacity="0.55"/>`,
        )
      out.push(`<circle cx="${round(atX(a))}" cy="${round(atY(b))}" r="${strong ? 4 : 2.6}" fill="${colour}"/>`)
    }
    const [endX, endY] = points.at(-1)
    labels.push({ name, colour, strong, fromX: atX(endX), fromY: atY(endY), y: atY(endY) })
  })
  for (const { name, colour, strong, fromX, fromY, y: labelY } of spreadLabels(labels, top, bottom)) {
    out.push(
      `<path d="M${round(fromX + 5)} ${round(fromY)} L${right + 14} ${round(labelY)}" stroke="${colour}" stroke-width="0.8" opacity="0.5" fill="none"/>`,
      `<text x="${right + 18}" y="${round(labelY + 4)}" fill="${colour}"${strong ? ' font-weight="700"' : ''}>${escape(name)}</text>`,
    )
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" aria-label="${escape(title)}">
<style>
  text { font: 12px system-ui, sans-serif }
  .title { font-size: 16px; font-weight: 600; fill: #212529 }
  .note, .tick, .axis { fill: #495057 }
  .grid { stroke: #ced4da; stroke-width: 0.7 }
  .page { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    .title { fill: #f1f3f5 } .note, .tick, .axis { fill: #adb5bd } .grid { stroke: #495057 } .page { fill: #16181d }
  }
</style>
<rect class="page" width="${WIDTH}" height="${HEIGHT}"/>
<text class="title" x="${left}" y="24">${escape(title)}</text>
<text class="note" x="${left}" y="42">${escape(subtitle)}</text>
${out.join('\n')}
<text class="axis" x="${(left + right) / 2}" y="${HEIGHT - 12}" text-anchor="middle">${escape(x.label)}</text>
<text class="axis" x="18" y="${(top + bottom) / 2}" text-anchor="middle" transform="rotate(-90 18 ${(top + bottom) / 2})">${escape(y.label)}</text>
</svg>
`
}
