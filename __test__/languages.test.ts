// A Rust process and a Node process are a pair like any other: they speak one protocol, and each names the other's
// executable.

import test, { type ExecutionContext } from 'ava'
import { publish, type Channel, type Options } from 'ringfence'

import { abstractAddress, addressOf, kinds, type Kind, untilBound } from './support/address.js'
import { pattern } from './support/bytes.js'
import { joinHere, Partner } from './support/partner.js'
import { RustPartner, rustPartner, type RustSettings } from './support/rust.js'

const CAPACITY = 8192
const LONGEST = 100_000

/**
 * Sizes around every limit: words, an eighth of the ring (a fragment), half of it (a record), all of it, and the
 * longest message.
 */
const SIZES = [0, 1, 8, 16, 64, CAPACITY / 8, CAPACITY / 2, CAPACITY, 3 * CAPACITY, LONGEST].flatMap((size) =>
  Array.from({ length: 19 }, (_, index) => size - 9 + index).filter((near) => near >= 0 && near <= LONGEST),
)

const NODE: Options = { capacity: CAPACITY, maxMessageSize: LONGEST, policy: { executable: rustPartner } }

const HALF_OPEN: Options = { ...NODE, allowHalfOpen: true }

type Role = 'host' | 'guest'
type Case = [kind: Kind, role: Role]

/** A channel to a Rust process. This process has the given role. */
async function meet(
  t: ExecutionContext,
  [kind, role]: Case,
  settings: Pick<RustSettings, 'deed' | 'sizes'>,
  node: Options = NODE,
): Promise<{ channel: Channel; rust: RustPartner }> {
  const address = addressOf(kind, t)
  const start = () => new RustPartner(t, { address, capacity: CAPACITY, longest: LONGEST, ...settings })
  let rust: RustPartner
  let joining: Promise<Channel>
  if (role === 'host') {
    joining = joinHere(t, address, node)
    await untilBound(address)
    rust = start()
  } else {
    rust = start()
    await untilBound(address)
    joining = joinHere(t, address, node)
  }
  const channel = await joining
  t.is(channel.role, role)
  t.is(channel.peer.pid, rust.pid)
  t.is(channel.peer.executable?.path, rustPartner)
  t.is(await rust.readLine(), `${role === 'host' ? 'guest' : 'host'} ${process.pid}`)
  return { channel, rust }
}

/** Sends in every way, one after the other. */
async function sendAll(channel: Channel): Promise<void> {
  for (const [number, size] of SIZES.entries()) {
    const message = pattern(number, size)
    if (size > CAPACITY / 2 || number % 3 === 0) {
      await channel.send(message)
    } else if (number % 3 === 1) {
      while (!channel.trySend(message)) await channel.waitWritable(size)
    } else {
      // Reserves more than it commits, if half a ring has room for that.
      const room = Math.min(size + 100, CAPACITY / 2)
      let reservation = channel.reserve(room)
      for (; reservation === undefined; reservation = channel.reserve(room)) await channel.waitWritable(room)
      reservation.bytes.set(message)
      reservation.commit(size)
    }
  }
}

/** Reads in every way, one after the other, and checks each message. */
async function readAll(t: ExecutionContext, channel: Channel): Promise<void> {
  let number = 0
  const check = (found: Uint8Array) => {
    const wanted = pattern(number, SIZES[number]!)
    if (!wanted.equals(found)) t.fail(`message ${number}: ${found.length} bytes, not ${wanted.length}, or others`)
    number += 1
  }
  while (await channel.waitReadable()) {
    const message = number % 4 === 0 ? await channel.receive() : channel.tryReceive()
    if (message !== undefined) check(message)
    channel.receiveEach((bytes, offset, length) => check(bytes.subarray(offset, offset + length)), number % 3)
    if (number % 5 === 0) {
      for await (const next of channel) {
        check(next)
        break
      }
    }
  }
  t.is(number, SIZES.length)
}

for (const kind of kinds) {
  for (const role of ['host', 'guest'] as const) {
    test(`a Rust process reads what a Node ${role} sends, in every way and every size, ${kind}`, async (t) => {
      const { channel, rust } = await meet(t, [kind, role], { deed: 'consume', sizes: SIZES })
      await sendAll(channel)
      await channel.end()
      t.is(await rust.readLine(), `read ${SIZES.length}`)
      t.is(await channel.receive(), undefined)
      t.is((await channel.closed).reason, 'closed')
      t.is(await rust.readLine(), 'over closed')
      t.deepEqual(await rust.exited, [0, null])
    })

    test(`a Node ${role} reads what a Rust process sends, in every way and every size, ${kind}`, async (t) => {
      const { channel, rust } = await meet(t, [kind, role], { deed: 'produce', sizes: SIZES }, HALF_OPEN)
      await readAll(t, channel)
      t.is(await rust.readLine(), 'sent')
      // The other direction stays open after the first has ended.
      t.true(channel.trySend(''))
      await channel.close()
      await rust.exited
    })
  }
}

