/** What may be done in promises alone before others have their turn: a few milliseconds' worth. */
const ALLOWANCE = 1024
/** Bytes that count as much as the call that moves them. */
const UNIT = 4096

/**
 * Sees to it that the event loop turns. A loop that awaits what is there already goes on in microtasks, and while it does, no
 * timer fires and nothing else is heard: so every so often a promise is kept back until the loop has turned.
 */
export class Turns {
  #spent = 0
  #due: Promise<void> | null = null

  /** Something was moved. */
  spend(bytes: number): void {
    this.#spent += 1 + bytes / UNIT
    if (this.#spent < ALLOWANCE || this.#due !== null) return
    this.#due = new Promise((resolve) => {
      setImmediate(() => {
        this.#due = null
        this.#spent = 0
        resolve()
      })
    })
  }

  /** The loop has turned just now. */
  rest(): void {
    if (this.#due === null) this.#spent = 0
  }

  /** What to wait for before a promise is kept; null: nothing. */
  get due(): Promise<void> | null {
    return this.#due
  }
}
