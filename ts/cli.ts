#!/usr/bin/env node
// The command line. What it prints for people goes to standard error; standard output is the data's.

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { parseArgs } from 'node:util'

import { publish, subscribe } from './cli/broadcast.js'
import { collect } from './cli/collect.js'
import { diagnose } from './cli/doctor.js'
import { exitCode, UsageError } from './cli/exit.js'
import { explain } from './cli/slow/main.js'
import { parseSize, tell } from './cli/text.js'
import { ps, top } from './cli/top.js'
import { receive, send, type Transfer } from './cli/transfer.js'
import type { Delivery } from './types.js'

const HELP = `ringfence: shared memory between two processes, and no other

  ringfence send ADDRESS [FILE]       sends FILE (or standard input) to the process that receives at ADDRESS
  ringfence receive ADDRESS [FILE]    receives into FILE (or standard output)
  ringfence collect ADDRESS           writes what many send, line by line, to standard output, until SIGINT
  ringfence publish ADDRESS [FILE]    publishes each line of FILE (or of standard input) to all that subscribe
  ringfence subscribe ADDRESS         writes each message that is published at ADDRESS, and a newline
  ringfence ps [--json]               which processes have channels, with whom, and how large their rings are
  ringfence top [ADDRESS]             what goes through, of processes that run with RINGFENCE_OBSERVE=1 (--once, --json)
  ringfence doctor [--json]           what this kernel offers, and what that means for the promises
  ringfence doctor PID|ADDRESS        why the channels of that process, or at that address, are slow (--json)

ADDRESS is a path, or @name for an abstract address. Either side may come first; collect comes before its senders. The other
side must run as the same user, from the same executable.

A subscriber that stands still holds its publisher up, for --stall seconds at most; then it is let go of. With the delivery
best-effort or latest it never does, and what it is too slow for is passed over.

FILE is replaced once everything has come, by a file beside it (.FILE.….part until then); where the transfer fails it stays as it
was. A device, a FIFO or what is open already (/dev/stdout) is written to as it is.

collect writes whole lines, of up to 64 MiB; a sender's last one gets its newline. SIGINT and SIGTERM end it after what is there.

  --backing memfd|shm    what the shared memory is made of (memfd); both sides must choose the same
  --capacity SIZE        of the ring, with K, M or G (4M); the sender's counts
  --timeout SECONDS      send, receive, subscribe: how long to wait for the other side, and before that for a reader
                         of a FIFO (for ever)
  --evidence             print every check that was made
  --raw SIZE             publish: chunks of at most so many bytes instead of lines
  --no-newline           subscribe: each message as it is
  --audience COUNT       publish: waits for so many subscribers first (0)
  --stall SECONDS        publish: how long a slow subscriber may hold it up (5)
  --delivery HOW         subscribe: reliable, best-effort or latest (reliable)
  --from WHERE           subscribe: now, oldest or latest (now)
  --count COUNT          subscribe: ends after so many messages
  --json                 doctor, ps, top: print what a program can read
  --once                 top: prints the figures once, and ends
  --help, --version

Exit codes: 0 all went through; 1 another failure; 2 usage; 3 the address cannot be used or is taken; 4 the peer was
refused, or refused us; 5 the peer was lost before everything had gone through; 6 no process came in time; 7 the peer does
not keep to the protocol; 8 no room; 9 this system does not offer what is needed. A signal
that ends it is what its end tells (a shell: 128 and the signal's number).

  tar c . | ringfence send @x                    ringfence receive @x | tar x
  tail -f log | ringfence publish @log           ringfence subscribe @log | grep error
  tail -f log | ringfence send @logs             ringfence collect @logs
`

async function main(): Promise<void> {
  const { values, positionals, tokens } = parseArguments()
  if (values.help) {
    process.stdout.write(HELP)
    return
  }
  if (values.version) {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
    process.stdout.write(`${version}\n`)
    return
  }
  const [command, address, file, ...rest] = positionals
  for (const token of tokens) if (token.kind === 'option') checkTaken(command, token.name)
  if (command === 'doctor') {
    if (file !== undefined) throw new UsageError('doctor takes one process or address at most')
    if (address === undefined) diagnose(values.json)
    else await explain(/^\d+$/.test(address) ? Number(address) : address, values.json)
    return
  }
  if (command === 'ps') {
    if (address !== undefined) throw new UsageError('ps takes no address')
    ps(values.json)
    return
  }
  if (command === 'top') {
    if (file !== undefined) throw new UsageError('top takes one address at most')
    await top(address, values)
    return
  }
  // What each object has by itself is no command.
  const run = command !== undefined && Object.hasOwn(COMMANDS, command) ? COMMANDS[command] : undefined
  if (run === undefined) {
    const known = [...Object.keys(COMMANDS), 'ps', 'top', 'doctor'].join(', ')
    throw new UsageError(
      command === undefined ? `say what to do: ${known}` : `there is no command ${command}: ${known}`,
    )
  }
  if (address === undefined) throw new UsageError(`${command} needs an address`)
  if (rest.length > 0) throw new UsageError(`${command} takes an address and at most one file`)
  // The part of a file is removed as the process exits; a signal without a listener would leave it there.
  for (const signal of command === 'collect' ? (['SIGHUP'] as const) : (['SIGINT', 'SIGTERM', 'SIGHUP'] as const))
    process.once(signal, () => endBy(signal))
  await run(address, file, values)
}

