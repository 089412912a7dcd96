// The memory of received messages: who owns it, how much a message keeps alive, and failed allocations.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'

import test from 'ava'
import type { RingfenceError } from 'ringfence'

import { pattern } from './support/bytes.js'
import { detach } from './support/memory.js'
import { pair, type Partner } from './support/partner.js'
import { within } from './support/until.js'

const noSpace = { code: 'ERR_RINGFENCE_NO_SPACE' }

function patterns(partner: Partner, first: number, count: number, size: number): Promise<void> {
  return partner.run(
    async (kit, from: number, to: number, length: number) => {
      for (let number = from; number < to; number += 1) await kit.channel.send(kit.bytes.pattern(number, length))
    },
    first,
    first + count,
    size,
  )
}

for (const size of [0, 16, 100, 4096, 4097, 20_000, 40_000, 200_000]) {
  test.serial(`messages of ${size} bytes can be transferred, and the next ones are intact`, async (t) => {
    const { channel, partner } = await pair(t)
    const { port1, port2 } = new MessageChannel()
    t.teardown(() => port1.close())
    const count = 20
    await patterns(partner, 0, count, size)
    for (let number = 0; number < count; number += 1) {
      const message = (await channel.receive())!
      t.true(message.equals(pattern(number, size)), `message ${number}`)
      try {
        port1.postMessage(message, [message.buffer as ArrayBuffer])
        const { message: copy } = receiveMessageOnPort(port2) as { message: Uint8Array }
        t.true(pattern(number, size).equals(copy), `message ${number}, transferred`)
        // A long message has its own memory, which is transferred. A short one is copied.
        t.is(message.length, size > 4096 ? 0 : size)
      } catch (error) {
        // From Node 21 on, memory that must not be transferred is refused instead of copied.
        t.is((error as Error).name, 'DataCloneError')
        t.true(size <= 4096)
        t.true(message.equals(pattern(number, size)), `message ${number}, afterwards`)
      }
    }
  })
}

test.serial('memory that was detached anyway is replaced, and no message is lost', async (t) => {
  const { channel, partner } = await pair(t)
  let number = 0
  for (const size of [16, 300, 3000, 6000, 20_000, 60_000]) {
    const count = 60
    const sent = patterns(partner, number, count, size)
    for (const last = number + count; number < last; number += 1) {
      const message = (await within(channel.receive(), `message ${number}`))!
      if (!message.equals(pattern(number, size))) return t.fail(`message ${number} of ${size} bytes is another`)
      if (number % 3 === 0) {
        if (detach(message)) t.is(message.length, 0)
        else t.true(size <= 4096 && message.equals(pattern(number, size)))
      }
    }
    await sent
  }
  t.is(channel.tryReceive(), undefined)
})

test.serial('batches hand out each message once, and fetch those again whose memory was detached', async (t) => {
  const { channel, partner } = await pair(t)
  const sizes = [16, 300, 3000, 6000]
  const each = 100
  const count = sizes.length * each
  // All are there before the first is read, so that a block has many.
  for (const [index, size] of sizes.entries()) await patterns(partner, index * each, each, size)
  await partner.run((kit) => kit.channel.end())
  let number = 0
  let lengths = 0
  for await (const messages of channel.batches({ max: 7 })) {
    t.true(messages.length >= 1 && messages.length <= 7)
    for (const message of messages) {
      if (!message.equals(pattern(number, sizes[Math.floor(number / each)]!)))
        return t.fail(`message ${number} is another`)
      lengths += message.length
      number += 1
    }
    // Messages behind these may be in the same memory.
    detach(messages.at(-1)!)
  }
  t.is(number, count)
  const { messagesReceived, bytesReceived } = channel.stats()
  t.deepEqual([messagesReceived, bytesReceived], [count, lengths])
})

