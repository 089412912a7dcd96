// The tables of docs/reference/ list what exists, and nothing else.

import { readFileSync } from 'node:fs'

import test from 'ava'

import { internals } from './support/internals.js'

/** The cells of each table row of a page, below a heading if one is given. */
function rowsOf(page: string, heading = ''): string[][] {
  const text = readFileSync(new URL(`../../docs/reference/${page}.md`, import.meta.url), 'utf8')
  const from = text.slice(text.indexOf(heading) + heading.length)
  const section = heading === '' ? from : from.split(/^## /m)[0]!
  const rows = [...section.matchAll(/^\| (.*) \|$/gm)].map(([, row]) => row!.split('|').map((cell) => cell.trim()))
  // Each table starts with its header and a line of dashes.
  return rows.filter((_, index) => !isRule(rows[index]) && !isRule(rows[index + 1]))
}

const isRule = (row: string[] | undefined) => row?.[0]?.startsWith('---') ?? false

const quoted = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, name]) => name!)

test('docs/reference/options.md lists the options of each call', async (t) => {
  type Options = { OPTION_NAMES: Record<string, string[]>; POLICY_PROPERTIES: string[] }
  const { OPTION_NAMES, POLICY_PROPERTIES } = await internals<Options>('endpoint/options.js')
  const calls = Object.keys(OPTION_NAMES)
  const documented = Object.fromEntries(calls.map((call) => [call, [] as string[]]))
  for (const [option, , takers] of rowsOf('options', '\n## Channels and endpoints\n')) {
    const listed = quoted(takers!)
    t.true(takers!.startsWith('all') || listed.length > 0, option)
    const taking = takers!.startsWith('all') ? calls.filter((call) => !listed.includes(call)) : listed
    for (const call of taking) documented[call]!.push(quoted(option!)[0]!)
  }
  for (const call of calls) t.deepEqual(documented[call]!.sort(), [...OPTION_NAMES[call]!].sort(), call)
  const keys = rowsOf('options', '\n## Policy\n').map(([key]) => /^\w+/.exec(quoted(key!)[0]!)![0])
  t.deepEqual(keys.sort(), [...POLICY_PROPERTIES].sort())
})

test('docs/reference/errors.md lists the codes', (t) => {
  const source = readFileSync(new URL('../../ts/errors.ts', import.meta.url), 'utf8')
  const [, names] = /^export type ErrorName =\n((?: {2}\| '\w+'\n)+)/m.exec(source)!
  const codes = [...names!.matchAll(/'(\w+)'/g)].map(([, name]) => `ERR_RINGFENCE_${name}`)
  const documented = rowsOf('errors').map(([code]) => quoted(code!)[0]!)
  t.deepEqual(documented.filter((code) => code.includes('ERR')).sort(), ['ABORT_ERR', ...codes].sort())
})

test('docs/reference/cli.md lists the commands, their options and the exit codes', async (t) => {
  type Commands = Record<string, { readonly usage: string; readonly flags: readonly string[] }>
  const { COMMANDS } = await internals<{ COMMANDS: Commands }>('cli/commands.js')
  const page = readFileSync(new URL('../../docs/reference/cli.md', import.meta.url), 'utf8')
  const listed = [...page.slice(0, page.indexOf('\n## ')).matchAll(/^ringfence ([^#]*?) *#/gm)].map(
    ([, words]) => words,
  )
  t.deepEqual(
    listed,
    Object.entries(COMMANDS).map(([name, { usage }]) => `${name} ${usage}`.trim()),
  )
  const documented = rowsOf('cli', '\n## Options\n').map(([flag, commands]) => [quoted(flag!)[0], quoted(commands!)])
  const flags = new Set(Object.values(COMMANDS).flatMap((command) => command.flags))
  const takers = (flag: string) => Object.keys(COMMANDS).filter((name) => COMMANDS[name]!.flags.includes(flag))
  t.deepEqual(
    new Map(documented.map(([flag, commands]) => [/^--([\w-]+)/.exec(String(flag))![1]!, commands])),
    new Map([...flags].map((flag) => [flag, takers(flag)])),
  )
  const { overview } = await internals<{ overview(): string }>('cli/help.js')
  const codes = [...overview().matchAll(/^ {2}(\d) {2}(.*)$/gm)].map(([, code, meaning]) => [code!, meaning!.trim()])
  t.deepEqual(rowsOf('cli', '\n## Exit codes\n'), codes)
})
