import { readdirSync } from 'node:fs'
import { dirname } from 'node:path'

import test from 'ava'

import { addressOf, backings, isBound, kinds, namedAddress } from './support/address.js'
import type { Kit } from './support/partner-process.js'
import { pair, Partner } from './support/partner.js'
import { until } from './support/until.js'

/** The resources of a process, as it sees them itself. */
interface Holdings {
  descriptors: string[]
  mappings: string[]
}

/**
 * The resources of the partner, without collecting JavaScript's garbage: a channel must release them without that.
 * Waits for threads that are no longer needed: a thread takes a moment to exit.
 */
async function holdings(partner: Partner, channels: 0 | 1 = 0): Promise<Holdings> {
  await until(() => partner.run(hasOnlyNeededThreads, channels), 'all threads that are not needed have exited')
  return partner.run((kit) => {
    const { readdirSync: list, readFileSync, readlinkSync } = kit.require('node:fs') as typeof import('node:fs')
    const descriptors: string[] = []
    for (const fd of list('/proc/self/fd')) {
      try {
        descriptors.push(readlinkSync(`/proc/self/fd/${fd}`).replace(/\d+/g, 'N'))
      } catch {
        // The descriptor that reads this list.
      }
    }
    const mappings = readFileSync('/proc/self/maps', 'utf8')
      .split('\n')
      .filter((line) => /memfd|\/dev\/shm|deleted/.test(line))
      .filter((line) => !line.includes('.node'))
    return { descriptors: descriptors.sort(), mappings }
  })
}

/** With a channel there is one thread that waits for alarms, and there may be one that notices deaths. */
function hasOnlyNeededThreads(kit: Kit, channels: number): boolean {
  const { readdirSync: list, readFileSync } = kit.require('node:fs') as typeof import('node:fs')
  const names = list('/proc/self/task').map((task) => {
    try {
      return readFileSync(`/proc/self/task/${task}/comm`, 'utf8')
    } catch {
      // It has exited since the list was read.
      return ''
    }
  })
  const own = names.filter((name) => name.startsWith('ringfence-'))
  const listening = own.filter((name) => name.startsWith('ringfence-signa'))
  const watching = own.filter((name) => name.startsWith('ringfence-exits'))
  return (
    listening.length === channels && watching.length <= channels && own.length === listening.length + watching.length
  )
}

/** Makes both partners join, exchange a message each way, and close, `times` times at one address. */
async function meetAndPart(partners: Partner[], address: string, backing: 'memfd' | 'shm', times: number) {
  const runs = partners.map((partner, index) =>
    partner.run(
      async (kit, where: string, how: 'memfd' | 'shm', count: number, closes: number) => {
        for (let round = 0; round < count; round += 1) {
          const channel = await kit.join(where, { backing: how, capacity: 4096, wait: true })
          void channel.send(`round ${round}`)
          const heard = String(await channel.receive())
          if (heard !== `round ${round}`) throw new Error(`${heard} in round ${round}`)
          // In turn, one side closes, then the other, and then both end.
          if (round % 3 === closes) await channel.close()
          else if (round % 3 === 2) await channel.end()
          else while ((await channel.receive()) !== undefined);
          if (round % 3 === 2) while ((await channel.receive()) !== undefined);
          await channel.closed
        }
      },
      address,
      backing,
      times,
      index,
    ),
  )
  await Promise.all(runs)
}

for (const [kind, backing] of [
  ['named', 'memfd'],
  ['abstract', 'shm'],
] as const) {
  test.serial(`300 joins and closes at ${kind} addresses over ${backing} leave nothing behind`, async (t) => {
    const address = addressOf(kind, t)
    const partners = await Promise.all([Partner.start(t), Partner.start(t)])
    await meetAndPart(partners, address, backing, 10)
    const before = await Promise.all(partners.map((partner) => holdings(partner)))
    await meetAndPart(partners, address, backing, 300)
    t.deepEqual(await Promise.all(partners.map((partner) => holdings(partner))), before)
    for (const { mappings } of before) t.deepEqual(mappings, [], 'no region is mapped between two channels')
    t.false(isBound(address))
    if (kind === 'named') t.deepEqual(readdirSync(dirname(address)), [])
  })
}

test.serial(
  'once closed has resolved, the channel has nothing open, even if the program still refers to it',
  async (t) => {
    for (const backing of backings) {
      const partner = await Partner.start(t)
      const before = await holdings(partner)
      for (const kind of kinds) {
        const { channel } = await pair(t, { partner, address: addressOf(kind, t), options: { backing } })
        const during = await holdings(partner, 1)
        t.true(during.descriptors.length > before.descriptors.length)
        t.is(during.mappings.length, 2, 'the region of either side')
        await partner.run((kit) => kit.channel.send('unread'))
        await channel.close()
        await partner.run(async (kit) => (await kit.channel.closed).reason)
        const after = await holdings(partner)
        t.deepEqual(after.descriptors, before.descriptors)
        t.deepEqual(after.mappings, [])
      }
    }
  },
)

