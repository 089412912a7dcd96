import { readFileSync } from 'node:fs'

/** Reads a log, and returns the line numbers of each writer in order. Throws for a torn line. */
export function lines(file) {
  const text = readFileSync(file, 'utf8')
  const found = new Map()
  const all = text.split('\n')
  if (all.pop() !== '') throw new Error(`${file} ends within a line`)
  for (const one of all) {
    const { writer, line } = JSON.parse(one)
    if (!found.has(writer)) found.set(writer, [])
    found.get(writer).push(line)
  }
  return found
}
