// The cost of an idle channel of a service: private memory of the service, without the rings.

import { readFileSync } from 'node:fs'

import test, { type ExecutionContext } from 'ava'
import type { Channel } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { Partner } from './support/partner.js'

/**
 * KiB per channel. The cases below took 18 to 39, and 125 to 161 when each channel allocated memory for a large batch
 * at the start.
 */
const AT_MOST = 48
/** Channels that are opened before the measurement, so that everything that a process allocates once exists. */
const BEFORE = 100
const COUNT = 300

/** The private memory of a process in KiB. */
function privateOf({ pid }: Partner): number {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1')
  const kib = (kind: string) => Number(new RegExp(`^Private_${kind}:\\s+(\\d+) kB$`, 'm').exec(rollup)![1])
  return kib('Dirty') + kib('Clean')
}

/**
 * The growth of a service by one channel. Its client sends `messages` messages of `size` bytes, and gets a reply to
 * each.
 */
async function costOf(
  t: ExecutionContext,
  messages: number,
  size: number,
  how: 'loop' | 'receiveEach',
): Promise<number> {
  const address = abstractAddress()
  const capacity = 65_536
  const [service, agents] = await Promise.all([
    // V8's memory for young objects grows by megabytes, and belongs to no channel.
    Partner.start(t, { node: ['--expose-gc', '--max-semi-space-size=1'] }),
    Partner.start(t),
  ])
  await service.run(
    async (kit, where, options, reads) => {
      const listener = await kit.ringfence.listen(where, options)
      kit.keep['listener'] = listener
      const serve = async (channel: Channel) => {
        if (reads === 'loop') for await (const message of channel) void channel.send(message)
        else
          while (await channel.waitReadable())
            channel.receiveEach((bytes, at, length) => void channel.send(Buffer.from(bytes.subarray(at, at + length))))
      }
      listener.on('connection', (channel) => void serve(channel).catch(() => {}))
    },
    address,
    { capacity, maxPeers: 1000 },
    how,
  )
  const add = (count: number) =>
    agents.run(
      async (kit, where, options, [channels, rounds, length]) => {
        for (let number = 0; number < channels; number += 1) {
          const channel = await kit.ringfence.connect(where, options)
          kit.keep[`channel of ${Object.keys(kit.keep).length}`] = channel
          for (let round = 0; round < rounds; round += 1) {
            void channel.send(Buffer.alloc(length, round))
            await channel.receive()
          }
        }
      },
      address,
      { capacity, handshakeTimeout: 60_000 },
      [count, messages, size] as const,
    )
  const collected = async () => {
    await service.run(async () => {
      // Objects of one turn of the event loop are garbage in the next one.
      for (let turn = 0; turn < 5; turn += 1) {
        ;(globalThis as { gc?(): void }).gc!()
        await new Promise((resolve) => setImmediate(resolve))
      }
    })
    return privateOf(service)
  }
  await add(BEFORE)
  const before = await collected()
  await add(COUNT)
  return ((await collected()) - before) / COUNT
}

for (const [what, messages, size, how] of [
  ['that has sent nothing', 0, 0, 'loop'],
  ['that was read by a loop', 20, 64, 'loop'],
  ['with longer messages', 20, 1000, 'loop'],
  ['that was drained', 20, 64, 'receiveEach'],
] as const)
  test.serial(`an idle channel ${what} costs at most ${AT_MOST} KiB`, async (t) => {
    const cost = await costOf(t, messages, size, how)
    t.log(`${cost.toFixed(1)} KiB`)
    t.true(cost > 1 && cost <= AT_MOST, `${cost} KiB`)
  })
