// Values as messages.

import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import test from 'ava'
import { Channel, json, RingfenceError, structured, type Codec } from 'ringfence'

import { pair } from './support/partner.js'
import { isPending } from './support/until.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const malformed = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_MALFORMED' } as const

interface Order {
  id: number
  what: string
  note: string | null
}

const orders: Order[] = [
  { id: 1, what: 'apples', note: null },
  { id: 2, what: 'grüße, 日本語 🦀', note: 'x'.repeat(100_000) },
  { id: -0.5, what: '', note: '\u2028\0"' },
]

/** Echoes messages with the same codec. */
const echo = async (
  kit: { ringfence: { json: typeof json; structured: typeof structured }; channel: import('ringfence').Channel },
  name: 'json' | 'structured',
) => {
  const there = kit.channel.with(kit.ringfence[name]<unknown>())
  for await (const value of there) await there.send(value)
}

test.serial('values arrive as JSON, by every way to send and to read', async (t) => {
  const { channel, partner } = await pair(t)
  const there = partner.run(echo, 'json')
  const typed = channel.with(json<Order>())
  t.true(typed instanceof Channel)
  const found: Order[] = []
  for (const order of orders) {
    await typed.send(order)
    found.push((await typed.receive())!)
  }
  t.deepEqual(found, orders)

  t.true(typed.trySend(orders[0]!))
  await typed.waitReadable()
  t.deepEqual(typed.tryReceive(), orders[0])
  t.is(typed.tryReceive(), undefined, 'nothing now')

  for (const order of orders) void typed.send(order)
  const drained: Order[] = []
  while (drained.length < orders.length) {
    await typed.waitReadable()
    typed.receiveEach((order) => drained.push(order))
  }
  t.deepEqual(drained, orders)

  for (const order of orders) void typed.send(order)
  await typed.end()
  const looped: Order[] = []
  for await (const order of typed) looped.push(order)
  t.deepEqual(looped, orders)
  t.is(await typed.receive(), undefined, 'no more')
  t.true(typed.readableEnded)
  t.is((await typed.closed).reason, 'closed')
  await there
})

test.serial('null is a value, and so are false, 0 and the empty string', async (t) => {
  for (const name of ['json', 'structured'] as const) {
    const { channel, partner } = await pair(t)
    void partner.run(echo, name)
    const typed = channel.with((name === 'json' ? json : structured)<unknown>())
    const values = [null, false, 0, '', [], {}, [null]]
    for (const value of values) {
      await typed.send(value)
      t.deepEqual(await typed.receive(), value, name)
    }
    for (const value of values) void typed.send(value)
    await typed.end()
    const found: unknown[] = []
    for await (const value of typed) found.push(value)
    t.deepEqual(found, values)
  }
})

test.serial('structured carries all structured clones, and typed arrays belong to the receiver', async (t) => {
  const { channel, partner } = await pair(t)
  void partner.run(echo, 'structured')
  const typed = channel.with(structured<Record<string, unknown>>())
  const cycle: Record<string, unknown> = { text: 'grüße' }
  cycle['self'] = cycle
  const value = {
    map: new Map<unknown, unknown>([['a', new Set([1, 2n])]]),
    date: new Date(5),
    pattern: /a+/gi,
    words: Uint16Array.from([1, 2, 3]),
    floats: Float64Array.from([0.5]),
    view: new DataView(Uint8Array.from([1, 2, 3]).buffer),
    buffer: Buffer.from('bytes'),
    memory: Uint8Array.from([9]).buffer,
    nothing: undefined,
  }
  await typed.send(value)
  await typed.send(value)
  await typed.send(cycle)
  const first = (await typed.receive())!
  t.deepEqual(first, value)
  t.true(Buffer.isBuffer(first['buffer']))
  for (const key of ['words', 'floats', 'view', 'buffer']) {
    const { buffer, byteLength } = first[key] as Uint8Array
    t.is(buffer.byteLength, byteLength, `${key} shows nothing else`)
    structuredClone(buffer, { transfer: [buffer as ArrayBuffer] })
  }
  t.deepEqual(await typed.receive(), value, 'what was transferred has taken nothing along')
  const third = (await typed.receive())!
  t.is(third['self'], third)
})

