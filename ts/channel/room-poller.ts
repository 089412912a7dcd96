// Waits for room in a full ring: some turns of the event loop first, then a wakeup by the peer.

import { FAILED, type NativeBundle, type NativeSender } from '../native.js'
import { timers } from '../runtime/timers.js'

/**
 * Turns of the event loop before the peer is asked for a wakeup. Asking costs both processes several microseconds: membarrier(2) interrupts
 * the peer, and a byte on the line wakes this side. A peer that reads makes much room in that time.
 */
const MAX_TURNS = 8

/** The wait of one send queue for room. */
export class RoomPoller {
  readonly #native: NativeSender
  readonly #onRoom: () => void
  /** The least room that is worth another attempt, in bytes. */
  readonly #minRoom: number
  /** The peer will send a wakeup once it has read something. */
  #armed = false
  /** Turns since the last successful send. */
  #turns = 0
  /** Room for the next message, in bytes. */
  #neededRoom = 0
  #isTurnPending = false

  /** @param onRoom - Called when there may be room. */
  constructor(native: NativeSender, onRoom: () => void) {
    this.#native = native
    this.#onRoom = onRoom
    this.#minRoom = Math.min(native.capacity / 16, native.maxAtOnce)
  }

  /** Whether `onRoom` will be called. */
  get isWaiting(): boolean {
    return this.#armed || this.#isTurnPending
  }

  /** Something was sent. */
  progress(): void {
    this.#turns = 0
  }

  /** Handles the peer's wakeup. */
  handleWakeup(): void {
    this.#armed = false
  }

  /** Starts waiting. `true`: `onRoom` will be called. `false`: there may be room now. null: the binding has failed. */
  start(size: number, bundle: NativeBundle | null): boolean | null {
    if (this.isWaiting) return true
    if (this.#turns < MAX_TURNS) {
      this.#neededRoom = size
      this.#isTurnPending = true
      timers.setImmediate(this.#turn)
      return true
    }
    this.#turns = 0
    const armed = bundle === null ? this.#native.armWriter(size) : this.#native.armAttached(size, bundle)
    if (armed === FAILED) return null
    this.#armed = armed === 1
    return this.#armed
  }

  stop(): void {
    this.#isTurnPending = false
  }

  readonly #turn = (): void => {
    if (!this.#isTurnPending) return
    this.#turns += 1
    if (this.#turns < MAX_TURNS && this.#native.hasRoom(Math.max(this.#neededRoom, this.#minRoom)) === 0) {
      timers.setImmediate(this.#turn)
      return
    }
    this.#isTurnPending = false
    this.#onRoom()
  }
}
