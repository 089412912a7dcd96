// Whose turn it is among the sources of a merge. No source is read here: this file has the order alone.
//
// A source that may have something is ready, and the ready ones take turns: so many bytes, or so long. One that was found empty rests,
// and is looked at now and then, or rings. One that has something again has its turn next, once: it is fresh. A fresh source that is
// empty again joins the end of the ready ones, not those that rest, so that one which sends a little each time cannot always come first
// (as fq_codel does with the flows of a network).

import { fairness } from '../runtime/fairness.js'
import { Line, type Place } from './line.js'

export { Place } from './line.js'

/** Bytes of a turn, about: a turn ends with the message that reaches it. */
export const TURN = 16 * 1024
/** Looks at the clock after which a turn ends as well: a handler that is slow makes few messages long. */
const LOOKS = 2

export class Turns<Kind extends Place> {
  readonly #fresh = new Line<Kind>()
  readonly #ready = new Line<Kind>()
  /** Found empty, and will not ring. */
  readonly #resting = new Line<Kind>()
  /** Found empty, and will ring. */
  readonly #armed = new Line<Kind>()
  /** Who has the turn, and what is left of it. */
  #current: Kind | null = null
  #left = 0
  #began = 0

  /** Whose turn it is; null: none may have anything. */
  get next(): Kind | null {
    const next = this.#fresh.first ?? this.#ready.first
    if (next !== this.#current && next !== null) {
      this.#current = next
      this.#left = TURN
      this.#began = fairness.looks
    }
    return next
  }

  /** The one whose turn it is has handed out so many bytes. Whether its turn is over. */
  spend(bytes: number): boolean {
    this.#left -= bytes
    if (this.#left > 0 && fairness.looks - this.#began < LOOKS) return false
    this.end()
    return true
  }

  /** The turn is over. */
  end(): void {
    const current = this.#current
    this.#current = null
    if (current !== null && this.isReady(current)) this.#ready.push(current)
  }

  isReady(place: Kind): boolean {
    return place.line === this.#fresh || place.line === this.#ready
  }

  /** It may have something, which was not so: it comes next. */
  wake(place: Kind): void {
    if (!this.isReady(place)) this.#fresh.push(place)
  }

  /** The one whose turn it is was found empty. */
  foundEmpty(place: Kind, isArmed: boolean): void {
    if (place === this.#current) this.#current = null
    if (place.line === this.#fresh && this.#ready.first !== null) this.#ready.push(place)
    else this.rest(place, isArmed)
  }

  /** It has nothing. */
  rest(place: Kind, isArmed: boolean): void {
    if (place === this.#current) this.#current = null
    const line = isArmed ? this.#armed : this.#resting
    line.push(place)
  }

  remove(place: Kind): void {
    if (place === this.#current) this.#current = null
    place.line?.remove(place)
  }

  /** All are to be looked at. */
  wakeAll(): void {
    this.#resting.moveTo(this.#ready)
    this.#armed.moveTo(this.#ready)
  }

  /** Looks at a few of those that have nothing, those first that were not looked at for longest. */
  lookAround(count: number, hasSomething: (place: Kind) => boolean): void {
    for (const line of [this.#resting, this.#armed]) {
      for (let looks = 0; looks < count; looks += 1) {
        const place = line.first
        if (place === null) break
        if (hasSomething(place)) this.wake(place)
        else line.push(place)
      }
    }
  }

  /** Those that have had an event since they were last found empty. */
  get fresh(): Kind[] {
    return this.#fresh.places
  }

  /** Those that have nothing and will not ring. */
  get resting(): Kind[] {
    return this.#resting.places
  }
}
