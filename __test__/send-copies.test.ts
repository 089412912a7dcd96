// What is sent are the bytes that are shown; what waits is copied, and the memory of copies is used again.

import test from 'ava'

import { pattern } from './support/bytes.js'
import { fillBut, open, small } from './support/paper-ring.js'
import { turns } from './support/until.js'

test('of memory all is sent, and of a view what it shows, whatever its kind', async (t) => {
  const { ring, queue } = open(65_536)
  const bytes = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8])
  const shared = new SharedArrayBuffer(8)
  new Uint8Array(shared).set(bytes)
  const kinds = [
    bytes,
    bytes.buffer,
    shared,
    new DataView(bytes.buffer),
    new Int16Array(bytes.buffer),
    new Float64Array(shared),
  ]
  for (const kind of kinds) {
    await queue.send(kind as Uint8Array)
    t.true(queue.trySend(kind as Uint8Array))
  }
  for (const part of [new DataView(bytes.buffer, 2, 3), new Int16Array(bytes.buffer, 2, 1), new Uint8Array(shared, 1)])
    await queue.send(part as Uint8Array)
  t.deepEqual(
    Array.from(ring.got, (message) => [...message]),
    [...Array.from({ length: 12 }, () => [...bytes]), [3, 4, 5], [3, 4], [2, 3, 4, 5, 6, 7, 8]],
  )
})

/** How much memory is asked for meanwhile, for copies of what waits. */
async function allocations(deed: () => Promise<void>): Promise<number[]> {
  const real = Buffer.allocUnsafeSlow
  const sizes: number[] = []
  Buffer.allocUnsafeSlow = (size) => {
    sizes.push(size)
    return real(size)
  }
  try {
    await deed()
    return sizes
  } finally {
    Buffer.allocUnsafeSlow = real
  }
}

test.serial('a copy is made of what waits alone, and carries 128 KiB at most', async (t) => {
  const { ring, queue } = open(65_536)
  const sendAll = (messages: Uint8Array[]) => async () => {
    for (const message of messages) void queue.send(message)
  }
  ring.room = 1 << 20
  t.deepEqual(await allocations(sendAll(small(40, 8184))), [])
  await turns(2)
  t.deepEqual(await allocations(sendAll([...small(2), pattern(0, 9000), pattern(0, 32_768)])), [])
  await turns(2)
  fillBut(ring, queue, 8)
  const messages = Array.from({ length: 40 }, (_, number) => pattern(number, 8184))
  t.deepEqual(await allocations(sendAll(messages)), [131_072, 131_072])
  while (!queue.isEmpty) {
    ring.read(queue)
    await turns(1)
  }
  t.true(messages.every((message, number) => message.equals(ring.got[number]!)))
})

test.serial('the memory of a copy that has waited is used again, where it is not much too long', async (t) => {
  const { ring, queue } = open(1 << 20)
  const through = (size: number) => async () => {
    ring.read(queue)
    fillBut(ring, queue, 16)
    const message = Buffer.alloc(size, 'what waits')
    const sent = queue.send(message)
    message.fill(0xff)
    while (!queue.isEmpty) {
      await turns(1)
      ring.read(queue)
    }
    await sent
    t.true(Buffer.alloc(size, 'what waits').equals(ring.got.at(-1)!))
  }
  for (const [size, taken] of [
    [20_000, [20_000]],
    [20_000, []],
    [10_000, []],
    [20_001, [20_001]],
    [12_000, []],
    [180_000, [180_000]],
    [90_000, []],
    // More than half would lie idle.
    [89_999, [89_999]],
    [16 << 20, [16 << 20]],
    [16 << 20, []],
    [(16 << 20) + 1, [(16 << 20) + 1]],
    // Too long to be kept.
    [(16 << 20) + 1, [(16 << 20) + 1]],
  ] as const)
    t.deepEqual(await allocations(through(size)), [...taken], `${size} bytes`)
  // A message that goes in parts has its copy at hand, in case it must wait.
  ring.read(queue)
  t.deepEqual(await allocations(() => queue.send(pattern(0, 600_000))), [600_000])
  ring.read(queue)
  t.deepEqual(await allocations(() => queue.send(pattern(0, 600_000))), [])
})
