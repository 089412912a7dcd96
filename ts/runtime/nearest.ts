/** The name that `word` misspells; undefined if none is close enough. A third of the letters may differ. */
export function nearestName(word: string, names: Iterable<string>): string | undefined {
  const maxDistance = Math.max(1, Math.ceil(word.length / 3))
  let best: string | undefined
  let minDistance = Infinity
  for (const name of names) {
    const distance = distanceBetween(word.slice(0, MAX_COMPARED).toLowerCase(), name.toLowerCase())
    if (distance <= maxDistance && distance < minDistance) [best, minDistance] = [name, distance]
  }
  return best
}

/** Maximum number of characters that are compared, since the time grows with their number. */
const MAX_COMPARED = 64

/** The number of characters to insert, delete, replace, or swap with their neighbour. A mere prefix or extension counts as 1.5 at most. */
function distanceBetween(a: string, b: string): number {
  if (a !== b && a !== '' && (b.startsWith(a) || a.startsWith(b))) return Math.min(Math.abs(a.length - b.length), 1.5)
  let secondLast: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, column) => column)
  for (let row = 1; row <= a.length; row += 1) {
    const cells = [row]
    for (let column = 1; column <= b.length; column += 1) {
      const replaced = last[column - 1]! + (a[row - 1] === b[column - 1] ? 0 : 1)
      const isSwapped = row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1]
      const swapped = isSwapped ? secondLast[column - 2]! + 1 : Infinity
      cells.push(Math.min(last[column]! + 1, cells[column - 1]! + 1, replaced, swapped))
    }
    ;[secondLast, last] = [last, cells]
  }
  return last[b.length]!
}
