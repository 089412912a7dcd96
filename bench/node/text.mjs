// Medians, and formatted figures for the terminal and the tables.

export function quantity(value, unit = '') {
  for (const [name, step] of Object.entries({ G: 1e9, M: 1e6, k: 1e3 }))
    if (value >= step) return `${digits(value / step)} ${name}${unit}`
  return `${digits(value)} ${unit}`.trim()
}

/** Formats with three significant digits. */
function digits(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

export function duration(ns) {
  if (ns < 1000) return `${ns.toFixed(0)} ns`
  if (ns < 1e6) return `${digits(ns / 1e3)} µs`
  return `${digits(ns / 1e6)} ms`
}

export function bytes(size) {
  if (size >= 2 ** 30) return `${size / 2 ** 30} GiB`
  if (size >= 2 ** 20) return `${size / 2 ** 20} MiB`
  if (size >= 1024) return `${size / 1024} KiB`
  return `${size} B`
}

/** Returns the median, the minimum and the maximum. */
export function spread(values) {
  const sorted = [...values].sort((a, b) => a - b)
  const half = sorted.length >> 1
  const median = sorted.length % 2 === 0 ? (sorted[half - 1] + sorted[half]) / 2 : sorted[half]
  return { median, min: sorted[0], max: sorted.at(-1) }
}

export const median = (values) => spread(values).median
