// Parses and formats numbers and tables for people.

import { printable } from '../runtime/printable.js'
import type { Evidence } from '../types.js'
import { UsageError } from './exit.js'

const SIZES: Record<string, number> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 }

/** Parses a number of bytes: `64KiB`, `4MiB`, `1GiB` (also `64K`), or a plain number. */
export function parseSize(text: string): number {
  const [, number, unit] = /^(\d+)(?:([kmg])(?:i?b)?|b)?$/i.exec(text) ?? []
  const bytes = Number(number) * SIZES[unit?.toLowerCase() ?? '']!
  if (!Number.isSafeInteger(bytes) || bytes < 1)
    throw new UsageError(`a size is a number of bytes, or of KiB, MiB or GiB (64KiB), not ${text}`)
  return bytes
}

const TIMES: Record<string, number> = { ms: 1, s: 1000, '': 1000, m: 60_000, h: 3_600_000 }

/** Parses a duration to milliseconds: `250ms`, `3s`, `2m`, `1h`, or a number of seconds. */
export function parseDuration(text: string, option: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)?$/.exec(text) ?? []
  const milliseconds = Number(number) * TIMES[unit ?? '']!
  if (!(milliseconds > 0) || milliseconds > 2_000_000_000)
    throw new UsageError(`${option} takes a time such as 250ms, 3s or 2m, not ${text}`)
  return Math.ceil(milliseconds)
}

/** Parses a count of at least 1. */
export function parseCount(text: string, option: string): number {
  if (!/^[1-9]\d{0,14}$/.test(text)) throw new UsageError(`${option} takes a whole number above 0, not ${text}`)
  return Number(text)
}

/** Formats a number of bytes in a suitable unit. */
export function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ['GB', 1e9],
    ['MB', 1e6],
    ['kB', 1e3],
  ] as const) {
    if (bytes >= size) return `${(bytes / size).toFixed(bytes >= 100 * size ? 0 : 2)} ${unit}`
  }
  return `${Math.round(bytes)} B`
}

/** Writes one line for people to standard error. */
export function printMessage(line: string): void {
  process.stderr.write(`ringfence: ${printable(line)}\n`)
}

/** Formats rows under headings. Columns are as wide as their content, and the last one is cut to the width. */
export function table(headings: string[], rows: string[][], width = process.stderr.columns ?? 160): string {
  const widths = headings.map((heading, column) => Math.max(heading.length, ...rows.map((row) => row[column]!.length)))
  const line = (cells: string[]) => {
    const text = cells.map((cell, column) => cell.padEnd(widths[column]!)).join('  ')
    return text.trimEnd().length > width ? `${text.slice(0, width - 1)}…` : text.trimEnd()
  }
  return [line(headings), line(widths.map((size) => '─'.repeat(size))), ...rows.map(line)].join('\n')
}

/** A table for standard output. The cells may contain any text. */
export function outputTable(headings: string[], rows: string[][]): string {
  const cells = rows.map((row) => row.map(printable))
  return `${table(headings, cells, process.stdout.columns ?? 160)}\n`
}

/** Writes the checks of a handshake to standard error. */
export function printEvidence(title: string, evidence: readonly Evidence[]): void {
  process.stderr.write(`${title}\n${evidenceTable(evidence)}\n`)
}

/** Formats the checks of a handshake for logs and audits. A property that was only recorded has a dash instead of `ok`. */
export function evidenceTable(evidence: readonly Evidence[], width?: number): string {
  const rows = evidence.map(({ step, check, wanted, found, outcome }) => [
    outcome === 'passed' ? 'ok' : '-',
    step,
    check,
    shorten(found ?? '', 50),
    shorten(wanted ?? '', 60),
  ])
  return table(['', 'step', 'check', 'found', 'wanted'], rows, width)
}

function shorten(text: string, length: number): string {
  const shown = printable(text)
  return shown.length > length ? `${shown.slice(0, length - 1)}…` : shown
}
