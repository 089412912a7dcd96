// Captured standard output and standard error, for parts of the command line that run in the test process. Such tests
// are serial.

import { Writable } from 'node:stream'

import type { ExecutionContext } from 'ava'

/** The writes to a stream, whose reader can be stopped. */
export class Output {
  readonly stream: Writable
  readonly #chunks: Buffer[] = []
  #pending: (() => void)[] | null = null

  constructor() {
    this.stream = new Writable({
      // The limit of a pipe, on every version of Node.
      highWaterMark: 16_384,
      write: (chunk: Buffer, _encoding, done) => {
        this.#chunks.push(chunk)
        if (this.#pending === null) done()
        else this.#pending.push(done)
      },
    })
  }

  /** Everything that was written, including writes that wait for the reader. */
  get text(): string {
    return Buffer.concat(this.#chunks).toString()
  }

  /** Each write. */
  get writes(): string[] {
    return this.#chunks.map(String)
  }

  /** Stops the reader. */
  stop(): void {
    this.#pending ??= []
  }

  resume(): void {
    const pending = this.#pending ?? []
    this.#pending = null
    for (const done of pending) done()
  }
}

/** Captures one of the two until the test ends. */
export function captureOutput(t: ExecutionContext, name: 'stdout' | 'stderr', more: object = {}): Output {
  const output = new Output()
  const own = Object.getOwnPropertyDescriptor(process, name)!
  Object.defineProperty(process, name, { configurable: true, value: Object.assign(output.stream, more) })
  t.teardown(() => void Object.defineProperty(process, name, own))
  return output
}