test.serial('detaching the memory that a visitor gets is an error, and the channel continues', async (t) => {
  const { channel, partner } = await pair(t)
  let visitorMayTake = true
  await patterns(partner, 0, 1, 100)
  if (channel.receiveEach((bytes) => void (visitorMayTake = detach(bytes))) === 1 && !visitorMayTake) {
    t.pass('this Node lets no visitor take the memory away')
    return
  }
  await patterns(partner, 0, 10, 100)
  const visited: number[] = []
  const error = t.throws(
    () =>
      channel.receiveEach((bytes) => {
        visited.push(visited.length)
        if (visited.length === 4) detach(bytes)
      }),
    { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' },
  )
  t.regex(error?.message ?? '', /transferred .* and with it 672 bytes of messages/)
  t.is(visited.length, 4)
  // The last messages: nothing is lost.
  await patterns(partner, 10, 1, 100)
  t.is(
    channel.receiveEach((bytes) => detach(bytes)),
    1,
  )
  await patterns(partner, 11, 3, 100)
  for (let number = 11; number < 14; number += 1) t.true((await channel.receive())!.equals(pattern(number, 100)))
})

const keptOutOf = test.macro(async (t, size: number, between: number) => {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  const { channel, partner } = await pair(t)
  const count = 3000
  const sent = partner.run(
    async (kit, kept: number, others: number, length: number) => {
      const other = new Uint8Array(length)
      for (let number = 0; number < kept; number += 1) {
        await kit.channel.send(kit.bytes.pattern(number, 16))
        for (let next = 0; next < others; next += 1) await kit.channel.send(other)
      }
      await kit.channel.end()
    },
    count,
    between,
    size,
  )
  const tidy = async () => {
    // Freed memory is swept concurrently with the program.
    for (let round = 0; round < 3; round += 1) {
      gc()
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  await tidy()
  const before = process.memoryUsage().arrayBuffers
  const kept: Buffer[] = []
  for await (const message of channel) if (message.length === 16) kept.push(message)
  await sent
  await tidy()
  const held = (process.memoryUsage().arrayBuffers - before) / 2 ** 20
  t.is(kept.length, count)
  t.true(
    kept.every((message, index) => message.equals(pattern(index, 16))),
    'each is what was sent',
  )
  t.true(held < 16, `${held} MiB are held`)
})

// Between two messages that are kept, at least as much is received as one call fetches.
for (const [size, between] of [
  [10_000, 13],
  [3000, 44],
] as const)
  test.serial(
    `keeping 3,000 short messages from a stream of ${size} bytes each holds only a few MiB`,
    keptOutOf,
    size,
    between,
  )

test.serial('once all fetched messages are returned, the peer has their room, even without another call', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 4096 } })
  const fill = (size: number) =>
    partner.run((kit, length: number) => {
      let count = 0
      while (kit.channel.trySend(kit.bytes.pattern(count, length))) count += 1
      return count
    }, size)
  for (const size of [0, 16, 100]) {
    const counts = []
    for (let round = 0; round < 3; round += 1) {
      const count = await fill(size)
      counts.push(count)
      for (let number = 0; number < count; number += 1)
        t.true((await channel.receive())!.equals(pattern(number, size)), `message ${number} of ${size}`)
    }
    // At the end of the ring, one message may find no room.
    t.true(Math.min(...counts) >= Math.max(...counts) - 1, `${counts.join(', ')} of ${size} bytes`)
  }
})

test.serial('detaching memory that visited messages share with a Buffer loses no message', async (t) => {
  const { channel, partner } = await pair(t)
  let number = 0
  const sizes = [16, 300, 6000, 16, 16, 3000, 16, 300, 300]
  await partner.run(async (kit, lengths: number[]) => {
    for (let round = 0; round < 40; round += 1)
      for (const [index, length] of lengths.entries())
        await kit.channel.send(kit.bytes.pattern(round * lengths.length + index, length))
  }, sizes)
  while (number < 40 * sizes.length) {
    const size = sizes[number % sizes.length]!
    if (number % 3 === 2) {
      const visit = (bytes: Uint8Array, offset: number, length: number) =>
        t.true(pattern(number, size).equals(bytes.subarray(offset, offset + length)), `visited ${number}`)
      t.is(channel.receiveEach(visit, 1), 1)
    } else {
      const message = channel.tryReceive()!
      t.true(message.equals(pattern(number, size)), `message ${number} of ${size}`)
      if (number % 2 === 0) detach(message)
    }
    number += 1
  }
  t.is(channel.tryReceive(), undefined)
})

test.serial('a receive without memory for the message fails, and the message stays', async (t) => {
  // The other side of the pair is the one without memory.
  const { channel, partner } = await pair(t)
  const message = pattern(5, 2_000_000)
  await partner.run((kit) => {
    const real = Buffer.allocUnsafeSlow
    kit.keep['short'] = (short: boolean) => {
      Buffer.allocUnsafeSlow = short
        ? (size: number) => {
            if (size > 1_000_000) throw new RangeError('Array buffer allocation failed')
            return real(size)
          }
        : real
    }
    const tell = kit.keep['short'] as (short: boolean) => void
    tell(true)
    kit.keep['error'] = async (deed: () => unknown) => {
      try {
        return await deed()
      } catch (error) {
        const { code, cause } = error as RingfenceError
        return `${code}: ${(cause as Error)?.message}`
      }
    }
  })
  const failure = 'ERR_RINGFENCE_NO_SPACE: Array buffer allocation failed'
  type Try = (deed: () => unknown) => Promise<unknown>
  for (const way of ['receive', 'waitReadable', 'for await'] as const) {
    // It waits, and then the message arrives.
    await partner.run((kit, how: typeof way) => {
      const attempt = kit.keep['error'] as Try
      kit.keep['waiting'] =
        how === 'for await'
          ? attempt(() => kit.channel[Symbol.asyncIterator]().next())
          : attempt(() => kit.channel[how]())
    }, way)
    const sent = channel.send(message)
    t.is(
      await within(
        partner.run((kit) => kit.keep['waiting']),
        way,
      ),
      failure,
      `${way}, waiting`,
    )
    // The message is there already.
    const found = await partner.run(async (kit) => {
      const attempt = kit.keep['error'] as Try
      return {
        receive: await attempt(() => kit.channel.receive()),
        waitReadable: await attempt(() => kit.channel.waitReadable()),
        next: await attempt(() => kit.channel[Symbol.asyncIterator]().next()),
        tryReceive: await attempt(() => kit.channel.tryReceive()),
        receiveEach: await attempt(() => kit.channel.receiveEach(() => {})),
        ended: kit.channel.readableEnded,
      }
    })
    t.deepEqual(found, {
      receive: failure,
      waitReadable: failure,
      next: failure,
      tryReceive: failure,
      receiveEach: failure,
      ended: false,
    })
    // Memory is available again.
    const received = await partner.run(async (kit) => {
      const tell = kit.keep['short'] as (short: boolean) => void
      tell(false)
      const whole = await kit.channel.receive()
      tell(true)
      return whole
    })
    t.true(message.equals(received!), `${way}: the message`)
    await sent
  }
  await channel.send('and what comes behind it')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'and what comes behind it')
})

