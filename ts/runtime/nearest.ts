/** The known name with the fewest typing errors away from `name`; undefined if none is close. */
export function nearest(name: string, known: Iterable<string>): string | undefined {
  // A third of the letters may differ: `--tiemout` is a typing error, `--help` is no misspelt `--json`.
  let least = Math.max(1, Math.floor(name.length / 3)) + 1
  let found: string | undefined
  for (const candidate of known) {
    const distance = distanceBetween(name.toLowerCase(), candidate.toLowerCase())
    if (distance < least) [least, found] = [distance, candidate]
  }
  return found
}

/** Letters to insert, delete, replace, or swap with their neighbour. */
function distanceBetween(one: string, other: string): number {
  const rows = [Array.from({ length: other.length + 1 }, (_, column) => column)]
  for (let row = 1; row <= one.length; row += 1) {
    const cells = [row]
    for (let column = 1; column <= other.length; column += 1) {
      const isSame = one[row - 1] === other[column - 1]
      let cell = Math.min(
        rows[row - 1]![column]! + 1,
        cells[column - 1]! + 1,
        rows[row - 1]![column - 1]! + (isSame ? 0 : 1),
      )
      const isSwapped =
        row > 1 && column > 1 && one[row - 1] === other[column - 2] && one[row - 2] === other[column - 1]
      if (isSwapped) cell = Math.min(cell, rows[row - 2]![column - 2]! + 1)
      cells.push(cell)
    }
    rows.push(cells)
  }
  return rows[one.length]![other.length]!
}
