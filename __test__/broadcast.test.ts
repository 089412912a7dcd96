// One publisher and many subscribers, in separate processes.

import { chmodSync, copyFileSync, readdirSync, readlinkSync, realpathSync, renameSync } from 'node:fs'
import { once } from 'node:events'
import { Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import test, { type ExecutionContext } from 'ava'
import {
  connect,
  join,
  listen,
  merge as mergeOf,
  publish,
  Publisher,
  subscribe,
  type Subscriber,
  Subscription,
  type Delivery,
  type Closed,
  type PublishOptions,
  type RingfenceError,
  type SubscribeOptions,
} from 'ringfence'

import { abstractAddress, isBound, namedAddress, temporaryDirectory } from './support/address.js'
import { pattern } from './support/bytes.js'
import { Partner } from './support/partner.js'
import { RustPartner, rustPartner } from './support/rust.js'
import { isPending, within, until } from './support/until.js'

const RING = 65_536

/** A publisher with a long `stall`: on a busy machine a subscriber may be slow. */
async function publishHere(t: ExecutionContext, address: string, options: PublishOptions = {}): Promise<Publisher> {
  const publisher = await publish(address, { capacity: RING, stall: 60_000, ...options })
  t.teardown(() => publisher.close())
  return publisher
}

/** A partner that has subscribed. Each test says how it reads. */
async function subscriber(
  t: ExecutionContext,
  address: string,
  options: SubscribeOptions = {},
  partner?: Partner,
): Promise<Partner> {
  const there = partner ?? (await Partner.start(t))
  await there.run(
    async (kit, where, how) => {
      kit.keep['subscription'] = await kit.ringfence.subscribe(where, how)
    },
    address,
    options,
  )
  return there
}

/** Runs in the partner: reads to the end, and returns what arrived. */
function readAll(partner: Partner, by: 'for await' | 'receive' | 'receiveEach') {
  return partner.run(async (kit, way) => {
    const subscription = kit.keep['subscription'] as Subscription
    const began = subscription.sequence
    let count = 0
    let wrong = ''
    const check = (message: Buffer) => {
      // The first four bytes are the number that the publisher has assigned.
      const number = message.readUInt32LE()
      if (!message.subarray(4).equals(kit.bytes.pattern(number, message.length - 4)))
        wrong ||= `message ${number} is torn`
      count += 1
      if (number !== Number(subscription.sequence)) wrong ||= `message ${number} came as ${subscription.sequence}`
      if (BigInt(count) + subscription.lost !== subscription.sequence - began)
        wrong ||= `${count} and ${subscription.lost} are not ${subscription.sequence} - ${began}`
    }
    let error = ''
    try {
      if (way === 'for await') for await (const message of subscription) check(message)
      else if (way === 'receive')
        for (let message = await subscription.receive(); message; message = await subscription.receive()) check(message)
      else
        while (await subscription.waitReadable())
          subscription.receiveEach(
            (bytes, offset, length) => check(Buffer.from(bytes.subarray(offset, offset + length))),
            5,
          )
    } catch (thrown) {
      error = (thrown as RingfenceError).code
    }
    const { lost, sequence } = subscription
    return {
      count,
      lost: Number(lost),
      sequence: Number(sequence),
      wrong,
      error,
      reason: (await subscription.closed).reason,
    }
  }, by)
}

/** Message `number`, as `readAll` checks it. */
function numbered(number: number, length: number): Buffer {
  const head = Buffer.alloc(4)
  head.writeUInt32LE(number)
  return Buffer.concat([head, pattern(number, length)])
}

async function send(
  publisher: Publisher,
  from: number,
  to: number,
  length = (number: number) => number % 300,
): Promise<void> {
  for (let number = from; number <= to; number += 1) await publisher.send(numbered(number, length(number)))
}

const codeOf = (code: string) => ({ code: code === 'ABORT_ERR' ? code : `ERR_RINGFENCE_${code}` })

test('each subscriber gets every message, in order, by any way to read, and then the end', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  const readers = await Promise.all(
    (['for await', 'receive', 'receiveEach'] as const).map(async (way) => ({
      way,
      there: await subscriber(t, address),
    })),
  )
  const all = readers.map(({ there, way }) => readAll(there, way))
  await until(() => publisher.subscribers.length === 3, 'the publisher knows of all')
  t.true(publisher.subscribers.every((one) => one.delivery === 'reliable'))
  // Enough messages to fill the ring many times, with lengths of up to an eighth of it.
  await send(publisher, 1, 3000, (number) => (number % 100 === 0 ? publisher.maxMessageSize - 4 : number % 300))
  t.is(publisher.sequence, 3000n)
  await publisher.end()
  for (const one of all)
    t.deepEqual(await within(one, 'all messages'), {
      count: 3000,
      lost: 0,
      sequence: 3000,
      wrong: '',
      error: '',
      reason: 'closed',
    })
  t.deepEqual(await within(publisher.closed, 'the end'), { reason: 'closed' })
})

