// `ringfence publish`, `subscribe` and `collect` in this process: what they write and report, and when.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import type { ListenOptions, PublishOptions, SubscribeOptions } from 'ringfence'

import { abstractAddress, isBound, temporaryDirectory, untilBound } from './support/address.js'
import { internals } from './support/internals.js'
import { captureOutput } from './support/output.js'
import { Partner } from './support/partner.js'
import { isPending, within, turns, until } from './support/until.js'

interface Publishing {
  address: string
  file?: string
  raw?: number
  audience?: number
  evidence?: boolean
  options?: PublishOptions
}

interface Subscribing {
  address: string
  count?: number
  raw?: boolean
  evidence?: boolean
  options?: SubscribeOptions
}

interface Collection {
  address: string
  evidence?: boolean
  options?: ListenOptions
  stop: AbortSignal
}

const moduleAt = (name: string) => internals(`cli/${name}.js`)
const { publish, subscribe } = (await moduleAt('broadcast')) as {
  publish(publishing: Publishing): Promise<void>
  subscribe(subscribing: Subscribing): Promise<void>
}
const { collect } = (await moduleAt('collect')) as { collect(collection: Collection): Promise<void> }

function fileOf(t: ExecutionContext, content: string): string {
  const file = join(temporaryDirectory(t), 'file')
  writeFileSync(file, content)
  return file
}

/** Starts to publish. Only the test handles its failure. */
function publishing(t: ExecutionContext, content: string, more: Partial<Publishing> = {}) {
  const address = abstractAddress()
  const over = publish({ address, file: fileOf(t, content), audience: 1, options: { capacity: 65_536 }, ...more })
  over.catch(() => {})
  return { address, over }
}

/** Subscribes in the partner, and keeps the lines, each time under the next number. */
const subscribes = (partner: Partner, address: string) =>
  partner.run(async (kit, where: string) => {
    const subscription = await kit.ringfence.subscribe(where, { wait: true })
    const received: string[] = []
    const over = (async () => {
      for await (const message of subscription) received.push(String(message))
      return received
    })()
    const all = (kit.keep['all'] ??= []) as unknown[]
    all.push({ subscription, over })
  }, address)

const linesOf = (partner: Partner, number: number) =>
  partner.run((kit, index: number) => (kit.keep['all'] as { over: Promise<string[]> }[])[index]!.over, number)

/** Publishes in the partner; `kit.keep.publisher` is the publisher. */
const publishes = (partner: Partner, address: string, options: PublishOptions = {}) =>
  partner.run(
    async (kit, where: string, how: PublishOptions) => {
      kit.keep['publisher'] = await kit.ringfence.publish(where, how)
    },
    address,
    options,
  )

const send = (partner: Partner, ...messages: string[]) =>
  partner.run(async (kit, all: string[]) => {
    const publisher = kit.keep['publisher'] as Awaited<ReturnType<typeof kit.ringfence.publish>>
    for (const message of all) await publisher.send(message)
  }, messages)

const endPublishing = (partner: Partner) =>
  partner.run((kit) => (kit.keep['publisher'] as Awaited<ReturnType<typeof kit.ringfence.publish>>).end())

/** Starts to subscribe to a partner that publishes. */
async function subscribing(t: ExecutionContext, more: Partial<Subscribing> = {}, there: PublishOptions = {}) {
  const partner = await Partner.start(t)
  const address = abstractAddress()
  await publishes(partner, address, { capacity: 65_536, ...there })
  const over = subscribe({ address, count: Infinity, raw: false, options: {}, ...more })
  over.catch(() => {})
  await partner.run(async (kit) => {
    const publisher = kit.keep['publisher'] as Awaited<ReturnType<typeof kit.ringfence.publish>>
    await kit.until.until(() => publisher.subscribers.length === 1, 'it has subscribed')
  })
  return { partner, address, over }
}

