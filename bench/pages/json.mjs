/** Formats the results as JSON with one cell per line, for readable diffs. Skipped cells are omitted. */
export function json({ halves, ...rest }) {
  const parts = halves.map(({ cells, ...half }) => {
    const ran = cells.filter(
      (cell) => cell.runs.length > 0 || cell.failures?.length || Object.keys(cell.by_placement).length,
    )
    return `${JSON.stringify(half, null, 2).slice(0, -2)},\n"cells": [\n${ran.map((cell) => JSON.stringify(cell)).join(',\n')}\n]}`
  })
  return `${JSON.stringify(rest, null, 2).slice(0, -2)},\n"halves": [\n${parts.join(',\n')}\n]}\n`
}