test.serial('an open channel has no descriptor of a shared object, only mappings', async (t) => {
  for (const backing of backings) {
    const partner = await Partner.start(t)
    await pair(t, { partner, options: { backing } })
    const { descriptors, mappings } = await holdings(partner, 1)
    t.false(
      descriptors.some((target) => /memfd|\/dev\/shm|ringfence/.test(target)),
      descriptors.join('\n'),
    )
    t.is(mappings.length, 2)
    t.is(mappings.filter((line) => / rw-s /.test(line)).length, 1, 'one to write')
    t.is(mappings.filter((line) => / r--s /.test(line)).length, 1, 'one to read')
    // Objects of other programs in /dev/shm do not count: a mapping shows whether its object still has a name.
    for (const line of mappings) t.regex(line, / \(deleted\)$/)
    const named = mappings.some((line) => line.includes(' /dev/shm/ringfence-'))
    t.is(named, backing === 'shm')
  }
})

test.serial('failing joins leave nothing behind', async (t) => {
  const { address } = await pair(t)
  const partner = await Partner.start(t)
  const elsewhere = namedAddress(t)
  const fail = (times: number) =>
    partner.run(
      async (kit, taken: string, free: string, count: number) => {
        const codes = new Set<string>()
        const note = (error: { code: string }) => void codes.add(error.code)
        for (let round = 0; round < count; round += 1) {
          await kit.join(`${free}/nowhere`).catch(note)
          await kit.join(free, { signal: AbortSignal.timeout(1) }).catch(note)
          await kit.join(free, { capacity: 2 ** 50 }).catch(note)
          if (round % 20 === 0) await kit.join(taken).catch(note)
        }
        return [...codes].sort()
      },
      address,
      elsewhere,
      times,
    )
  await fail(2)
  const before = await holdings(partner)
  t.deepEqual(await fail(60), [
    'ABORT_ERR',
    'ERR_RINGFENCE_ADDRESS_INVALID',
    'ERR_RINGFENCE_ADDRESS_OCCUPIED',
    'ERR_RINGFENCE_NO_SPACE',
  ])
  t.deepEqual(await holdings(partner), before)
  t.deepEqual(readdirSync(dirname(elsewhere)), [])
})

test.serial('unreachable channels are released by garbage collection', async (t) => {
  const partner = await Partner.start(t, { node: ['--expose-gc'] })
  const other = await Partner.start(t)
  const address = addressOf('abstract', t)
  await Promise.all([partner.join(address), other.join(address)])
  await other.kill()
  await partner.run(async (kit) => void (await kit.channel.closed))
  // In separate calls, so that no frame of a running function refers to the channel.
  await partner.run((kit) => {
    kit.keep['watched'] = new WeakRef(kit.channel)
    kit.channel = undefined as never
  })
  const left = await partner.run(async (kit) => {
    const watched = kit.keep['watched'] as WeakRef<object>
    const { gc } = globalThis as unknown as { gc(): void }
    for (let round = 0; round < 50; round += 1) {
      await new Promise((resolve) => setTimeout(resolve, 1))
      gc()
    }
    return watched.deref() !== undefined
  })
  t.false(left)
})

test.serial('messages leak no memory', async (t) => {
  const partner = await Partner.start(t, { node: ['--expose-gc'] })
  const { channel } = await pair(t, { partner })
  const memory = () =>
    partner.run(() => {
      const { gc } = globalThis as unknown as { gc(): void }
      gc()
      gc()
      const { heapUsed, external, arrayBuffers } = process.memoryUsage()
      return heapUsed + external + arrayBuffers
    })
  const round = async (count: number) => {
    const received = partner.run(async (kit, wanted: number) => {
      for (let number = 0; number < wanted; number += 1) {
        const message = await kit.channel.receive()
        if (number % 10 === 0) await kit.channel.send(message!)
      }
    }, count)
    for (let number = 0; number < count; number += 1) {
      void channel.send(new Uint8Array((number % 100) * 1000))
      if (number % 10 === 0) await channel.receive()
    }
    await received
  }
  await round(1000)
  const before = await memory()
  await round(10_000)
  const grown = (await memory()) - before
  t.true(grown < 4_000_000, `${grown} bytes more after 500 MB of messages`)
})
