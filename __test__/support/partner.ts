// Another process. A test contains its code as functions, which are sent as text.

import { spawn, type ChildProcess } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import type { ExecutionContext } from 'ava'
import { join, listen, type Channel, type Listener, type ListenOptions, type Options } from 'ringfence'

import { abstractAddress } from './address.js'
import { reachable } from './other-user.js'
import type { Answer, Kit, Thrown } from './partner-process.js'
import { until } from './until.js'

/** The exit of a process. */
export interface Exit {
  code: number | null
  signal: NodeJS.Signals | null
}

export interface PartnerSettings {
  /** A command that runs the process: it precedes the words of node. */
  through?: string[]
  /** Options of node. */
  node?: string[]
}

interface Waiting {
  resolve(value: unknown): void
  reject(error: Error): void
}

const script = fileURLToPath(new URL('partner-process.js', import.meta.url))

/** An error of the other process, with the properties that tests check. */
export class PartnerError extends Error {
  readonly code: string | undefined
  readonly thrown: Thrown

  constructor(thrown: Thrown) {
    super(thrown.message)
    this.name = thrown.name
    this.code = thrown.code
    this.thrown = thrown
  }
}

/** The states as in proc_pid_stat(5). A thread that exits in the meantime has none. */
function statesOfThreads(pid: number): string[] {
  const states: string[] = []
  for (const thread of readdirSync(`/proc/${pid}/task`))
    try {
      states.push(/\) (\S)/.exec(readFileSync(`/proc/${pid}/task/${thread}/stat`, 'latin1'))![1]!)
    } catch {
      // It has ended.
    }
  return states
}

export class Partner {
  readonly exited: Promise<Exit>
  readonly #child: ChildProcess
  readonly #waiting = new Map<number, Waiting>()
  #next = 0
  #complaints = ''
  #exit: Exit | null = null
  #expected: 'to run' | 'to exit' | 'to fail' | 'to be killed' = 'to run'