test.serial(
  'a value that encodes to nothing, or cannot be encoded, is INVALID_ARGUMENT with its cause, and is not sent',
  async (t) => {
    const { channel, partner } = await pair(t)
    const cycle: Record<string, unknown> = {}
    cycle['self'] = cycle
    const broken = { toJSON: () => { throw new RangeError('no') } } // prettier-ignore
    const cases: [Codec<unknown>, unknown][] = [
      [json(), undefined],
      [json(), () => {}],
      [json(), Symbol('s')],
      [json(), cycle],
      [json(), 5n],
      [json(), broken],
      [structured(), undefined],
      [structured(), () => {}],
      [structured(), { deep: Symbol('s') }],
      [{ encode: () => 5 as never, decode: () => 0 }, 1],
      [{ encode: () => null as never, decode: () => 0 }, 1],
    ]
    for (const [codec, value] of cases) {
      const typed = channel.with(codec)
      const error = await t.throwsAsync(typed.send(value), invalid)
      t.true(error.cause instanceof Error)
      t.throws(() => typed.trySend(value), invalid)
    }
    const inner = (await t.throwsAsync(channel.with(json()).send(broken), invalid)) as Error
    t.is((inner.cause as Error).message, 'no')
    await channel.end()
    t.is(await partner.run((kit) => kit.channel.receive()), undefined)
  },
)

const noJson: [string, Uint8Array][] = [
  ['nothing', Buffer.alloc(0)],
  ['half', Buffer.from('{"a":')],
  ['bytes behind the value', Buffer.from('{} {}')],
  ['invalid UTF-8', Buffer.from([0x22, 0xff, 0x22])],
  ['a surrogate in UTF-8', Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22])],
  ['a mark of byte order', Buffer.from([0xef, 0xbb, 0xbf, 0x31])],
  ['a NUL behind it', Buffer.from('1\0')],
]
const one = structured<number>().encode(1) as Uint8Array
const noStructured: [string, Uint8Array][] = [
  ['nothing', Buffer.alloc(0)],
  ['text', Buffer.from('{}')],
  ['bytes behind the value', Buffer.concat([one, Buffer.from([0])])],
  ['the value twice', Buffer.concat([one, one])],
  ['half', one.subarray(0, one.length - 1)],
  ['undefined, which is no value', Buffer.from([0xff, 0x0f, 0x5f])],
  ['a version that is to come', Buffer.from([0xff, 0x7f, 0x49, 2])],
  ['a version of long ago', Buffer.from([0xff, 0x01, 0x49, 2])],
  ['the last version that is too old', Buffer.from([0xff, 12, 0x49, 2])],
  ['a version of two bytes', Buffer.from([0xff, 0x8f, 0, 0x49, 2])],
]

test('structured decodes the oldest version that it accepts', (t) => {
  t.is(structured<number>().decode(Buffer.from([0xff, 13, 0x49, 2])), 1)
})

for (const [name, codec, honest, cases] of [
  ['json', json<number>(), Buffer.from('1'), noJson],
  ['structured', structured<number>(), one, noStructured],
] as const) {
  test.serial(
    `a message that ${name} cannot decode is MALFORMED with its bytes, and the next call continues`,
    async (t) => {
      const { channel, partner } = await pair(t)
      const typed = channel.with(codec)
      const lines = cases.flatMap(([, bytes]) => [bytes, honest])
      for (const way of ['receive', 'a waiting receive', 'tryReceive', 'receiveEach', 'for await'] as const) {
        const sending = () =>
          partner.run(async (kit, all: Uint8Array[]) => {
            for (const line of all) await kit.channel.send(line)
          }, lines)
        const expectAll = async (next: () => Promise<number | undefined>) => {
          for (const [title, bytes] of cases) {
            const error = await t.throwsAsync(next(), malformed, `${title}, by ${way}`)
            t.deepEqual((error as RingfenceError).bytes, Buffer.from(bytes), title)
            t.true(error.cause instanceof Error)
            t.is(await next(), 1)
          }
        }
        if (way === 'a waiting receive') {
          const calls = lines.map(() => typed.receive())
          for (const call of calls) call.catch(() => {})
          await sending()
          await expectAll(() => calls.shift()!)
          continue
        }
        await sending()
        if (way === 'receive') await expectAll(() => typed.receive())
        if (way === 'for await') {
          const loop = typed[Symbol.asyncIterator]()
          await expectAll(async () => (await loop.next()).value)
        }
        if (way === 'tryReceive') await expectAll(async () => typed.tryReceive())
        if (way === 'receiveEach') {
          await expectAll(async () => {
            let found: number | undefined
            typed.receiveEach((value) => {
              found = value
            }, 1)
            return found
          })
        }
      }
      t.true(await isPending(channel.closed), 'the channel lives')
    },
  )
}

/** Adapters for msgpackr or cbor-x take five lines like these. */
const ownCodec: Codec<Uint8Array> = {
  encode: (value) => Uint8Array.from([value.length, ...value]),
  decode: (bytes) => bytes.subarray(1),
}

