// Parses the command line, without side effects.

import { parseArgs } from 'node:util'

import { nearestName } from '../runtime/nearest.js'
import {
  COMMANDS,
  COMMAND_NAMES,
  FLAGS,
  isCommand,
  type Command,
  type CommandName,
  type Flag,
  type FlagName,
  type Flags,
} from './commands.js'
import { UsageError } from './exit.js'
import { SHELLS } from './help.js'

/** A command, its arguments and its options. */
export interface ParsedCommand {
  command: CommandName | 'version'
  words: string[]
  flags: Flags
}

/** @throws {UsageError} for invalid arguments. */
export function parseCommand(args: string[]): ParsedCommand {
  const { values, positionals } = parse(args)
  const [command, ...words] = positionals
  if (values['version']) return { command: 'version', words: [], flags: {} }
  if (values['help']) return { command: 'help', words: isCommand(command) ? [command] : [], flags: {} }
  if (!isCommand(command)) throw unknownCommand(command)
  const [first] = words
  if (command === 'help' && first !== undefined && !isCommand(first)) throw unknownCommand(first)
  if (command === 'completion' && !Object.hasOwn(SHELLS, first ?? ''))
    throw new UsageError(`completion takes a shell: ${Object.keys(SHELLS).join(', ')}`)
  const { usage, excessError }: Command = COMMANDS[command]
  const operands = usage.split(' ').filter((word) => word !== '')
  if (operands[0] === 'ADDRESS' && first === undefined) throw new UsageError(`${command} needs an address`)
  if (excessError !== undefined && words.length > operands.length) throw new UsageError(`${command} ${excessError}`)
  return { command, words, flags: Object.fromEntries(Object.entries(values).map(convertFlag)) }
}

/** Converts the value of an option. */
function convertFlag([name, value]: [string, unknown]): [string, unknown] {
  const { values, parse: convert }: Flag = FLAGS[name as FlagName]
  if (values?.includes(value as string) === false)
    throw new UsageError(`--${name} takes ${values.join(', ')}, not ${value as string}`)
  return [name, convert === undefined ? value : convert(value as string, `--${name}`)]
}

function unknownCommand(name: string | undefined): UsageError {
  const names = COMMAND_NAMES.join(', ')
  if (name === undefined) return new UsageError(`name a command: ${names}`)
  const suggestion = nearestName(name, COMMAND_NAMES)
  return new UsageError(
    `there is no command ${name}: ${suggestion === undefined ? names : `did you mean ${suggestion}?`}`,
  )
}

const toOption = ([name, { value }]: [string, Flag]) =>
  [name, { type: value === undefined ? 'boolean' : 'string' }] as const

const OPTIONS = {
  ...Object.fromEntries(Object.entries(FLAGS).map(toOption)),
  help: { type: 'boolean', short: 'h' },
  version: { type: 'boolean', short: 'V' },
} as const

function parse(words: string[]) {
  const config = { args: words, allowPositionals: true, options: OPTIONS } as const
  const { positionals, tokens } = parseArgs({ ...config, tokens: true, strict: false })
  const command = isCommand(positionals[0]) ? positionals[0] : undefined
  for (const token of tokens) if (token.kind === 'option') checkFlag(command, token.name, token.rawName)
  try {
    return parseArgs(config)
  } catch (error) {
    // Some messages have several lines.
    throw new UsageError((error as Error).message.replaceAll('\n', ' '))
  }
}

/** Rejects a flag that the command does not take. The caller may rely on the limit or the mode that it sets. */
function checkFlag(command: CommandName | undefined, name: string, shown: string): void {
  if (name === 'help' || name === 'version') return
  const flags: readonly string[] = command === undefined ? Object.keys(FLAGS) : COMMANDS[command].flags
  if (flags.includes(name)) return
  const suggestion = nearestName(name, [...flags, 'help', 'version'])
  const others = COMMAND_NAMES.filter((other) => (COMMANDS[other].flags as readonly string[]).includes(name))
  const what = command === undefined ? `there is no option ${shown}` : `${command} takes no ${shown}`
  if (others.length > 0) throw new UsageError(`${what}: it is an option of ${others.join(', ')}`)
  const list = flags.map((flag) => `--${flag}`).join(', ')
  throw new UsageError(`${what}${suggestion === undefined ? list && `: ${list}` : `: did you mean --${suggestion}?`}`)
}
