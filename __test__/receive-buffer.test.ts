// Unit tests of a receive buffer: its calls of the ring, the memory of messages, and failed allocations.
// reading.test.ts uses it with a peer.

import test from 'ava'

import { pattern } from './support/bytes.js'
import { afterTurn } from './support/clock.js'
import { detach, withoutMemory } from './support/memory.js'
import {
  answers,
  bufferOver,
  codeOf,
  RetainingRing,
  kinds,
  LatestRing,
  patterns,
  Ring,
  visitAll,
} from './support/ring.js'

const invalid = codeOf('INVALID_ARGUMENT')

// With this, no call has to yield to the event loop: the clock stands still.
test.before(afterTurn)

const canTake = detach(bufferOfOne())

function bufferOfOne(): Buffer {
  const { ring, buffer } = bufferOver(new RetainingRing())
  ring.push(pattern(0, 10))
  return buffer.tryReceive()!
}

test.serial(
  'a channel’s reader makes few calls: one fetch for many messages, and it releases only messages that are held',
  (t) => {
    const { ring, buffer } = bufferOver(new RetainingRing())
    t.is(buffer.tryReceive(), null)
    t.deepEqual(
      [ring.newCalls(), ring.rooms.splice(0)],
      [['fetch'], [0]],
      'no memory is made before there is a message',
    )
    ring.push(...patterns(0, 100))
    t.is(buffer.tryReceive()!.length, 100)
    t.deepEqual(ring.newCalls(), ['fetch', 'fetch'], 'there is a block now, and one that comes alone is not held')
    ring.push(...patterns(1, 100, 256, 0))
    for (const length of [100, 256]) t.is(buffer.tryReceive()!.length, length)
    t.deepEqual([ring.newCalls(), ring.retained.length], [['fetch'], 3])
    t.is(buffer.tryReceive()!.length, 0)
    t.deepEqual([ring.newCalls(), ring.retained.length], [['release'], 0])

    t.deepEqual([visitAll(buffer), ring.newCalls()], [[], ['pull first']], 'it was let go of once')
    t.is(buffer.tryReceive(), null)
    ring.newCalls()

    ring.push(...patterns(4, 257))
    t.true(buffer.isReadableNow())
    t.true(buffer.isReadableNow())
    t.deepEqual(ring.newCalls(), ['fetch to look', 'fetch to look'], 'another block')
    t.is(buffer.tryReceive()!.length, 257)
    t.deepEqual(ring.newCalls(), ['release'], 'one that was looked at is held')
    ring.push(...patterns(5, 4096))
    t.is(buffer.tryReceive()!.length, 4096)
    ring.push(...patterns(6, 4097))
    t.is(buffer.tryReceive()!.length, 4097)
    t.deepEqual(ring.newCalls(), ['fetch', 'fetch', 'gather'])
    ring.push(...patterns(7, 256, 300))
    for (const length of [256, 300]) t.is(buffer.tryReceive()!.length, length)
    t.deepEqual(
      ring.newCalls(),
      ['fetch', 'fetch', 'fetch', 'fetch'],
      'back to the block of short ones, and to the other',
    )
  },
)

test.serial('an empty message is in a shared block, and an incomplete one in memory of its own', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  ring.push(pattern(0, 0))
  t.is(buffer.tryReceive()!.length, 0)
  t.deepEqual(ring.newCalls(), ['fetch', 'fetch'])
  ring.begin(pattern(1, 50_000), 100)
  t.is(visitAll(buffer).length, 0)
  t.deepEqual(ring.newCalls(), ['pull first', 'gather'])
  ring.complete()
  t.true(buffer.tryReceive()!.equals(pattern(1, 50_000)))
  t.deepEqual(ring.newCalls(), ['gather'])
})

