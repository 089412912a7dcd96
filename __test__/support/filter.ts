// Seccomp filters for children, from the lists in crates/ringfence/tests/filters.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const lists = fileURLToPath(new URL('../../../crates/ringfence/tests/filters', import.meta.url))
const source = fileURLToPath(new URL('../../../__test__/confine/confine.c', import.meta.url))
const linesOf = (name: string) =>
  readFileSync(join(lists, `${name}.txt`), 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
const calls = new Map(linesOf('calls').map((line) => line.split(' ').reverse() as [string, string]))

const ALLOW = 0x7fff0000
const FAIL = 0x00050000
const EPERM = 1
const KILL = 0x80000000

/** For the calls of the list, and for all others. */
const VERDICTS: Record<string, [verdict: number, otherwise: number]> = {
  deny: [FAIL | EPERM, ALLOW],
  allow: [ALLOW, FAIL | EPERM],
  only: [ALLOW, KILL],
}

/** A classic BPF program (seccomp(2)): `NAME`, `NAME if INDEX&MASK=VALUE`, the same with `unless`, or `NAME fails ERRNO` on each line. */
export function program(kind: string, lines: readonly string[]): Buffer {
  const [verdict, otherwise] = VERDICTS[kind]!
  const statements: [code: number, ifTrue: number, ifFalse: number, value: number][] = []
  const [LOAD, EQUALS, AND, RETURN] = [0x20, 0x15, 0x54, 0x06]
  statements.push([LOAD, 0, 0, 0])
  for (const line of lines) {
    const [name, word, rest = ''] = line.split(' ')
    const call = Number(calls.get(name!))
    if (Number.isNaN(call)) throw new Error(`no call has the name ${name}`)
    if (word === undefined || word === 'fails') {
      statements.push([EQUALS, 0, 1, call], [RETURN, 0, 0, word === 'fails' ? FAIL | Number(rest) : verdict])
      continue
    }
    const [index, mask, value] = rest.split(/[&=]/).map(Number)
    const [ifTrue, ifFalse] = word === 'if' ? [0, 1] : [1, 0]
    statements.push([EQUALS, 0, 5, call], [LOAD, 0, 0, 16 + 8 * index!], [AND, 0, 0, mask!])
    statements.push([EQUALS, ifTrue, ifFalse, value!], [RETURN, 0, 0, verdict], [LOAD, 0, 0, 0])
  }
  statements.push([RETURN, 0, 0, otherwise])
  const bytes = Buffer.alloc(8 * statements.length)
  for (const [at, [code, ifTrue, ifFalse, value]] of statements.entries()) {
    bytes.writeUInt16LE(code, 8 * at)
    bytes.set([ifTrue, ifFalse], 8 * at + 2)
    bytes.writeUInt32LE(value >>> 0, 8 * at + 4)
  }
  return bytes
}

export const named = (name: string) => {
  const [kind, ...lines] = linesOf(name)
  return program(kind!, lines)
}

/** The filters of common sandboxes, and the titles that the docs have for them. */
export const SANDBOX_FILTERS: Record<string, string> = {
  codex: 'the filter of Codex',
  'sandbox-runtime': 'the filter of sandbox-runtime',
  docker: "Docker's default profile",
  'system-service': "systemd's @system-service",
}

/** Compiles `confine.c` to this library, which confines each process that loads it. */
export function compileConfinement(library: string): void {
  execFileSync('cc', ['-shared', '-fPIC', '-o', library, source])
}
