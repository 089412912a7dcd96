// Members in a row, of which any can leave at once.

/** A member of at most one {@link Line}. */
export class Place {
  /** @internal */
  line: Line<this> | null = null
  /** @internal */
  before: this | null = null
  /** @internal */
  behind: this | null = null
}

/** A doubly linked list. An array takes time proportional to its length for each member that leaves at its front. */
export class Line<Kind extends Place> {
  first: Kind | null = null
  #last: Kind | null = null

  /** Moves it to the end, from the line that it was in. */
  push(place: Kind): void {
    place.line?.remove(place)
    place.line = this
    place.before = this.#last
    if (this.#last === null) this.first = place
    else this.#last.behind = place
    this.#last = place
  }

  /** Whether it was in this line. */
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

  /** Takes the first out. */
  shift(): Kind | null {
    const { first } = this
    if (first !== null) this.remove(first)
    return first
  }

  /** Takes all out, in their order. */
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

  /** Moves all of them to the end of another line. */
  moveTo(other: Line<Kind>): void {
    for (let place = this.first; place !== null; place = this.first) other.push(place)
  }
}
