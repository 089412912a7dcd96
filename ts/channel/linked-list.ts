// A linked list whose members can leave at any time.

/** A member of at most one {@link LinkedList}. */
export class ListNode {
  /** @internal */
  list: LinkedList<this> | null = null
  /** @internal */
  previous: this | null = null
  /** @internal */
  next: this | null = null
}

/** A doubly linked list. In an array, removing a member near the front takes time proportional to its length. */
export class LinkedList<Kind extends ListNode> {
  first: Kind | null = null
  #last: Kind | null = null

  /** Appends a member, after removing it from its current list. */
  push(node: Kind): void {
    node.list?.remove(node)
    node.list = this
    node.previous = this.#last
    if (this.#last === null) this.first = node
    else this.#last.next = node
    this.#last = node
  }

  /** Removes a member. Returns whether it was in this list. */
  remove(node: Kind): boolean {
    if (node.list !== this) return false
    if (node.previous === null) this.first = node.next
    else node.previous.next = node.next
    if (node.next === null) this.#last = node.previous
    else node.next.previous = node.previous
    node.list = node.previous = node.next = null
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
    const { nodes } = this
    for (const node of nodes) this.remove(node)
    return nodes
  }

  get nodes(): Kind[] {
    const nodes: Kind[] = []
    for (let node = this.first; node !== null; node = node.next) nodes.push(node)
    return nodes
  }

  /** Moves all members to the end of another list. */
  moveTo(other: LinkedList<Kind>): void {
    for (let node = this.first; node !== null; node = this.first) other.push(node)
  }
}
