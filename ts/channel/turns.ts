// The order in which the sources of a merge take turns. This file reads no source.
//
// A source that may have something is ready. The ready sources take turns, which are limited in bytes and in time. A source that was found
// empty rests until a periodic check or a wakeup. A source that has something again is fresh: it has the next turn, once. A fresh source
// that is empty again joins the end of the ready sources instead of resting. Otherwise a source that sends a little each time would always
// come first (fq_codel treats the flows of a network the same way).

import { fairness } from '../runtime/fairness.js'
import { Line, type Place } from './line.js'

export { Place } from './line.js'

/** The approximate size of a turn in bytes: a turn ends with the message that reaches it. */
export const TURN = 16 * 1024
/** Clock checks after which a turn ends as well: with a slow handler, a few messages take long. */
const LOOKS = 2

export class Turns<Kind extends Place> {
  readonly #fresh = new Line<Kind>()
  readonly #ready = new Line<Kind>()
  /** Sources that were found empty and will not send a wakeup. */
  readonly #resting = new Line<Kind>()
  /** Sources that were found empty and will send a wakeup. */
  readonly #armed = new Line<Kind>()
  /** The source that has the turn, with the remaining bytes of the turn. */
  #current: Kind | null = null
  #left = 0
  #began = 0

  /** The source that has the next turn; null if no source may have anything. */
  get next(): Kind | null {
    const next = this.#fresh.first ?? this.#ready.first
    if (next !== this.#current && next !== null) {
      this.#current = next
      this.#left = TURN
      this.#began = fairness.looks
    }
    return next
  }

  /** Accounts for bytes that the current source has handed out. Returns whether its turn is over. */
  spend(bytes: number): boolean {
    this.#left -= bytes
    if (this.#left > 0 && fairness.looks - this.#began < LOOKS) return false
    this.end()
    return true
  }

  /** Ends the current turn. */
  end(): void {
    const current = this.#current
    this.#current = null
    if (current !== null && this.isReady(current)) this.#ready.push(current)
  }

  isReady(place: Kind): boolean {
    return place.line === this.#fresh || place.line === this.#ready
  }

  /** Gives a source the next turn, if it was not ready before: it may have something now. */
  wake(place: Kind): void {
    if (!this.isReady(place)) this.#fresh.push(place)
  }

  /** Called when the source that has the turn was found empty. */
  foundEmpty(place: Kind, isArmed: boolean): void {
    if (place === this.#current) this.#current = null
    if (place.line === this.#fresh && this.#ready.first !== null) this.#ready.push(place)
    else this.rest(place, isArmed)
  }

  /** Marks a source as empty. */
  rest(place: Kind, isArmed: boolean): void {
    if (place === this.#current) this.#current = null
    const line = isArmed ? this.#armed : this.#resting
    line.push(place)
  }

  remove(place: Kind): void {
    if (place === this.#current) this.#current = null
    place.line?.remove(place)
  }

  /** Makes all sources ready, to be checked. */
  wakeAll(): void {
    this.#resting.moveTo(this.#ready)
    this.#armed.moveTo(this.#ready)
  }

  /** Checks a few empty sources, starting with those that were not checked for longest. */
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

  /** The sources that were not found empty since their last event. */
  get ready(): Kind[] {
    return [...this.#fresh.places, ...this.#ready.places]
  }

  /** The sources that are empty and will not send a wakeup. */
  get resting(): Kind[] {
    return this.#resting.places
  }
}