  private constructor(child: ChildProcess) {
    this.#child = child
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#complaints += text
    })
    child.on('message', (answer: Answer) => {
      const waiting = this.#waiting.get(answer.id)
      this.#waiting.delete(answer.id)
      if (answer.thrown === undefined) waiting?.resolve(answer.value)
      else waiting?.reject(new PartnerError(answer.thrown))
    })
    // The event 'close' would never be emitted for a child that was disconnected.
    const stderrClosed = new Promise((resolve) => child.stderr!.on('close', resolve))
    const ended = new Promise<Exit>((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })))
    this.exited = Promise.all([ended, stderrClosed]).then(([exit]) => {
      this.#exit = exit
      for (const { reject } of this.#waiting.values()) reject(new Error(`the partner is gone: ${this.#describe()}`))
      this.#waiting.clear()
      return exit
    })
  }

  /** Starts a process that ends with the test. The test fails if the process has ended on its own before. */
  static async start(t: ExecutionContext, { through = [], node = [] }: PartnerSettings = {}): Promise<Partner> {
    const own = { node: process.execPath, script, cwd: process.cwd() }
    const from = through[0] === 'setpriv' ? reachable(script) : own
    const [command, ...words] = [...through, from.node, '--enable-source-maps', ...node, from.script]
    const child = spawn(command!, words, {
      cwd: from.cwd,
      stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
      serialization: 'advanced',
    })
    const partner = new Partner(child)
    t.teardown(() => partner.#finish())
    await partner.run(() => {})
    return partner
  }

  get pid(): number {
    return this.#child.pid!
  }

  /** Calls a function in the partner. It can use only its arguments, and nothing else of this process. */
  run<Arguments extends unknown[], Result>(
    task: (kit: Kit, ...args: Arguments) => Result,
    ...args: Arguments
  ): Promise<Awaited<Result>> {
    const id = this.#next
    this.#next += 1
    const answer = new Promise<Awaited<Result>>((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as Waiting['resolve'], reject })
      if (this.#exit !== null) reject(new Error(`the partner is gone: ${this.#describe()}`))
      else this.#child.send({ id, code: task.toString(), args })
    })
    // A caller that awaits the answer gets the error. A test that ends before the answer must not fail because of it.
    answer.catch(() => {})
    return answer
  }

  /** Joins in the partner, which keeps the channel. */
  join(address: string, options: Options = {}): Promise<void> {
    return this.run(
      async (kit, where: string, how: Options) => {
        kit.channel = await kit.join(where, how)
      },
      address,
      options,
    )
  }

  /** Connects in the partner as a client of a service. The partner keeps the channel. */
  connect(address: string, options: Options = {}): Promise<void> {
    return this.run(
      async (kit, where: string, how: Options) => {
        kit.channel = await kit.ringfence.connect(where, how)
      },
      address,
      options,
    )
  }

  /** From now on, only the partner's open resources keep it alive. */
  detach(): Promise<Exit> {
    this.#expected = 'to exit'
    this.#child.disconnect()
    return this.exited
  }

  /** The test is about the end of the process and its messages on standard error, whatever they are. */
  mayFail(): void {
    this.#expected = 'to fail'
  }

  kill(): Promise<Exit> {
    this.#expected = 'to be killed'
    this.#child.kill('SIGKILL')
    return this.exited
  }

  /** Stops the process. Waits until all threads have stopped, since the signal is delivered asynchronously. */
  async stop(): Promise<void> {
    this.#child.kill('SIGSTOP')
    await until(() => statesOfThreads(this.pid).every((state) => state === 'T'), 'each of its threads has stopped')
  }

  /** Continues the process. */
  resume(): void {
    this.#child.kill('SIGCONT')
  }

  #describe(): string {
    const { code, signal } = this.#exit ?? {}
    return `${signal ?? `exit code ${code}`}\n${this.#complaints}`
  }

  async #finish(): Promise<void> {
    const exit = this.#exit
    if (exit === null) {
      this.#child.kill('SIGKILL')
      await this.exited
    } else if (this.#expected === 'to run') throw new Error(`the partner ended by itself: ${this.#describe()}`)
    else if (this.#expected === 'to exit' && exit.code !== 0) throw new Error(`the partner failed: ${this.#describe()}`)
    if (this.#complaints !== '' && this.#expected !== 'to fail')
      throw new Error(`the partner complained:\n${this.#complaints}`)
  }
}

export interface PairSettings {
  address?: string
  /** For both sides. */
  options?: Options
  /** For this side only. */
  here?: Options
  /** For the partner only. */
  there?: Options
  partner?: Partner
}

export interface Pair {
  channel: Channel
  partner: Partner
  address: string
}

/** Joins, and closes the channel when the test ends. */
export function joinHere(t: ExecutionContext, address: string, options: Options = {}): Promise<Channel> {
  const over = new AbortController()
  const signal = options.signal === undefined ? over.signal : AbortSignal.any([over.signal, options.signal])
  const joined = join(address, { ...options, signal })
  t.teardown(async () => {
    over.abort()
    const channel = await joined.catch(() => undefined)
    await channel?.close()
  })
  return joined
}

/** Listens, and closes the listener and its channels when the test ends. */
export async function listenHere(t: ExecutionContext, address: string, options: ListenOptions = {}): Promise<Listener> {
  const listener = await listen(address, options)
  t.teardown(() => listener.close({ channels: 'close' }))
  return listener
}

/** The next channel of a listener. */
export async function nextChannel(listener: Listener): Promise<Channel> {
  const { value } = await listener[Symbol.asyncIterator]().next()
  if (value === undefined) throw new Error('the listener has closed')
  return value
}

/** A channel from this process to another. */
export async function pair(t: ExecutionContext, settings: PairSettings = {}): Promise<Pair> {
  const { address = abstractAddress(), options = {}, here = {}, there = {} } = settings
  const partner = settings.partner ?? (await Partner.start(t))
  const [channel] = await Promise.all([
    joinHere(t, address, { ...options, ...here }),
    partner.join(address, { ...options, ...there }),
  ])
  return { channel, partner, address }
}

/**
 * Makes the partner receive `count` messages, each a `pattern` by its number. Returns 'all', or the first that differs.
 */
export function receivesPatterns(partner: Partner, count: number): Promise<string> {
  return partner.run(async (kit, wanted: number) => {
    for (let number = 0; number < wanted; number += 1) {
      const message = (await kit.channel.receive())!
      if (!message.equals(kit.bytes.pattern(number, message.length))) return `message ${number} is another`
    }
    return 'all'
  }, count)
}
