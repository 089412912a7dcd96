// How figures are printed, for the terminal and the tables.

export function quantity(value, unit = '') {
  const steps = [
    [1e9, 'G'],
    [1e6, 'M'],
    [1e3, 'k'],
  ]
  for (const [step, name] of steps) {
    if (value >= step) return `${digits(value / step)} ${name}${unit}`
  }
  return `${digits(value)} ${unit}`.trim()
}

/** Three digits that matter. */
function digits(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

export function duration(ns) {
  if (ns < 1000) return `${ns.toFixed(0)} ns`
  if (ns < 1e6) return `${digits(ns / 1e3)} µs`
  return `${digits(ns / 1e6)} ms`
}

export function bytes(size) {
  if (size >= 2 ** 20) return `${size / 2 ** 20} MiB`
  if (size >= 1024) return `${size / 1024} KiB`
  return `${size} B`
}

export function cellLines(cell) {
  const head = `${cell.contender.padEnd(20)} ${cell.measure.padEnd(10)} ${bytes(cell.size).padStart(8)}`
  if (cell.runs.length === 0) return [`${head}  -  ${cell.skipped ?? cell.failures?.at(-1) ?? ''}`]
  const lines = Object.entries(cell.by_placement).map(([placement, summary]) => {
    const start = `${head}  ${placement.padEnd(5)}`
    const cpu = `cpu ${duration(summary.cpu_ns_per_message.median).padStart(8)}`
    const idle = summary.idle_wakeups_per_second ? `  idle ${summary.idle_wakeups_per_second.median.toFixed(0)}/s` : ''
    if (summary.p50_ns) {
      const [p50, p99, p999] = [summary.p50_ns, summary.p99_ns, summary.p999_ns].map(({ median }) =>
        duration(median).padStart(8),
      )
      return `${start} p50 ${p50}  p99 ${p99}  p99.9 ${p999}  ${cpu}${idle}  [${summary.runs}]`
    }
    const { median, min, max } = summary.messages_per_second
    const range = `(${quantity(min)} - ${quantity(max)})`
    return `${start} ${quantity(median, 'msg/s').padStart(12)} ${range.padEnd(20)} ${quantity(summary.bytes_per_second.median, 'B/s').padStart(10)}  ${cpu}  [${summary.runs}]`
  })
  for (const failure of cell.failures ?? []) lines.push(`${head}  failed: ${failure}`)
  return lines
}
