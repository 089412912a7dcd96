// A partner in Rust: __test__/rust, which is compiled with the tests.

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import type { ExecutionContext } from 'ava'

import { within } from './until.js'

/** Without the check, a test would wait until its time limit for a program that was never started. */
function built(name: string): string {
  const path = fileURLToPath(new URL(`../../../target/debug/${name}`, import.meta.url))
  if (!existsSync(path)) throw new Error(`${path} is missing: node scripts/build.mjs tests`)
  return path
}

export const rustPartner = built('ringfence-partner')
export const framesProducer = built('ringfence-frames')
export const tickerPublisher = built('ringfence-ticker')

export interface RustSettings {
  deed:
    | 'answer'
    | 'ask'
    | 'produce'
    | 'consume'
    | 'echo'
    | 'close'
    | 'leave'
    | 'execute'
    | 'tokens'
    | 'member'
    | 'merge'
    | 'publish'
    | 'subscribe'
  address: string
  capacity: number
  longest: number
  sizes?: number[]
  /** The executable that its peer must have. */
  executable?: string
}

export class RustPartner {
  readonly exited: Promise<[code: number | null, signal: NodeJS.Signals | null]>
  readonly #child: ChildProcess
  readonly #lines: AsyncIterator<string>

  constructor(t: ExecutionContext, settings: RustSettings) {
    const { deed, address, capacity, longest, sizes = [], executable = process.execPath } = settings
    const words = [deed, address, executable, String(capacity), String(longest)]
    if (sizes.length > 0) words.push(sizes.join(','))
    this.#child = spawn(rustPartner, words, { stdio: ['ignore', 'pipe', 'inherit'] })
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]()
    this.exited = once(this.#child, 'exit') as typeof this.exited
    t.teardown(() => this.kill())
  }

  get pid(): number {
    return this.#child.pid!
  }

  /** The next line of its output. */
  async readLine(): Promise<string> {
    const { done, value } = await within(this.#lines.next(), 'a line of the Rust partner')
    return done === true ? '(the end)' : value
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.exited
  }
}