test.serial('messages fill a block, and the next one is larger if half of the last one was filled at once', (t) => {
  const sizesOf = (length: number, atOnce: number, blocks: number) => {
    const { ring, buffer } = bufferOver(new RetainingRing())
    const memories: ArrayBufferLike[] = []
    const counts: number[] = []
    let number = 0
    while (memories.length <= blocks) {
      ring.push(...patterns(number, ...Array.from({ length: atOnce }, () => length)))
      for (let count = 0; count < atOnce; count += 1) {
        const message = buffer.tryReceive()!
        t.true(message.equals(pattern(number, length)))
        number += 1
        if (memories.at(-1) !== message.buffer) counts[memories.push(message.buffer) - 1] = 0
        counts[memories.length - 1]! += 1
      }
    }
    const sizes = memories.slice(0, blocks).map((memory) => memory.byteLength)
    t.deepEqual(
      counts.slice(0, blocks),
      sizes.map((size) => Math.floor(size / (length + 8))),
      'each block is full',
    )
    return sizes
  }
  t.deepEqual(sizesOf(64, 1, 4), [8192, 8192, 8192, 8192], 'short ones that come alone')
  t.deepEqual(sizesOf(64, 2000, 4), [8192, 16_384, 32_768, 32_832], 'many short ones')
  t.deepEqual(sizesOf(4096, 1, 4), [8192, 16_384, 32_768, 32_832], 'long ones')
})

test.serial('the reader of a subscription copies short messages together, and a long one separately', (t) => {
  const { ring, buffer } = bufferOver(new Ring())
  const lengths = [100, 256, 257, 300, 0, 5000, 100]
  ring.push(...patterns(0, ...lengths))
  const all = lengths.map(() => buffer.tryReceive()!)
  t.deepEqual([ring.newCalls(), ring.rooms.splice(0)], [['pull'], [32_768]], 'as much as stays in the cache')
  for (const [index, message] of all.entries()) t.true(message.equals(pattern(index, lengths[index]!)))
  const [first, second, third, fourth, fifth, sixth, seventh] = all.map((message) => message.buffer)
  t.deepEqual([first!.byteLength, third!.byteLength, sixth!.byteLength], [8192, 8192, 5000])
  t.true(first === second && first === fifth && first === seventh && third === fourth && third !== first)
  t.deepEqual(
    [0, 1, 4, 6].map((index) => all[index]!.byteOffset),
    [8, 120, 384, 392],
    'one behind the other',
  )
  // Each is copied once.
  t.deepEqual([all[1]!.byteOffset - all[0]!.byteOffset, all[3]!.byteOffset - all[2]!.byteOffset], [112, 272])
  // After a long message the next is probably long as well, and must not be copied twice.
  ring.push(...patterns(7, 5000))
  t.is(buffer.tryReceive()!.length, 5000)
  t.deepEqual([ring.newCalls(), ring.rooms.splice(0)], [['pull', 'gather'], [4104]])
  ring.push(...patterns(8, 4096))
  t.is(buffer.tryReceive()!.length, 4096)
  t.is(buffer.tryReceive(), null)
  t.deepEqual(
    [ring.newCalls(), ring.rooms.splice(0)],
    [
      ['pull', 'pull'],
      [4104, 32_768],
    ],
  )
  ring.push(...patterns(9, 256))
  t.is(buffer.tryReceive()!.buffer.byteLength, 8192)
})

