import test from 'ava'
import fc from 'fast-check'
import type { Channel } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pattern, random } from './support/bytes.js'
import { joinHere, Partner } from './support/partner.js'
import { within } from './support/until.js'

/** One message: how it is sent, and its length. */
interface Step {
  way: 'send' | 'await' | 'string' | 'trySend' | 'reserve' | 'turn'
  size: number
}

/** One side of a run: what it sends, and how it reads. */
interface Script {
  steps: Step[]
  reading: number
  capacity: number
  busyPollMicros: number
}

/** Runs a script on a channel, and returns the messages. Both sides run the same code. */
async function play(
  channel: Channel,
  script: Script,
  bytes: { pattern: typeof pattern; random: typeof random },
): Promise<{ length: number; sum: number }[]> {
  const digest = (message: Uint8Array) => {
    let sum = 1
    for (let at = 0; at < message.length; at += 1) sum = (Math.imul(sum, 31) + message[at]!) | 0
    return { length: message.length, sum }
  }
  const turn = () => new Promise((resolve) => setImmediate(resolve))
  const send = async () => {
    const under: Promise<void>[] = []
    for (const [number, { way, size }] of script.steps.entries()) {
      if (way === 'turn') {
        await turn()
        continue
      }
      const atOnce = size <= Math.min(channel.capacity / 2, channel.maxMessageSize)
      if (way === 'trySend' && atOnce) {
        while (!channel.trySend(bytes.pattern(number, size))) await channel.waitWritable(size)
      } else if (way === 'reserve' && atOnce) {
        let reservation = channel.reserve(size)
        while (reservation === undefined) {
          await channel.waitWritable(size)
          reservation = channel.reserve(size)
        }
        reservation.bytes.set(bytes.pattern(number, size))
        reservation.commit()
      } else if (way === 'string') {
        under.push(channel.send(String.fromCharCode(97 + (number % 26)).repeat(size)))
      } else {
        const sent = channel.send(bytes.pattern(number, size))
        if (way === 'await') await sent
        else under.push(sent)
      }
    }
    await Promise.all(under)
    await channel.end()
  }
  const read = async () => {
    const received: { length: number; sum: number }[] = []
    const note = (message: Uint8Array) => void received.push(digest(message))
    const next = bytes.random(script.reading)
    while (!channel.readableEnded) {
      const way = Math.floor(next() * 6)
      const message = way === 0 ? await channel.receive() : way === 1 ? channel.tryReceive() : undefined
      if (message !== undefined) note(message)
      if (way === 2)
        channel.receiveEach(
          (all, offset, length) => note(all.subarray(offset, offset + length)),
          Math.ceil(next() * 20),
        )
      if (way === 3) await channel.waitReadable()
      if (way === 4) await turn()
      if (way === 5) {
        let left = Math.ceil(next() * 4)
        for await (const one of channel) {
          note(one)
          left -= 1
          if (left === 0) break
        }
      }
    }
    return received
  }
  const [received] = await Promise.all([read(), send()])
  await channel.closed
  return received
}

/** The messages that a script must produce. */
function model(steps: Step[]): { length: number; sum: number }[] {
  const wanted: { length: number; sum: number }[] = []
  for (const [number, { way, size }] of steps.entries()) {
    if (way === 'turn') continue
    const text = String.fromCharCode(97 + (number % 26)).repeat(size)
    const message = way === 'string' ? Buffer.from(text) : pattern(number, size)
    let sum = 1
    for (const byte of message) sum = (Math.imul(sum, 31) + byte) | 0
    wanted.push({ length: size, sum })
  }
  return wanted
}

const scripts = fc.constantFrom(4096, 8192, 65_536).chain((capacity) =>
  fc.record({
    steps: fc.array(
      fc.record({
        way: fc.constantFrom('send', 'send', 'await', 'string', 'trySend', 'reserve', 'turn'),
        size: fc.oneof(
          { weight: 6, arbitrary: fc.integer({ min: 0, max: 200 }) },
          { weight: 3, arbitrary: fc.integer({ min: 0, max: capacity / 2 }) },
          { weight: 2, arbitrary: fc.integer({ min: capacity / 2 - 16, max: capacity / 2 + 16 }) },
          { weight: 1, arbitrary: fc.integer({ min: capacity / 2, max: 5 * capacity }) },
        ),
      }),
      { maxLength: 120 },
    ),
    reading: fc.nat(),
    capacity: fc.constant(capacity),
    busyPollMicros: fc.constantFrom(0, 0, 0, 20),
  }),
) as fc.Arbitrary<Script>

test.serial('whatever either side sends, in any way, the other side receives exactly that, in any way', async (t) => {
  const partner = await Partner.start(t)
  await partner.run((kit, code: string) => {
    kit.keep['play'] = new Function(`return ${code}`)()
  }, play.toString())

  await fc.assert(
    fc.asyncProperty(scripts, scripts, async (mine, theirs) => {
      const address = abstractAddress()
      const there = partner.run(
        async (kit, where: string, script: Script) => {
          const channel = await kit.join(where, {
            capacity: script.capacity,
            busyPollMicros: script.busyPollMicros,
            allowHalfOpen: true,
          })
          return (kit.keep['play'] as typeof play)(channel, script, kit.bytes)
        },
        address,
        theirs,
      )
      const channel = await joinHere(t, address, {
        capacity: mine.capacity,
        busyPollMicros: mine.busyPollMicros,
        allowHalfOpen: true,
      })
      const both = Promise.all([play(channel, mine, { pattern, random }), there])
      const [here, other] = await within(both, 'both sides to come to their ends')
      t.deepEqual(here, model(theirs.steps))
      t.deepEqual(other, model(mine.steps))
    }),
    { numRuns: 150, interruptAfterTimeLimit: 60_000, endOnFailure: false },
  )
})
