// Standard output and standard error of this process, for parts of the command line that run in a test. Such tests run one after the other.

import { Writable } from 'node:stream'

import type { ExecutionContext } from 'ava'

/** What a stream has been given, and when it takes more. */
export class Output {
  readonly stream: Writable
  readonly #chunks: Buffer[] = []
  #held: (() => void)[] | null = null

  constructor() {
    this.stream = new Writable({
      // As that of a pipe, on every version of Node.
      highWaterMark: 16_384,
      write: (chunk: Buffer, _encoding, done) => {
        this.#chunks.push(chunk)
        if (this.#held === null) done()
        else this.#held.push(done)
      },
    })
  }

  /** What was written, and what of it is written only once the reader goes on. */
  get text(): string {
    return Buffer.concat(this.#chunks).toString()
  }

  /** Each piece that was written. */
  get pieces(): string[] {
    return this.#chunks.map(String)
  }

  /** The reader stands still. */
  stop(): void {
    this.#held ??= []
  }

  goOn(): void {
    const held = this.#held ?? []
    this.#held = null
    for (const done of held) done()
  }
}

/** Takes one of the two until the test ends. */
export function takeOutput(t: ExecutionContext, name: 'stdout' | 'stderr', more: object = {}): Output {
  const output = new Output()
  const own = Object.getOwnPropertyDescriptor(process, name)!
  Object.defineProperty(process, name, { configurable: true, value: Object.assign(output.stream, more) })
  t.teardown(() => void Object.defineProperty(process, name, own))
  return output
}
