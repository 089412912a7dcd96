// A process that exits leaves no files beside its path.

import { readdirSync, writeFileSync } from 'node:fs'
import { dirname, join as joinPath } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import { member, subscribe, type Channel, type Subscription } from 'ringfence'

import { namedAddress, temporaryDirectory, untilBound } from './support/address.js'
import { urlOf } from './support/internals.js'
import { joinHere, pair, Partner } from './support/partner.js'
import type { Kit } from './support/partner-process.js'
import { until } from './support/until.js'

/** Resources at an address, and whether the test needs a partner. */
const places: [title: string, open: (kit: Kit, address: string) => Promise<unknown> | void, partner: boolean][] = [
  ['a join that waits', (kit, address) => void kit.join(address).catch(() => {}), false],
  ['the host of a channel', async (kit, address) => void (kit.channel = await kit.join(address)), true],
  ['a listener', (kit, address) => kit.ringfence.listen(address).then(() => {}), false],
  ['a membership', (kit, address) => kit.ringfence.member(address).then(() => {}), false],
]

/** Ways to exit. */
const ends: [title: string, end: () => unknown, code: number][] = [
  ['process.exit', () => process.exit(3), 3],
  [
    'an exception',
    () =>
      void setImmediate(() => {
        throw new Error('on purpose')
      }),
    1,
  ],
  ['a rejection without a handler', () => void Promise.reject(new Error('on purpose')), 1],
]
for (const [place, open, wantsPartner] of places) {
  for (const [way, end, code] of ends) {
    test(`${place} leaves no files if the process ends by ${way}`, async (t) => {
      const address = namedAddress(t)
      const partner = await Partner.start(t)
      partner.mayFail()
      const opened = partner.run(open, address)
      await untilBound(address)
      const channel = wantsPartner ? await joinHere(t, address) : undefined
      await opened
      void partner.run(end)
      t.deepEqual(await partner.exited, { code, signal: null })
      t.deepEqual(readdirSync(dirname(address)), [])
      // An exiting process does not close its channels.
      if (channel !== undefined) t.is((await channel.closed).reason, 'lost')
    })
  }
}

test('two members that exit at the same moment leave no files', async (t) => {
  const address = namedAddress(t)
  const members = [await Partner.start(t), await Partner.start(t)]
  for (const each of members) {
    each.mayFail()
    await each.run(async (kit, where) => {
      await kit.ringfence.member(where)
    }, address)
  }
  for (const each of members) void each.run(() => process.exit(3))
  for (const each of members) t.deepEqual(await each.exited, { code: 3, signal: null })
  t.deepEqual(readdirSync(dirname(address)), [])
})

for (const name of ['member', 'listen', 'publish'] as const) {
  test(`${name} leaves no files if the process exits before it is notified that it has the address`, async (t) => {
    const address = namedAddress(t)
    const partner = await Partner.start(t)
    partner.mayFail()
    void partner.run(
      ({ ringfence, require }, how, where) => {
        const { existsSync } = require('node:fs') as typeof import('node:fs')
        const call = ringfence[how] as (address: string) => Promise<unknown>
        call(where).catch(() => {})
        // The event loop is blocked during that time.
        while (!existsSync(where)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100)
        process.exit(3)
      },
      name,
      address,
    )
    t.deepEqual(await partner.exited, { code: 3, signal: null })
    t.deepEqual(readdirSync(dirname(address)), [])
  })
}

for (const [way, end, code] of ends) {
  test(`a publisher leaves no files if the process ends by ${way}, and its subscribers report the exit`, async (t) => {
    const address = namedAddress(t)
    const partner = await Partner.start(t)
    partner.mayFail()
    await partner.run(async (kit, where) => {
      const publisher = await kit.ringfence.publish(where)
      // Later listeners of the exit can still publish.
      process.on('exit', () => publisher.trySend('the last'))
    }, address)
    const subscription = await subscribe(address)
    void partner.run(end)
    t.deepEqual(await partner.exited, { code, signal: null })
    t.deepEqual(readdirSync(dirname(address)), [])
    t.is(String(await subscription.receive()), 'the last')
    await t.throwsAsync(subscription.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
    t.is((await subscription.closed).reason, 'lost')
  })
}

test('a publisher that has ended is not lost if its process exits before the end resolves', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  partner.mayFail()
  await partner.run(async (kit, where) => {
    const publisher = await kit.ringfence.publish(where)
    publisher.once('connection', () => {
      void publisher.send('the last')
      void publisher.end()
      process.exit(3)
    })
  }, address)
  const subscription = await subscribe(address)
  t.is(String(await subscription.receive()), 'the last')
  t.is(await subscription.receive(), undefined)
  t.is((await subscription.closed).reason, 'closed')
  t.deepEqual(await partner.exited, { code: 3, signal: null })
  t.deepEqual(readdirSync(dirname(address)), [])
})

