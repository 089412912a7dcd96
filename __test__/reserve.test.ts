import test from 'ava'
import { RingfenceError, type Channel } from 'ringfence'

import { pattern } from './support/bytes.js'
import { pair, Partner, receivesPatterns } from './support/partner.js'
import { isPending } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const closed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_CLOSED' } as const

/** Sizes below and above the limit from which the bytes are the ring's own memory and not a copy. */
const sizes = [1, 100, 4096, 4097, 10_000, 1_000_000]

function readThere(partner: Partner, count: number): Promise<Buffer[]> {
  return partner.run(async (kit, wanted: number) => {
    const messages: Buffer[] = []
    while (messages.length < wanted) messages.push((await kit.channel.receive())!)
    return messages
  }, count)
}

function transfer(bytes: Uint8Array): Uint8Array {
  const { buffer } = bytes as Uint8Array<ArrayBuffer & { transfer?(): ArrayBuffer }>
  return new Uint8Array(buffer.transfer?.() ?? structuredClone(buffer, { transfer: [buffer] }))
}

/** Writes as much as possible: nothing, if the view has no memory left. */
function scribble(bytes: Uint8Array, size: number): void {
  for (let at = 0; at < size; at += 1) bytes[at] = 0xff
}

function reserve(channel: Channel, size: number) {
  const reservation = channel.reserve(size)
  if (reservation === undefined) throw new Error(`no room for ${size} bytes`)
  return reservation
}

test.serial('a reservation that is filled and committed is sent', async (t) => {
  const { channel, partner } = await pair(t)
  for (const [number, size] of sizes.entries()) {
    const reservation = reserve(channel, size)
    t.is(reservation.bytes.length, size)
    reservation.bytes.set(pattern(number, size))
    reservation.commit()
  }
  t.deepEqual(
    await readThere(partner, sizes.length),
    sizes.map((size, number) => pattern(number, size)),
  )
})

test.serial('nothing is sent before the commit', async (t) => {
  const { channel, partner } = await pair(t)
  for (const size of sizes) {
    const reservation = reserve(channel, size)
    reservation.bytes.fill(1)
    t.is(await partner.run((kit) => kit.channel.tryReceive()), undefined)
    reservation.commit()
    t.is(await partner.run((kit) => kit.channel.tryReceive()?.length), size)
  }
})

test.serial('a commit may be shorter than the reservation, down to zero', async (t) => {
  const { channel, partner } = await pair(t)
  const lengths = [0, 1, 7, 8, 50, 100, 4999, 5000]
  for (const [number, length] of lengths.entries()) {
    const reservation = reserve(channel, 5000)
    reservation.bytes.set(pattern(number, 5000))
    reservation.commit(length)
  }
  await channel.send('after')
  const messages = await readThere(partner, lengths.length + 1)
  for (const [number, length] of lengths.entries())
    t.deepEqual(messages[number], pattern(number, 5000).subarray(0, length))
  t.is(String(messages.at(-1)), 'after')
})

test.serial('while a reservation is open, every other send is INVALID_ARGUMENT, and reading continues', async (t) => {
  const { channel, partner } = await pair(t)
  for (const size of [10, 10_000]) {
    const reservation = reserve(channel, size)
    await t.throwsAsync(channel.send('no'), invalid)
    await t.throwsAsync(channel.send(pattern(0, 20_000)), invalid)
    t.throws(() => channel.trySend('no'), invalid)
    t.throws(() => channel.reserve(1), invalid)
    await t.throwsAsync(channel.waitWritable(), invalid)

    await partner.run((kit) => kit.channel.send('read me'))
    t.is(String(await channel.receive()), 'read me')
    reservation.bytes.fill(size & 0xff)
    reservation.commit()
    await channel.send('yes')
    t.deepEqual(await readThere(partner, 2), [Buffer.alloc(size, size & 0xff), Buffer.from('yes')])
  }
})

test.serial('a reservation is sent after everything that was sent before it', async (t) => {
  const { channel, partner } = await pair(t)
  void channel.send('first')
  const reservation = reserve(channel, 6)
  reservation.bytes.set(Buffer.from('second'))
  reservation.commit()
  void channel.send('third')
  t.deepEqual((await readThere(partner, 3)).map(String), ['first', 'second', 'third'])
})

