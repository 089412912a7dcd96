import { styleText } from 'node:util'

import { doctor } from '../runtime/doctor.js'
import { print, printJson } from './output.js'
import { outputTable } from './text.js'

const MARKS = { good: 'good', limited: 'LIMITED', missing: 'MISSING' } as const
const COLORS = { good: 'green', limited: 'yellow', missing: 'red' } as const

/** Prints the result of `doctor`, in colors if standard output is a terminal with colors. NO_COLOR and FORCE_COLOR decide otherwise. */
export function diagnose(json: boolean): void {
  const diagnosis = doctor()
  if (json) return printJson(diagnosis)
  const { kernel, findings } = diagnosis
  const rows = findings.map(({ title, status, found }) => [MARKS[status], title, found])
  print(`${kernel}, Node ${process.versions.node}\n\n`)
  print(outputTable(['', 'what', 'found'], rows))
  for (const status of ['missing', 'limited', 'good'] as const) {
    const matching = findings.filter((finding) => finding.status === status)
    if (matching.length > 0) print(`\n${styleText(COLORS[status], MARKS[status])}\n`)
    for (const { title, meaning } of matching) print(`  ${title}: ${meaning}\n`)
  }
}
