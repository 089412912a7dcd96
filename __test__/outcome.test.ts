// Compares the outcome of each send with the messages that the peer got.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import test from 'ava'
import type { Channel, RingfenceError } from 'ringfence'

import { abstractAddress, temporaryDirectory } from './support/address.js'
import { random } from './support/bytes.js'
import { joinHere, pair, Partner } from './support/partner.js'
import { until } from './support/until.js'

/** The outcome of each message, by its number. */
type Outcomes = ('resolved' | 'rejected' | undefined)[]

/** Sends messages that begin with their number, and records their outcomes. */
function sendAll(channel: Channel, first: number, sizes: number[], outcomes: Outcomes): void {
  for (const [index, size] of sizes.entries()) {
    const number = first + index
    const message = Buffer.alloc(size)
    message.writeUInt32LE(number)
    channel.send(message).then(
      () => (outcomes[number] = 'resolved'),
      () => (outcomes[number] = 'rejected'),
    )
  }
}

/** Makes the partner read `count` messages, or all up to the end, and return their numbers. */
function numbersThere(partner: Partner, count = Infinity): Promise<number[]> {
  return partner.run(async (kit, wanted: number) => {
    const numbers: number[] = []
    while (numbers.length < wanted) {
      // A close with unsent messages makes this peer lost.
      const message = await kit.channel.receive().catch((error: RingfenceError) => {
        if (error.code !== 'ERR_RINGFENCE_PEER_LOST') throw error
      })
      if (message === undefined) break
      numbers.push(message.readUInt32LE())
    }
    return numbers
  }, count)
}

/** The lengths of messages, and the least number that is sent at a time. */
const LOADS: [title: string, smallest: number, most: number, few: number][] = [
  ['small', 4, 200, 400],
  ['of all staged sizes', 4, 8192, 60],
  ['of all sizes', 4, 40_000, 30],
]

for (const capacity of [4096, 16_384, 65_536, 262_144]) {
  for (const [title, smallest, most, few] of LOADS) {
    test(`close rejects a send that is not in the ring, and no other: ${title}, a ring of ${capacity}`, async (t) => {
      const count = Math.max(few, Math.ceil((2 * capacity) / most))
      const partner = await Partner.start(t)
      const next = random(capacity + most)
      const found = { resolved: 0, rejected: 0 }
      for (let round = 0; round < 12; round += 1) {
        const { channel } = await pair(t, { partner, here: { capacity } })
        const outcomes: Outcomes = []
        const got = new Set<number>()
        const readOne = async () => {
          // Reads only available messages: it would wait for one of which the ring holds a part.
          if (outcomes.filter((outcome) => outcome === 'resolved').length <= got.size) return
          for (const number of await numbersThere(partner, 1)) got.add(number)
        }
        const batches = 1 + Math.floor(next() * 4)
        for (let batch = 0; batch < batches; batch += 1) {
          const sizes = Array.from({ length: count }, () => smallest + Math.floor(next() ** 3 * (most - smallest)))
          sendAll(channel, batch * count, sizes, outcomes)
          // Some messages are sent in one tick, some after the ring was full, and some after the peer has made room.
          const pause = next()
          if (pause < 0.3) await Promise.resolve()
          else if (pause < 0.6) await new Promise((resolve) => setImmediate(resolve))
          else if (pause < 0.8) await readOne()
        }
        if (next() < 0.5) await readOne()
        await channel.close({ linger: 0 })
        for (const number of await numbersThere(partner)) got.add(number)
        const all = Array.from({ length: batches * count }, (_, number) => number)
        await until(() => all.every((number) => outcomes[number] !== undefined), 'the outcome of all is told')
        t.deepEqual(
          all.filter((number) => (outcomes[number] === 'resolved') !== got.has(number)),
          [],
          `round ${round}: resolved, and the peer has it not; or rejected, and it has it`,
        )
        found.resolved += outcomes.filter((outcome) => outcome === 'resolved').length
        found.rejected += outcomes.filter((outcome) => outcome === 'rejected').length
      }
      t.true(found.resolved > 0 && found.rejected > 0, JSON.stringify(found))
    })
  }
}

test('messages whose sends had resolved before their sender was killed arrive', async (t) => {
  const file = join(temporaryDirectory(t), 'resolved')
  const sender = await Partner.start(t)
  const address = abstractAddress()
  const [channel] = await Promise.all([joinHere(t, address), sender.join(address, { capacity: 65_536 })])
  await sender.run((kit, path: string) => {
    const { openSync, writeSync } = kit.require('node:fs') as typeof import('node:fs')
    const log = openSync(path, 'w')
    const go = (number: number) => {
      for (let each = number; each < number + 50; each += 1) {
        const message = Buffer.alloc(4 + (each % 300))
        message.writeUInt32LE(each)
        void kit.channel.send(message).then(() => writeSync(log, `${each}\n`))
      }
      setImmediate(go, number + 50)
    }
    setImmediate(go, 0)
  }, file)
  const got = new Set<number>()
  while (got.size < 2000) got.add((await channel.receive())!.readUInt32LE())
  await sender.kill()
  const reading = async () => {
    for await (const message of channel) got.add(message.readUInt32LE())
  }
  await t.throwsAsync(reading, { code: 'ERR_RINGFENCE_PEER_LOST' })
  const resolved = readFileSync(file, 'utf8').split('\n').filter(Boolean).map(Number)
  t.true(resolved.length > 1000)
  t.deepEqual(
    resolved.filter((number) => !got.has(number)),
    [],
  )
})
