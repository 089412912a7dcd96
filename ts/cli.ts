#!/usr/bin/env node
// The command line. Messages for people go to standard error; standard output carries only data.

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'

import { parseCommand } from './cli/arguments.js'
import { publish, subscribe } from './cli/broadcast.js'
import { collect } from './cli/collect.js'
import { isCommand } from './cli/commands.js'
import { diagnose } from './cli/doctor.js'
import { exitCode, UsageError } from './cli/exit.js'
import { helpOf, overview, SHELLS } from './cli/help.js'
import { explain } from './cli/slow/main.js'
import { output, print } from './cli/output.js'
import { printMessage } from './cli/text.js'
import { ps, top } from './cli/top.js'
import { receive, send } from './cli/transfer.js'
import type { PublishOptions } from './types.js'

async function main(): Promise<void> {
  const { command, words, flags } = parseCommand(process.argv.slice(2))
  const [address = '', file] = words
  const { backing, capacity, timeout, evidence = false, json = false, once = false } = flags
  const signal = timeout === undefined ? undefined : AbortSignal.timeout(timeout)
  const options = { backing, capacity, signal }
  switch (command) {
    case 'help':
      return print(isCommand(address) ? helpOf(address) : overview())
    case 'version': {
      const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
      return print(`${version}\n`)
    }
    case 'completion':
      return print(SHELLS[address as keyof typeof SHELLS]())
    case 'doctor':
      if (words[0] === undefined) return diagnose(json)
      return explain(/^\d+$/.test(address) ? Number(address) : address, json)
    case 'ps':
      return ps(json)
    case 'top':
      return top(words[0], { json, once })
    case 'collect':
      exitOnSignals('SIGHUP')
      return collect({ address, evidence, options, stop: stopOnSignal() })
  }
  exitOnSignals(...STOP_SIGNALS, 'SIGHUP')
  switch (command) {
    case 'send':
      return send({ address, file, evidence, options })
    case 'receive':
      return receive({ address, file, evidence, options })
    case 'publish': {
      const { raw, audience = 0, stall } = flags
      // The call itself checks the backing, as for any caller.
      return publish({ address, file, raw, audience, evidence, options: { ...options, stall } as PublishOptions })
    }
    case 'subscribe': {
      const { count = Infinity, delivery, from, 'no-newline': raw = false } = flags
      return subscribe({ address, count, raw, evidence, options: { delivery, from, wait: true, signal } })
    }
  }
}

/** Turns a signal into an exit, which removes a partly written file. Without a listener, the signal would leave that file behind. */
function exitOnSignals(...signals: ExitSignal[]): void {
  for (const signal of signals) process.once(signal, () => exitBySignal(signal))
}

const STOP_SIGNALS = ['SIGINT', 'SIGTERM'] as const
type ExitSignal = (typeof STOP_SIGNALS)[number] | 'SIGHUP' | 'SIGPIPE'

/** The first signal stops `collect` gracefully, the second one immediately. */
function stopOnSignal(): AbortSignal {
  const stop = new AbortController()
  for (const signal of STOP_SIGNALS) {
    process.once(signal, () => {
      if (stop.signal.aborted) exitBySignal(signal)
      process.once(signal, () => exitBySignal(signal))
      stop.abort()
    })
  }
  return stop.signal
}

/**
 * Terminates the process by a signal that has no listener any longer. `process.exit` would wait, possibly forever, for a thread that
 * reads from a device. The signal terminates the process immediately.
 */
function exitBySignal(signal: ExitSignal): void {
  const code = 128 + constants.signals[signal]
  process.exitCode = code
  process.emit('exit', code)
  process.kill(process.pid, signal)
  // The kernel does not deliver the default action of a signal to the first process of a container.
  process.exit(code)
}

/**
 * Dies of SIGPIPE, silently like other tools, because the reader of the output has exited (`ringfence receive @x | head`). Node ignores
 * that signal; adding and removing a listener restores its default action.
 */
function exitByBrokenPipe(): void {
  const listener = () => {}
  process.on('SIGPIPE', listener).off('SIGPIPE', listener)
  exitBySignal('SIGPIPE')
}

for (const stream of new Set([process.stdout, output()])) stream.on('error', fail)
// A failed write to standard error must not stop the transfer of data.
process.stderr.on('error', () => {})

function fail(error: unknown): void {
  // Only a write to a pipe or a socket fails with EPIPE; a channel's errors have their own codes.
  if ((error as NodeJS.ErrnoException | null)?.code === 'EPIPE') return exitByBrokenPipe()
  const message = error instanceof Error ? error.message : String(error)
  printMessage(message)
  if (error instanceof UsageError) process.stderr.write('Try ringfence help.\n')
  process.exit(exitCode(error))
}

main().catch(fail)
