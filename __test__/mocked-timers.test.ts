// Test tools may mock the timers and the clock of a process. Its channels keep working.

import test, { type ExecutionContext } from 'ava'
import { connect, subscribe } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pair, Partner } from './support/partner.js'
import type { Kit } from './support/partner-process.js'
import { within } from './support/until.js'

/** The ways in which test tools mock the timers of the process, after the package was loaded. */
const ways: [title: string, stop: (kit: Kit) => void][] = [
  [
    'the mock timers of node:test',
    ({ require }) => {
      const { mock } = require('node:test') as typeof import('node:test')
      mock.timers.enable()
    },
  ],
  [
    'global timers that were replaced',
    () => {
      const never = () => {
        const timer = { ref: () => timer, unref: () => timer, hasRef: () => false }
        return timer
      }
      const names = ['setTimeout', 'setInterval', 'setImmediate', 'queueMicrotask'] as const
      for (const name of names) globalThis[name] = never as never
      performance.now = () => 1
      Date.now = () => 1
    },
  ],
]

/** More than the ring holds, so each side waits for the other repeatedly. */
const COUNT = 3000
const small = { capacity: 4096 }

/** Some versions of Node warn that the mock timers are experimental. */
const starts = (t: ExecutionContext) => Partner.start(t, { node: ['--no-warnings'] })

for (const [title, stop] of ways) {
  test(`a channel works with ${title}`, async (t) => {
    const { channel, partner } = await pair(t, { options: small, partner: await starts(t) })
    await partner.run(stop)
    const echoed = partner.run(async (kit) => {
      let count = 0
      for await (const message of kit.channel) {
        await kit.channel.send(message)
        count += 1
      }
      return count
    })
    const sent = (async () => {
      for (let number = 0; number < COUNT; number += 1) await channel.send(Buffer.alloc(500, number))
    })()
    const received = (async () => {
      for (let number = 0; number < COUNT; number += 1) await channel.receive()
      await channel.end()
    })()
    await within(Promise.all([sent, received]), 'each message and its echo')
    t.is(await within(echoed, 'the end over there'), COUNT)
    t.is((await within(channel.closed, 'the end')).reason, 'closed')
  })

  test(`a publisher works with ${title}`, async (t) => {
    const address = abstractAddress()
    const partner = await starts(t)
    await partner.run(async (kit, where) => {
      const publisher = await kit.ringfence.publish(where, { capacity: 4096, stall: Infinity })
      kit.keep['publisher'] = publisher
    }, address)
    const subscription = await subscribe(address)
    await partner.run(stop)
    const published = partner.run(async (kit, count) => {
      const publisher = kit.keep['publisher'] as import('ringfence').Publisher
      for (let number = 0; number < count; number += 1) await publisher.send(Buffer.alloc(500, number))
      await publisher.end()
    }, COUNT)
    const received = (async () => {
      let count = 0
      for await (const message of subscription) count += Number(message.length === 500)
      return count
    })()
    t.is(await within(received, 'all that was published'), COUNT)
    await within(published, 'the end over there')
  })

  test(`a merge works with ${title}`, async (t) => {
    const address = abstractAddress()
    const partner = await starts(t)
    await partner.run(async (kit, where) => {
      kit.keep['listener'] = await kit.ringfence.listen(where, { capacity: 4096 })
    }, address)
    const channels = [await connect(address, small), await connect(address, small)]
    await partner.run(stop)
    const merged = partner.run(async (kit, count) => {
      const listener = kit.keep['listener'] as import('ringfence').Listener
      let messages = 0
      for await (const [channel] of listener.messages()) {
        messages += 1
        if (messages % 100 === 0) await channel.send('so far')
        if (messages === count) break
      }
      await listener.close({ channels: 'close' })
      return messages
    }, 2 * COUNT)
    const sent = channels.map(async (channel) => {
      for (let number = 0; number < COUNT; number += 1) {
        await channel.send(Buffer.alloc(500, number))
        channel.tryReceive()
      }
    })
    await within(Promise.all(sent), 'all that was sent')
    t.is(await within(merged, 'all that was merged'), 2 * COUNT)
    for (const channel of channels) await within(channel.closed, 'the end')
  })
}
