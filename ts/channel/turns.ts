// The order in which the sources of a merge take turns. This file reads no source.
//
// A source that may have something is ready. The ready sources take turns, which are limited in bytes and in time. A source that was found
// empty rests until a periodic check or a wakeup. A source that has something again is fresh: it has the next turn, once. A fresh source
// that is empty again joins the end of the ready sources instead of resting. Otherwise a source that sends a little each time would always
// come first (fq_codel treats the flows of a network the same way).

import { fairness } from '../runtime/fairness.js'
import { LinkedList, type ListNode } from './linked-list.js'

export { ListNode } from './linked-list.js'

/** The approximate size of a turn in bytes: a turn ends with the message that reaches it. */
export const TURN = 16 * 1024
/** Clock checks after which a turn ends as well: with a slow handler, a few messages take long. */
const MAX_CLOCK_READS = 2

export class Turns<Kind extends ListNode> {
  readonly #fresh = new LinkedList<Kind>()
  readonly #ready = new LinkedList<Kind>()
  /** Sources that were found empty and will not send a wakeup. */
  readonly #resting = new LinkedList<Kind>()
  /** Sources that were found empty and will send a wakeup. */
  readonly #armed = new LinkedList<Kind>()
  /** The source that has the turn, with the remaining bytes of the turn. */
  #current: Kind | null = null
  #bytesLeft = 0
  #startReads = 0

  /** The source that has the next turn; null if no source may have anything. */
  get next(): Kind | null {
    const next = this.#fresh.first ?? this.#ready.first
    if (next !== this.#current && next !== null) {
      this.#current = next
      this.#bytesLeft = TURN
      this.#startReads = fairness.clockReads
    }
    return next
  }

  /** Accounts for bytes that the current source has handed out. Returns whether its turn is over. */
  spend(bytes: number): boolean {
    this.#bytesLeft -= bytes
    if (this.#bytesLeft > 0 && fairness.clockReads - this.#startReads < MAX_CLOCK_READS) return false
    this.end()
    return true
  }

  /** Ends the current turn. */
  end(): void {
    const current = this.#current
    this.#current = null
    if (current !== null && this.isReady(current)) this.#ready.push(current)
  }

  isReady(node: Kind): boolean {
    return node.list === this.#fresh || node.list === this.#ready
  }

  /** Gives a source the next turn, if it was not ready before: it may have something now. */
  wake(node: Kind): void {
    if (!this.isReady(node)) this.#fresh.push(node)
  }

  /** Called when the source that has the turn was found empty. */
  markEmpty(node: Kind, isArmed: boolean): void {
    if (node === this.#current) this.#current = null
    if (node.list === this.#fresh && this.#ready.first !== null) this.#ready.push(node)
    else this.rest(node, isArmed)
  }

  /** Marks a source as empty. */
  rest(node: Kind, isArmed: boolean): void {
    if (node === this.#current) this.#current = null
    const list = isArmed ? this.#armed : this.#resting
    list.push(node)
  }

  remove(node: Kind): void {
    if (node === this.#current) this.#current = null
    node.list?.remove(node)
  }

  /** Makes all sources ready, to be checked. */
  wakeAll(): void {
    this.#resting.moveTo(this.#ready)
    this.#armed.moveTo(this.#ready)
  }

  /** Checks a few empty sources, starting with those that were not checked for longest. */
  checkEmpty(count: number, needsTurn: (node: Kind) => boolean): void {
    for (const list of [this.#resting, this.#armed]) {
      for (let checked = 0; checked < count; checked += 1) {
        const node = list.first
        if (node === null) break
        if (needsTurn(node)) this.wake(node)
        else list.push(node)
      }
    }
  }

  /** The sources that were not found empty since their last event. */
  get ready(): Kind[] {
    return [...this.#fresh.nodes, ...this.#ready.nodes]
  }

  /** The sources that are empty and will not send a wakeup. */
  get resting(): Kind[] {
    return this.#resting.nodes
  }
}
