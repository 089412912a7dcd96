import type { ChildProcess, SpawnOptions } from 'node:child_process'

import { runHandshake } from './handshake.js'
import { openChannel, type Channel } from '../channel/channel.js'
import { RingfenceError, fromFailure, invalid, isShort, show } from '../errors.js'
import { builtin, native, type Given, type Joining, type RawChannel, type PrivateLine } from '../native.js'
import { checkOptions, type Call } from './options.js'
import type { LineOptions } from '../types.js'

/** A child process, and the channel with it. */
export interface Spawned {
  /** As `child_process.spawn` returns it. The caller owns it: the end of the channel does not end the child. */
  child: ChildProcess
  /**
   * The channel, once the child has called {@link fromParent}. This side is the host. Rejects as {@link join} does, and with
   * - PEER_LOST where the child ends before it has answered;
   * - HANDSHAKE_TIMEOUT where it has not answered within `handshakeTimeout`, which counts from the start to the child's first word, and
   *   again for the handshake;
   * - PEER_REFUSED where another process answers, to which the child has passed the line;
   * - INVALID_ARGUMENT where the command cannot be started; NO_SPACE where this process lacks what that takes.
   */
  channel: Promise<Channel>
}

/**
 * Starts a child that inherits one end of a private line. There is no address that another process could take first or connect
 * to. The child calls {@link fromParent}.
 *
 * Without a policy the child must run the same executable as this process, which for a script is
 * `spawn(process.execPath, ['script.js'])`. Another program must be named, here and there:
 * `{ policy: { executable: '/path/to/program' } }`.
 *
 * @param command - As for `child_process.spawn`, and so are the next two, of which the arguments may be left out. A `shell` is a process of its own, and the
 * child is then refused, unless the shell executes it in its own place (`exec`).
 * @throws {@link RingfenceError} INVALID_ARGUMENT, NO_SPACE, UNSUPPORTED; and what `child_process.spawn` throws
 */
export function spawn(
  command: string,
  args?: readonly string[],
  spawnOptions?: SpawnOptions,
  options?: LineOptions,
): Spawned
export function spawn(command: string, spawnOptions: SpawnOptions, options?: LineOptions): Spawned
export function spawn(command: string, ...given: unknown[]): Spawned {
  const first = given[0] ?? []
  if (!Array.isArray(first)) given.unshift([])
  const [args, spawnOptions = {}, options = {}, more] = given as [
    readonly string[],
    SpawnOptions?,
    LineOptions?,
    unknown?,
  ]
  if (more !== undefined)
    throw invalid(`spawn takes arguments, spawnOptions and options, and not ${show(more)} besides`)
  return spawnWith(command, args ?? [], spawnOptions, options)
}

function spawnWith(
  command: string,
  args: readonly string[],
  spawnOptions: SpawnOptions,
  options: LineOptions,
): Spawned {
  // Before there is a child, which would wait in vain.
  checkOptions('spawn', options)
  if (typeof spawnOptions !== 'object' || spawnOptions === null) {
    throw invalid(`spawnOptions must be an object, not ${show(spawnOptions)}`)
  }
  const line = privateLine()
  try {
    const stdio = [...standard(spawnOptions.stdio), line.descriptor]
    const [name, value] = line.variable(stdio.length - 1)!
    const env = { ...(spawnOptions.env ?? process.env), [name!]: value }
    const child = builtin.childProcess.spawn(command, args, { ...spawnOptions, stdio, env })
    const channel = child.pid === undefined ? notStarted(line, command, child) : adopt(line, child.pid, options)
    // A caller that uses the child alone must not be ended by an unhandled rejection.
    channel.catch(() => {})
    return { child, channel }
  } catch (error) {
    line.close()
    throw lacksRoom(error as Error) ? cannotStart(command, error as Error) : error
  }
}

/**
 * The channel with the parent, in a process that was started by {@link spawn}, or by the same function in Rust. This
 * side is the guest. It works once in a process. Call it early: until then a process that is started here by other means
 * than Node's may inherit the line as well, though the parent refuses it.
 *
 * @throws {@link RingfenceError} as {@link join}; ADDRESS_INVALID in a process that has inherited no line, or has taken it
 * already; PEER_LOST where the parent has gone.
 */
export function fromParent(options: LineOptions = {}): Promise<Channel> {
  return handshake('fromParent', (...given) => native.fromParent(...given), options)
}

function handshake(name: Call, call: (...given: Given<RawChannel>) => Joining, options: LineOptions): Promise<Channel> {
  return runHandshake(name, call, options, (raw, { settings }) => openChannel(raw, settings, null))
}

function privateLine(): PrivateLine {
  try {
    return native.privateLine()
  } catch (error) {
    if (error instanceof RingfenceError) throw error
    throw new RingfenceError('NO_SPACE', `no line can be made: ${(error as Error).message}`, { cause: error })
  }
}

/** The child's descriptors as a list with a place for each of the three standard ones. */
function standard(stdio: SpawnOptions['stdio']): Exclude<SpawnOptions['stdio'], string | undefined> {
  if (!Array.isArray(stdio)) return [stdio, stdio, stdio]
  const missing = Array.from({ length: Math.max(0, 3 - stdio.length) }, () => undefined)
  return [...stdio, ...missing]
}

function adopt(line: PrivateLine, pid: number, options: LineOptions): Promise<Channel> {
  const failure = line.started(pid)
  if (failure !== null) {
    line.close()
    return Promise.reject(fromFailure(failure))
  }
  const channel = handshake('spawn', (...given) => native.adopt(line, ...given), options)
  const close = () => line.close()
  // The caller gets the handshake's own promise: no abort comes between the two.
  channel.then(close, close)
  return channel
}

/** Why there is no child. */
async function notStarted(line: PrivateLine, command: string, child: ChildProcess): Promise<never> {
  line.close()
  throw cannotStart(command, await new Promise<Error>((resolve) => child.once('error', resolve)))
}

/** Whether this process lacks what a child takes, the right to one process more (EAGAIN) included. */
function lacksRoom({ code }: NodeJS.ErrnoException): boolean {
  return isShort(code) || code === 'EAGAIN'
}

function cannotStart(command: string, cause: Error): RingfenceError {
  const name = lacksRoom(cause) ? 'NO_SPACE' : 'INVALID_ARGUMENT'
  return new RingfenceError(name, `${show(command)} cannot be started: ${cause.message}`, { cause })
}