test('a worker thread that exits leaves no files, and its process goes on', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  const outcome = partner.run(async ({ require }, where) => {
    const { Worker } = require('node:worker_threads') as typeof import('node:worker_threads')
    const worker = new Worker(
      `const { workerData } = require('node:worker_threads')
       import('ringfence').then(async ({ listen }) => {
         await listen(workerData)
         process.exit(5)
       })`,
      { eval: true, workerData: where },
    )
    return new Promise<number>((resolve) => worker.once('exit', resolve))
  }, address)
  t.is(await outcome, 5)
  t.deepEqual(readdirSync(dirname(address)), [])
})

for (const [what, call] of [
  ['a join that waits', 'join(workerData)'],
  ['a membership', 'member(workerData)'],
  ['a listener', 'listen(workerData)'],
  ['a publisher', 'publish(workerData)'],
]) {
  test(`${what} of a worker thread leaves no files if the process exits before the worker is notified`, async (t) => {
    const address = namedAddress(t)
    const partner = await Partner.start(t)
    partner.mayFail()
    void partner.run(
      ({ require }, script, where) => {
        const { Worker } = require('node:worker_threads') as typeof import('node:worker_threads')
        const { existsSync } = require('node:fs') as typeof import('node:fs')
        new Worker(script, { eval: true, workerData: where })
        const poll = () => (existsSync(where) ? process.exit(3) : setImmediate(poll))
        poll()
      },
      `const { workerData } = require('node:worker_threads')
       import('ringfence').then(({ join, listen, member, publish }) => {
         void ${call}
         Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
       })`,
      address,
    )
    t.deepEqual(await partner.exited, { code: 3, signal: null })
    t.deepEqual(readdirSync(dirname(address)), [])
  })
}

test('many channels share one listener of the exit, and closed ones leave none', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  const counts = await partner.run(async ({ ringfence }, where) => {
    const warnings: string[] = []
    process.on('warning', ({ name }) => warnings.push(name))
    const before = process.listenerCount('exit')
    for (let round = 0; round < 3; round += 1) {
      const listeners = await Promise.all(
        Array.from({ length: 15 }, (_, index) => ringfence.listen(`${where}.${index}`)),
      )
      await Promise.all(listeners.map((listener) => listener.close()))
    }
    await new Promise((resolve) => setImmediate(resolve))
    return { more: process.listenerCount('exit') - before, warnings }
  }, address)
  t.deepEqual(counts, { more: 1, warnings: [] })
})

test('all copies of a package that is loaded several times share one listener of the exit', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  partner.mayFail()
  const more = await partner.run(
    async (_, url, where) => {
      const before = process.listenerCount('exit')
      for (let copy = 0; copy < 12; copy += 1) {
        const loaded = (await import(`${url}?copy=${copy}`)) as typeof import('ringfence')
        await loaded.listen(`${where}.${copy}`)
        const publisher = await loaded.publish(`${where}.${copy}.published`)
        await publisher.send('one')
      }
      return process.listenerCount('exit') - before
    },
    urlOf('index.js'),
    address,
  )
  t.is(more, 1)
  t.true(readdirSync(dirname(address)).length >= 24)
  void partner.run(() => process.exit(3))
  t.deepEqual(await partner.exited, { code: 3, signal: null })
  t.deepEqual(readdirSync(dirname(address)), [])
})

test('a message that a member has filled is in the ring before the exit leaves the address', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  partner.mayFail()
  const here = await member(address)
  t.teardown(() => here.close())
  void partner.run(async (kit, where) => {
    const { value: channel } = await (await kit.ringfence.member(where))[Symbol.asyncIterator]().next()
    channel!.fill(64, (bytes, offset) => {
      bytes[offset] = 7
      return 1
    })
    process.exit(3)
  }, address)
  const { value: channel } = await here[Symbol.asyncIterator]().next()
  t.deepEqual(await channel!.receive(), Buffer.from([7]))
})

test('messages that are sent right before the exit, or by a listener of it, are in the ring', async (t) => {
  const { partner, channel } = await pair(t)
  partner.mayFail()
  void partner.run((kit) => {
    process.on('exit', () => void kit.channel.send('by a listener'))
    void kit.channel.send('right before')
    process.exit(3)
  })
  t.is(String(await channel.receive()), 'right before')
  t.is(String(await channel.receive()), 'by a listener')
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
})