test.serial('lines are published once the audience is there, and the end waits until they are read', async (t) => {
  const errors = captureOutput(t, 'stderr')
  const { address, over } = publishing(t, 'one\n\ntwo', { audience: 2, evidence: true })
  const partner = await Partner.start(t)
  await subscribes(partner, address)
  t.true(await isPending(over))
  await subscribes(partner, address)
  for (const number of [0, 1]) t.deepEqual(await linesOf(partner, number), ['one', '', 'two'])
  await over
  t.is(errors.text.split(`subscriber is process ${partner.pid}\n    step`).length, 3)
  t.false(isBound(address))
})

test.serial('chunks are published as they arrive, up to a maximum size', async (t) => {
  const errors = captureOutput(t, 'stderr')
  const partner = await Partner.start(t)
  for (const [at, [raw, wanted]] of [
    [7, ['twenty ', 'bytes\ni', 'n all.']] as const,
    // No chunk is empty.
    [10, ['twenty byt', 'es\nin all.']] as const,
  ].entries()) {
    const { address, over } = publishing(t, 'twenty bytes\nin all.', { raw })
    await subscribes(partner, address)
    t.deepEqual(await linesOf(partner, at), [...wanted])
    await over
  }
  t.is(errors.text, '')
})

test.serial('refused subscribers and evicted ones, which were too slow, are reported', async (t) => {
  const errors = captureOutput(t, 'stderr')
  const { address, over } = publishing(t, 'a line of some length\n'.repeat(20_000), {
    options: { capacity: 65_536, stall: 20 },
  })
  const partner = await Partner.start(t)
  await t.throwsAsync(partner.join(address), { code: 'ERR_RINGFENCE_PROTOCOL' })
  await until(() => errors.writes.length === 1, 'it is told of')
  t.regex(errors.text, /^ringfence: .*join/)
  // It subscribes, and does not read.
  await partner.run(async (kit, where: string) => {
    kit.keep['still'] = await kit.ringfence.subscribe(where)
  }, address)
  await over
  t.is(errors.writes.length, 2)
  t.is(errors.writes[1], `ringfence: process ${partner.pid} was too slow, and was evicted\n`)
  await t.throwsAsync(publish({ address, file: '/nowhere/at/all' }), { code: 'ENOENT' })
})

test.serial(
  'each message is written, with a newline or without; up to --count, or until the publisher ends',
  async (t) => {
    for (const [more, wanted] of [
      [{}, 'one\n\ntwo\n'],
      [{ raw: true }, 'onetwo'],
      [{ count: 2 }, 'one\n\n'],
    ] as const) {
      const output = captureOutput(t, 'stdout')
      const errors = captureOutput(t, 'stderr')
      const { partner, over } = await subscribing(t, { ...more, evidence: 'count' in more })
      await send(partner, 'one', '', 'two')
      if ('count' in more) await over
      else {
        await until(() => output.text === wanted, 'they are written')
        t.true(await isPending(over))
      }
      await endPublishing(partner)
      await over
      t.is(output.text, wanted)
      if ('count' in more) t.true(errors.text.startsWith(`publisher is process ${partner.pid}\n    step`))
      else t.is(errors.text, '')
    }
  },
)

test.serial('lines published before the publisher was killed are written, however slowly they are read', async (t) => {
  const output = captureOutput(t, 'stdout')
  output.stop()
  const { partner, over } = await subscribing(t)
  const all = Array.from({ length: 100 }, (_, number) => `line ${number}`)
  await send(partner, ...all)
  await partner.kill()
  await until(() => output.stream.writableLength === all.join(' ').length + 1, 'all has come')
  await turns(20)
  t.true(await isPending(over))
  output.resume()
  await t.throwsAsync(over, { code: 'ERR_RINGFENCE_PEER_LOST', message: /its last messages may be missing/ })
  t.is(output.text, `${all.join('\n')}\n`)
})

test.serial('--count messages are enough, even if the publisher is killed afterwards', async (t) => {
  const output = captureOutput(t, 'stdout')
  const { partner, over } = await subscribing(t, { count: 1 })
  await send(partner, 'the one')
  await partner.kill()
  await over
  t.is(output.text, 'the one\n')
})

