#!/usr/bin/env node
// The command line. What it prints for people goes to standard error; standard output is the data's.

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'

import { ask } from './cli/arguments.js'
import { publish, subscribe } from './cli/broadcast.js'
import { collect } from './cli/collect.js'
import { diagnose } from './cli/doctor.js'
import { exitCode, UsageError } from './cli/exit.js'
import { explain } from './cli/slow/main.js'
import { output, print } from './cli/output.js'
import { tell } from './cli/text.js'
import { ps, top } from './cli/top.js'
import { receive, send } from './cli/transfer.js'

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

A subscriber that stops reading delays its publisher for --stall seconds at most; then the publisher evicts it. With the delivery
best-effort or latest it never delays the publisher, and misses the messages that it is too slow for. publish exits after its input
has ended, at the latest --stall seconds later: what it has published stays readable to its subscribers. If no process has
subscribed, it says so on standard error and exits with 0.

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
not keep to the protocol; 8 no room; 9 this system does not offer what is needed. If a signal ends it, a shell reports 128
plus the signal's number. If the reader of its output leaves (| head), it ends by SIGPIPE and prints nothing, as other tools do.

  tar c . | ringfence send @x                    ringfence receive @x | tar x
  tail -f log | ringfence publish @log           ringfence subscribe @log | grep error
  tail -f log | ringfence send @logs             ringfence collect @logs
`

async function main(): Promise<void> {
  const asked = ask(process.argv.slice(2))
  switch (asked.command) {
    case 'help':
      print(HELP)
      return
    case 'version': {
      const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
      print(`${version}\n`)
      return
    }
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
  if (error instanceof UsageError) process.stderr.write('Try ringfence --help.\n')
  process.exit(exitCode(error))
}

main().catch(fail)
