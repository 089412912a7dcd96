import type { ChildProcess, SpawnOptions } from 'node:child_process'
import { once } from 'node:events'
import type { Readable } from 'node:stream'

import { runHandshake } from './handshake.js'
import type { Codec } from '../adapters/codec.js'
import { openChannel, type Channel } from '../channel/channel.js'
import { RingfenceError, aborted, fromFailure, invalid, isResourceShortage, ok, show } from '../errors.js'
import { builtin, native, type PrivateLine } from '../native.js'
import { ignore, settledWithin } from '../runtime/deferred.js'
import { checkOptions } from './options.js'
import type { ChildOptions, LineOptions, Message, MessageInput } from '../types.js'

/** A child process and the channel with it. */
export interface Spawned<In = Message, Out = MessageInput> extends AsyncDisposable {
  /** The return value of `child_process.spawn`. Closing the channel does not terminate the child. */
  readonly child: ChildProcess
  /** This side is the host. */
  readonly channel: Channel<In, Out>
  /**
   * Closes the channel, then kills the child, the process that answered, and their descendants. A child that needs time to finish should
   * be awaited first: `await channel.close()`, then the `exit` event of `child`.
   *
   * If `policy.cgroup` names a cgroup of the child's own that this process may write, everything in it is killed (`cgroup.kill`, Linux
   * 5.14). Otherwise the processes get SIGKILL one by one, and one that has detached itself from its parent and its session is not found
   * unless it answered. Resolves once the child has exited, after five seconds at the latest.
   */
  [Symbol.asyncDispose](): Promise<void>
}

/** Bytes from the end of standard error that an error includes. */
const STDERR_TAIL = 4096
/** Bytes of output that are buffered until the caller reads. A child that writes more during the handshake blocks. */
const MAX_BUFFERED = 1 << 20
/** Milliseconds to wait for the end of standard error after the exit. A descendant of the child may hold it open. */
const STDERR_TIMEOUT = 200
/** Milliseconds to wait for the exit event of a child that was killed or has exited. The kernel may delay it. */
const EXIT_TIMEOUT = 5000

/**
 * Starts a child that inherits one end of a private line. Resolves once the child has called {@link fromParent} and the handshake is
 * done. There is no address that another process could take first or connect to. If the call rejects, it has killed the started child
 * and its descendants.
 *
 * By default the child must run the same executable as this process, which for a script is `spawn(process.execPath, ['script.js'])`.
 * Another program must be named in the policies of both sides. By default only the started process may open the channel. With
 * `admit: 'descendant'` the command may be a launcher that forks, such as a shell or `bwrap`.
 *
 * @example
 * ```ts
 * await using started = await spawn(process.execPath, ['worker.js'], { spawn: { stdio: 'inherit' } })
 * await started.channel.send('job')
 * ```
 *
 * @param command - As for `child_process.spawn`, and so is `args`.
 * @throws CHILD_EXITED if the child has exited before the handshake and no process has the line, with `exitCode`, `signalCode` and, if piped, the last 4 KiB of
 * `stderr`; HANDSHAKE_TIMEOUT if the child has not called `fromParent` within `handshakeTimeout`, which counts from the start, and again
 * for the handshake; TIMEOUT; PEER_REFUSED if the policy is not satisfied, or if the child has passed the line to another process, which
 * answers; PEER_LOST if the child has closed the line and still runs; INVALID_ARGUMENT if the command cannot be started; NO_SPACE if this
 * process lacks memory or descriptors, or may not start another process; AbortError by the signal, which starts nothing if it was aborted
 * before; and the exceptions of `onSpawn`. The `cause` of a command that cannot be started is the error of `child_process.spawn`.
 */
export function spawn<T>(
  command: string,
  args: readonly string[] | undefined,
  options: ChildOptions & { codec: Codec<T> },
): Promise<Spawned<T, T>>
export function spawn(command: string, args?: readonly string[], options?: ChildOptions): Promise<Spawned>
export async function spawn(
  command: string,
  args: readonly string[] = [],
  options: ChildOptions = {},
): Promise<Spawned> {
  checkOptions('spawn', options)
  if (!Array.isArray(args)) throw invalid(`args must be an array, not ${show(args)}`)
  const { signal, onSpawn } = options
  if (signal?.aborted) throw aborted(signal)
  const { child, line } = startChild(command, args, options)
  if (child.pid === undefined) {
    line.close()
    const [cause] = (await once(child, 'error').catch((error: unknown) => [error])) as [Error]
    throw cannotStart(command, cause)
  }
  // The caller may not have the child yet, so nothing else would handle the abort of `spawn.signal`.
  child.on('error', ignore)
  // The handshake may fail before the exit is awaited.
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  const output = bufferOutput(child)
  try {
    // Before `onSpawn`, which may throw: descendants of the child can be killed from now on.
    const failure = line.started(child.pid, options.admit ?? 'child')
    onSpawn?.(child)
    if (failure !== null) throw fromFailure(failure)
    const channel = await runHandshake('spawn', (...given) => native.adopt(line, ...given), options, openChannel)
    // A later dispose can still kill descendants: it finds them in /proc, without a descriptor.
    void Promise.all([exited, channel.closed]).then(() => line.release())
    const dispose = async () => {
      // A child that exits when the channel ends leaves its own children behind.
      line.list()
      await channel.close()
      await killAll(line, child)
      await settledWithin(EXIT_TIMEOUT, exited)
    }
    let disposed: Promise<void> | undefined
    child.off('error', ignore)
    return { child, channel, [Symbol.asyncDispose]: () => (disposed ??= dispose()) }
  } catch (error) {
    await killAll(line, child)
    void exited.then(() => line.release())
    let reported = error
    if ((error as RingfenceError).code === 'ERR_RINGFENCE_CHILD_EXITED') {
      // A process that traces the child delays the event.
      await settledWithin(EXIT_TIMEOUT, exited)
      reported = await childExited(child, output.tail, error)
    }
    // The caller does not have the child. A process that has escaped may hold the other ends of the pipes.
    if (onSpawn === undefined) for (const stream of child.stdio) stream?.destroy()
    throw reported
  } finally {
    line.close()
    output.release()
  }
}

