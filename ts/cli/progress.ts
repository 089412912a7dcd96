import { formatBytes } from './text.js'

const WIDTH = 30
/** Milliseconds between two drawings: smooth, and no work beside the transfer. */
const PERIOD = 100

/** A progress bar on a terminal; nothing elsewhere. */
export class Progress {
  readonly #started = performance.now()
  readonly #total: number | undefined
  readonly #shown: boolean
  #drawn = 0
  bytes = 0

  /** @param total - Bytes to come, where that is known. */
  constructor(total: number | undefined, shown = process.stderr.isTTY) {
    this.#total = total
    this.#shown = shown
  }

  /** So many bytes more have gone through. */
  add(bytes: number): void {
    this.bytes += bytes
    if (!this.#shown) return
    const now = performance.now()
    if (now - this.#drawn < PERIOD) return
    this.#drawn = now
    process.stderr.write(`\r${this.line()}\x1b[K`)
  }

  /** Where it stands. */
  line(): string {
    const rate = `${formatBytes(this.bytes / this.seconds)}/s`
    if (!this.#total) return `${formatBytes(this.bytes)}  ${rate}`
    const part = Math.min(this.bytes / this.#total, 1)
    const full = Math.round(part * WIDTH)
    const bar = '█'.repeat(full) + '░'.repeat(WIDTH - full)
    return `${bar} ${String(Math.floor(part * 100)).padStart(3)} %  ${formatBytes(this.bytes)}  ${rate}`
  }

  get seconds(): number {
    return Math.max(performance.now() - this.#started, 0.001) / 1000
  }

  /** Leaves the last state standing: what is told next has a line of its own. */
  done(): void {
    if (this.#shown) process.stderr.write(`\r${this.line()}\x1b[K\n`)
  }
}
