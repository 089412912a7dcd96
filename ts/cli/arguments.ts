// Parses the command line, without side effects.

import { parseArgs } from 'node:util'

import { misspelt } from '../runtime/nearest.js'
import type { Delivery } from '../types.js'
import type { Publishing, Subscribing } from './broadcast.js'
import type { Collection } from './collect.js'
import { COMMANDS, COMMAND_NAMES, FLAGS, isCommand, type CommandName, type Flag, type FlagName } from './commands.js'
import { UsageError } from './exit.js'
import { SHELLS } from './help.js'
import { parseDuration, parseSize } from './text.js'
import type { Transfer } from './transfer.js'

/** A command and its arguments. `timeout` is the number of milliseconds to wait for the other side. */
export type Asked =
  | { command: 'help'; of: CommandName | undefined }
  | { command: 'version' }
  | { command: 'completion'; shell: keyof typeof SHELLS }
  | { command: 'send' | 'receive'; how: Transfer; timeout: number | undefined }
  | { command: 'collect'; how: Omit<Collection, 'stop'> }
  | { command: 'publish'; how: Publishing }
  | { command: 'subscribe'; how: Subscribing; timeout: number | undefined }
  | { command: 'ps'; json: boolean }
  | { command: 'top'; address: string | undefined; json: boolean; once: boolean }
  | { command: 'doctor'; target: number | string | undefined; json: boolean }

/** @throws {UsageError} for invalid arguments. */
export function ask(words: string[]): Asked {
  const { values, positionals } = parse(words)
  if (values.version) return { command: 'version' }
  const [command, address, file, ...rest] = positionals
  if (values.help) return { command: 'help', of: isCommand(command) ? command : undefined }
  if (!isCommand(command)) throw noCommand(command)
  const { json, once, evidence } = values
  switch (command) {
    case 'help':
      if (address !== undefined && !isCommand(address)) throw noCommand(address)
      return { command, of: address }
    case 'completion':
      if (address === undefined || !Object.hasOwn(SHELLS, address))
        throw new UsageError(`completion takes a shell: ${Object.keys(SHELLS).join(', ')}`)
      return { command, shell: address as keyof typeof SHELLS }
    case 'doctor':
      if (file !== undefined) throw new UsageError('doctor takes one process or address at most')
      return { command, json, target: address !== undefined && /^\d+$/.test(address) ? Number(address) : address }
    case 'ps':
      if (address !== undefined) throw new UsageError('ps takes no address')
      return { command, json }
    case 'top':
      if (file !== undefined) throw new UsageError('top takes one address at most')
      return { command, address, json, once }
  }
  if (address === undefined) throw new UsageError(`${command} needs an address`)
  if (rest.length > 0) throw new UsageError(`${command} takes an address and at most one file`)
  const timeout = parseTime('--timeout', values.timeout)
  const ring = {
    backing: values.backing as 'memfd' | 'shm' | undefined,
    capacity: values.capacity === undefined ? undefined : parseSize(values.capacity),
  }
  switch (command) {
    case 'send':
    case 'receive':
      return { command, timeout, how: { address, file, evidence, options: ring } }
    case 'collect':
      if (file !== undefined) throw new UsageError('collect writes to standard output, and takes no file')
      return { command, how: { address, evidence, options: ring } }
    case 'publish': {
      const raw = values.raw === undefined ? undefined : parseSize(values.raw)
      const audience = parseCount('--audience', values.audience) ?? 0
      // The call itself checks the value, as for any caller.
      const backing = ring.backing as 'memfd' | undefined
      const options = { ...ring, backing, stall: parseTime('--stall', values.stall) }
      return { command, how: { address, file, raw, audience, evidence, options } }
    }
    case 'subscribe': {
      if (file !== undefined) throw new UsageError('subscribe writes to standard output, and takes no file')
      const count = parseCount('--count', values.count) ?? Infinity
      const delivery = values.delivery as Delivery | undefined
      const from = values.from as 'now' | 'oldest' | 'latest' | undefined
      const how = { address, count, raw: values['no-newline'], evidence, options: { delivery, from, wait: true } }
      return { command, timeout, how }
    }
  }
}

function noCommand(name: string | undefined): UsageError {
  const known = COMMAND_NAMES.join(', ')
  if (name === undefined) return new UsageError(`name a command: ${known}`)
  const meant = misspelt(name, COMMAND_NAMES)
  return new UsageError(`there is no command ${name}: ${meant === undefined ? known : `did you mean ${meant}?`}`)
}

const OPTIONS = {
  backing: { type: 'string' },
  capacity: { type: 'string' },
  timeout: { type: 'string' },
  evidence: { type: 'boolean', default: false },
  json: { type: 'boolean', default: false },
  once: { type: 'boolean', default: false },
  raw: { type: 'string' },
  'no-newline': { type: 'boolean', default: false },
  audience: { type: 'string' },
  stall: { type: 'string' },
  delivery: { type: 'string' },
  from: { type: 'string' },
  count: { type: 'string' },
  help: { type: 'boolean', short: 'h', default: false },
  version: { type: 'boolean', short: 'V', default: false },
} as const satisfies Record<FlagName | 'help' | 'version', object>

function parse(words: string[]) {
  const how = { args: words, allowPositionals: true, tokens: true, options: OPTIONS } as const
  const { positionals, tokens } = parseArgs({ ...how, strict: false })
  const command = isCommand(positionals[0]) ? positionals[0] : undefined
  for (const token of tokens) if (token.kind === 'option') checkFlag(command, token.name, token.rawName)
  try {
    const parsed = parseArgs(how)
    for (const [name, value] of Object.entries(parsed.values)) checkValue(name as FlagName, value)
    return parsed
  } catch (error) {
    throw error instanceof UsageError ? error : new UsageError((error as Error).message)
  }
}

/** Rejects a flag that the command does not take. The caller may rely on the limit or the mode that it sets. */
function checkFlag(command: CommandName | undefined, name: string, shown: string): void {
  if (name === 'help' || name === 'version') return
  const flags: readonly string[] = command === undefined ? Object.keys(FLAGS) : COMMANDS[command].flags
  if (flags.includes(name)) return
  const meant = misspelt(name, [...flags, 'help', 'version'])
  const others = COMMAND_NAMES.filter((other) => (COMMANDS[other].flags as readonly string[]).includes(name))
  const what = command === undefined ? `there is no option ${shown}` : `${command} takes no ${shown}`
  if (others.length > 0) throw new UsageError(`${what}: it is an option of ${others.join(', ')}`)
  const known = flags.map((flag) => `--${flag}`).join(', ')
  throw new UsageError(`${what}${meant === undefined ? known && `: ${known}` : `: did you mean --${meant}?`}`)
}

function checkValue(name: FlagName, value: unknown): void {
  const { values }: Flag = FLAGS[name] ?? {}
  if (values !== undefined && value !== undefined && !values.includes(value as string))
    throw new UsageError(`--${name} takes ${values.join(', ')}, not ${value as string}`)
}

/** Milliseconds. */
function parseTime(option: string, text: string | undefined): number | undefined {
  return text === undefined ? undefined : parseDuration(option, text)
}

function parseCount(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  if (!/^[1-9]\d{0,14}$/.test(text)) throw new UsageError(`${option} takes a whole number above 0, not ${text}`)
  return Number(text)
}