test.serial('visitors see a whole chunk, and the peer is woken if they stop before its end', (t) => {
  for (const Kind of kinds) {
    const { ring, buffer } = bufferOver(new Kind())
    ring.push(...patterns(0, 100, 100, 100, 100, 100))
    t.is(visitAll(buffer).length, 5)
    t.deepEqual(
      [ring.newCalls(), ring.rooms.splice(0)],
      [
        ['pull first', 'pull more'],
        [131_072, 131_072],
      ],
    )
    ring.push(...patterns(5, 100, 100, 100))
    t.is(visitAll(buffer, 0).length, 0)
    t.deepEqual(ring.newCalls(), [])
    t.is(visitAll(buffer, 2).length, 2)
    t.deepEqual(ring.newCalls(), ['pull first', 'wake'])
    ring.push(...patterns(8, 100, 100))
    t.is(visitAll(buffer, 1).length, 1)
    t.deepEqual(ring.newCalls(), [], 'it was fetched before')
    t.is(visitAll(buffer).length, 2)
    t.deepEqual(ring.newCalls(), ['pull first', 'pull more'])
    const chunks = new Set<ArrayBufferLike>()
    for (const round of [0, 1]) {
      ring.push(...patterns(20 + round, 100))
      t.is(buffer.tryReceive()!.length, 100)
      ring.push(...patterns(20 + round, 100))
      buffer.receiveEach((bytes) => chunks.add(bytes.buffer))
    }
    t.is(chunks.size, 1, 'the chunk is used again, whatever was received meanwhile')
    ring.newCalls()
    t.is(buffer.isReadableNow(), undefined)
    t.deepEqual(ring.newCalls(), ['pull'], 'what is looked for is likely visited as well')
    const thrown = new Error('of a visitor')
    ring.push(...patterns(10, 100))
    const fails = () => {
      throw thrown
    }
    t.is(
      t.throws(() => buffer.receiveEach(fails)),
      thrown,
    )
    t.deepEqual(ring.newCalls(), ['pull first', 'wake'])
  }
})

test.serial('messages that arrive during visits are left to the next call of receiveEach', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  ring.push(...patterns(0, 10, 10))
  let visits = 0
  const visit = () => {
    visits += 1
    if (visits <= 2) ring.push(pattern(visits, 10))
  }
  t.is(buffer.receiveEach(visit), 2)
  t.is(buffer.receiveEach(visit), 2)
  t.is(buffer.receiveEach(visit), 0)
})

test.serial('a visitor that calls receiveEach sees the remainder of the chunk, or another chunk', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  const fill = (bytes: number) => ring.push(pattern(0, bytes - 8))
  const within = (then: () => void) => buffer.receiveEach(() => then())
  for (const [used, next, rooms] of [
    [1000, 100, [131_072, 130_072]],
    // Just enough, and too little for more than a few messages.
    [131_072 - 8192, 100, [131_072, 8192]],
    [131_072 - 8192 + 8, 100, [131_072, 131_072]],
    // One message fits only into an empty chunk, and one does not even fit there.
    [1000, 131_072, [131_072, 130_072, 131_072]],
    [1000, 131_080, [131_072, 130_072]],
  ] as const) {
    fill(used)
    let visited = -1
    let asked: number[] = []
    within(() => {
      ring.rooms.splice(1)
      fill(next)
      visited = visitAll(buffer, 1)[0]!.length
      asked = ring.rooms.splice(0)
    })
    t.is(visited, next - 8)
    t.deepEqual(asked, [...rooms])
    t.is(visitAll(buffer).length, 0)
    ring.rooms.length = 0
  }
})

test.serial('a visitor that reads gets the messages after its own', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  ring.push(...patterns(0, 100, 100, 100, 100))
  const seen: Buffer[] = []
  const count = buffer.receiveEach((bytes, offset, length) => {
    seen.push(Buffer.from(bytes.subarray(offset, offset + length)))
    if (seen.length !== 2) return
    // Their copies are in a block, and the next ones go behind them, up to where the visitor's next message was in the
    // chunk.
    for (const number of [2, 3]) t.true(buffer.tryReceive()!.equals(pattern(number, 100)))
    ring.push(...patterns(4, 100, 100))
    t.true(buffer.isReadableNow())
  })
  t.is(count, 4)
  t.deepEqual(seen, [pattern(0, 100), pattern(1, 100), pattern(4, 100), pattern(5, 100)])
})