test('messages that are filled in place and sent ones arrive in order, through many laps of the ring', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address, { capacity: 65_536 })
  const there = await subscriber(t, address)
  const read = readAll(there, 'for await')
  for (let number = 1; number <= 2000; number += 1) {
    const message = numbered(number, [0, 64, 4000, 7000][number % 4]!)
    const put = (bytes: Uint8Array, offset: number) => {
      bytes.set(message, offset)
      return message.length
    }
    if (number % 5 === 4) await publisher.send(message)
    else while (!publisher.fill(message.length + 8, put)) await publisher.waitWritable(message.length + 8)
  }
  await publisher.end()
  const { count, wrong, error } = await read
  t.deepEqual([count, wrong, error], [2000, '', ''])
})

test('best-effort and latest do not delay the publisher, and they count lost messages exactly', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  const kinds: Delivery[] = ['best-effort', 'latest']
  const readers = await Promise.all(kinds.map((delivery) => subscriber(t, address, { delivery })))
  await Promise.all(readers.map((reader) => reader.stop()))
  // Ten rings: if the publisher waited for a subscriber, it would wait forever.
  await within(send(publisher, 1, 5000), 'room')
  for (const reader of readers) reader.resume()
  const all = readers.map((reader) => readAll(reader, 'for await'))
  await send(publisher, 5001, 6000)
  await publisher.end()
  for (const [index, one] of all.entries()) {
    const { count, lost, sequence, wrong, error, reason } = await within(one, 'the end')
    t.deepEqual(
      { wrong, error, reason, sequence },
      { wrong: '', error: '', reason: 'closed', sequence: 6000 },
      kinds[index],
    )
    t.is(count + lost, 6000)
    t.true(lost > 3000, `${kinds[index]}: ${lost} lost`)
  }
})

test('latest returns the newest message at the time of the call, even if an older one was available at the last check', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  const there = await subscriber(t, address, { delivery: 'latest' })
  await publisher.send('old')
  t.true(await there.run((kit) => (kit.keep['subscription'] as Subscription).waitReadable()))
  await publisher.send('new')
  t.is(await there.run(async (kit) => String(await (kit.keep['subscription'] as Subscription).receive())), 'new')
  t.is(await there.run((kit) => Number((kit.keep['subscription'] as Subscription).lost)), 1)
})

test('a late subscriber starts with the last message, with what the ring holds, or with the next message', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  const early = await subscriber(t, address, { delivery: 'best-effort' })
  await send(publisher, 1, 10_000, () => 60)
  const begin = async (from: 'now' | 'oldest' | 'latest') => {
    const there = await subscriber(t, address, { from })
    return there.run(async (kit) => {
      const subscription = kit.keep['subscription'] as Subscription
      const before = Number(subscription.sequence)
      const first = subscription.tryReceive()
      const sequence = first === undefined ? 0 : first.readUInt32LE()
      await subscription.close()
      return { before, first: sequence }
    })
  }
  t.deepEqual(await begin('now'), { before: 10_000, first: 0 })
  t.deepEqual(await begin('latest'), { before: 9999, first: 10_000 })
  const { before, first } = await begin('oldest')
  t.is(first, before + 1)
  // A record has 64 bytes and a header of 8.
  t.true((10_000 - before) * 72 >= RING * 0.75, `${10_000 - before} messages`)
  await early.kill()
})

