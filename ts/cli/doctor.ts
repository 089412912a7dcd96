import { doctor } from '../doctor.js'
import { table } from './text.js'

const MARKS = { good: 'good', limited: 'LIMITED', missing: 'MISSING' } as const

/** Prints what the system offers. */
export function diagnose(json: boolean): void {
  const diagnosis = doctor()
  if (json) {
    process.stdout.write(`${JSON.stringify(diagnosis, null, 2)}\n`)
    return
  }
  const { kernel, findings } = diagnosis
  const rows = findings.map(({ title, status, found }) => [MARKS[status], title, found])
  process.stdout.write(`${kernel}, Node ${process.versions.node}\n\n`)
  process.stdout.write(`${table(['', 'what', 'found'], rows, process.stdout.columns ?? 160)}\n`)
  for (const status of ['missing', 'limited', 'good'] as const) {
    const some = findings.filter((finding) => finding.status === status)
    if (some.length > 0) process.stdout.write(`\n${MARKS[status]}\n`)
    for (const { title, meaning } of some) process.stdout.write(`  ${title}: ${meaning}\n`)
  }
}