test.serial('memory for visits of long messages is reused, up to 16 MiB, and never during a visit', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  const memoryOf = (length: number) => {
    ring.push(Buffer.alloc(length, length & 0xff))
    let memory: ArrayBufferLike | undefined
    t.is(
      buffer.receiveEach((bytes, offset, size) => {
        t.deepEqual([offset, size, bytes.length], [0, length, length])
        t.is(bytes[length - 1], length & 0xff)
        memory = bytes.buffer
      }),
      1,
    )
    return memory
  }
  const first = memoryOf(200_001)
  t.true(memoryOf(200_001) === first)
  t.true(memoryOf(150_000) === first)
  const most = memoryOf(16 * 2 ** 20)
  t.true(most !== first)
  t.true(memoryOf(200_000) === most)
  const more = memoryOf(16 * 2 ** 20 + 1)
  t.true(more !== most)
  const next = memoryOf(16 * 2 ** 20 + 1)
  t.true(next !== more && next !== most)
  t.is(memoryOf(150_000) === memoryOf(200_000), false)

  // A visitor that reads while it sees a message gets another one.
  ring.push(...patterns(0, 200_000, 200_000, 200_000))
  buffer.receiveEach((bytes) => {
    const own = buffer.tryReceive()!
    t.true(own.equals(pattern(1, 200_000)))
    buffer.receiveEach((again) => t.true(pattern(2, 200_000).equals(again)), 1)
    t.true(pattern(0, 200_000).equals(bytes))
  }, 1)
  t.is(ring.left, 0)
})

test.serial('a reader with busyPollMicros spins only where it would wait', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing(), true)
  t.is(buffer.tryReceive(), null)
  t.is(buffer.receiveNow(), undefined)
  t.is(buffer.isReadableNow(), undefined)
  t.deepEqual(ring.newCalls(), ['fetch', 'fetch busily', 'fetch to look, busily'])
  t.deepEqual(visitAll(buffer), [])
  t.is(buffer.isReadableNow(), undefined)
  t.false(buffer.isEnded)
  t.deepEqual(ring.newCalls(), ['pull first', 'pull busily', 'pull'])
  const copied = bufferOver(new Ring(), true)
  t.is(copied.buffer.tryReceive(), null)
  t.is(copied.buffer.receiveNow(), undefined)
  t.deepEqual(copied.ring.newCalls(), ['pull', 'pull busily'])
})

test.serial('a turn of visits ends at its limit of bytes, and reports whether messages are left', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  const { FIRST, MORE } = answers
  const visit = (bytes: number, round: number, max?: number) => [
    buffer.visit(() => {}, max, bytes, round),
    buffer.isDrained,
  ]
  // Each record has 112 bytes.
  ring.push(...patterns(0, ...Array.from({ length: 10 }, () => 100)))
  t.deepEqual(visit(0, FIRST), [0, false])
  t.deepEqual(visit(1, FIRST), [1, false])
  t.deepEqual(visit(224, MORE), [2, false])
  t.deepEqual(visit(225, MORE), [3, false])
  // More than is left from here on, and less than was fetched.
  t.deepEqual(visit(500, MORE), [4, true])
  ring.push(...patterns(0, 100, 100))
  t.deepEqual(visit(10_000, FIRST, 1), [1, false])
  ring.push(...patterns(0, 100, 100, 100))
  t.deepEqual(visit(400, FIRST), [4, false])
  ring.push(...patterns(0, ...Array.from({ length: 2 }, () => 100)))
  t.deepEqual(visit(10_000, FIRST, 1), [1, false])
  ring.push(...patterns(0, 100, 100))
  t.deepEqual(visit(10_000, MORE), [1, true], 'what has come since is of the next round')
  t.deepEqual(visit(10_000, FIRST), [2, true])
  t.deepEqual(visit(10_000, FIRST), [0, true])
  ring.push(...patterns(0, 131_000, 200_000, 200_000, 10))
  t.deepEqual(visit(131_008 + 200_008, FIRST), [2, false])
  t.deepEqual(visit(200_009, MORE), [2, false])
  t.deepEqual(visit(1, MORE), [0, true])
  t.false(ring.owesWake)
})