test.serial(
  'a slow subscriber is evicted, and its messages are written; with best-effort it reports how many it missed',
  async (t) => {
    const message = 'x'.repeat(4096)
    for (const delivery of ['reliable', 'best-effort'] as const) {
      const output = captureOutput(t, 'stdout')
      const errors = captureOutput(t, 'stderr')
      output.stop()
      const { partner, over } = await subscribing(t, { options: { delivery } }, { stall: 20 })
      await send(partner, ...Array.from({ length: 100 }, () => message))
      await turns(20)
      // It reads no more than fits.
      t.true(output.stream.writableLength < 16_384 + 4097)
      output.resume()
      await endPublishing(partner)
      if (delivery === 'reliable') await t.throwsAsync(within(over, 'its end'), { code: 'ERR_RINGFENCE_EVICTED' })
      else await within(over, 'its end')
      const count = output.text.split('\n').length - 1
      t.is(output.text, `${message}\n`.repeat(count))
      if (delivery === 'reliable') t.is(errors.text, '')
      else t.is(errors.text, `ringfence: ${100 - count} messages were skipped\n`)
    }
  },
)

test.serial('a missing publisher and errors of the call are reported', async (t) => {
  const address = abstractAddress()
  const options = { wait: true, signal: AbortSignal.timeout(1) }
  await t.throwsAsync(subscribe({ address, options }), {
    code: 'ERR_RINGFENCE_TIMEOUT',
    message: `no process published at ${address} in time`,
  })
  await t.throwsAsync(subscribe({ address, options: { delivery: 'twice' as 'latest' } }), {
    code: 'ERR_RINGFENCE_INVALID_ARGUMENT',
    message: /delivery must be/,
  })
  await t.throwsAsync(subscribe({ address, options: {} }), { code: 'ERR_RINGFENCE_PEER_LOST' })
})

/** Starts to collect, with a partner that sends on as many channels as it likes. */
async function collecting(t: ExecutionContext, more: Partial<Collection> = {}) {
  const output = captureOutput(t, 'stdout')
  const errors = captureOutput(t, 'stderr')
  const stop = new AbortController()
  const address = abstractAddress()
  const over = collect({ address, evidence: false, options: { capacity: 65_536 }, stop: stop.signal, ...more })
  over.catch(() => {})
  await untilBound(address)
  const partner = await Partner.start(t)
  const sender = async (name: string) => {
    await partner.run(
      async (kit, where: string, what: string) => {
        kit.keep[what] = await kit.ringfence.connect(where, { allowHalfOpen: true, capacity: 65_536 })
      },
      address,
      name,
    )
    const channel = (what: 'send' | 'end' | 'close' | 'receive', ...given: string[]) =>
      partner.run(
        async (kit, [own, call, words]: [string, 'send', [string]]) => {
          const found = kit.keep[own] as typeof kit.channel
          const answer: unknown = await found[call](...words)
          return answer === undefined ? 'the end' : answer
        },
        [name, what as 'send', given as [string]] as [string, 'send', [string]],
      )
    return channel
  }
  return { output, errors, stop, address, over, partner, sender }
}

test.serial(
  'lines of senders are written whole, and each sender gets the end once its last line is written',
  async (t) => {
    const { output, errors, stop, over, partner, sender, address } = await collecting(t, { evidence: true })
    const [one, two] = [await sender('one'), await sender('two')]
    await one('send', 'begun, ')
    await two('send', 'of two\n\nlast')
    await until(() => output.text === 'of two\n\n', 'whole lines are there')
    await one('send', 'ended\n')
    await until(() => output.text === 'of two\n\nbegun, ended\n', 'the other is whole')
    output.stop()
    await two('end')
    const ending = two('receive')
    await until(() => output.stream.writableLength === 5, 'its last line has come')
    await turns(20)
    t.true(await isPending(ending))
    output.resume()
    t.is(await ending, 'the end')
    await one('end')
    t.is(await one('receive'), 'the end')
    t.true(await isPending(over))
    stop.abort()
    await over
    t.is(output.text, 'of two\n\nbegun, ended\nlast\n')
    t.is(errors.text.split(`process ${partner.pid} sends\n    step`).length, 3)
    t.false(isBound(address))
  },
)