test('writes to a duplex right before the exit, or by a listener of it, are in the ring', async (t) => {
  const { partner, channel } = await pair(t)
  partner.mayFail()
  void partner.run((kit) => {
    const stream = kit.channel.duplex()
    process.on('exit', () => void stream.write('c'))
    // The event loop has to turn after one of these.
    const start = Date.now()
    while (Date.now() - start < 20) stream.write('a')
    stream.write('b')
    process.exit(3)
  })
  let text = ''
  const reading = async () => {
    for await (const message of channel) text += String(message)
  }
  await t.throwsAsync(reading, { code: 'ERR_RINGFENCE_PEER_LOST' })
  t.regex(text, /^a+bc$/)
})

/** A sender in the partner, and its reader here. Each end is called while a message waits for room. */
const enders: [
  call: string,
  open: (kit: Kit, address: string) => Promise<void>,
  read: (t: ExecutionContext, address: string) => Promise<Channel | Subscription>,
][] = [
  [
    'the end of a channel',
    async ({ keep, join: joinThere }, address) => {
      const channel = await joinThere(address, { capacity: 65_536 })
      Object.assign(keep, { sender: channel, end: () => channel.end() })
    },
    joinHere,
  ],
  [
    'the close of a channel',
    async ({ keep, join: joinThere }, address) => {
      const channel = await joinThere(address, { capacity: 65_536 })
      Object.assign(keep, { sender: channel, end: () => channel.close() })
    },
    joinHere,
  ],
  [
    'the close of a membership',
    async ({ keep, ringfence }, address) => {
      const membership = await ringfence.member(address, { capacity: 65_536 })
      const { value: channel } = await membership[Symbol.asyncIterator]().next()
      Object.assign(keep, { sender: channel, end: () => membership.close() })
    },
    async (t, address) => {
      const membership = await member(address, { wait: true })
      t.teardown(() => membership.close())
      return (await membership[Symbol.asyncIterator]().next()).value!
    },
  ],
  [
    'the end of a publisher',
    async ({ keep, ringfence }, address) => {
      const publisher = await ringfence.publish(address, { capacity: 65_536 })
      await new Promise((resolve) => publisher.once('connection', resolve))
      Object.assign(keep, { sender: publisher, end: () => publisher.end() })
    },
    (_, address) => subscribe(address, { wait: true }),
  ],
]
for (const [call, open, read] of enders) {
  for (const hasRoom of [true, false]) {
    const title = hasRoom
      ? `${call} is clean if there is room for all messages when the process exits`
      : `${call} is no clean end if the process exits before there is room for all messages`
    test(title, async (t) => {
      const address = namedAddress(t)
      const directory = temporaryDirectory(t)
      const [full, drained] = [joinPath(directory, 'full'), joinPath(directory, 'drained')]
      const partner = await Partner.start(t)
      partner.mayFail()
      const opened = partner.run(open, address)
      const source = await read(t, address)
      await opened
      void partner.run(
        ({ keep, require, until: { blockUntil } }, here, there) => {
          const { existsSync, writeFileSync: write } = require('node:fs') as typeof import('node:fs')
          const { sender, end } = keep as { sender: Channel; end(): Promise<void> }
          while (sender.trySend(Buffer.alloc(4096))) {}
          void sender.send(Buffer.alloc(4096))
          void sender.send(Buffer.alloc(7000, 1))
          void end()
          write(here, '')
          // The event loop is blocked during that time.
          if (there !== null) blockUntil(() => existsSync(there), 'the reader has made room')
          process.exit(3)
        },
        full,
        hasRoom ? drained : null,
      )
      await until(() => readdirSync(directory).length > 0, 'the ring is full')
      let received: Buffer | undefined
      if (hasRoom) {
        while (source.tryReceive() !== undefined) {}
        writeFileSync(drained, '')
      }
      t.deepEqual(await partner.exited, { code: 3, signal: null })
      const reading = (async () => {
        for await (const message of source) received = message
      })()
      if (hasRoom) {
        await reading
        t.deepEqual(received, Buffer.alloc(7000, 1))
      } else {
        await t.throwsAsync(reading, { code: 'ERR_RINGFENCE_PEER_LOST' })
        t.deepEqual(received, Buffer.alloc(4096))
      }
      t.is((await source.closed).reason, hasRoom ? 'closed' : 'lost')
    })
  }
}