test.serial('without room reserve fails, until the peer has read', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  while (channel.trySend(pattern(0, 1000)));
  t.is(channel.reserve(1000), undefined)
  // The failed call has left no reservation open.
  t.false(channel.trySend(pattern(0, 1000)))
  const writable = channel.waitWritable(2048)
  t.true(await isPending(writable))
  await readThere(partner, 4)
  await writable
  reserve(channel, 2048).commit()
  t.is((await readThere(partner, 1))[0]!.length, 2048)
})

test.serial('committed bytes are out of reach if they were the ring, and a copy stays valid', async (t) => {
  const { channel } = await pair(t)
  const copies = process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'] === '1'
  const left = sizes.map((size) => {
    const reservation = reserve(channel, size)
    reservation.commit()
    return reservation.bytes.length
  })
  t.deepEqual(
    left,
    sizes.map((size) => (copies || size <= 4096 ? size : 0)),
  )
})

test.serial('a reservation without memory is NO_SPACE, and blocks nothing else', async (t) => {
  const { channel, partner } = await pair(t)
  const code = await partner.run((kit) => {
    const real = globalThis.Uint8Array
    globalThis.Uint8Array = class extends real {
      constructor() {
        super(0)
        throw new RangeError('Array buffer allocation failed')
      }
    } as typeof real
    try {
      return String(kit.channel.reserve(100))
    } catch (error) {
      return (error as { code: string }).code
    } finally {
      globalThis.Uint8Array = real
    }
  })
  t.is(code, 'ERR_RINGFENCE_NO_SPACE')
  await partner.run(async (kit) => {
    const reservation = kit.channel.reserve(3)!
    reservation.bytes.set([1, 2, 3])
    reservation.commit()
    await kit.channel.send('and a message')
  })
  t.deepEqual([...(await channel.receive())!], [1, 2, 3])
  t.is(String(await channel.receive()), 'and a message')
})

test.serial('cancel sends nothing, and may be called again', async (t) => {
  const { channel, partner } = await pair(t)
  for (const size of sizes) {
    const reservation = reserve(channel, size)
    reservation.bytes.fill(1)
    reservation.cancel()
    reservation.cancel()
    t.throws(() => reservation.commit(), invalid)
  }
  await channel.send('the only one')
  t.deepEqual((await readThere(partner, 1)).map(String), ['the only one'])
})

test.serial('a second commit is INVALID_ARGUMENT, a cancel after it does nothing', async (t) => {
  const { channel, partner } = await pair(t)
  for (const size of [10, 10_000]) {
    const first = reserve(channel, size)
    first.commit()
    t.throws(() => first.commit(), invalid)
    const second = reserve(channel, size)
    t.throws(() => first.commit(), invalid)
    first.cancel()
    second.commit(5)
    t.deepEqual(
      (await readThere(partner, 2)).map((message) => message.length),
      [size, 5],
    )
  }
})

test.serial('a commit of a wrong length is INVALID_ARGUMENT, and the reservation stays open', async (t) => {
  const { channel, partner } = await pair(t)
  for (const size of [10, 10_000]) {
    const reservation = reserve(channel, size)
    for (const length of [size + 1, -1, 1.5, NaN, Infinity, '3', null, {}, Symbol('length')]) {
      t.throws(() => reservation.commit(length as number), invalid, typeof length)
    }
    reservation.commit(3)
    t.is((await readThere(partner, 1))[0]!.length, 3)
  }
})

test.serial('a wrong size is INVALID_ARGUMENT', async (t) => {
  const { channel } = await pair(t)
  for (const size of [-1, 1.5, NaN, Infinity, -Infinity, '5', null, undefined, {}, [], 5n, true, Symbol('size')]) {
    t.throws(() => channel.reserve(size as number), invalid, typeof size)
  }
  t.true(channel.trySend('nothing is reserved'))
})

test.serial('bytes that are written after the commit do not reach the peer', async (t) => {
  const { channel, partner } = await pair(t)
  const kept: Uint8Array[] = []
  for (const [number, size] of sizes.entries()) {
    const reservation = reserve(channel, size)
    const { bytes } = reservation
    bytes.set(pattern(number, size))
    reservation.commit()
    scribble(bytes, size)
    kept.push(bytes)
  }
  const messages = await readThere(partner, sizes.length)
  for (const [number, size] of sizes.entries()) t.deepEqual(messages[number], pattern(number, size))
  await channel.close()
  for (const bytes of kept) scribble(bytes, 10_000)
  t.pass('nor do they harm once the channel is closed')
})

