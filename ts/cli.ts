#!/usr/bin/env node
// The command line. What it prints for people goes to standard error; standard output is the data's.

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

/** With a signal that calls off the waiting for the other side. */
function inTime<How extends { options: { signal?: AbortSignal | undefined } }>({ how, timeout }: Timed<How>): How {
  if (timeout === undefined) return how
  return { ...how, options: { ...how.options, signal: AbortSignal.timeout(timeout) } }
}

interface Timed<How> {
  how: How
  timeout: number | undefined
}

/** The part of a file is removed as the process exits; a signal without a listener would leave it there. */
function endAtOnceBy(...signals: EndingSignal[]): void {
  for (const signal of signals) process.once(signal, () => endBy(signal))
}

type EndingSignal = 'SIGINT' | 'SIGTERM' | 'SIGHUP' | 'SIGPIPE'

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
 * Ends the process by a signal that no listener handles any longer. `process.exit` would wait for a thread that reads from a device,
 * possibly for ever; the signal ends the process at once.
 */
function endBy(signal: EndingSignal): void {
  const code = 128 + constants.signals[signal]
  process.exitCode = code
  process.emit('exit', code)
  process.kill(process.pid, signal)
  // The kernel does not end the first process of a container by a signal.
  process.exit(code)
}

/**
 * The reader of the output has left (`ringfence receive @x | head`). Other tools die of SIGPIPE then, without a word. Node ignores that
 * signal; adding and removing a listener restores its default action.
 */
function endByBrokenPipe(): void {
  const listener = () => {}
  process.on('SIGPIPE', listener).off('SIGPIPE', listener)
  endBy('SIGPIPE')
}

for (const stream of new Set([process.stdout, output()])) stream.on('error', fail)
// Standard error is for people: the data goes on without it.
process.stderr.on('error', () => {})

function fail(error: unknown): void {
  // Only a write to a pipe or a socket fails with EPIPE; a channel's errors have codes of their own.
  if ((error as NodeJS.ErrnoException | null)?.code === 'EPIPE') return endByBrokenPipe()
  const message = error instanceof Error ? error.message : String(error)
  tell(message)
  if (error instanceof UsageError) process.stderr.write('Try ringfence help.\n')
  process.exit(exitCode(error))
}

main().catch(fail)