for (const Kind of kinds)
  test.serial(`${Kind.name}: if there is no memory for a message, the call fails, and nothing is lost`, async (t) => {
    const { ring, buffer, notifications } = bufferOver(new Kind())
    // Memory for visits is allocated at the first check.
    t.deepEqual(visitAll(buffer), [])
    ring.push(...patterns(0, 10, 200_000, 20))
    t.is(withoutMemory(() => visitAll(buffer)).length, 1, 'what was visited is told first')
    for (const call of [
      () => visitAll(buffer),
      () => buffer.tryReceive(),
      () => buffer.receiveNow(),
      () => buffer.isReadableNow(),
      () => buffer.hasMessage(),
    ])
      t.throws(() => withoutMemory<unknown>(call), codeOf('NO_SPACE'))
    t.false(withoutMemory(() => buffer.isEnded))
    const waits = withoutMemory(() => [buffer.wait(true), buffer.wait(false)])
    for (const { promise } of waits) await t.throwsAsync(promise, codeOf('NO_SPACE'))
    let released = 0
    withoutMemory(() => buffer.keepLeftovers(() => (released += 1)))
    t.deepEqual([released, notifications], [0, []])
    t.is(
      withoutMemory(() => buffer.receiveEach(() => {}, 0)),
      0,
    )
    t.true(buffer.tryReceive()!.equals(pattern(1, 200_000)))
    t.true(buffer.tryReceive()!.equals(pattern(2, 20)))
    ring.ended = true
    t.is(buffer.tryReceive(), null)
    t.is(released, 1)
  })

test.serial('a message whose copy cannot be allocated stays', (t) => {
  for (const length of [10, 5000]) {
    const { ring, buffer } = bufferOver(new Ring())
    ring.push(pattern(0, length))
    t.true(buffer.hasMessage())
    t.throws(() => withoutMemory(() => buffer.tryReceive()), codeOf('NO_SPACE'))
    t.true(buffer.tryReceive()!.equals(pattern(0, length)))
  }
})

test.serial('if a waiting reader has no memory for the message, the next reader gets it', async (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  const [first, second] = [buffer.wait(true), buffer.wait(true)]
  ring.push(pattern(0, 200_000))
  ring.onGather = () => {}
  let failures = 1
  const real = Buffer.allocUnsafeSlow
  Buffer.allocUnsafeSlow = (size) => {
    if (size === 200_000 && failures-- > 0) throw new RangeError('Array buffer allocation failed')
    return real(size)
  }
  buffer.handleWakeup()
  Buffer.allocUnsafeSlow = real
  await t.throwsAsync(first.promise, codeOf('NO_SPACE'))
  t.is((await second.promise)!.length, 200_000)
})

test.serial(
  'with latest, a check fetches no message, and a message that is overtaken is replaced by the newest',
  async (t) => {
    const { ring, buffer, notifications } = bufferOver(new LatestRing())
    t.is(buffer.isReadableNow(), undefined)
    ring.push(pattern(0, 10))
    t.true(buffer.isReadableNow())
    t.false(buffer.isEnded)
    t.true(buffer.hasMessage())
    t.deepEqual(ring.newCalls(), ['has', 'has', 'has', 'has'])
    ring.push(pattern(1, 20))
    t.true(buffer.tryReceive()!.equals(pattern(1, 20)))

    for (const way of ['receive', 'receiveEach'] as const)
      for (const [first, length] of [
        [200_000, 150_000],
        [150_000, 200_000],
        [150_000, 10],
        [150_000, 0],
        [200_000, 200_000],
      ] as const) {
        ring.push(pattern(2, first))
        ring.onGather = () => {
          ring.onGather = () => {}
          ring.push(pattern(3, length))
        }
        const message = way === 'receive' ? buffer.tryReceive()! : visitAll(buffer)[0]!
        t.true(message.equals(pattern(3, length)), `${first}, then ${length}, by ${way}`)
      }
    ring.push(pattern(4, 10))
    buffer.receiveEach(() => ring.push(pattern(5, 10)), 1)
    t.true(buffer.tryReceive()!.equals(pattern(5, 10)))
    ring.newCalls()
    const waiting = buffer.wait(false)
    t.deepEqual(ring.newCalls(), ['has', 'arm', 'has'])
    ring.push(pattern(6, 10))
    buffer.handleWakeup()
    t.is((await waiting.promise)!.length, 0)
    ring.push(pattern(7, 10))
    t.true(buffer.tryReceive()!.equals(pattern(7, 10)))
    ring.ended = true
    t.is(buffer.isReadableNow(), false)
    t.true(buffer.isEnded)
    t.false(buffer.hasMessage())
    t.deepEqual(notifications, ['no more comes', 'the end is told'], 'each once')

    const busy = bufferOver(new LatestRing(), true)
    busy.ring.push(pattern(0, 50_000))
    busy.ring.onGather = () => {
      busy.ring.onGather = () => {}
      busy.ring.push(pattern(1, 200_000))
    }
    t.is(busy.buffer.receiveNow()!.length, 200_000)
    t.deepEqual(busy.ring.newCalls(), ['pull busily', 'gather', 'pull', 'gather'], 'there is one, and none to spin for')
  },
)

