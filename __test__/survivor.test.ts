import test, { type ExecutionContext } from 'ava'
import { join, RingfenceError } from 'ringfence'

import { abstractAddress, untilBound } from './support/address.js'
import { Partner } from './support/partner.js'

/** The bytes of the ring of the peer that dies. */
const RING = 128 << 20
/** Allowance for other memory of the process: a quarter of the ring. */
const LITTLE = 32 << 20
/** Longer and shorter than what one call fetches. */
const SIZES = [256 << 10, 1000]

interface Met {
  survivor: Partner
  filler: Partner
  /** The number of messages that fill the ring. */
  count: number
}

async function meet(t: ExecutionContext): Promise<Met> {
  const [survivor, filler] = await Promise.all([Partner.start(t), Partner.start(t)])
  const address = abstractAddress()
  await Promise.all([survivor.join(address), filler.join(address, { capacity: RING })])
  const count = await filler.run((kit, sizes: number[]) => {
    const messages = sizes.map((size) => Buffer.alloc(size, 7))
    for (let number = 0; ; number += 1) {
      const message = messages[number % messages.length]!
      message.writeUInt32LE(number)
      if (!kit.channel.trySend(message)) return number
    }
  }, SIZES)
  t.true(count > 500)
  return { survivor, filler, count }
}

/** The bytes of the survivor's own memory, and the number of mapped shared objects. */
function holdings(survivor: Partner): Promise<[own: number, mapped: number]> {
  return survivor.run((kit) => {
    const { readFileSync } = kit.require('node:fs') as typeof import('node:fs')
    const own = /RssAnon:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1]
    const mapped = readFileSync('/proc/self/maps', 'utf8').match(/memfd:ringfence/g)?.length ?? 0
    return [Number(own) * 1024, mapped] as [number, number]
  })
}

for (const how of ['is killed', 'closes'] as const) {
  test.serial(`messages of a peer that ${how} are read in place, and then released`, async (t) => {
    const { survivor, filler, count } = await meet(t)
    const [before] = await holdings(survivor)
    await (how === 'closes' ? filler.run((kit) => kit.channel.close()) : filler.kill())
    t.is(await survivor.run(async (kit) => (await kit.channel.closed).reason), how === 'closes' ? 'closed' : 'lost')
    const [after, mapped] = await holdings(survivor)
    t.true(after - before < LITTLE, `${after - before} bytes were copied`)
    t.is(mapped, 1, 'the ring of the peer, and not that of this side')
    const found = await survivor.run(async (kit, sizes: number[]) => {
      let number = 0
      const check = (bytes: Uint8Array) => {
        if (Buffer.from(bytes.buffer, bytes.byteOffset, 4).readUInt32LE() !== number) throw new Error(`not ${number}`)
        if (bytes.length !== sizes[number % sizes.length]) throw new Error(`${bytes.length} bytes`)
        number += 1
      }
      const isLost = (error: { code: string }) => error.code === 'ERR_RINGFENCE_PEER_LOST'
      const readable = () => kit.channel.waitReadable().catch((error) => (isLost(error) ? 'lost' : 'failed'))
      let more: boolean | string
      while ((more = await readable()) === true) {
        check((await kit.channel.receive())!)
        const next = kit.channel.tryReceive()
        if (next !== undefined) check(next)
        kit.channel.receiveEach((bytes, offset, length) => check(bytes.subarray(offset, offset + length)), 3)
        for await (const message of kit.channel) {
          check(message)
          break
        }
      }
      return [number, kit.channel.readableEnded, more]
    }, SIZES)
    t.deepEqual(found, [count, how === 'closes', how === 'closes' ? false : 'lost'])
    t.is((await holdings(survivor))[1], 0, 'everything was read')
  })
}

test.serial('a close releases the messages of a dead peer', async (t) => {
  const { survivor, filler } = await meet(t)
  await filler.kill()
  const code = await survivor.run(async (kit) => {
    await kit.channel.closed
    await kit.channel.receive()
    await kit.channel.close()
    return kit.channel.receive().catch((error: { code: string }) => error.code)
  })
  t.is(code as unknown, 'ERR_RINGFENCE_CLOSED')
  t.is((await holdings(survivor))[1], 0)
})

test('a peer with a larger ring than maxPeerCapacity is PROTOCOL, which names both', async (t) => {
  const host = await Partner.start(t)
  const address = abstractAddress()
  host.mayFail()
  void host.join(address, { maxPeerCapacity: 1 << 15 }).catch(() => {})
  await untilBound(address)
  const error = await t.throwsAsync(join(address, { capacity: 1 << 16 }), {
    instanceOf: RingfenceError,
    code: 'ERR_RINGFENCE_PROTOCOL',
  })
  t.regex(error?.message ?? '', /65536.*32768/)
})

for (const wrong of [0, 4095, 1.5, -1, '8192'])
  test(`a maxPeerCapacity of ${typeof wrong} ${wrong} is INVALID_ARGUMENT`, async (t) => {
    const options = { maxPeerCapacity: wrong as number }
    await t.throwsAsync(join(abstractAddress(), options), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  })