test('published messages survive the publisher: a subscriber reads all of them, then gets PEER_LOST', async (t) => {
  const address = abstractAddress()
  const there = await Partner.start(t)
  await there.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 65_536 })
  }, address)
  const subscription = await subscribe(address)
  await there.run(async (kit) => {
    const publisher = kit.keep['publisher'] as Publisher
    for (let number = 0; number < 500; number += 1) await publisher.send(kit.bytes.pattern(number, 100))
  })
  await there.kill()
  for (let number = 0; number < 500; number += 1) {
    const message = await within(subscription.receive(), `message ${number}`)
    if (!message!.equals(pattern(number, 100))) return t.fail(`message ${number} is another`)
  }
  await t.throwsAsync(within(subscription.receive(), 'the end'), codeOf('PEER_LOST'))
  return t.is((await subscription.closed).reason, 'lost')
})

test('a stream of a subscription that is destroyed has no end, and leaves the subscription open', async (t) => {
  const address = abstractAddress()
  const there = await Partner.start(t)
  await there.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where)
  }, address)
  const publishThere = (text: string) =>
    there.run((kit, message) => (kit.keep['publisher'] as Publisher).send(message), text)
  await using subscription = await subscribe(address)
  const stream = subscription.stream()
  const sink = new Writable({
    objectMode: true,
    write: (_message, _encoding, done) => done(void setImmediate(() => stream.destroy())),
  })
  const piped = pipeline(stream, sink)
  await Promise.all([publishThere('part'), t.throwsAsync(piped, { code: 'ERR_STREAM_PREMATURE_CLOSE' })])
  t.false(stream.readableEnded)
  await publishThere('the next message')
  t.is(String(await subscription.receive()), 'the next message')
})

test('a stopped subscriber is evicted after the stall, learns that, and does not affect the others', async (t) => {
  const address = abstractAddress()
  // Long enough that the other subscriber never takes as long, even on a busy machine.
  const publisher = await publishHere(t, address, { stall: 2000 })
  const [stopped, other] = await Promise.all([subscriber(t, address), subscriber(t, address)])
  const reading = readAll(other, 'receiveEach')
  const gone = once(publisher, 'disconnect') as Promise<[Subscriber, Closed]>
  await stopped.stop()
  await within(send(publisher, 1, 3000), 'room')
  const [who, closed] = await gone
  t.deepEqual([who.peer.pid, closed.reason, closed.error!.code], [stopped.pid, 'evicted', 'ERR_RINGFENCE_EVICTED'])
  t.is(await who.closed, closed)
  t.is(who.stats().lag, 0)
  stopped.resume()
  const outcome = await within(readAll(stopped, 'for await'), 'its end')
  t.deepEqual([outcome.error, outcome.reason, outcome.wrong], ['ERR_RINGFENCE_EVICTED', 'evicted', ''])
  await t.throwsAsync(
    stopped.run((kit) => (kit.keep['subscription'] as Subscription).receive()),
    codeOf('EVICTED'),
  )
  await publisher.end()
  t.is((await within(reading, 'the rest')).count, 3000)
})

test('after its end, a publisher waits for stopped subscribers for the stall, and they can read the rest', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address, { stall: 300 })
  const readers = await Promise.all([
    subscriber(t, address),
    subscriber(t, address, { delivery: 'best-effort' }),
    subscriber(t, address, { delivery: 'latest' }),
  ])
  await Promise.all(readers.map((reader) => reader.stop()))
  await publisher.send(numbered(1, 200))
  await publisher.end()
  t.deepEqual(await within(publisher.closed, 'the end'), { reason: 'closed' })
  for (const reader of readers) {
    reader.resume()
    const { count, error, reason, wrong } = await within(readAll(reader, 'for await'), 'its end')
    t.deepEqual([count, error, reason, wrong], [1, '', 'closed', ''])
  }
})

test('a subscriber that is killed while the publisher waits for it is released', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address, { stall: Infinity })
  const there = await subscriber(t, address)
  let number = 0
  while (publisher.trySend(numbered((number += 1), 200)));
  const waiting = publisher.send(numbered(number, 200))
  t.true(await isPending(waiting))
  const gone = once(publisher, 'disconnect') as Promise<[Subscriber, Closed]>
  await there.kill()
  await within(waiting, 'room')
  t.is((await within(gone, 'the event'))[1].reason, 'lost')
  t.deepEqual(publisher.subscribers, [])
})