type Values = ReturnType<typeof parseArguments>['values']

/** What each command takes. One that is ignored would be a limit, or a way of reading, that is relied on and not there. */
const TAKEN: Record<string, readonly string[]> = {
  send: ['backing', 'capacity', 'timeout', 'evidence'],
  receive: ['backing', 'capacity', 'timeout', 'evidence'],
  collect: ['backing', 'capacity', 'evidence'],
  publish: ['backing', 'capacity', 'evidence', 'raw', 'audience', 'stall'],
  subscribe: ['timeout', 'evidence', 'delivery', 'from', 'count', 'no-newline'],
  ps: ['json'],
  top: ['json', 'once'],
  doctor: ['json'],
}

function checkTaken(command: string | undefined, option: string): void {
  const taken = command !== undefined && Object.hasOwn(TAKEN, command) ? TAKEN[command] : undefined
  // That there is no such command is told elsewhere.
  if (taken === undefined || taken.includes(option)) return
  const others = Object.keys(TAKEN).filter((other) => TAKEN[other]!.includes(option))
  const why = command === 'collect' && option === 'timeout' ? 'a signal ends it' : `it is for ${others.join(', ')}`
  throw new UsageError(`${command} takes no --${option}: ${why}`)
}

const COMMANDS: Record<string, (address: string, file: string | undefined, values: Values) => Promise<void>> = {
  send: (address, file, values) => send(transferOf(address, file, values)),
  receive: (address, file, values) => receive(transferOf(address, file, values)),
  collect: (address, file, values) => {
    if (file !== undefined) throw new UsageError('collect writes to standard output, and takes no file')
    const options = {
      backing: checkBacking(values.backing),
      capacity: values.capacity === undefined ? undefined : parseSize(values.capacity),
    }
    return collect({ address, evidence: values.evidence, options, stop: stopBySignal() })
  },
  publish: (address, file, values) =>
    publish({
      address,
      file,
      raw: values.raw === undefined ? undefined : parseSize(values.raw),
      audience: parseCount('--audience', values.audience) ?? 0,
      evidence: values.evidence,
      options: {
        backing: checkBacking(values.backing),
        capacity: values.capacity === undefined ? undefined : parseSize(values.capacity),
        stall: values.stall === undefined ? undefined : parseSeconds('--stall', values.stall),
      },
    }),
  subscribe: (address, file, values) => {
    if (file !== undefined) throw new UsageError('subscribe writes to standard output, and takes no file')
    return subscribe({
      address,
      count: parseCount('--count', values.count) ?? Infinity,
      raw: values['no-newline'],
      evidence: values.evidence,
      options: {
        // The options are checked by the call itself, as any caller's.
        delivery: values.delivery as Delivery | undefined,
        from: values.from as 'now' | 'oldest' | 'latest' | undefined,
        wait: true,
        signal: timeoutOf(values),
      },
    })
  },
}

function transferOf(address: string, file: string | undefined, values: Values): Transfer {
  return {
    address,
    file,
    evidence: values.evidence,
    options: {
      backing: checkBacking(values.backing),
      capacity: values.capacity === undefined ? undefined : parseSize(values.capacity),
      signal: timeoutOf(values),
    },
  }
}

function timeoutOf({ timeout }: Values): AbortSignal | undefined {
  return timeout === undefined ? undefined : AbortSignal.timeout(parseSeconds('--timeout', timeout))
}

/** The first signal ends the collecting in good order, the second at once. */
function stopBySignal(): AbortSignal {
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      if (stop.signal.aborted) endBy(signal)
      process.once(signal, () => endBy(signal))
      stop.abort()
    })
  }
  return stop.signal
}

/**
 * Ends the process by a signal that has come. `process.exit` would wait for a thread that reads from a device, say, for as long as
 * that likes. The signal itself, which has no listener any more, ends the process at once.
 */
function endBy(signal: 'SIGINT' | 'SIGTERM' | 'SIGHUP'): void {
  const code = 128 + constants.signals[signal]
  process.exitCode = code
  process.emit('exit', code)
  process.kill(process.pid, signal)
  // The first process of a container is not ended by it.
  process.exit(code)
}

function parseArguments() {
  try {
    return parseArgs({
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

function parseSeconds(option: string, text: string): number {
  const seconds = Number(text)
  if (!(seconds > 0) || seconds > 2_000_000) throw new UsageError(`${option} takes a number of seconds, not ${text}`)
  return Math.ceil(seconds * 1000)
}

function parseCount(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  if (!/^[1-9]\d{0,14}$/.test(text)) throw new UsageError(`${option} takes a whole number above 0, not ${text}`)
  return Number(text)
}

// A reader that has left (`ringfence receive @x | head`) is a failure like any other, not a stack trace.
process.stdout.on('error', fail)
// One that has left standard error misses what is for people: the data goes on.
process.stderr.on('error', () => {})

function fail(error: unknown): void {
  const message = error instanceof Error ? error.message : String(error)
  tell(message)
  if (error instanceof UsageError) process.stderr.write('Try ringfence --help.\n')
  process.exit(exitCode(error))
}

main().catch(fail)
