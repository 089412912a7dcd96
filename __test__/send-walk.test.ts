// Random sequences of all ways to send: the contents of the ring, and the reported results.

import test from 'ava'

import { pattern, random } from './support/bytes.js'
import { MANY_TURNS, open, type Fill, type Queue, type Ring } from './support/fake-ring.js'
import { turns } from './support/until.js'

/** Sends in all ways at random. Compares the calls with the contents of the ring after each step. */
class Walk {
  readonly ring: Ring
  readonly queue: Queue
  readonly #next: () => number
  readonly #sent: Uint8Array[] = []
  #seen = 0
  #bytes = 0
  readonly pending = new Set<number>()
  #resolved = -1
  wrong: string | null = null
  readonly used: Record<string, number> = {}

  constructor(
    capacity: number,
    readonly longest: number,
    seed: number,
    eager: boolean,
  ) {
    const { ring, queue } = open(capacity, { eager })
    this.ring = ring
    this.queue = queue
    this.#next = random(seed)
  }

  #below(most: number): number {
    return Math.floor(this.#next() * most)
  }

  #message(most: number): Buffer {
    return pattern(this.#sent.length, Math.floor(this.#next() ** 4 * (most + 1)))
  }

  #took(message: Uint8Array): number {
    this.#bytes += message.length
    return this.#sent.push(message) - 1
  }

  #send(): void {
    const message = this.#message(this.longest)
    const isText = this.#below(3) === 0
    // The same number of characters, of one to three bytes each.
    const text = isText ? Array.from(message, (byte) => 'aé日'[byte % 3]).join('') : ''
    const number = this.#took(isText ? Buffer.from(text) : Buffer.from(message))
    this.pending.add(number)
    const sent = this.queue.send(isText ? text : message)
    message.fill(0xff)
    void sent.then(() => {
      if (number < this.#resolved) this.wrong ??= `${number} is told after ${this.#resolved}`
      if (this.ring.received.length <= number) this.wrong ??= `${number} is told and not there`
      this.#resolved = number
      this.pending.delete(number)
    })
  }

  #fill(): boolean {
    const message = this.#message(Math.min(this.longest, this.ring.maxAtOnce - 9))
    const write: Fill = (bytes, offset) => {
      bytes.set(message, offset)
      return message.length
    }
    const filled = this.queue.fill(message.length + this.#below(9), write)
    if (filled) this.#took(message)
    return filled
  }

  #reserve(): boolean {
    const message = this.#message(Math.min(this.longest, this.ring.maxAtOnce))
    const reservation = this.queue.reserve(message.length)
    if (reservation === undefined) return false
    reservation.bytes.set(message)
    if (this.#below(4) === 0) return (reservation.cancel(), false)
    reservation.commit()
    this.#took(message)
    return true
  }

  #trySend(): boolean {
    const message = this.#message(Math.min(this.longest, this.ring.maxAtOnce))
    const sent = this.queue.trySend(message)
    if (sent) this.#took(Buffer.from(message))
    message.fill(0xff)
    return sent
  }

  async #step(): Promise<string> {
    // Mostly waits until everything is sent, so that the other ways find room.
    const way = this.queue.isEmpty || this.#below(3) === 0 ? this.#below(20) : 13 + this.#below(7)
    if (way < 9) return (this.#send(), 'send')
    if (way < 11) return this.#fill() ? 'fill' : 'no fill'
    if (way < 12) return this.#reserve() ? 'reserve' : 'no reserve'
    if (way < 13) return this.#trySend() ? 'trySend' : 'no trySend'
    if (way < 17) return (this.ring.read(this.queue, this.#below(this.ring.capacity)), 'read')
    if (way < 19) return (await Promise.resolve(), 'microtask')
    return (await turns(1 + this.#below(3)), 'turn')
  }

  #look(): void {
    for (const { received } = this.ring; this.#seen < received.length; this.#seen += 1)
      if (!received[this.#seen]!.equals(this.#sent[this.#seen]!)) this.wrong ??= `${this.#seen} is another message`
    const missing = this.#bytes - this.ring.bytes
    if (this.queue.bufferedAmount !== missing) this.wrong ??= `${missing} bytes are missing, as it is`
    if (this.queue.isEmpty !== (this.ring.received.length === this.#sent.length)) this.wrong ??= 'it is empty, or not'
  }

  async go(steps: number): Promise<void> {
    for (let step = 0; step < steps && this.wrong === null; step += 1) {
      const name = await this.#step()
      this.used[name] = (this.used[name] ?? 0) + 1
      this.#look()
      if (step % 50 === 49) await this.#rest()
    }
  }

  /** Waits until nothing happens: everything is in the ring, or a wakeup was requested. */
  async #rest(): Promise<void> {
    await turns(MANY_TURNS)
    this.#look()
    if (this.queue.isEmpty !== (this.ring.armedFor === null)) this.wrong ??= 'it sleeps without a bell, or with one'
  }

  async end(): Promise<void> {
    for (let round = 0; !this.queue.isEmpty && round < 1000; round += 1) {
      this.ring.read(this.queue)
      await turns(1)
    }
    await turns(2)
    this.#look()
    if (!this.queue.isEmpty) this.wrong ??= 'something is left'
    if (this.pending.size > 0) this.wrong ??= `${[...this.pending].join()} are not told`
  }
}

for (const [capacity, longest] of [
  [4096, 5000],
  [65_536, 20_000],
  [2 ** 21, 30_000],
] as const)
  for (const eager of [false, true])
    test(`random ways to send: a ring of ${capacity}${eager ? ', with busyPollMicros' : ''}`, async (t) => {
      for (let seed = 0; seed < 4; seed += 1) {
        const walk = new Walk(capacity, longest, capacity + seed, eager)
        await walk.go(600)
        await walk.end()
        t.is(walk.wrong, null, `seed ${seed}`)
        for (const way of ['send', 'fill', 'reserve', 'trySend']) t.true(walk.used[way]! > 5, JSON.stringify(walk.used))
      }
    })