test('a publisher distinguishes subscribers that close from those that do not', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  for (const [way, reason] of [
    ['close', 'closed'],
    ['destroy', 'lost'],
    ['unref', 'lost'],
  ] as const) {
    const gone = once(publisher, 'disconnect') as Promise<[Subscriber, Closed]>
    const there = await subscriber(t, address)
    await there.run(async (kit, how) => void (await (kit.keep['subscription'] as Subscription)[how]()), way)
    if (way === 'unref') await there.detach()
    const [, closed] = await within(gone, way)
    t.is(closed.reason, reason, way)
    t.is(closed.error?.code, reason === 'lost' ? 'ERR_RINGFENCE_PEER_LOST' : undefined, way)
  }
})

test('disconnect ends one subscriber, which gets what was published before', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  const there = await subscriber(t, address)
  await send(publisher, 1, 100)
  await until(() => publisher.subscribers.length === 1, 'the publisher knows of it')
  const [one] = publisher.subscribers
  t.is((await one!.verify()).pid, there.pid)
  t.true(one!.evidence.some(({ check, outcome }) => check === 'uid' && outcome === 'passed'))
  await one!.disconnect()
  t.deepEqual(await one!.closed, { reason: 'closed' })
  await send(publisher, 101, 200)
  const { count, wrong, error, reason } = await within(readAll(there, 'receive'), 'its end')
  t.deepEqual({ count, wrong, error, reason }, { count: 100, wrong: '', error: '', reason: 'closed' })
})

test('a message that was sent without waiting counts for its subscribers before they are disconnected', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  const there = await subscriber(t, address)
  await until(() => publisher.subscribers.length === 1, 'the publisher knows of it')
  const [one] = publisher.subscribers
  void publisher.send('the first')
  t.true(one!.stats().lag > 0)
  void publisher.send('the last')
  await one!.disconnect()
  const texts = await there.run(async (kit) => {
    const read = []
    for await (const message of kit.keep['subscription'] as Subscription) read.push(String(message))
    return read
  })
  t.deepEqual(texts, ['the first', 'the last'])
})

/** Ways in which a publisher ends a subscription, and the reason that both sides report. */
const endings = {
  disconnect: 'closed',
  end: 'closed',
  close: 'closed',
  kill: 'lost',
  evict: 'evicted',
} as const

/**
 * A publisher in another process that has sent five messages, and a function with which it ends the subscription of
 * this process.
 */
async function toBeEnded(
  t: ExecutionContext,
  there: Partner,
  ending: keyof typeof endings,
  options: SubscribeOptions = {},
) {
  const address = abstractAddress()
  await there.run(
    async (kit, where, stall) => {
      kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 65_536, stall })
    },
    address,
    ending === 'evict' ? 20 : 60_000,
  )
  const subscription = await subscribe(address, options)
  t.teardown(() => subscription.close())
  await there.run(async (kit) => {
    const publisher = kit.keep['publisher'] as Publisher
    await kit.until.until(() => publisher.subscribers.length === 1, 'the publisher knows of it')
    for (let number = 0; number < 5; number += 1) await publisher.send(kit.bytes.pattern(number, 1000))
  })
  const end = async () => {
    if (ending === 'kill') return there.kill()
    return there.run(async (kit, way) => {
      const publisher = kit.keep['publisher'] as Publisher
      const [own] = publisher.subscribers
      if (way === 'disconnect') await own!.disconnect()
      // It resolves once everything is read.
      else if (way === 'end') void publisher.end()
      else if (way === 'close') await publisher.close()
      else {
        while (publisher.trySend(kit.bytes.pattern(5, 1000)));
        await own!.closed
      }
    }, ending)
  }
  return { subscription, end }
}

for (const [ending, reason] of Object.entries(endings) as [keyof typeof endings, Closed['reason']][])
  test(`closed reports the publisher's ${ending} although messages are unread, and they stay readable`, async (t) => {
    const there = await Partner.start(t)
    for (const read of ending === 'kill' ? [1] : [0, 1, 5]) {
      const { subscription, end } = await toBeEnded(t, there, ending)
      for (let number = 0; number < read; number += 1)
        t.true((await within(subscription.receive(), 'a message'))!.equals(pattern(number, 1000)))
      await end()
      t.is((await within(subscription.closed, `the end after ${read} messages`)).reason, reason)
      const counts = () => [subscription.sequence, subscription.stats().messagesReceived]
      t.deepEqual(counts(), [BigInt(read), read])
      if (ending === 'evict') {
        // The first reads have fetched some messages, which stay readable. The remaining ones are lost.
        let number = read
        const rest = (async () => {
          for (; ; number += 1) t.true((await subscription.receive())!.equals(pattern(number, 1000)))
        })()
        await t.throwsAsync(rest, codeOf('EVICTED'))
        t.deepEqual(counts(), [BigInt(number), number])
        continue
      }
      for (let number = read; number < 5; number += 1) {
        t.true((await subscription.receive())!.equals(pattern(number, 1000)))
        t.deepEqual(counts(), [BigInt(number + 1), number + 1])
      }
      if (ending === 'kill') await t.throwsAsync(subscription.receive(), codeOf('PEER_LOST'))
      else t.is(await subscription.receive(), undefined)
      t.is(subscription.readableEnded, ending !== 'kill')
    }
  })