test.serial('the bytes of an open reservation stay valid after a close, which cancels it', async (t) => {
  for (const size of [10, 10_000]) {
    const { channel, partner } = await pair(t)
    const reservation = reserve(channel, size)
    reservation.bytes.fill(1)
    await channel.close()
    scribble(reservation.bytes, size)
    t.throws(() => reservation.commit(), closed)
    reservation.cancel()
    t.is(await partner.run((kit) => kit.channel.receive()), undefined)
  }
})

test.serial('an open reservation is cancelled when the peer is lost: commit is PEER_LOST', async (t) => {
  for (const size of [10, 10_000]) {
    const { channel, partner } = await pair(t)
    const reservation = reserve(channel, size)
    await partner.kill()
    t.is((await channel.closed).reason, 'lost')
    scribble(reservation.bytes, size)
    t.throws(() => reservation.commit(), { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_PEER_LOST' })
  }
})

test.serial('cancel never throws, so in a finally it hides no error', async (t) => {
  for (const end of ['closed here', 'closed by the peer', 'killed']) {
    const { channel, partner } = await pair(t)
    const reservation = reserve(channel, 10_000)
    if (end === 'killed') await partner.kill()
    else if (end === 'closed here') await channel.close()
    else await partner.run((kit) => kit.channel.close())
    await channel.closed
    t.notThrows(() => reservation.cancel(), end)
    t.notThrows(() => reservation.cancel(), end)
  }
})

test.serial('an open reservation is cancelled when this side ends', async (t) => {
  const { channel, partner } = await pair(t)
  await channel.send('before')
  const reservation = reserve(channel, 10_000)
  await channel.end()
  t.throws(() => reservation.commit(), closed)
  const received = partner.run(async (kit) => [String(await kit.channel.receive()), await kit.channel.receive()])
  t.deepEqual(await received, ['before', undefined])
})

test.serial('transferring the bytes cancels the reservation: INVALID_ARGUMENT', async (t) => {
  const { channel, partner } = await pair(t)
  for (const size of [10, 10_000]) {
    for (const length of [undefined, 5]) {
      const reservation = reserve(channel, size)
      const moved = transfer(reservation.bytes)
      // Some engines copy external memory instead of transferring it. Then nothing has happened.
      if (reservation.bytes.length === 0) t.throws(() => reservation.commit(length), invalid)
      else reservation.cancel()
      // The memory stays valid, wherever it is now.
      moved.fill(1)
    }
  }
  await channel.send('the only one')
  t.deepEqual((await readThere(partner, 1)).map(String), ['the only one'])
})

test.serial('transferred bytes stay mapped after the channel has closed', async (t) => {
  const { partner } = await pair(t, { partner: await Partner.start(t, { node: ['--expose-gc'] }) })
  const sum = await partner.run(async (kit) => {
    const { buffer } = kit.channel.reserve(100_000)!.bytes as Uint8Array<ArrayBuffer & { transfer?(): ArrayBuffer }>
    const moved = new Uint8Array(buffer.transfer?.() ?? structuredClone(buffer, { transfer: [buffer] }))
    await kit.channel.close()
    for (let round = 0; round < 5; round += 1) {
      ;(globalThis as unknown as { gc(): void }).gc()
      await new Promise((resolve) => setImmediate(resolve))
    }
    moved.fill(1)
    return moved.reduce((total, byte) => total + byte, 0)
  })
  t.is(sum, 100_000)
})

test.serial('reservations fill a ring to its end and across it', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 65536 } })
  const count = 2000
  const received = receivesPatterns(partner, count)
  for (let number = 0; number < count; number += 1) {
    const size = (number * 997) % 32_769
    let reservation = channel.reserve(size)
    while (reservation === undefined) {
      await channel.waitWritable(size)
      reservation = channel.reserve(size)
    }
    const length = number % 3 === 0 ? size >> 1 : size
    reservation.bytes.set(pattern(number, length))
    reservation.commit(length)
  }
  t.is(await received, 'all')
})