;(canTake ? test.serial : test.skip)('what is taken away is fetched once more, or told of', (t) => {
  const { ring, buffer } = bufferOver(new RetainingRing())
  ring.push(...patterns(0, 100, 100, 100, 100))
  t.true(detach(buffer.tryReceive()!))
  t.deepEqual(buffer.received, { messages: 1, bytes: 100 }, 'also while the memory of the others is away')
  ring.newCalls()
  t.true(buffer.tryReceive()!.equals(pattern(1, 100)))
  t.true(detach(buffer.tryReceive()!))
  t.true(buffer.tryReceive()!.equals(pattern(3, 100)))
  t.deepEqual(ring.newCalls(), ['fetch again', 'fetch again', 'release'])

  ring.push(...patterns(4, 100, 100, 100))
  t.true(detach(buffer.tryReceive()!))
  t.deepEqual(
    visitAll(buffer).map((message) => message.length),
    [100, 100],
  )
  t.is(ring.retained.length, 0)
  // Memory that was held may be wiped already.
  ring.push(...patterns(7, 100, 100, 100))
  t.true(detach(buffer.tryReceive()!))
  const { pullAgain } = ring
  ring.pullAgain = () => {
    ring.failing = 'OBJECT_EXPOSED'
    return answers.FAILED
  }
  t.throws(() => buffer.tryReceive(), codeOf('OBJECT_EXPOSED'))
  t.true(buffer.isFinished)
  ring.pullAgain = pullAgain

  for (const Kind of kinds) {
    const other = bufferOver(new Kind())
    const receiveEach = () =>
      other.buffer.receiveEach((bytes, _, length) => {
        if (length === 104) detach(bytes)
      })
    other.ring.push(...patterns(0, 100, 104, 100, 96))
    const error = t.throws(receiveEach, invalid)
    t.regex(error!.message, /with it 216 bytes of messages/)
    t.deepEqual(other.buffer.received, { messages: 2, bytes: 204 }, 'what it took along was never handed out')
    t.is(other.buffer.unread, 0)
    other.ring.push(...patterns(4, 104))
    t.is(receiveEach(), 1, 'with the last one nothing is lost')
    other.ring.push(pattern(4, 100))
    t.is(other.buffer.receiveEach(detach, 1), 1)
    other.ring.newCalls()
    other.ring.push(pattern(5, 100))
    t.is(other.buffer.tryReceive()!.length, 100)
    t.false(other.ring.newCalls().includes('gather'), 'there is another chunk, or a block')
    other.ring.push(pattern(6, 104))
    t.is(receiveEach(), 1)
    other.ring.push(...patterns(5, 100, 104, 100))
    t.throws(receiveEach, invalid)
    other.ring.push(...patterns(8, 100, 104))
    t.true(other.buffer.tryReceive()!.equals(pattern(8, 100)), 'another chunk')
    t.true(detach(other.buffer.tryReceive()!))
    other.ring.push(...patterns(10, 100, 104))
    t.true(other.buffer.tryReceive()!.equals(pattern(10, 100)))
    t.true(detach(other.buffer.tryReceive()!))
  }
  // Copies that share memory: the remaining ones are copied again.
  const copied = bufferOver(new Ring())
  copied.ring.push(...patterns(0, 100, 100, 100))
  t.true(detach(copied.buffer.tryReceive()!))
  t.true(copied.buffer.tryReceive()!.equals(pattern(1, 100)))
  t.true(copied.buffer.tryReceive()!.equals(pattern(2, 100)))
})