test('closed reports a disconnect for each delivery, and while a merge reads', async (t) => {
  const there = await Partner.start(t)
  for (const delivery of ['best-effort', 'latest'] as const) {
    const { subscription, end } = await toBeEnded(t, there, 'disconnect', { delivery })
    await end()
    t.is((await within(subscription.closed, 'the end')).reason, 'closed')
    const all: Buffer[] = []
    for await (const message of subscription) all.push(message)
    t.true(all.at(-1)!.equals(pattern(4, 1000)), delivery)
    t.is(all.length, delivery === 'latest' ? 1 : 5)
  }
  const { subscription, end } = await toBeEnded(t, there, 'disconnect')
  const merged = mergeOf([subscription])
  await end()
  t.is((await within(subscription.closed, 'the end')).reason, 'closed')
  const all: Buffer[] = []
  for await (const [, message] of merged) all.push(message)
  t.is(all.length, 5)
  // The publisher notices that everything was read, and releases the subscriber.
  await there.run(async (kit) => {
    const publisher = kit.keep['publisher'] as Publisher
    await kit.until.until(() => publisher.stats().ringUsed === 0, 'nothing is kept for it')
  })
})

test('messages that a close discards are not returned', async (t) => {
  const { subscription } = await toBeEnded(t, await Partner.start(t), 'close')
  t.true((await subscription.receive())!.equals(pattern(0, 1000)))
  const counts = () => [subscription.sequence, subscription.lost, subscription.stats().messagesReceived]
  t.deepEqual(counts(), [1n, 0n, 1])
  await subscription.close()
  t.deepEqual(counts(), [1n, 0n, 1])
})

/** A process whose executable is a copy of node's, and a function that replaces that file. */
async function withCopy(t: ExecutionContext) {
  const directory = temporaryDirectory(t)
  const copy = `${directory}/node`
  copyFileSync(realpathSync(process.execPath), copy)
  chmodSync(copy, 0o755)
  const there = await Partner.start(t, { through: ['sh', '-c', `shift; exec "${copy}" "$@"`, 'sh'] })
  const upgrade = () => {
    copyFileSync(copy, `${directory}/new`)
    renameSync(`${directory}/new`, copy)
  }
  return { there, copy, upgrade }
}

test('a subscriber that no longer satisfies the policy is refused by verify, and its publisher reports that', async (t) => {
  const address = abstractAddress()
  const { there, copy, upgrade } = await withCopy(t)
  const publisher = await publish(address, { policy: { executable: copy } })
  t.teardown(() => publisher.close())
  const connection = once(publisher, 'connection')
  await there.run(async (kit, where) => {
    kit.keep['subscription'] = await kit.ringfence.subscribe(where, { policy: { executable: 'any' } })
  }, address)
  const [known] = (await connection) as [Subscriber]
  const disconnect = once(publisher, 'disconnect')
  upgrade()
  await t.throwsAsync(known.verify(), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  const closed = await known.closed
  t.like(closed, { reason: 'refused', error: { code: 'ERR_RINGFENCE_PEER_REFUSED' } })
  t.deepEqual(await disconnect, [known, closed])
})

test('verify closes a subscription whose publisher no longer satisfies the policy, and reports that without a handler', async (t) => {
  const address = abstractAddress()
  const { there, copy, upgrade } = await withCopy(t)
  await there.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where, { policy: { executable: 'any' } })
  }, address)
  const here = await subscriber(t, address, { policy: { executable: copy } })
  upgrade()
  const codes = await here.run(async (kit) => {
    const unhandled: string[] = []
    const outcome = new Promise<void>((resolve) => {
      process.on('unhandledRejection', (error: { code: string }) => {
        unhandled.push(error.code)
        resolve()
      })
    })
    const subscription = kit.keep['subscription'] as Subscription
    void subscription.verify()
    // The event loop may report either of the two first.
    await outcome
    const { reason } = await subscription.closed
    // The subscription has ended, and `closed` reports it.
    void subscription.verify()
    await new Promise((resolve) => setImmediate(resolve))
    return [...unhandled, reason]
  })
  t.deepEqual(codes, ['ERR_RINGFENCE_PEER_REFUSED', 'refused'])
})