test('text and messages longer than the ring go to Rust and come back, with both directions busy', async (t) => {
  const { channel, rust } = await meet(t, ['abstract', 'host'], { deed: 'echo' })
  const texts = ['', 'grüße', '日本語 🦀', 'x'.repeat(CAPACITY), '🦀'.repeat(20_000)]
  const sending = (async () => {
    for (const text of texts) await channel.send(text)
    await channel.end()
  })()
  const found: string[] = []
  for await (const message of channel) found.push(message.toString())
  await sending
  t.deepEqual(found, texts)
  t.is((await channel.closed).reason, 'closed')
  t.is(await rust.readLine(), 'over closed')
})

for (const role of ['host', 'guest'] as const) {
  test(`tokens go to a Rust process and come back to a Node ${role}`, async (t) => {
    const { channel, rust } = await meet(t, ['abstract', role], { deed: 'tokens' })
    const sent = [0n, 1n, 2n ** 63n, 2n ** 64n - 2n, 2n ** 64n - 1n]
    for (const token of sent) channel.sendToken(token)
    const found: bigint[] = []
    for await (const token of channel.tokens()) if (found.push(token) === sent.length) break
    t.deepEqual(found, [1n, 2n, 2n ** 63n + 1n, 2n ** 64n - 1n, 0n])
    await channel.end()
    await channel.close()
    t.is(await rust.readLine(), 'over closed')
    t.deepEqual(await rust.exited, [0, null])
  })
}

test('each side learns that the other has closed', async (t) => {
  const closes = await meet(t, ['abstract', 'guest'], { deed: 'close' })
  await closes.channel.send('now')
  t.is(await closes.channel.receive(), undefined)
  t.is((await closes.channel.closed).reason, 'closed')

  const isClosed = await meet(t, ['abstract', 'guest'], { deed: 'consume' })
  await isClosed.channel.end()
  await isClosed.channel.close()
  t.is(await isClosed.rust.readLine(), 'read 0')
  t.is(await isClosed.rust.readLine(), 'over closed')
})

test('messages of a killed Rust process are read, and then its end', async (t) => {
  const sizes = [10, 0, 2000, 1]
  const { channel, rust } = await meet(t, ['abstract', 'host'], { deed: 'leave', sizes })
  t.is(await rust.readLine(), 'sent')
  await rust.kill()
  t.is((await channel.closed).reason, 'lost')
  for (const [number, size] of sizes.entries()) t.deepEqual(await channel.receive(), pattern(number, size))
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
})

test('messages of a killed Node process are read by Rust, and then its end', async (t) => {
  const address = addressOf('abstract', t)
  const partner = await Partner.start(t)
  const rust = new RustPartner(t, { deed: 'consume', address, capacity: CAPACITY, longest: LONGEST, sizes: [9, 3000] })
  await untilBound(address)
  await partner.join(address, NODE)
  t.is(await rust.readLine(), `host ${partner.pid}`)
  await partner.run(
    async ({ channel, bytes }, sizes: number[]) => {
      for (const [number, size] of sizes.entries()) await channel.send(bytes.pattern(number, size))
    },
    [9, 3000],
  )
  await partner.kill()
  t.is(await rust.readLine(), 'read 2')
  t.is(await rust.readLine(), 'over lost')
})

test('a process of the other language is refused if the policy does not name it, on either side', async (t) => {
  const node = addressOf('abstract', t)
  const rust = new RustPartner(t, { deed: 'echo', address: node, capacity: CAPACITY, longest: LONGEST })
  await untilBound(node)
  await t.throwsAsync(joinHere(t, node), { code: 'ERR_RINGFENCE_PEER_REFUSED', message: /executable/ })
  await rust.kill()

  const other = addressOf('abstract', t)
  new RustPartner(t, { deed: 'echo', address: other, capacity: CAPACITY, longest: LONGEST, executable: '/bin/sh' })
  await untilBound(other)
  const error = await t.throwsAsync(joinHere(t, other, NODE), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  t.regex(error?.message ?? '', /the peer refused this process: its policy checks executable/)
})

test('a Rust process merges two Node clients and a Node publisher, and reports each end, one by a kill', async (t) => {
  const address = abstractAddress()
  const sizes = Array.from({ length: 200 }, (_, number) => (number * 37) % 1000)
  const publisher = await publish(`${address}-ticks`, { capacity: CAPACITY, policy: NODE.policy! })
  t.teardown(() => publisher.close())
  const rust = new RustPartner(t, { deed: 'merge', address, capacity: CAPACITY, longest: 2000, sizes })
  t.is(await rust.readLine(), 'listening')
  const agents = await Promise.all([Partner.start(t), Partner.start(t)])
  for (const agent of agents) await agent.connect(address, NODE)
  t.is(await rust.readLine(), 'reading')

  for (const [number, size] of sizes.entries()) await publisher.send(pattern(number, size))
  for (const agent of agents) {
    await agent.run(async (kit, all) => {
      for (const [number, size] of all.entries()) await kit.channel.send(kit.bytes.pattern(number, size))
    }, sizes)
  }
  const [leaver, doomed] = agents
  await publisher.end()
  await leaver!.run((kit) => kit.channel.end())
  await doomed!.kill()
  const lines = [await rust.readLine(), await rust.readLine(), await rust.readLine()]
  const count = sizes.length
  t.deepEqual(
    new Set(lines),
    new Set([`${process.pid}: ${count}, closed`, `${leaver!.pid}: ${count}, closed`, `${doomed!.pid}: ${count}, lost`]),
  )
  t.deepEqual(await rust.exited, [0, null])
})
