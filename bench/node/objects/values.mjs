// The values of the measure `objects`: an order, as programs send them, whose JSON has about that many bytes. Each is created
// for its message and read completely: its parts must add up.

import { messageSum } from '../work.mjs'

/** Bytes of JSON of an order without lines, and of each line. */
const HEAD = 62
const LINE = 42

/** An order whose lines add up to its total. Its number is its index in the stretch. */
export function maker(size) {
  const count = Math.max(1, Math.round((size - HEAD) / LINE))
  return (n) => {
    const id = (n & 0xffff) + 1
    const lines = []
    let total = 0
    for (let i = 0; i < count; i++) {
      const quantity = 1 + ((n + i) % 9)
      total += quantity
      lines.push({ item: `part-${1000 + i}`, quantity, price: 99.5 })
    }
    return { id, side: 'buy', account: 'A-1047', total, lines }
  }
}

/** Returns the receiver's sum of a value, the same as of a message of that size. */
export function reader(size) {
  return ({ id, total, lines }) => {
    let left = total
    for (const { item, quantity, price } of lines) left -= item.length === 9 && price > 0 ? quantity : 0
    if (left !== 0) throw new Error(`the lines of order ${id} do not add up`)
    return messageSum(size, id - 1)
  }
}
