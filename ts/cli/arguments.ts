// What was asked for on the command line. Nothing is done here.

import { parseArgs } from 'node:util'

import type { Delivery } from '../types.js'
import type { Publishing, Subscribing } from './broadcast.js'
import type { Collection } from './collect.js'
import { UsageError } from './exit.js'
import { parseSize } from './text.js'
import type { Transfer } from './transfer.js'

/** A command, and what it takes. `timeout`: how long to wait for the other side, in milliseconds. */
export type Asked =
  | { command: 'help' | 'version' }
  | { command: 'send' | 'receive'; how: Transfer; timeout: number | undefined }
  | { command: 'collect'; how: Omit<Collection, 'stop'> }
  | { command: 'publish'; how: Publishing }
  | { command: 'subscribe'; how: Subscribing; timeout: number | undefined }
  | { command: 'ps'; json: boolean }
  | { command: 'top'; address: string | undefined; json: boolean; once: boolean }
  | { command: 'doctor'; target: number | string | undefined; json: boolean }

/** What each command takes. One that is ignored would be a limit, or a way of reading, that is relied on and not there. */
const TAKEN = {
  send: ['backing', 'capacity', 'timeout', 'evidence'],
  receive: ['backing', 'capacity', 'timeout', 'evidence'],
  collect: ['backing', 'capacity', 'evidence'],
  publish: ['backing', 'capacity', 'evidence', 'raw', 'audience', 'stall'],
  subscribe: ['timeout', 'evidence', 'delivery', 'from', 'count', 'no-newline'],
  ps: ['json'],
  top: ['json', 'once'],
  doctor: ['json'],
} as const satisfies Record<string, readonly string[]>

type Command = keyof typeof TAKEN

/** @throws {UsageError} for what cannot be understood. */
export function ask(words: string[]): Asked {
  const { values, positionals, tokens } = parse(words)
  if (values.help) return { command: 'help' }
  if (values.version) return { command: 'version' }
  const [command, address, file, ...rest] = positionals
  if (!isCommand(command)) {
    const known = Object.keys(TAKEN).join(', ')
    throw new UsageError(
      command === undefined ? `say what to do: ${known}` : `there is no command ${command}: ${known}`,
    )
  }
  for (const token of tokens) if (token.kind === 'option') checkTaken(command, token.name)
  const { json, once, evidence } = values
  switch (command) {
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
  const timeout = parseSeconds('--timeout', values.timeout)
  const ring = {
    backing: checkBacking(values.backing),
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
      const options = { ...ring, stall: parseSeconds('--stall', values.stall) }
      return { command, how: { address, file, raw, audience, evidence, options } }
    }
    case 'subscribe': {
      if (file !== undefined) throw new UsageError('subscribe writes to standard output, and takes no file')
      const count = parseCount('--count', values.count) ?? Infinity
      // These are checked by the call itself, as any caller's.
      const delivery = values.delivery as Delivery | undefined
      const from = values.from as 'now' | 'oldest' | 'latest' | undefined
      const how = { address, count, raw: values['no-newline'], evidence, options: { delivery, from, wait: true } }
      return { command, timeout, how }
    }
  }
}

/** What each object has by itself is none. */
function isCommand(command: string | undefined): command is Command {
  return command !== undefined && Object.hasOwn(TAKEN, command)
}

function checkTaken(command: Command, option: string): void {
  const isTaken = (by: string) => (TAKEN[by as Command] as readonly string[]).includes(option)
  if (isTaken(command)) return
  const others = Object.keys(TAKEN).filter(isTaken)
  const why = command === 'collect' && option === 'timeout' ? 'a signal ends it' : `it is for ${others.join(', ')}`
  throw new UsageError(`${command} takes no --${option}: ${why}`)
}

function parse(words: string[]) {
  try {
    return parseArgs({
      args: words,
      allowPositionals: true,
      tokens: true,
      options: {
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
      },
    })
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
}

function checkBacking(backing: string | undefined): 'memfd' | 'shm' | undefined {
  if (backing === undefined || backing === 'memfd' || backing === 'shm') return backing
  throw new UsageError(`--backing is memfd or shm, not ${backing}`)
}

/** In milliseconds. */
function parseSeconds(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const seconds = Number(text)
  if (!(seconds > 0) || seconds > 2_000_000) throw new UsageError(`${option} takes a number of seconds, not ${text}`)
  return Math.ceil(seconds * 1000)
}

function parseCount(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  if (!/^[1-9]\d{0,14}$/.test(text)) throw new UsageError(`${option} takes a whole number above 0, not ${text}`)
  return Number(text)
}
