// Several runs of one thing, as one figure with its spread.

export function spread(values) {
  const sorted = [...values].sort((a, b) => a - b)
  const half = sorted.length >> 1
  const median = sorted.length % 2 === 0 ? (sorted[half - 1] + sorted[half]) / 2 : sorted[half]
  return { median, min: sorted[0], max: sorted.at(-1) }
}

/** A run whose cores moved meanwhile belongs to neither placement. */
export const placementOf = ({ before, after }) => (before.near !== after.near ? 'moved' : before.near ? 'near' : 'far')
