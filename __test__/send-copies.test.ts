// Sending views and other memory, copying queued messages, and reusing the memory of copies.

import test from 'ava'

import { pattern } from './support/bytes.js'
import { fillBut, open, small } from './support/fake-ring.js'
import { turns } from './support/until.js'

test('all bytes of memory are sent, and of a view the visible ones, whatever its type', async (t) => {
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
    Array.from(ring.received, (message) => [...message]),
    [...Array.from({ length: 12 }, () => [...bytes]), [3, 4, 5], [3, 4], [2, 3, 4, 5, 6, 7, 8]],
  )
})

/** The sizes of the memory that is allocated for copies during a call. */
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

test.serial('only queued messages are copied, at most 128 KiB at a time', async (t) => {
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
  t.true(messages.every((message, number) => message.equals(ring.received[number]!)))
})

test.serial('the memory of a queued copy is reused if it is not much too long', async (t) => {
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
    t.true(Buffer.alloc(size, 'what waits').equals(ring.received.at(-1)!))
  }
  for (const [size, taken] of [
    [20_000, [20_000]],
    [20_000, []],
    [10_000, []],
    [20_001, [20_001]],
    [12_000, []],
    [180_000, [180_000]],
    [90_000, []],
    // More than half of it would be unused.
    [89_999, [89_999]],
    [16 << 20, [16 << 20]],
    [16 << 20, []],
    [(16 << 20) + 1, [(16 << 20) + 1]],
    // Too long to be kept.
    [(16 << 20) + 1, [(16 << 20) + 1]],
  ] as const)
    t.deepEqual(await allocations(through(size)), [...taken], `${size} bytes`)
  // A fragmented message is copied first, since it may have to wait.
  ring.read(queue)
  t.deepEqual(await allocations(() => queue.send(pattern(0, 600_000))), [600_000])
  ring.read(queue)
  t.deepEqual(await allocations(() => queue.send(pattern(0, 600_000))), [])
})
