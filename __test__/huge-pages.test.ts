import { readFileSync } from 'node:fs'

import test from 'ava'
import { doctor, type Channel } from 'ringfence'

import { backings } from './support/address.js'
import type { Kit } from './support/partner-process.js'
import { pair } from './support/partner.js'

const CAPACITY = 4 << 20
const offered = doctor().findings.some(({ name, status }) => name === 'huge-pages' && status === 'good')

/** What the evidence says of huge pages. */
function said(channel: Channel): string | undefined {
  return channel.evidence.find(({ check }) => check === 'huge pages')?.found
}

/** The bytes of this side's rings that are mapped as huge pages, as the kernel tells. */
function mapped(smaps: string): number {
  let [ours, sum] = [false, 0]
  for (const line of smaps.split('\n')) {
    if (/^[0-9a-f]+-/.test(line)) ours = /memfd:ringfence |\/dev\/shm\/ringfence-/.test(line)
    else if (ours && line.startsWith('ShmemPmdMapped:')) sum += Number(/\d+/.exec(line)![0]) * 1024
  }
  return sum
}

for (const backing of backings) {
  test.serial(
    `a ring over ${backing} is in huge pages at both sides where both ask and the kernel gives them`,
    async (t) => {
      const { channel, partner } = await pair(t, {
        options: { backing },
        here: { hugePages: true, capacity: CAPACITY },
        there: { hugePages: true, capacity: 4096 },
      })
      const found = said(channel)!
      const bytes = Number(/^\d+/.exec(found)?.[0] ?? 0)
      const smaps = await partner.run((kit: Kit) =>
        (kit.require('node:fs') as typeof import('node:fs')).readFileSync('/proc/self/smaps', 'utf8'),
      )
      t.is(mapped(readFileSync('/proc/self/smaps', 'utf8')), bytes, found)
      t.is(mapped(smaps), bytes, found)
      t.is(bytes > 0, offered, found)
      if (bytes === 0) t.regex(found, /^none: /)
      const there = await partner.run((kit) => kit.channel.evidence.find(({ check }) => check === 'huge pages')?.found)
      t.regex(there!, /^none: /, 'its own is too small')

      const sent = Buffer.alloc(3 * CAPACITY, 'more than the ring holds')
      const heard = partner.run(async (kit) => {
        const message = await kit.channel.receive()
        await kit.channel.send('heard')
        return message
      })
      await channel.send(sent)
      t.true(sent.equals((await heard)!))
      t.is(String(await channel.receive()), 'heard')
    },
  )
}

test.serial('nothing is said of huge pages where nobody asks for them', async (t) => {
  const { channel } = await pair(t)
  t.is(said(channel), undefined)
})

test.serial('a ring that is smaller than a huge page says so, and works', async (t) => {
  const { channel, partner } = await pair(t, { options: { hugePages: true, capacity: 4096 } })
  t.regex(said(channel)!, /^none: /)
  await channel.send('hello')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'hello')
})