/**
 * Opens the channel to the parent, in a process that was started by {@link spawn} or by its counterpart in Rust. This side is the guest.
 * It can be called once per process. Call it early: until then, processes that are started other than by Node may inherit the line too.
 * The parent refuses such processes.
 *
 * @example
 * ```ts
 * const channel = await fromParent()
 * for await (const job of channel) await channel.send(`done: ${job}`)
 * ```
 *
 * @throws ADDRESS_INVALID in a process that has inherited no line or has already used it; PEER_LOST if the parent has exited; and as
 * {@link join}
 */
export function fromParent<T>(options: LineOptions & { codec: Codec<T> }): Promise<Channel<T, T>>
export function fromParent(options?: LineOptions): Promise<Channel>
export function fromParent(options: LineOptions = {}): Promise<Channel> {
  return runHandshake('fromParent', (...args) => native.fromParent(...args), options, openChannel)
}

function startChild(command: string, args: readonly string[], { spawn: settings = {}, line: option }: ChildOptions) {
  const line = ok<PrivateLine>(native.privateLine())
  try {
    const stdio = stdioList(settings.stdio)
    const descriptor = option === 'stdin' ? 0 : stdio.length
    stdio[descriptor] = line.descriptor
    const env = { ...(settings.env ?? process.env), RINGFENCE_LINE: String(descriptor) }
    return { line, child: builtin.childProcess.spawn(command, args, { ...settings, stdio, env }) as ChildProcess }
  } catch (error) {
    line.close()
    throw cannotStart(command, error as Error)
  }
}

/** The child's `stdio` as a list with an entry for each of the three standard descriptors. */
function stdioList(stdio: SpawnOptions['stdio']): Exclude<SpawnOptions['stdio'], string | undefined> {
  if (!Array.isArray(stdio)) return [stdio, stdio, stdio]
  const missing = Array.from({ length: Math.max(0, 3 - stdio.length) }, () => undefined)
  return [...stdio, ...missing]
}

/** Kills the child, the process that answered, and their descendants. */
async function killAll(line: PrivateLine, child: ChildProcess): Promise<void> {
  const wasKilled = await new Promise<boolean>((resolve) => {
    try {
      line.kill((_, killed) => resolve(killed))
    } catch {
      // There is no thread for it.
      resolve(line.killHere())
    }
  })
  if (wasKilled) return
  // A launcher of another user, such as sudo, may not be killed, which `kill` emits as an error of the child.
  child.once('error', ignore)
  try {
    child.kill('SIGKILL')
  } finally {
    child.off('error', ignore)
  }
}

/**
 * Reads the child's output before the caller can, since the caller gets the child only once `spawn` has resolved. Otherwise a child that
 * fills a pipe would never reach its handshake. The streams buffer the bytes. Also keeps the end of standard error.
 */
function bufferOutput({ stdout, stderr }: ChildProcess): { tail(): string | undefined; release(): void } {
  let tail = Buffer.alloc(0)
  const releases = [stdout, stderr].map((stream) => {
    if (!stream) return undefined
    const { push } = stream
    stream.push = (chunk: unknown, encoding?: BufferEncoding) => {
      if (stream === stderr && Buffer.isBuffer(chunk)) tail = Buffer.concat([tail, chunk]).subarray(-STDERR_TAIL)
      return push.call(stream, chunk, encoding) || stream.readableLength < MAX_BUFFERED
    }
    // Uncovers the method of the stream's class.
    return () => void delete (stream as Partial<Readable>).push
  })
  return {
    tail: () => (stderr ? tail.toString() : undefined),
    release: () => releases.forEach((release) => release?.()),
  }
}

async function childExited(
  child: ChildProcess,
  tail: () => string | undefined,
  cause: unknown,
): Promise<RingfenceError> {
  const { pid, exitCode, signalCode, stderr } = child
  if (stderr && !stderr.closed) await settledWithin(STDERR_TIMEOUT, once(stderr, 'close').catch(ignore))
  const code = exitCode === null ? '' : ` with code ${exitCode}`
  const how = signalCode === null ? code : ` by ${signalCode}`
  const output = tail()
  const advice = output ? 'its `stderr` is in this error' : 'has it called `fromParent`?'
  const text = `the child, process ${pid}, exited${how} before the handshake; ${advice}`
  return new RingfenceError('CHILD_EXITED', text, { cause, exitCode, signalCode, stderr: output })
}

function cannotStart(command: string, cause: NodeJS.ErrnoException): RingfenceError {
  // EAGAIN: this process may not start another one.
  const name = isResourceShortage(cause.code) || cause.code === 'EAGAIN' ? 'NO_SPACE' : 'INVALID_ARGUMENT'
  const advice = cause.code === 'ENOENT' ? adviceOnMissing(command) : ''
  return new RingfenceError(name, `${show(command)} cannot be started: ${cause.message}${advice}`, { cause })
}

/** Node reports a missing directory or interpreter like a missing program. */
function adviceOnMissing(command: string): string {
  const missing = command.includes('/')
    ? 'the file, its interpreter or `cwd` does not exist'
    : 'not found in PATH, or no such `cwd`'
  return `: ${missing}; install it, or give its path`
}