test.serial('the same if the kernel gives no memory (RLIMIT_AS)', async (t) => {
  const sizes = { maxMessageSize: 1 << 30 }
  const { channel, partner } = await pair(t, { options: sizes })
  const text = 'what is large is much of the same '
  const message = Buffer.alloc(300_000_000, text)
  const limit = (bytes: string) => execFileSync('prlimit', [`--pid=${partner.pid}`, `--as=${bytes}:`])
  await partner.run((kit) => {
    kit.keep['waiting'] = kit.channel.receive().then(
      () => 'received',
      (error: RingfenceError) => error.code,
    )
  })
  const [pages] = readFileSync(`/proc/${partner.pid}/statm`, 'utf8').split(' ')
  // Less than the message, with room for the engine: it collects garbage when an allocation fails, and aborts if it
  // gets no memory for that.
  limit(String(Number(pages) * 4096 + 256 * 2 ** 20))
  const sent = channel.send(message)
  t.is(
    await within(
      partner.run((kit) => kit.keep['waiting']),
      'the receive to fail',
    ),
    noSpace.code,
  )
  t.is(
    await partner.run((kit) => {
      try {
        return String(kit.channel.tryReceive())
      } catch (error) {
        return (error as RingfenceError).code as string
      }
    }),
    noSpace.code,
  )
  limit('unlimited')
  const received = await partner.run(
    async (kit, words: string, size: number) => {
      const whole = (await kit.channel.receive())!
      return whole.equals(Buffer.alloc(size, words))
    },
    text,
    message.length,
  )
  await sent
  t.true(received)
})

test.serial(
  'without memory to assemble or to visit messages, that call is NO_SPACE, and the channel continues',
  async (t) => {
    const { channel, partner } = await pair(t)
    await channel.send('one')
    const found = await partner.run(async (kit) => {
      const { alloc, allocUnsafeSlow } = Buffer
      const fail = () => {
        throw new RangeError('Array buffer allocation failed')
      }
      const codeOf = (error: unknown) => String((error as RingfenceError).code)
      const drained = () => {
        try {
          return String(kit.channel.receiveEach(() => {}))
        } catch (error) {
          return codeOf(error)
        }
      }
      Object.assign(Buffer, { alloc: fail, allocUnsafeSlow: fail })
      try {
        return [await kit.channel.send('lost').then(() => 'sent', codeOf), drained()]
      } finally {
        Object.assign(Buffer, { alloc, allocUnsafeSlow })
        void kit.channel.send(`visited: ${drained()}`)
      }
    })
    t.deepEqual(found, [noSpace.code, noSpace.code])
    t.is(String(await within(channel.receive(), 'the next message')), 'visited: 1')
  },
)

test.serial('without memory for a message that must be queued, none of it is sent', async (t) => {
  const { channel, partner } = await pair(t, { there: { capacity: 65_536 } })
  const code = await partner.run(async (kit) => {
    const real = Buffer.allocUnsafeSlow
    Buffer.allocUnsafeSlow = (size: number) => {
      if (size > 100_000) throw new RangeError('Array buffer allocation failed')
      return real(size)
    }
    const failed = await kit.channel.send(kit.bytes.pattern(0, 1_000_000)).then(
      () => 'sent',
      (error: RingfenceError) => error.code,
    )
    Buffer.allocUnsafeSlow = real
    void kit.channel.send(kit.bytes.pattern(1, 1_000_000))
    return failed
  })
  t.is(code, noSpace.code)
  t.true((await within(channel.receive(), 'the next message'))!.equals(pattern(1, 1_000_000)))
})