/** The process descriptors (pidfds) that this process has open. */
function processes(): number {
  return readdirSync('/proc/self/fd').filter((number) => {
    try {
      return readlinkSync(`/proc/self/fd/${number}`) === 'anon_inode:[pidfd]'
    } catch {
      // The descriptor was closed in the meantime.
      return false
    }
  }).length
}

test.serial('a closed subscription keeps no descriptor of its publisher', async (t) => {
  const address = abstractAddress()
  const there = await Partner.start(t)
  await there.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 65_536 })
  }, address)
  const before = processes()
  const closed: Subscription[] = []
  for (let number = 0; number < 20; number += 1) {
    const subscription = await subscribe(address)
    await subscription.close()
    closed.push(subscription)
  }
  await until(() => processes() <= before, 'nothing is kept of it')
  t.is(closed[0]!.peer.pid, there.pid)
  t.true(closed[0]!.evidence.length > 0)
  await t.throwsAsync(closed[0]!.verify(), { code: 'ERR_RINGFENCE_CLOSED' })
})

// Serial, since other tests of this process also create shared memory.
test.serial(
  'no descriptor of a disconnected subscriber is kept, even if the program keeps the Subscriber',
  async (t) => {
    const address = abstractAddress()
    const publisher = await publishHere(t, address)
    const known: Subscriber[] = []
    let gone = 0
    publisher.on('connection', (one) => known.push(one))
    publisher.on('disconnect', () => (gone += 1))
    const there = await Partner.start(t)
    const connectAndClose = (times: number) =>
      there.run(
        async (kit, where, count) => {
          for (let number = 0; number < count; number += 1) await (await kit.ringfence.subscribe(where)).close()
        },
        address,
        times,
      )
    const before = processes()
    await connectAndClose(20)
    await until(() => gone === 20, 'all have gone')
    await until(() => processes() <= before, 'nothing is kept of them')
    t.is(known.length, 20)
    t.is(known[0]!.peer.pid, there.pid)
    t.true(known[0]!.evidence.length > 0)
    await t.throwsAsync(known[0]!.verify(), { code: 'ERR_RINGFENCE_CLOSED' })
  },
)

test.serial('seal frees the address and keeps no descriptor of the ring; existing subscribers continue', async (t) => {
  const address = namedAddress(t)
  const publisher = await publishHere(t, address)
  const there = await subscriber(t, address)
  await within(publisher.seal(), 'the seal')
  t.false(isBound(address))
  await t.throwsAsync(subscribe(address), codeOf('PEER_LOST'))
  const links = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      return ''
    }
  })
  t.deepEqual(
    links.filter((link) => link.includes('memfd')),
    [],
  )
  const reading = readAll(there, 'receiveEach')
  await send(publisher, 1, 1000)
  await publisher.end()
  t.is((await within(reading, 'all')).count, 1000)
})

test('a close that cannot publish everything rejects pending sends, and subscribers report a lost publisher', async (t) => {
  const address = namedAddress(t)
  const publisher = await publishHere(t, address)
  const there = await subscriber(t, address)
  let number = 0
  while (publisher.trySend(numbered((number += 1), 200)));
  const sent = number - 1
  const waiting = publisher.send(numbered(number, 200))
  const closing = once(publisher, 'close')
  await publisher.close({ linger: 30 })
  await t.throwsAsync(waiting, codeOf('CLOSED'))
  t.deepEqual(await closing, [{ reason: 'closed' }])
  t.false(isBound(address))
  await t.throwsAsync(publisher.send('no'), codeOf('CLOSED'))
  t.throws(() => publisher.trySend('no'), codeOf('CLOSED'))
  const { count, wrong, error, reason } = await within(readAll(there, 'for await'), 'its end')
  t.deepEqual(
    { count, wrong, error, reason },
    { count: sent, wrong: '', error: 'ERR_RINGFENCE_PEER_LOST', reason: 'lost' },
  )
})

