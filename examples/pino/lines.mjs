import { readFileSync } from 'node:fs'

/** The contents of a log, for each writer: the numbers of its lines, in their order. It throws where a line is torn. */
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
