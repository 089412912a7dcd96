// The commands and their options. The parser, the help and the shell completion are generated from them.

import { parseCount, parseDuration, parseSize } from './text.js'

/** An option of the command line. */
export interface Flag {
  /** The placeholder of its value in the help; undefined if it takes no value. */
  readonly value?: string
  /** Its valid values, if they can be listed. */
  readonly values?: readonly string[]
  /** Converts its value. @throws {UsageError} for an invalid one */
  parse?(text: string, option: string): number
  readonly text: string
}

export const FLAGS = {
  backing: {
    value: 'TYPE',
    values: ['memfd', 'shm'],
    text: 'shared memory: memfd (default) or shm; both sides must choose the same',
  },
  capacity: { value: 'SIZE', parse: parseSize, text: "size of the ring (4MiB); the sender's counts" },
  timeout: {
    value: 'TIME',
    parse: parseDuration,
    text: 'how long to wait for the other side, and before that for the reader of a FIFO (no limit)',
  },
  evidence: { text: 'print each check of the handshake' },
  raw: { value: 'SIZE', parse: parseSize, text: 'publish chunks of at most this size in place of lines' },
  'no-newline': { text: 'write each message without a newline behind it' },
  audience: { value: 'COUNT', parse: parseCount, text: 'wait for this number of subscribers first (0)' },
  stall: { value: 'TIME', parse: parseDuration, text: 'how long a slow subscriber may delay the publisher (5s)' },
  delivery: {
    value: 'HOW',
    values: ['reliable', 'best-effort', 'latest'],
    text: 'reliable (default), best-effort or latest',
  },
  from: {
    value: 'WHERE',
    values: ['now', 'oldest', 'latest'],
    text: 'where to start: now (default), oldest or latest',
  },
  count: { value: 'COUNT', parse: parseCount, text: 'exit after this number of messages' },
  json: { text: 'print JSON' },
  once: { text: 'print the figures once, and exit' },
} as const satisfies Record<string, Flag>

export type FlagName = keyof typeof FLAGS

type ValueOf<Option> = Option extends { parse: unknown }
  ? number
  : Option extends { values: readonly (infer Value)[] }
    ? Value
    : boolean

/** The options of a command line, without those that were not given. */
export type Flags = { [Name in FlagName]?: ValueOf<(typeof FLAGS)[Name]> | undefined }

/** A command of the command line. */
export interface Command {
  /** Its arguments. */
  readonly usage: string
  /** The error for more arguments; undefined if they are ignored. */
  readonly excessError?: string
  /** One line for the list of commands. */
  readonly summary: string
  /** Paragraphs. */
  readonly text: readonly string[]
  readonly flags: readonly FlagName[]
  readonly examples: readonly string[]
}

const FILE =
  'FILE is replaced once everything has arrived: until then the bytes are in a file beside it (.FILE.….part). If the transfer ' +
  'fails, FILE stays as it was. A device, a FIFO or an open file (/dev/stdout) is written in place.'

export const COMMANDS = {
  send: {
    usage: 'ADDRESS [FILE]',
    excessError: 'takes an address and at most one file',
    summary: 'send FILE, or standard input, to a receiver',
    text: [
      'Sends to the process that runs receive or collect at ADDRESS. Exits with 0 once the receiver has stored everything.',
    ],
    flags: ['backing', 'capacity', 'timeout', 'evidence'],
    examples: ['tar c . | ringfence send @x'],
  },
  receive: {
    usage: 'ADDRESS [FILE]',
    excessError: 'takes an address and at most one file',
    summary: 'receive into FILE, or to standard output',
    text: ['Receives from the process that runs send at ADDRESS. Either side may start first.', FILE],
    flags: ['backing', 'capacity', 'timeout', 'evidence'],
    examples: ['ringfence receive @x | tar x'],
  },
  collect: {
    usage: 'ADDRESS',
    excessError: 'writes to standard output, and takes no file',
    summary: 'write the lines of many senders to standard output',
    text: [
      'Starts before its senders. Writes whole lines of up to 64 MiB; the last line of a sender gets its newline. SIGINT and SIGTERM end it ' +
        'after everything that has arrived is written.',
    ],
    flags: ['backing', 'capacity', 'evidence'],
    examples: ['ringfence collect @logs', 'tail -f log | ringfence send @logs'],
  },
  publish: {
    usage: 'ADDRESS [FILE]',
    excessError: 'takes an address and at most one file',
    summary: 'publish each line of FILE, or of standard input',
    text: [
      'Publishes to all processes that run subscribe at ADDRESS. If a subscriber stops reading, it delays the publisher for --stall at most, and is ' +
        'then evicted; with the delivery best-effort or latest it never delays the publisher, and misses messages instead.',
      'Exits after its input has ended, at the latest --stall later; subscribers can still read what was published. If no process has ' +
        'subscribed, publish says so on standard error and exits with 0.',
    ],
    flags: ['backing', 'capacity', 'evidence', 'raw', 'audience', 'stall'],
    examples: ['tail -f log | ringfence publish @log'],
  },
  subscribe: {
    usage: 'ADDRESS',
    excessError: 'writes to standard output, and takes no file',
    summary: 'write each published message, and a newline',
    text: ['Subscribes to the process that runs publish at ADDRESS. Either side may start first.'],
    flags: ['timeout', 'evidence', 'delivery', 'from', 'count', 'no-newline'],
    examples: ['ringfence subscribe @log | grep error'],
  },
  ps: {
    usage: '',
    excessError: 'takes no address',
    summary: 'list the processes that have channels',
    text: ['Prints each channel with its process, peer, ring size and address.'],
    flags: ['json'],
    examples: ['ringfence ps --json'],
  },
  top: {
    usage: '[ADDRESS]',
    excessError: 'takes one address at most',
    summary: 'show the traffic of processes that can be observed',
    text: ['A process can be observed if it runs with RINGFENCE_OBSERVE=1 or calls observe().'],
    flags: ['json', 'once'],
    examples: ['ringfence top --once --json'],
  },
  doctor: {
    usage: '[PID|ADDRESS]',
    excessError: 'takes one process or address at most',
    summary: 'check this kernel, or find out why a channel is slow',
    text: [
      'Without an argument: prints what this kernel offers, and what that means for the guarantees. With a process id or an address: prints ' +
        'why the channels of that process, or at that address, are slow.',
    ],
    flags: ['json'],
    examples: ['ringfence doctor', 'ringfence doctor @jobs'],
  },
  completion: {
    usage: 'SHELL',
    summary: 'print the completion script for bash, zsh or fish',
    text: ['Each shell reads the script from the output of this command.'],
    flags: [],
    examples: ['source <(ringfence completion bash)', 'ringfence completion fish | source'],
  },
  help: {
    usage: '[COMMAND]',
    summary: 'explain a command',
    text: ['The same as --help behind the command.'],
    flags: [],
    examples: ['ringfence help publish'],
  },
} as const satisfies Record<string, Command>

export type CommandName = keyof typeof COMMANDS

export const COMMAND_NAMES = Object.keys(COMMANDS) as CommandName[]

/** Whether a command has this name. Names from the prototype of every object are not commands. */
export function isCommand(name: string | undefined): name is CommandName {
  return name !== undefined && Object.hasOwn(COMMANDS, name)
}