test('a message is published once send returns, and reserved room is filled in place', async (t) => {
  const address = abstractAddress()
  const publisher = await publishHere(t, address)
  const there = await subscriber(t, address)
  for (const size of [10, 8000]) {
    const room = publisher.reserve(size)!
    room.bytes.fill(size & 0xff)
    room.commit()
  }
  publisher.reserve(10)!.cancel()
  await publisher.end()
  t.deepEqual(
    await there.run(async (kit) => {
      const all = []
      for await (const message of kit.keep['subscription'] as Subscription)
        all.push([message.length, message.every((byte) => byte === (message.length & 0xff))])
      return all
    }),
    [
      [10, true],
      [8000, true],
    ],
  )
})

test('a merge reads subscriptions and channels', async (t) => {
  const [first, second] = [abstractAddress(), abstractAddress()]
  const publishers = [await publishHere(t, first), await publishHere(t, second)]
  const there = await Partner.start(t)
  await there.run(
    async (kit, ...addresses) => {
      const subscriptions = await Promise.all(addresses.map((address) => kit.ringfence.subscribe(address)))
      kit.keep['subscriptions'] = subscriptions
      kit.keep['merge'] = kit.ringfence.merge(subscriptions)
    },
    first,
    second,
  )
  for (const [index, publisher] of publishers.entries()) {
    for (let number = 0; number < 2000; number += 1) void publisher.send(`${index} ${number}`)
    await publisher.end()
  }
  t.deepEqual(
    await there.run(async (kit) => {
      const merged = kit.keep['merge'] as ReturnType<typeof mergeOf<Subscription>>
      const next = [0, 0]
      for await (const [source, message] of merged) {
        const [index, number] = String(message).split(' ').map(Number) as [number, number]
        if (source !== (kit.keep['subscriptions'] as Subscription[])[index] || next[index] !== number) return 'another'
        next[index] = number + 1
      }
      return next
    }),
    [2000, 2000],
  )
})

test('Rust and Node: each subscribes to the other', async (t) => {
  const sizes = Array.from({ length: 300 }, (_, number) => (number * 37) % 5000)
  const address = abstractAddress()
  const rust = new RustPartner(t, { deed: 'publish', address, capacity: RING, longest: 8192, sizes })
  const subscription = await subscribe(address, { wait: true, policy: { executable: rustPartner } })
  t.is(subscription.peer.pid, rust.pid)
  let number = 0
  for await (const message of subscription) {
    if (!message.equals(pattern(number, sizes[number]!))) return t.fail(`message ${number} is another`)
    number += 1
  }
  t.is(number, sizes.length)
  t.is((await subscription.closed).reason, 'closed')

  const other = abstractAddress()
  const publisher = await publishHere(t, other, { policy: { executable: rustPartner } })
  const reader = new RustPartner(t, { deed: 'subscribe', address: other, capacity: 4096, longest: 8192, sizes })
  t.is(await reader.readLine(), `subscribed ${process.pid}`)
  for (const [index, size] of sizes.entries()) await publisher.send(pattern(index, size))
  await publisher.end()
  t.is(await reader.readLine(), `${sizes.length} messages`)
  return t.deepEqual(await within(publisher.closed, 'the end'), { reason: 'closed' })
})