test.serial('a decoder gets bytes that it may keep', async (t) => {
  const { channel, partner } = await pair(t)
  const typed = channel.with(ownCodec)
  const kept: Uint8Array[] = []
  for (let number = 0; number < 20; number += 1) {
    await partner.run((kit, what: number) => kit.channel.send(Uint8Array.from([1, what])), number)
    await typed.waitReadable()
    if (number % 2 === 0) typed.receiveEach((value) => kept.push(value))
    else kept.push(typed.tryReceive()!)
  }
  t.deepEqual(
    kept.map((value) => value[0]),
    Array.from({ length: 20 }, (_, index) => index),
  )
  await channel.with(ownCodec).send(Uint8Array.from([7, 8]))
  t.deepEqual(await partner.run(async (kit) => [...(await kit.channel.receive())!]), [2, 7, 8])
})

test.serial('the bytes of a message that cannot be decoded stay valid, whatever is received later', async (t) => {
  const { channel, partner } = await pair(t)
  for (const codec of [json<number>(), { ...json<number>() }]) {
    const typed = channel.with(codec)
    const sent = Array.from({ length: 20 }, (_, index) => `?${index}`)
    const kept: RingfenceError[] = []
    for (const line of sent) {
      await partner.run((kit, what: string) => kit.channel.send(what), line)
      await typed.waitReadable()
      const take = kept.length % 2 === 0 ? () => typed.tryReceive() : () => typed.receiveEach(() => {})
      kept.push(t.throws(take, malformed) as RingfenceError)
    }
    t.deepEqual(
      kept.map((error) => String(error.bytes)),
      sent,
    )
  }
})

test.serial('an object that is no codec is INVALID_ARGUMENT', async (t) => {
  const { channel } = await pair(t)
  for (const codec of [undefined, null, {}, { encode() {} }, JSON, 'json'])
    t.throws(() => channel.with(codec as unknown as Codec<unknown>), invalid)
  await t.throwsAsync(channel.with(json()).receive({ sginal: 1 } as {}), invalid)
  // @ts-expect-error -- the constructor is private
  t.throws(() => new Channel(), invalid)
})

test.serial('a typed channel is the channel: its end, its close, its signals and its waits', async (t) => {
  const { channel, partner } = await pair(t)
  const typed = channel.with(json<number>())
  t.is(typed.peer, channel.peer)
  t.is(typed.capacity, channel.capacity)
  t.is(typed.ref().unref().ref(), typed)
  const controller = new AbortController()
  const waiting = typed.receive({ signal: controller.signal })
  controller.abort()
  await t.throwsAsync(waiting, { name: 'AbortError' })
  const looping = typed[Symbol.asyncIterator]()
  const next = looping.next()
  await looping.return!()
  t.true((await next).done)
  await partner.run((kit) => kit.channel.send('5'))
  t.is(await typed.receive(), 5, 'a loop that was left has taken nothing')
  const last = typed.receive()
  await typed.close()
  t.is(await last, undefined)
  await t.throwsAsync(typed.receive(), { code: 'ERR_RINGFENCE_CLOSED' })
  for await (const value of typed) t.fail(String(value))
  await t.throwsAsync(typed.send(1), { code: 'ERR_RINGFENCE_CLOSED' })
})

test.serial('text is UTF-8 to the byte, from any source and of any length', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 65_536 } })
  const texts: string[] = []
  for (const unit of ['a', 'é', '語', '🦀', '\ud800', 'a\udc00b'])
    for (const count of [0, 1, 2, 7, 8, 100, 2729, 2730, 2731, 4096, 8191, 8192, 8193, 30_000])
      texts.push(unit.repeat(count))
  const found: Buffer[] = []
  const there = partner.run(async (kit) => {
    for await (const message of kit.channel) await kit.channel.send(message)
  })
  const reading = (async () => {
    for await (const message of channel) found.push(message)
  })()
  for (const text of texts) void channel.send(text)
  await channel.end()
  await there
  await reading
  t.deepEqual(
    found.map((message) => message.toString('hex')),
    texts.map((text) => Buffer.from(text).toString('hex')),
  )
})

test('100,000 hostile messages crash no decoder of structured, and no decoder writes into them', async (t) => {
  const script = fileURLToPath(new URL('support/fuzz-structured.js', import.meta.url))
  const { stdout } = await promisify(execFile)(process.execPath, [script, '100000', '1'])
  const { accepted, refused } = JSON.parse(stdout) as { accepted: number; refused: number }
  t.is(accepted + refused, 100_000)
  // The messages must cover both outcomes.
  t.true(accepted > 1000 && refused > 1000, stdout)
})
