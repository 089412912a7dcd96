// A receive buffer, read in random ways: nothing is lost, nothing arrives twice, and no returned message changes.

import test from 'ava'

import { pattern, random } from './support/bytes.js'
import { afterTurn } from './support/clock.js'
import { detach } from './support/memory.js'
import { bufferOver, RetainingRing, Ring, visitAll } from './support/ring.js'
import { turn } from './support/until.js'

// The clock stands still, so no call waits for the event loop.
test.before(afterTurn)

const LENGTHS = [0, 1, 7, 8, 9, 100, 255, 256, 257, 300, 1000, 4095, 4096, 4097, 5000, 20_000, 40_000, 131_064, 131_065]

for (const Kind of [RetainingRing, Ring])
  for (const seed of [1, 2, 3, 4])
    test.serial(
      `${Kind.name} ${seed}: in any way to read, each message arrives once, in order, and does not change`,
      async (t) => {
        const { ring, buffer } = bufferOver(new Kind(), seed === 4)
        const next = random(seed)
        const pick = (count: number) => Math.floor(next() * count)
        /** The messages that have arrived, and the number of those that were returned. */
        const sent: Buffer[] = []
        let number = 0
        let bytes = 0
        const kept: Buffer[] = []
        const keptAs: Buffer[] = []
        /**
         * Memory was detached, and nothing has been read since. Its messages do not count before they are fetched
         * again.
         */
        let isTaken = false
        const check = (message: Uint8Array) => {
          const wanted = sent[number]!
          if (!wanted.equals(message)) throw new Error(`message ${number} of ${wanted.length} bytes is another`)
          number += 1
          bytes += wanted.length
          isTaken = false
        }
        const take = (message: Buffer) => {
          kept.push(message)
          keptAs.push(sent[number]!)
          check(message)
          if (message.length > 0 && pick(20) === 0) isTaken = detach(message)
        }
        const visit = (shared: Uint8Array, offset: number, length: number) => {
          const view = shared.subarray(offset, offset + length)
          const mine = sent[number]!
          check(view)
          const way = pick(12)
          if (way === 0) {
            const message = buffer.tryReceive()
            if (message !== null) take(message)
          } else if (way === 1) buffer.receiveEach(visit, 1 + pick(3))
          else if (way === 2) void buffer.isEnded
          // It may be in the detached memory.
          if (view.length === length && !mine.equals(view)) throw new Error('what was visited has changed meanwhile')
        }
        const come = () => {
          const favourite = LENGTHS[pick(LENGTHS.length)]!
          const most = favourite > 10_000 ? 2 : [1, 1, 5, 40][pick(4)]!
          for (let count = pick(most + 1); count > 0; count -= 1) {
            const message = pattern(sent.length, pick(10) < 8 ? favourite : LENGTHS[pick(LENGTHS.length)]!)
            sent.push(message)
            ring.push(message)
          }
        }
        const hold = () => {
          if (number < sent.length) return
          // An incomplete long message: no way to read reports it, and each may continue it.
          const message = pattern(sent.length, 200_000)
          ring.begin(message, 50_000)
          t.is(buffer.tryReceive(), null)
          t.deepEqual(visitAll(buffer), [])
          t.is(buffer.isReadableNow(), undefined)
          sent.push(message)
          ring.complete()
        }
        for (let round = 0; round < 300; round += 1) {
          come()
          const way = pick(7)
          if (way === 0) {
            const message = buffer.tryReceive()
            if (message !== null) take(message)
          } else if (way === 1) {
            const message = buffer.receiveNow()
            if (message) take(message)
          } else if (way === 2) t.is(buffer.isReadableNow(), number < sent.length ? true : undefined)
          else if (way === 3) buffer.receiveEach(visit, 1 + pick(4))
          else if (way === 4) buffer.receiveEach(visit)
          else if (way === 5)
            for (let message = buffer.tryReceive(); message !== null; message = buffer.tryReceive()) take(message)
          else hold()
          t.false(buffer.isEnded)
          t.false(ring.owesWake, 'the peer is told of the room')
          t.deepEqual(buffer.received, { messages: number, bytes })
          if (isTaken) continue
          const unread = ring.fetched.messages - number
          t.is(buffer.unread, unread)
          if (ring instanceof RetainingRing && unread === 0)
            t.is(ring.retained.length, 0, 'nothing is held that was read')
          if (round % 50 === 0) await turn()
        }
        ring.ended = true
        for (let message = buffer.tryReceive(); message !== null; message = buffer.tryReceive()) take(message)
        t.is(number, sent.length)
        t.true(buffer.isEnded)
        // Except messages in detached memory.
        const changed = kept.filter((message, index) => message.length > 0 && !message.equals(keptAs[index]!))
        t.is(changed.length, 0)
      },
    )
