#!/usr/bin/env node
// The command line. Messages for people go to standard error; standard output carries only data.

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'

import { ask } from './cli/arguments.js'
import { publish, subscribe } from './cli/broadcast.js'
import { collect } from './cli/collect.js'
import { diagnose } from './cli/doctor.js'
import { exitCode, UsageError } from './cli/exit.js'
import { helpOf, overview, SHELLS } from './cli/help.js'
import { explain } from './cli/slow/main.js'
import { output, print } from './cli/output.js'
import { tell } from './cli/text.js'
import { ps, top } from './cli/top.js'
import { receive, send } from './cli/transfer.js'

async function main(): Promise<void> {
  const asked = ask(process.argv.slice(2))
  switch (asked.command) {
    case 'help':
      print(asked.of === undefined ? overview() : helpOf(asked.of))
      return
    case 'version': {
      const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
      print(`${version}\n`)
      return
    }
    case 'completion':
      print(SHELLS[asked.shell]())
      return
    case 'doctor':
      if (asked.target === undefined) diagnose(asked.json)
      else await explain(asked.target, asked.json)
      return
    case 'ps':
      ps(asked.json)
      return
    case 'top':
      await top(asked.address, asked)
      return
    case 'collect':
      endAtOnceBy('SIGHUP')
      await collect({ ...asked.how, stop: stopBySignal() })
      return
  }
  endAtOnceBy('SIGINT', 'SIGTERM', 'SIGHUP')
  switch (asked.command) {
    case 'send':
      await send(inTime(asked))
      return
    case 'receive':
      await receive(inTime(asked))
      return
    case 'publish':
      await publish(asked.how)
      return
    case 'subscribe':
      await subscribe(inTime(asked))
  }
}

/** Adds a signal that aborts the wait for the other side after `timeout`. */
function inTime<How extends { options: { signal?: AbortSignal | undefined } }>({ how, timeout }: Timed<How>): How {
  if (timeout === undefined) return how
  return { ...how, options: { ...how.options, signal: AbortSignal.timeout(timeout) } }
}

interface Timed<How> {
  how: How
  timeout: number | undefined
}

/** Turns a signal into an exit, which removes a partly written file. Without a listener, the signal would leave that file behind. */
function endAtOnceBy(...signals: EndingSignal[]): void {
  for (const signal of signals) process.once(signal, () => endBy(signal))
}

type EndingSignal = 'SIGINT' | 'SIGTERM' | 'SIGHUP' | 'SIGPIPE'

/** The first signal stops `collect` gracefully, the second one immediately. */
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
 * Terminates the process by a signal that has no listener any longer. `process.exit` would wait, possibly forever, for a thread that
 * reads from a device. The signal terminates the process immediately.
 */
function endBy(signal: EndingSignal): void {
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
function endByBrokenPipe(): void {
  const listener = () => {}
  process.on('SIGPIPE', listener).off('SIGPIPE', listener)
  endBy('SIGPIPE')
}

for (const stream of new Set([process.stdout, output()])) stream.on('error', fail)
// A failed write to standard error must not stop the transfer of data.
process.stderr.on('error', () => {})

function fail(error: unknown): void {
  // Only a write to a pipe or a socket fails with EPIPE; a channel's errors have their own codes.
  if ((error as NodeJS.ErrnoException | null)?.code === 'EPIPE') return endByBrokenPipe()
  const message = error instanceof Error ? error.message : String(error)
  tell(message)
  if (error instanceof UsageError) process.stderr.write('Try ringfence help.\n')
  process.exit(exitCode(error))
}

main().catch(fail)