test.serial('a sender that closes or is killed has its last line written, and affects no other', async (t) => {
  const { output, errors, stop, over, partner, sender, address } = await collecting(t)
  const closes = await sender('closes')
  await closes('send', 'closed')
  await closes('close')
  await until(() => output.text === 'closed\n', 'its line is written')
  t.is(errors.text, '')
  const killed = await sender('killed')
  await killed('send', 'killed')
  const { pid } = partner
  await partner.kill()
  await until(() => output.text === 'closed\nkilled\n', 'its line is written')
  t.is(errors.text, `ringfence: process ${pid} has ended before it had ended its sending\n`)
  const another = await Partner.start(t)
  await another.connect(address)
  await another.run(async (kit) => {
    await kit.channel.send('another')
    await kit.channel.end()
    while ((await kit.channel.receive()) !== undefined);
  })
  stop.abort()
  await over
  t.is(output.text, 'closed\nkilled\nanother\n')
})

test.serial('a stop writes what has arrived; a sender that continues learns that it was not all', async (t) => {
  const { output, errors, stop, over, sender, address } = await collecting(t)
  const [goesOn, ends] = [await sender('goes on'), await sender('ends')]
  await goesOn('send', 'a line\nand the begin')
  await until(() => output.text === 'a line\n', 'the line is written')
  output.stop()
  const rest = `ning${'g'.repeat(20_000)}`
  await goesOn('send', `${rest}\n`)
  await until(() => output.stream.writableNeedDrain, 'its end has come')
  // It waits for its reader: later input is read once it is stopped.
  await ends('send', 'the other')
  await ends('end')
  stop.abort()
  await turns(5)
  output.resume()
  await within(over, 'its end')
  t.deepEqual(output.text.split('\n').sort(), ['', 'a line', `and the begin${rest}`, 'the other'])
  t.is(await ends('receive'), 'the end')
  await t.throwsAsync(goesOn('receive'), { code: 'ERR_RINGFENCE_PEER_LOST' })
  await t.throwsAsync(goesOn('send', 'more'), { code: 'ERR_RINGFENCE_PEER_LOST' })
  t.is(errors.text, '')
  t.false(isBound(address))

  const before = abstractAddress()
  await within(collect({ address: before, stop: AbortSignal.abort() }), 'the end of one that was stopped before')
  t.false(isBound(before))
})

test.serial(
  'a refused process is reported, unless it tried to join a pair, and an occupied address is a failure',
  async (t) => {
    const strict = await collecting(t, { options: { policy: { uid: 54_321 } } })
    await t.throwsAsync(strict.sender('stranger'), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
    await until(() => strict.errors.text !== '', 'it is told of')
    t.true(strict.errors.text.startsWith(`ringfence: refused process ${strict.partner.pid}: `), strict.errors.text)
    strict.stop.abort()
    await strict.over

    const { errors, stop, over, partner, address } = await collecting(t)
    await t.throwsAsync(partner.join(address), { code: 'ERR_RINGFENCE_PROTOCOL' })
    await t.throwsAsync(collect({ address, stop: stop.signal }), { code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })
    await partner.connect(address)
    t.is(errors.text, '')
    stop.abort()
    await over
  },
)

test.serial('a sender with an endless line is disconnected, and its earlier lines are written', async (t) => {
  const { output, errors, stop, over, partner, sender } = await collecting(t, { options: {} })
  const endless = await sender('endless')
  await endless('send', 'a line\n')
  await partner.run(async (kit) => {
    const channel = kit.keep['endless'] as typeof kit.channel
    const chunk = Buffer.alloc(1 << 20, 'x')
    for (let count = 0; count < 64; count += 1) await channel.send(chunk)
  })
  // 64 MiB are still one line.
  await until(() => output.text === 'a line\n', 'the line is written')
  await turns(20)
  t.is(errors.text, '')
  await endless('send', 'x')
  await until(() => errors.text !== '', 'it is told of')
  t.is(errors.text, `ringfence: process ${partner.pid} sent a line of more than 64 MiB, and is disconnected\n`)
  await t.throwsAsync(endless('receive'), { code: 'ERR_RINGFENCE_PEER_LOST' })
  stop.abort()
  await over
  t.is(output.text, 'a line\n')
})