test('invalid arguments and states are reported by their codes', async (t) => {
  const address = abstractAddress()
  for (const options of [
    { backing: 'shm' },
    { maxMessageSize: RING },
    { stall: -1 },
    { deliveries: [] },
    { delivery: 'latest' },
    { deliveries: ['twice'] },
    { allowHalfOpen: true },
    { nothing: 1 },
  ])
    await t.throwsAsync(
      publish(address, { capacity: RING, ...options } as PublishOptions),
      codeOf('INVALID_ARGUMENT'),
      JSON.stringify(options),
    )
  for (const options of [
    { capacity: 4096 },
    { delivery: 'twice' },
    { from: 'then' },
    { maxPeers: 1 },
    { mode: 0o600 },
    { backing: 'memfd' },
  ])
    await t.throwsAsync(
      subscribe(address, options as SubscribeOptions),
      codeOf('INVALID_ARGUMENT'),
      JSON.stringify(options),
    )
  await t.throwsAsync(subscribe(address), codeOf('PEER_LOST'))
  const publisher = await publishHere(t, address, { deliveries: ['reliable'], maxPeers: 1 })
  await t.throwsAsync(publish(address), codeOf('ADDRESS_OCCUPIED'))
  for (const call of [join, connect]) {
    const there = await Partner.start(t)
    const error = await t.throwsAsync<Error & { code: string }>(
      there.run(
        async (kit, where, name) => void (await kit.ringfence[name](where)),
        address,
        call.name as 'join' | 'connect',
      ),
    )
    t.is(error!.code, 'ERR_RINGFENCE_PROTOCOL', call.name)
    t.true(
      error!.message.includes(`\`publish\`, and the process that connected called \`${call.name}\``),
      error!.message,
    )
  }
  const there = await Partner.start(t)
  const refused = await t.throwsAsync<Error & { code: string; thrown: { check?: string } }>(
    subscriber(t, address, { delivery: 'latest' }, there),
    codeOf('PEER_REFUSED'),
  )
  t.is(refused!.thrown.check, 'delivery')
  await t.throwsAsync(subscriber(t, address, { maxMessageSize: 100 }, there), codeOf('PROTOCOL'))
  await subscriber(t, address, {}, there)
  await t.throwsAsync(subscriber(t, address, {}), codeOf('ADDRESS_OCCUPIED'))
  await t.throwsAsync(publisher.send(Buffer.alloc(publisher.maxMessageSize + 1)), codeOf('MESSAGE_TOO_LARGE'))
  await t.throwsAsync(publisher.send(1 as never), codeOf('INVALID_ARGUMENT'))
  await publisher.end()
  await t.throwsAsync(publisher.send('no'), codeOf('CLOSED'))
  const listener = await listen(abstractAddress())
  await t.throwsAsync(subscriber(t, listener.address, {}), codeOf('PROTOCOL'))
  await listener.close()
  for (const made of [Publisher, Subscription]) t.throws(() => Reflect.construct(made, []), codeOf('INVALID_ARGUMENT'))
})

test('an AbortSignal cancels waits and closes a publisher; await using closes both', async (t) => {
  const address = abstractAddress()
  const waiting = new AbortController()
  const called = subscribe(address, { wait: true, signal: waiting.signal })
  waiting.abort()
  await t.throwsAsync(called, { code: 'ABORT_ERR', name: 'AbortError' })
  const publishing = new AbortController()
  const publisher = await publish(address, { signal: publishing.signal })
  const there = await subscriber(t, address)
  await t.throwsAsync(
    there.run(async (kit) => {
      await (kit.keep['subscription'] as Subscription).receive({ signal: AbortSignal.timeout(1) })
    }),
    codeOf('ABORT_ERR'),
  )
  publishing.abort()
  t.deepEqual(await publisher.closed, { reason: 'closed' })
  t.is(await there.run(async (kit) => (await (kit.keep['subscription'] as Subscription).closed).reason), 'closed')
  {
    await using next = await publish(address)
    await subscriber(t, address, {}, there)
    await until(() => next.subscribers.length === 1, 'the publisher knows of it')
  }
  t.is(await there.run((kit) => (kit.keep['subscription'] as Subscription).receive()), undefined)
  await until(() => !isBound(address), 'the address is free')
})

test('a publisher and a subscription keep their processes alive until unref', async (t) => {
  const address = abstractAddress()
  const [publishing, subscribed] = await Promise.all([Partner.start(t), Partner.start(t)])
  await publishing.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where, { policy: { executable: 'any' } })
  }, address)
  await subscriber(t, address, {}, subscribed)
  const exits = [publishing.detach(), subscribed.detach()]
  await new Promise((resolve) => setTimeout(resolve, 300))
  for (const exit of exits) t.true(await isPending(exit))
  const quiet = await Partner.start(t)
  await quiet.run(async (kit) => {
    const own = await kit.ringfence.publish('@quiet-' + process.pid)
    own.unref()
  })
  t.deepEqual(await within(quiet.detach(), 'its exit'), { code: 0, signal: null })
  await Promise.all([publishing.kill(), subscribed.kill()])
})
