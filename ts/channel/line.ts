// A linked list whose members can leave at any time.

/** A member of at most one {@link Line}. */
export class Place {
  /** @internal */
  line: Line<this> | null = null
  /** @internal */
  before: this | null = null
  /** @internal */
  behind: this | null = null
}

/** A doubly linked list. In an array, removing a member near the front takes time proportional to its length. */
export class Line<Kind extends Place> {
  first: Kind | null = null
  #last: Kind | null = null

  /** Appends a member, after removing it from its current line. */
  push(place: Kind): void {
    place.line?.remove(place)
    place.line = this
    place.before = this.#last
    if (this.#last === null) this.first = place
    else this.#last.behind = place
    this.#last = place
  }

  /** Removes a member. Returns whether it was in this line. */
  remove(place: Kind): boolean {
    if (place.line !== this) return false
    if (place.before === null) this.first = place.behind
    else place.before.behind = place.behind
    if (place.behind === null) this.#last = place.before
    else place.behind.before = place.before
    place.line = place.before = place.behind = null
    return true
  }

  get isEmpty(): boolean {
    return this.first === null
  }

  /** Removes and returns the first member. */
  shift(): Kind | null {
    const { first } = this
    if (first !== null) this.remove(first)
    return first
  }

  /** Removes and returns all members, in their order. */
  clear(): Kind[] {
    const { places } = this
    for (const place of places) this.remove(place)
    return places
  }

  get places(): Kind[] {
    const places: Kind[] = []
    for (let place = this.first; place !== null; place = place.behind) places.push(place)
    return places
  }

  /** Moves all members to the end of another line. */
  moveTo(other: Line<Kind>): void {
    for (let place = this.first; place !== null; place = this.first) other.push(place)
  }
}
