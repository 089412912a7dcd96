// Messages that are written in place.

import test, { type ExecutionContext } from 'ava'
import { RingfenceError, type Channel } from 'ringfence'

import { pattern } from './support/bytes.js'
import { pair, receivesPatterns, type Partner } from './support/partner.js'
import { isPending } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const tooLarge = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' } as const
const closed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_CLOSED' } as const

function put(message: Buffer) {
  return (bytes: Uint8Array, offset: number, length: number) => {
    if (length < message.length) throw new Error(`${length} bytes are too few`)
    bytes.set(message, offset)
    return message.length
  }
}

function readAll(partner: Partner): Promise<Buffer[]> {
  return partner.run(async (kit) => {
    const all: Buffer[] = []
    for await (const message of kit.channel) all.push(message)
    return all
  })
}

test.serial('filled messages arrive in order with other messages, through many laps of the ring', async (t) => {
  for (const busyPollMicros of [0, 50]) {
    const { channel, partner } = await pair(t, { here: { capacity: 65_536, busyPollMicros } })
    const count = 5000
    const there = receivesPatterns(partner, count)
    for (let number = 0; number < count; number += 1) {
      const size = [0, 1, 64, 100, 4096, 5000, 9000, 32_000][number % 8]!
      const message = pattern(number, size)
      if (number % 5 === 4) await channel.send(message)
      else if (number % 5 === 3) void channel.send(message)
      // Asks for more room than it uses, if half the ring has that much.
      else while (!channel.fill(Math.min(size + 9, 32_000), put(message))) await channel.waitWritable(size + 9)
    }
    t.is(await there, 'all')
  }
})

test.serial('fill returns false without room: the callback is not called, and nothing is sent', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  let filled = 0
  while (channel.fill(64, put(pattern(filled, 64)))) filled += 1
  t.true(filled > 40 && filled <= 64, String(filled))
  t.false(channel.fill(64, () => t.fail() as never))
  t.false(channel.fill(2000, () => t.fail() as never))
  t.is(await receivesPatterns(partner, filled), 'all')
  await channel.waitWritable(64)
  t.true(channel.fill(64, put(pattern(filled, 64))))
})

test.serial('a wrong count of bytes is INVALID_ARGUMENT, an exception is passed on, and nothing is sent', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 65_536 } })
  for (const size of [0, 64, 3000, 5000, 30_000]) {
    for (const result of [-1, size + 1, 0.5, NaN, undefined, null, '1', 1n, Promise.resolve(1)])
      t.throws(() => channel.fill(size, () => result as number), invalid, `${size} ${String(result)}`)
    t.throws(() => channel.fill(size, () => { throw new RangeError('mine') }), { instanceOf: RangeError }) // prettier-ignore
  }
  for (const size of [-1, 1.5, NaN, '5', undefined]) t.throws(() => channel.fill(size as number, () => 0), invalid)
  t.throws(() => channel.fill(5, undefined as never), invalid)
  t.throws(() => channel.fill(channel.capacity / 2 + 1, () => 0), tooLarge)
  t.true(channel.fill(10, put(Buffer.from('last'))))
  await channel.end()
  t.deepEqual(await readAll(partner), [Buffer.from('last')])
})

test.serial('sending in the callback is INVALID_ARGUMENT; reading and earlier sends continue', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 65_536 } })
  await partner.run((kit) => kit.channel.send('to here'))
  await channel.waitReadable()
  for (const size of [64, 10_000]) {
    void channel.send('before')
    const rejected: Promise<unknown>[] = []
    const done = channel.fill(size, (bytes, offset) => {
      t.throws(() => channel.trySend('x'), invalid)
      t.throws(() => channel.reserve(1), invalid)
      t.throws(() => channel.fill(1, () => 0), invalid)
      rejected.push(t.throwsAsync(channel.send('x'), invalid), t.throwsAsync(channel.waitWritable(), invalid))
      if (size === 64) t.is(String(channel.tryReceive()), 'to here')
      void channel.receive({ signal: AbortSignal.abort() }).catch(() => {})
      bytes[offset] = 65
      return 1
    })
    t.true(done)
    await Promise.all(rejected)
  }
  await channel.end()
  t.deepEqual((await readAll(partner)).map(String), ['before', 'A', 'before', 'A'])
})

