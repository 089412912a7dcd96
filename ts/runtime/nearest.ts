/** The name that `word` misspells; undefined if none is close enough. A third of the letters may differ. */
export function misspelt(word: string, names: Iterable<string>): string | undefined {
  const most = Math.max(1, Math.ceil(word.length / 3))
  let best: string | undefined
  let least = Infinity
  for (const name of names) {
    const distance = distanceBetween(word.slice(0, LONGEST).toLowerCase(), name.toLowerCase())
    if (distance <= most && distance < least) [best, least] = [name, distance]
  }
  return best
}

/** Maximum number of characters that are compared, since the time grows with their number. */
const LONGEST = 64

/** The number of characters to insert, delete, replace, or swap with their neighbour. A mere prefix or extension counts as 1.5 at most. */
function distanceBetween(one: string, other: string): number {
  if (one !== other && one !== '' && (other.startsWith(one) || one.startsWith(other)))
    return Math.min(Math.abs(one.length - other.length), 1.5)
  let beforeLast: number[] = []
  let last = Array.from({ length: other.length + 1 }, (_, column) => column)
  for (let row = 1; row <= one.length; row += 1) {
    const cells = [row]
    for (let column = 1; column <= other.length; column += 1) {
      const replaced = last[column - 1]! + (one[row - 1] === other[column - 1] ? 0 : 1)
      const isSwapped =
        row > 1 && column > 1 && one[row - 1] === other[column - 2] && one[row - 2] === other[column - 1]
      const swapped = isSwapped ? beforeLast[column - 2]! + 1 : Infinity
      cells.push(Math.min(last[column]! + 1, cells[column - 1]! + 1, replaced, swapped))
    }
    ;[beforeLast, last] = [last, cells]
  }
  return last[other.length]!
}
