import { formatBytes } from './text.js'

const WIDTH = 30
/** Milliseconds between two updates: smooth, and little work compared with the transfer. */
const PERIOD = 100

/** A progress bar if standard error is a terminal; otherwise nothing is shown. */
export class Progress {
  readonly #started = performance.now()
  readonly #total: number | undefined
  readonly #shown: boolean
  #drawn = 0
  bytes = 0

  /** @param total - Total number of bytes, if known. */
  constructor(total: number | undefined, shown = process.stderr.isTTY) {
    this.#total = total
    this.#shown = shown
  }

  /** Counts bytes that were transferred. */
  add(bytes: number): void {
    this.bytes += bytes
    if (!this.#shown) return
    const now = performance.now()
    if (now - this.#drawn < PERIOD) return
    this.#drawn = now
    process.stderr.write(`\r${this.line()}\x1b[K`)
  }

  /** The current state as one line. */
  line(): string {
    const rate = `${formatBytes(this.bytes / this.seconds)}/s`
    if (!this.#total) return `${formatBytes(this.bytes)}  ${rate}`
    const share = Math.min(this.bytes / this.#total, 1)
    const filled = Math.round(share * WIDTH)
    const bar = '█'.repeat(filled) + '░'.repeat(WIDTH - filled)
    return `${bar} ${String(Math.floor(share * 100)).padStart(3)} %  ${formatBytes(this.bytes)}  ${rate}`
  }

  get seconds(): number {
    return Math.max(performance.now() - this.#started, 0.001) / 1000
  }

  /** Leaves the last state on its own line, so that later messages start on a new one. */
  done(): void {
    if (this.#shown) process.stderr.write(`\r${this.line()}\x1b[K\n`)
  }
}