test.serial('an end or a close in the callback wins: none of the message is sent', async (t) => {
  for (const size of [64, 10_000]) {
    for (const deed of ['end', 'close'] as const) {
      const { channel, partner } = await pair(t)
      void channel.send('before')
      const leave = (): number => {
        void channel[deed]()
        return 5
      }
      t.throws(() => channel.fill(size, leave), closed)
      t.throws(() => channel.fill(size, () => 0), closed)
      t.deepEqual((await readAll(partner)).map(String), ['before'], `${deed} ${size}`)
    }
  }
})

test.serial('bytes that are counted but not written are zeros, or come from messages to the same peer', async (t) => {
  const { channel, partner } = await pair(t)
  const sizes = [64, 3000, 4096, 8192, 20_000]
  for (const size of sizes) t.true(channel.fill(size, () => size))
  await channel.end()
  for (const message of await readAll(partner))
    t.true(
      message.every((byte) => byte === 0),
      String(message.length),
    )
})

/** The first bytes of the messages of a lost peer. */
async function untilLost(t: ExecutionContext, channel: Channel): Promise<number[]> {
  const found: number[] = []
  const reading = async () => {
    for await (const message of channel) found.push(message[0]!)
  }
  await t.throwsAsync(reading, { code: 'ERR_RINGFENCE_PEER_LOST' })
  return found
}

test.serial('a filled message is in the ring before the process exits', async (t) => {
  const { channel, partner } = await pair(t)
  partner.mayFail()
  void partner.run((kit) => {
    // A send has scheduled a flush already, and the exit does not wait for that.
    void kit.channel.send(new Uint8Array(1))
    for (let number = 1; number < 100; number += 1)
      kit.channel.fill(64, (bytes, offset) => {
        bytes[offset] = number
        return 1
      })
    process.exit(0)
  })
  t.deepEqual(
    await untilLost(t, channel),
    Array.from({ length: 100 }, (_, index) => index),
  )
})

test.serial(
  'a message that is filled during the exit is in the ring, whatever the order of the exit listeners',
  async (t) => {
    for (const isFirst of [true, false]) {
      const { channel, partner } = await pair(t)
      partner.mayFail()
      void partner.run((kit, first) => {
        const fill = (number: number) =>
          kit.channel.fill(64, (bytes, offset) => {
            bytes[offset] = number
            return 1
          })
        if (!first) fill(0)
        process.on('exit', () => {
          for (let number = 1; number < 10; number += 1) fill(number)
        })
        process.exit(0)
      }, isFirst)
      const found = await untilLost(t, channel)
      t.deepEqual(found, isFirst ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    }
  },
)

test.serial('the memory cannot be transferred', async (t) => {
  const { channel, partner } = await pair(t)
  void channel.send('before')
  const sent = ['before', 'after']
  try {
    // Node 20 copies memory that cannot be transferred, and later versions throw.
    channel.fill(64, (bytes, offset) => {
      structuredClone(bytes.buffer, { transfer: [bytes.buffer as ArrayBuffer] })
      bytes[offset] = 65
      return 1
    })
    sent.splice(1, 0, 'A')
  } catch (error) {
    t.is((error as Error).name, 'DataCloneError')
  }
  t.true(await isPending(channel.closed))
  t.true(channel.fill(5, put(Buffer.from('after'))))
  await channel.end()
  t.deepEqual((await readAll(partner)).map(String), sent)
})

test.serial('bufferedAmount counts filled messages that are not in the ring yet', async (t) => {
  const { channel } = await pair(t)
  const fill = (from: Channel) => from.fill(64, () => 10)
  t.true(fill(channel))
  t.is(channel.bufferedAmount, 10)
  await channel.waitWritable()
  t.is(channel.bufferedAmount, 0)
})
