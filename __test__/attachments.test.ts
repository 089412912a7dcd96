// Messages with attachments, between real processes: order, ownership, acceptance, and no leaked descriptors.

import dgram from 'node:dgram'
import { once } from 'node:events'
import { fstatSync, readdirSync, readlinkSync } from 'node:fs'
import { open } from 'node:fs/promises'
import http from 'node:http'
import net from 'node:net'

import test, { type ExecutionContext } from 'ava'
import {
  json,
  merge,
  publish,
  ReceivedDescriptor,
  SealedBuffer,
  structured,
  subscribe,
  type Channel,
  type Message,
  type Options,
  type Publisher,
  type SubscribeOptions,
  type Subscription,
} from 'ringfence'

import { abstractAddress } from './support/address.js'
import { pattern } from './support/bytes.js'
import type { Kit } from './support/partner-process.js'
import { listenHere, pair, Partner } from './support/partner.js'
import { within, until } from './support/until.js'

const both: Options = { attachments: { sealed: true, descriptors: true } }
const invalid = { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }

/** Open descriptors of attachments in this process: those of sealed buffers, and of /dev/zero, which these tests pass. */
function held(which = /ringfence-sealed|^\/dev\/zero/): string[] {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return which.test(readlinkSync(`/proc/self/fd/${fd}`))
    } catch {
      return false
    }
  })
}

/** The same, in the partner. */
function countHeld(kit: Kit): number {
  const fs = kit.require('node:fs') as typeof import('node:fs')
  return fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return /ringfence-sealed|^\/dev\/zero/.test(fs.readlinkSync(`/proc/self/fd/${fd}`))
    } catch {
      return false
    }
  }).length
}

async function zero(t: ExecutionContext) {
  const file = await open('/dev/zero')
  t.teardown(() => file.close().catch(() => {}))
  return file
}

function sealedIn(message: Message | undefined): SealedBuffer {
  const attachment = message?.attachments?.[0]
  if (!(attachment instanceof SealedBuffer)) throw new Error('the message has no sealed buffer')
  return attachment
}

function descriptorIn(message: Message | undefined): ReceivedDescriptor {
  const attachment = message?.attachments?.[0]
  if (!(attachment instanceof ReceivedDescriptor)) throw new Error('the message has no descriptor')
  return attachment
}

/** The partner sends messages, each with a sealed buffer that holds its number. */
function sendsBuffers(partner: Partner, count: number, size = 5): Promise<void> {
  return partner.run(
    async (kit, most: number, length: number) => {
      const { SealedBuffer: Sealed } = kit.ringfence
      for (let number = 0; number < most; number += 1) {
        const buffer = Sealed.from(kit.bytes.pattern(number, length))
        await kit.channel.send(`${number}`, { attachments: [buffer] })
        buffer.close()
      }
    },
    count,
    size,
  )
}

test.serial.afterEach.always(async () => until(() => held().length === 0, 'every descriptor is closed'))

test.serial('a buffer of any size arrives with its message, in order', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  const received = partner.run(async (kit) => {
    const found: [string, number | undefined, boolean][] = []
    for await (const message of kit.channel) {
      const buffer = message.attachments?.[0] as SealedBuffer | undefined
      const size = buffer?.byteLength
      found.push([
        message.subarray(0, 20).toString(),
        size,
        buffer === undefined || kit.bytes.pattern(size!, size!).equals(buffer.bytes()),
      ])
      buffer?.close()
    }
    return found
  })
  const sizes = [0, 1, 4096, 100_000, 5_000_000]
  for (const size of sizes) {
    const buffer = SealedBuffer.from(pattern(size, size))
    void channel.send('before')
    void channel.send(`with ${size}`, { attachments: [buffer] })
    buffer.close()
    void channel.send('after')
  }
  using seven = SealedBuffer.from(pattern(7, 7))
  void channel.send(Buffer.alloc(10_000_000, 'long'), { attachments: [seven] })
  using eight = SealedBuffer.from(pattern(8, 8))
  await channel.send('', { attachments: [eight] })
  await channel.end()
  t.deepEqual(await within(received, 'everything to arrive', 60_000), [
    ...sizes.flatMap((size): [string, number | undefined, boolean][] => [
      ['before', undefined, true],
      [`with ${size}`, size, true],
      ['after', undefined, true],
    ]),
    ['longlonglonglonglong', 7, true],
    ['', 8, true],
  ])
  t.is(channel.stats().attachmentsSent, sizes.length + 2)
})

test.serial('each way to receive gives the attachments, and visitors get none', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  const ways: [string, () => Promise<Message | undefined>][] = [
    ['receive', () => channel.receive()],
    [
      'tryReceive',
      async () => {
        await channel.waitReadable()
        return channel.tryReceive()
      },
    ],
    ['for await', async () => (await channel[Symbol.asyncIterator]().next()).value],
    ['batches', async () => (await channel.batches({ max: 1 })[Symbol.asyncIterator]().next()).value?.[0]],
    [
      'merge',
      async () => {
        const merged = merge([channel])
        const [, message] = (await merged.receive())!
        await merged.close()
        return message
      },
    ],
    // Last, since the stream keeps waiting for messages.
    ['readable', async () => readOne(channel)],
  ]
  for (const [name, receive] of ways) {
    await sendsBuffers(partner, 1)
    using buffer = sealedIn(await within(receive(), name))
    t.true(pattern(0, 5).equals(buffer.bytes()), name)
  }
  await sendsBuffers(partner, 3)
  const seen: string[] = []
  while (seen.length < 3) {
    await channel.waitReadable()
    channel.receiveEach((bytes, offset, length) =>
      seen.push(Buffer.from(bytes.buffer, bytes.byteOffset + offset, length).toString()),
    )
  }
  t.deepEqual(seen, ['0', '1', '2'])
  t.is(held().length, 0)
  t.is(channel.stats().attachmentsReceived, ways.length + 3)
})

async function readOne(channel: Channel): Promise<Message | undefined> {
  const reader = channel.readable.getReader()
  const { value } = await reader.read()
  reader.releaseLock()
  return value
}

test.serial('a listener reads attachments from all channels', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address, both)
  const partner = await Partner.start(t)
  await partner.run(async (kit, where: string) => {
    kit.channel = await kit.ringfence.connect(where)
  }, address)
  await sendsBuffers(partner, 1)
  const [, message] = (await listener.messages().receive())!
  using buffer = sealedIn(message)
  t.true(pattern(0, 5).equals(buffer.bytes()))
  t.is(listener.stats().attachmentsReceived, 1)
})

test.serial('a side gets no attachments that it does not accept, and the message is not sent', async (t) => {
  const { channel, partner } = await pair(t, { there: { attachments: { sealed: true } } })
  const file = await zero(t)
  using buffer = SealedBuffer.from(pattern(1, 5))
  await t.throwsAsync(channel.send('no', { attachments: [file] }), invalid)
  await t.throwsAsync(channel.send('no', { attachments: [buffer, file] }), invalid)
  await channel.send('yes', { attachments: [buffer] })
  const [code, text] = await partner.run(async (kit) => {
    const error = await kit.channel
      .send('no', { attachments: [kit.ringfence.SealedBuffer.from(Buffer.from('5'))] })
      .catch((reason: { code: string }) => reason.code)
    const message = (await kit.channel.receive())!
    for (const attachment of message.attachments!) attachment.close()
    return [error, String(message)] as const
  })
  t.is(code, 'ERR_RINGFENCE_INVALID_ARGUMENT')
  t.is(text, 'yes')
  await file.close()
})

test.serial('wrong attachments are refused at once, and nothing is sent', async (t) => {
  const { channel } = await pair(t, { options: both })
  const closed = SealedBuffer.from(pattern(1, 5))
  closed.close()
  const socket = new net.Socket()
  const wrong: unknown[] = [5, {}, [5], [null], [{}], [{ fd: -1 }], [{ fd: 1.5 }], [{ fd: '5' }], [{ fd: 2 ** 40 }]]
  wrong.push([{ fd: 1_000_000 }], [closed], [socket], [dgram.createSocket('udp4')], [Buffer.alloc(5)], 'text')
  for (const attachments of wrong)
    await t.throwsAsync(channel.send('no', { attachments: attachments as [] }), invalid, JSON.stringify(attachments))
  await t.throwsAsync(channel.send('no', { attachment: [] } as never), {
    ...invalid,
    message: /nearest one is attachments/,
  })
  const many = Array.from({ length: 254 }, () => ({ fd: 0 }))
  await t.throwsAsync(channel.send('no', { attachments: many }), { code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' })
  await t.throwsAsync(channel.send('no', { attachments: many.slice(0, 65) }), {
    code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE',
  })
  await channel.send('none', { attachments: [] })
  t.is(channel.stats().messagesSent, 1)
  const publisher = await publish(abstractAddress())
  t.teardown(() => publisher.close())
  await t.throwsAsync(publisher.send('no', { attachments: [5 as never] }), invalid)
})

test.serial('the program may close its own descriptors once send has returned', async (t) => {
  const { channel, partner } = await pair(t, { options: { ...both, capacity: 4096 } })
  const sent: Promise<void>[] = []
  for (let number = 0; number < 100; number += 1) {
    const buffer = SealedBuffer.from(pattern(number, 100))
    sent.push(channel.send(pattern(number, 500), { attachments: [buffer, { fd: 0 }] }))
    buffer.close()
  }
  const found = await partner.run(async (kit) => {
    for (let number = 0; number < 100; number += 1) {
      const message = (await kit.channel.receive())!
      const [buffer, input] = message.attachments as [SealedBuffer, ReceivedDescriptor]
      if (!message.equals(kit.bytes.pattern(number, 500))) return `message ${number} is another`
      if (!kit.bytes.pattern(number, 100).equals(buffer.bytes())) return `buffer ${number} is another`
      buffer.close()
      input.close()
    }
    return 'all'
  })
  t.is(found, 'all')
  await Promise.all(sent)
})

test.serial('a sender waits while the peer holds as much as it accepts', async (t) => {
  const attachments = { sealed: true, maxCount: 3, maxBytes: 10_000 }
  const { channel, partner } = await pair(t, { options: { attachments } })
  await sendsBuffers(partner, 3)
  const more = sendsBuffers(partner, 20, 4000)
  for (let count = 0; count < 23; count += 1) {
    using buffer = sealedIn(await within(channel.receive(), `message ${count}`))
    const expected = count < 3 ? pattern(count, 5) : pattern(count - 3, 4000)
    t.true(expected.equals(buffer.bytes()), `buffer ${count}`)
  }
  await more
  t.is(channel.stats().attachmentsReceived, 23)
  const tooLarge = partner.run((kit) =>
    kit.channel
      .send('no', { attachments: [kit.ringfence.SealedBuffer.from(Buffer.alloc(10_001))] })
      .catch((error: { code: string }) => error.code),
  )
  t.is(await tooLarge, 'ERR_RINGFENCE_MESSAGE_TOO_LARGE')
})

test.serial('an abort, a close and a destroy of messages that wait leave nothing behind', async (t) => {
  for (const how of ['abort', 'close', 'destroy'] as const) {
    const { channel, partner } = await pair(t, { there: { attachments: { sealed: true, maxCount: 1 } } })
    using buffer = SealedBuffer.from(pattern(1, 5))
    await channel.send('first', { attachments: [buffer] })
    const abort = new AbortController()
    const waiting = [1, 2].map((number) =>
      channel.send(`waiting ${number}`, { attachments: [buffer], signal: abort.signal }),
    )
    const settled = Promise.allSettled(waiting)
    if (how === 'abort') abort.abort()
    else if (how === 'close') await channel.close({ linger: 0 })
    else channel.destroy()
    t.true((await settled).every(({ status }) => status === 'rejected'))
    if (how === 'abort') {
      await channel.send('last')
      const texts = await partner.run(async (kit) => {
        const first = (await kit.channel.receive())!
        for (const attachment of first.attachments!) attachment.close()
        return [String(first), String(await kit.channel.receive())]
      })
      t.deepEqual(texts, ['first', 'last'])
      await channel.close()
    }
    buffer.close()
    await until(() => held().length === 0, `nothing is left after ${how}`)
    await partner.run((kit) => kit.channel.close())
    await until(async () => (await partner.run(countHeld)) === 0, `nothing is left there after ${how}`)
  }
})

test.serial('messages of a peer that is gone keep their attachments, and a close drops them', async (t) => {
  for (const how of ['close', 'kill'] as const) {
    const { channel, partner } = await pair(t, { options: both })
    await sendsBuffers(partner, 5)
    if (how === 'kill') await partner.kill()
    else await partner.run((kit) => kit.channel.close())
    await channel.closed
    for (let number = 0; number < 3; number += 1) {
      using buffer = sealedIn(await channel.receive())
      t.true(pattern(number, 5).equals(buffer.bytes()), `${how} ${number}`)
    }
    await channel.close()
    await until(() => held().length === 0, `nothing is left after ${how}`)
  }
})

for (const how of ['close', 'destroy'] as const)
  test.serial(`${how} after a peer is lost drops messages that were read on to its calls`, async (t) => {
    const { channel, partner } = await pair(t, { options: both })
    const served = t.throwsAsync(
      channel.serve(() => ''),
      { code: 'ERR_RINGFENCE_PEER_LOST' },
    )
    await sendsBuffers(partner, 3)
    await partner.kill()
    await served
    await channel.closed
    t.is(held().length, 3)
    await channel[how]()
    await until(() => held().length === 0, 'nothing is left')
    await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_CLOSED' })
  })

test.serial('a killed peer leaves no descriptor of a sender', async (t) => {
  const { channel, partner } = await pair(t, { there: { attachments: { sealed: true, maxCount: 2 } } })
  const buffer = SealedBuffer.from(pattern(1, 5))
  const sent = [1, 2, 3, 4].map(() => channel.send('x', { attachments: [buffer] }))
  void Promise.allSettled(sent)
  buffer.close()
  t.true(held().length > 0)
  await partner.kill()
  await channel.closed
  await until(() => held().length === 0, 'nothing is left')
  t.pass()
})

test.serial('a receiver without descriptors keeps the message, and receives it later', async (t) => {
  const partner = await Partner.start(t, { through: ['sh', '-c', 'ulimit -n 200; exec "$@"', '-'] })
  const { channel } = await pair(t, { options: both, partner })
  // Before the message arrives: the event loop receives the descriptors as soon as it can.
  await partner.run((kit) => {
    const { openSync } = kit.require('node:fs') as typeof import('node:fs')
    const files: number[] = []
    kit.keep['files'] = files
    try {
      for (;;) files.push(openSync('/dev/null', 'r'))
    } catch {}
  })
  using buffer = SealedBuffer.from(pattern(1, 5))
  await channel.send('first', { attachments: [buffer, buffer] })
  const found = await partner.run(async (kit) => {
    const { closeSync } = kit.require('node:fs') as typeof import('node:fs')
    const code = await kit.channel.receive().then(
      () => 'received',
      (error: { code: string }) => error.code,
    )
    for (const file of kit.keep['files'] as number[]) closeSync(file)
    if (code === 'received') return [code]
    const message = (await kit.channel.receive())!
    for (const attachment of message.attachments!) attachment.close()
    return [code, String(message), message.attachments!.length]
  })
  t.deepEqual(found, ['ERR_RINGFENCE_NO_SPACE', 'first', 2])
})

test.serial('messages that are queued behind replies keep their attachments, and a close drops them', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  await sendsBuffers(partner, 3)
  await partner.run((kit) => {
    void kit.channel.serve(() => 'reply')
  })
  t.is(String(await channel.call('request')), 'reply')
  using buffer = sealedIn(await channel.receive())
  t.true(pattern(0, 5).equals(buffer.bytes()))
  buffer.close()
  t.is(held().length, 2)
  t.is(
    channel.receiveEach(() => {}, 1),
    1,
  )
  t.is(held().length, 1)
  await channel.close()
  t.is(held().length, 0)
})

test.serial('an attachment that the kernel does not pass fails its message alone', async (t) => {
  const partner = await Partner.start(t, { through: ['env', 'UV_USE_IO_URING=1'] })
  const { channel } = await pair(t, { options: both, partner })
  const codes = await partner.run(async (kit) => {
    const fs = kit.require('node:fs') as typeof import('node:fs')
    await fs.promises.stat('/')
    const ring = fs.readdirSync('/proc/self/fd').find((fd) => {
      try {
        return fs.readlinkSync(`/proc/self/fd/${fd}`).includes('[io_uring]')
      } catch {
        return false
      }
    })
    // This Node or this kernel has no io_uring.
    if (ring === undefined) return null
    const { signal } = new AbortController()
    const attachments = [{ fd: Number(ring) }]
    const sent = [kit.channel.send('no', { attachments }), kit.channel.send('no', { attachments, signal })]
    const settled = await Promise.allSettled(sent)
    await kit.channel.send('yes')
    return settled.map((each) => (each.status === 'rejected' ? (each.reason as { code: string }).code : 'sent'))
  })
  if (codes === null) {
    t.pass('there is no io_uring')
    return
  }
  t.deepEqual(codes, ['ERR_RINGFENCE_INVALID_ARGUMENT', 'ERR_RINGFENCE_INVALID_ARGUMENT'])
  t.is(String(await channel.receive()), 'yes')
})

for (const limit of [{ maxCount: 4 }, { maxBytes: 20 }])
  test.serial(`a side that serves and receives nothing keeps no more than ${JSON.stringify(limit)}`, async (t) => {
    const { channel, partner } = await pair(t, { here: { attachments: { sealed: true, ...limit } } })
    void channel.serve(() => 'reply')
    const more = sendsBuffers(partner, 20)
    // Four are kept, and four are in the ring.
    await until(
      async () => (await partner.run((kit) => kit.channel.stats().messagesSent)) === 8,
      'eight messages are sent',
    )
    for (let count = 0; count < 20; count += 1) {
      await partner.run(() => {})
      t.is(channel.stats().attachmentsReceived, 4)
    }
    for (let number = 0; number < 20; number += 1) {
      using buffer = sealedIn(await within(channel.receive(), `message ${number}`))
      t.true(pattern(number, 5).equals(buffer.bytes()), `buffer ${number}`)
    }
    await more
    t.is(await partner.run(async (kit) => String(await kit.channel.call('request'))), 'reply')
  })

test.serial('a byte stream closes the attachments of its messages', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  await sendsBuffers(partner, 3)
  const stream = channel.duplex()
  let text = ''
  for await (const chunk of stream) {
    text += String(chunk)
    if (text === '012') break
  }
  t.is(held().length, 0)
})

test.serial('a channel of values closes what its codec cannot carry', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  await partner.run(async (kit) => {
    const fd = (kit.require('node:fs') as typeof import('node:fs')).openSync('/dev/zero', 'r')
    await kit.channel.send('{"a":1}', { attachments: [{ fd }] })
  })
  t.deepEqual(await channel.with(json()).receive(), { a: 1 })
  await until(() => held().length === 0, 'the descriptor is closed')
})

test.serial('a descriptor is closed or taken, once, and knows its kind', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  await partner.run(async (kit) => {
    const fs = kit.require('node:fs') as typeof import('node:fs')
    for (const path of ['/proc/self/exe', '/', '/dev/zero']) {
      const fd = fs.openSync(path, 'r')
      await kit.channel.send(path, { attachments: [{ fd }] })
      fs.closeSync(fd)
    }
  })
  const kinds = ['file', 'directory', 'device'] as const
  for (const kind of kinds) {
    using descriptor = descriptorIn(await channel.receive())
    t.is(descriptor.kind, kind)
    t.true(descriptor.fd > 2)
    if (kind !== 'device') continue
    const fd = descriptor.take()
    descriptor.close()
    t.true(fstatSync(fd).isCharacterDevice())
    t.throws(() => descriptor.take(), { code: 'ERR_RINGFENCE_CLOSED' })
    t.is(descriptor.fd, -1)
    const { closeSync } = await import('node:fs')
    closeSync(fd)
  }
})

test.serial('sockets, servers and files are passed as they are', async (t) => {
  const { channel, partner } = await pair(t, { there: both })
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const client = net.connect(port, '127.0.0.1')
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  const datagrams = dgram.createSocket('udp4').bind(0, '127.0.0.1')
  await once(datagrams, 'listening')
  const file = await zero(t)
  const attachments = [server, socket, datagrams, file, { fd: file.fd }]
  await channel.send('all', { attachments })
  const kinds = await partner.run(async (kit) => {
    const message = (await kit.channel.receive())!
    return (message.attachments as ReceivedDescriptor[]).map(({ kind }) => kind)
  })
  t.deepEqual(kinds, ['socket', 'socket', 'socket', 'device', 'device'])
  await file.close()
  for (const each of [client, socket]) each.destroy()
  datagrams.close()
  server.close()
})

interface Shapes {
  plain: SealedBuffer
  again: SealedBuffer
  list: SealedBuffer[]
  map: Map<string, SealedBuffer>
  set: Set<SealedBuffer>
  error: Error
  self?: Shapes
}

test.serial('structured() carries sealed buffers inside of values', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  await partner.run(async (kit) => {
    const buffers = [0, 1, 2, 3, 4].map((number) => kit.ringfence.SealedBuffer.from(kit.bytes.pattern(number, 10)))
    const [plain, inList, inMap, inSet, cause] = buffers as [
      SealedBuffer,
      SealedBuffer,
      SealedBuffer,
      SealedBuffer,
      SealedBuffer,
    ]
    const value: Shapes = {
      plain,
      again: plain,
      list: [plain, inList],
      map: new Map([['key', inMap]]),
      set: new Set([inSet]),
      error: new Error('with a cause', { cause }),
    }
    value.self = value
    const fd = (kit.require('node:fs') as typeof import('node:fs')).openSync('/dev/zero', 'r')
    const values = kit.channel.with(kit.ringfence.structured())
    await values.send(value, { attachments: [{ fd }] })
    await values.send({ none: 5 })
    await values.send(plain)
    await values.send({ visited: plain })
    values.port().postMessage([plain])
    for (const buffer of buffers) buffer.close()
  })
  const values = channel.with<unknown>(structured())
  const value = (await values.receive()) as Shapes
  t.is(value.self, value)
  t.is(value.again, value.plain)
  t.is(value.list[0], value.plain)
  const found = [
    value.plain,
    value.list[1]!,
    value.map.get('key')!,
    [...value.set][0]!,
    value.error.cause as SealedBuffer,
  ]
  for (const [number, buffer] of found.entries()) {
    t.true(buffer instanceof SealedBuffer)
    t.true(pattern(number, 10).equals(buffer.bytes()), `buffer ${number}`)
    buffer.close()
  }
  await until(() => held(/^\/dev\/zero/).length === 0, 'the further attachment is closed')
  t.deepEqual(await values.receive(), { none: 5 })
  const alone = (await values.receive()) as SealedBuffer
  t.is(alone.byteLength, 10)
  alone.close()
  await values.waitReadable()
  const visited: { visited: SealedBuffer }[] = []
  values.receiveEach((each) => visited.push(each as { visited: SealedBuffer }), 1)
  t.true(pattern(0, 10).equals(visited[0]!.visited.bytes()))
  visited[0]!.visited.close()
  const port = values.port()
  const [posted] = (await once(port, 'message')) as [[SealedBuffer]]
  t.true(pattern(0, 10).equals(posted[0].bytes()))
  posted[0].close()
})

/** A partner that has subscribed. */
async function subscriber(t: ExecutionContext, address: string, options: SubscribeOptions): Promise<Partner> {
  const partner = await Partner.start(t)
  await partner.run(
    async (kit, where: string, how: SubscribeOptions) => {
      kit.keep['subscription'] = await kit.ringfence.subscribe(where, how)
    },
    address,
    options,
  )
  return partner
}

/** Reads to the end, and returns each message with the size of its first sealed buffer. */
async function readsAll(kit: Kit): Promise<[string, number | undefined][]> {
  const subscription = kit.keep['subscription'] as Subscription
  const found: [string, number | undefined][] = []
  for await (const message of subscription) {
    const buffer = message.attachments?.[0] as SealedBuffer | undefined
    if (buffer !== undefined && !kit.bytes.pattern(found.length, buffer.byteLength).equals(buffer.bytes()))
      throw new Error(`${message} has other bytes`)
    found.push([message.toString(), buffer?.byteLength])
    buffer?.close()
  }
  found.push(['received', subscription.stats().attachmentsReceived])
  return found
}

test.serial('each subscriber that accepts them gets the attachments of a publisher', async (t) => {
  const publisher = await publish(abstractAddress(), { capacity: 65_536 })
  t.teardown(() => publisher.close())
  const { address } = publisher
  const reliable = await subscriber(t, address, both)
  const bestEffort = await subscriber(t, address, { ...both, delivery: 'best-effort' })
  const without = await subscriber(t, address, {})
  await until(() => publisher.subscribers.length === 3, 'each is connected')
  for (let number = 0; number < 10; number += 1) {
    using buffer = SealedBuffer.from(pattern(number, 100 + number))
    await publisher.send(`${number}`, number % 2 === 0 ? { attachments: [buffer] } : undefined)
  }
  t.like(publisher.stats(), { messagesSent: 10, attachmentsSent: 10, attachmentsWithheld: 5 })
  await publisher.end()
  const sent = Array.from({ length: 10 }, (_, number): [string, number | undefined] => [
    `${number}`,
    number % 2 === 0 ? 100 + number : undefined,
  ])
  t.deepEqual(await reliable.run(readsAll), [...sent, ['received', 5]])
  t.deepEqual(await bestEffort.run(readsAll), [...sent, ['received', 5]])
  t.deepEqual(await without.run(readsAll), [
    ...sent.map(([text]): [string, undefined] => [text, undefined]),
    ['received', 0],
  ])
})

test.serial('a publisher waits while a reliable subscriber holds as much as it accepts', async (t) => {
  const publisher = await publish(abstractAddress())
  t.teardown(() => publisher.close())
  const accepted = { attachments: { descriptors: true, maxCount: 2 } }
  const reliable = await subscriber(t, publisher.address, accepted)
  const bestEffort = await subscriber(t, publisher.address, { ...accepted, delivery: 'best-effort' })
  await until(() => publisher.subscribers.length === 2, 'both are connected')
  const file = await zero(t)
  let sent = 0
  const all = [1, 2, 3, 4].map(async () => {
    await publisher.send('x', { attachments: [file] })
    sent += 1
  })
  await until(() => sent === 2, 'two are sent')
  await new Promise(setImmediate)
  t.is(sent, 2)
  const stop = new AbortController()
  const aborted = publisher.send('aborted', { attachments: [file], signal: stop.signal })
  stop.abort()
  await t.throwsAsync(aborted, { name: 'AbortError' })
  const read = (kit: Kit) => (kit.keep['subscription'] as Subscription).receive().then(String)
  for (let count = 0; count < 4; count += 1) t.is(await reliable.run(read), 'x')
  await Promise.all(all)
  t.like(publisher.stats(), { attachmentsSent: 6, attachmentsWithheld: 2 })
  // Its unread attachments are closed with it.
  await bestEffort.kill()
  await until(() => publisher.subscribers.length === 1, 'it is gone')
  await file.close()
})

test.serial('a merge of subscriptions, and subscriptions of values, deliver attachments', async (t) => {
  const partner = await Partner.start(t)
  const address = abstractAddress()
  await partner.run(async (kit, where: string) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where)
  }, address)
  const one = await subscribe(address, both)
  t.teardown(() => one.close())
  const two = await subscribe(address, { ...both, codec: structured<{ frame: SealedBuffer }>() })
  t.teardown(() => two.close())
  await partner.run(async (kit) => {
    const values = (kit.keep['publisher'] as Publisher).with(kit.ringfence.structured())
    const frame = kit.ringfence.SealedBuffer.from(kit.bytes.pattern(7, 50))
    await values.send({ frame })
    frame.close()
  })
  using first = sealedIn((await merge([one]).receive())![1])
  t.true(pattern(7, 50).equals(first.bytes()))
  const { frame } = (await two.receive())!
  t.true(pattern(7, 50).equals(frame.bytes()))
  frame.close()
})

test.serial('a value with sealed buffers is sent whole or not at all', async (t) => {
  const { channel, partner } = await pair(t, { options: both })
  using buffer = SealedBuffer.from(pattern(1, 5))
  const values = channel.with<unknown>(structured())
  t.throws(() => values.trySend({ buffer }), invalid)
  await t.throwsAsync(values.call({ buffer }), invalid)
  t.throws(() => structured().encode(buffer), { instanceOf: TypeError })
  t.is(buffer.byteLength, 5)
  // The peer names an attachment that it has not sent.
  await partner.run(async (kit) => {
    const { serialize } = kit.require('node:v8') as typeof import('node:v8')
    const fd = (kit.require('node:fs') as typeof import('node:fs')).openSync('/dev/zero', 'r')
    for (const number of ['1', '0', 'x', '-1'])
      await kit.channel.send(serialize({ byteLength: `\0ringfence.sealed:${number}` }), { attachments: [{ fd }] })
    // Without any attachment, in both forms that strings have.
    await kit.channel.send(serialize([{ byteLength: '\0ringfence.sealed:0' }]))
    await kit.channel.send(serialize([{ byteLength: '\0ringfence.sealed:0\u{20ac}' }]))
    await kit.channel.send(serialize('last'))
  })
  for (let count = 0; count < 6; count += 1)
    await t.throwsAsync(values.receive(), { code: 'ERR_RINGFENCE_MALFORMED' }, `value ${count}`)
  await until(() => held().length === 1, 'each descriptor is closed')
  t.is(await values.receive(), 'last')
})

/** Runs an HTTP server on a descriptor that is received. */
async function servesReceived(kit: Kit): Promise<void> {
  const { createServer } = kit.require('node:http') as typeof http
  const message = (await kit.channel.receive())!
  const [descriptor] = message.attachments as [ReceivedDescriptor]
  const server = createServer((request, response) => response.end(`${request.url} by ${process.pid}`))
  kit.keep['server'] = server
  await new Promise<void>((resolve) => server.listen({ fd: descriptor.take() }, resolve))
}

test.serial('a listening socket is handed over for a restart, and no connection is lost', async (t) => {
  const { channel, partner } = await pair(t, { there: both })
  const server = http.createServer((request, response) => response.end(`${request.url} by ${process.pid}`))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const ask = async (path: string) =>
    (await fetch(`http://127.0.0.1:${port}${path}`, { headers: { connection: 'close' } })).text()
  const answers = new Set<string>()
  let over = false
  let asked = 0
  const asking = (async () => {
    while (!over) {
      const path = `/${(asked += 1)}`
      const answer = await ask(path)
      const [before, pid] = answer.split(' by ')
      if (before !== path) throw new Error(`another answer: ${answer}`)
      answers.add(pid!)
    }
  })()
  const serving = partner.run(servesReceived)
  await channel.send('serve', { attachments: [server] })
  await serving
  await new Promise((resolve) => server.close(resolve))
  t.is(await ask('/last'), `/last by ${partner.pid}`)
  over = true
  await asking
  t.true(answers.has(String(partner.pid)))
})

test.serial('a connected socket is handed over, and served there', async (t) => {
  const { channel, partner } = await pair(t, { there: both })
  const server = net.createServer({ pauseOnConnect: true }).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const client = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1')
  client.write('sent before; ')
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  const served = partner.run(async (kit) => {
    const { Socket } = kit.require('node:net') as typeof net
    const message = (await kit.channel.receive())!
    const [descriptor] = message.attachments as [ReceivedDescriptor]
    const connection = new Socket({ fd: descriptor.take() })
    let text = ''
    for await (const chunk of connection) {
      text += String(chunk)
      if (text.endsWith('end')) break
    }
    return text
  })
  await channel.send('serve', { attachments: [socket] })
  socket.destroy()
  client.write('sent afterwards; end')
  t.is(await served, 'sent before; sent afterwards; end')
  client.destroy()
})

test.serial('a file and a datagram socket work in the process that gets them', async (t) => {
  const { channel, partner } = await pair(t, { there: both })
  const file = await open(process.execPath)
  const datagrams = dgram.createSocket('udp4').bind(0, '127.0.0.1')
  await once(datagrams, 'listening')
  await channel.send('both', { attachments: [file, datagrams] })
  await file.close()
  const { port } = datagrams.address()
  const ready = partner.run(async (kit) => {
    const { createSocket } = kit.require('node:dgram') as typeof dgram
    const { readSync } = kit.require('node:fs') as typeof import('node:fs')
    const message = (await kit.channel.receive())!
    const [from, socket] = message.attachments as [ReceivedDescriptor, ReceivedDescriptor]
    const start = Buffer.alloc(4)
    readSync(from.fd, start, 0, 4, 0)
    from.close()
    const received = createSocket('udp4')
    kit.keep['datagram'] = new Promise((resolve) => received.once('message', (text) => resolve(String(text))))
    await new Promise<void>((resolve) => received.bind({ fd: socket.take() }, resolve))
    return start.toString('latin1')
  })
  t.is(await ready, '\x7fELF')
  datagrams.close()
  const sender = dgram.createSocket('udp4')
  sender.send('a datagram', port, '127.0.0.1')
  t.is(
    await within(
      partner.run((kit) => kit.keep['datagram'] as Promise<string>),
      'the datagram',
    ),
    'a datagram',
  )
  sender.close()
})

test.serial('a gigabyte is passed without a copy', async (t) => {
  const size = 2 ** 30
  const { channel, partner } = await pair(t, { there: { attachments: { sealed: true } } })
  const buffer = await SealedBuffer.create(size, (bytes) => {
    bytes[0] = 1
    bytes[size - 1] = 2
  })
  await channel.send('a gigabyte', { attachments: [buffer] })
  buffer.close()
  const found = await partner.run(async (kit) => {
    const message = (await kit.channel.receive())!
    const [received] = message.attachments as [SealedBuffer]
    const bytes = received.bytes()
    const ends = [bytes.length, bytes[0], bytes.at(-1)]
    received.close()
    return ends
  })
  t.deepEqual(found, [size, 1, 2])
})

test.serial('garbage collection closes attachments that the program forgets', async (t) => {
  const partner = await Partner.start(t, { node: ['--expose-gc'] })
  const { channel } = await pair(t, { there: both, partner })
  const file = await zero(t)
  const buffer = SealedBuffer.from(pattern(1, 5))
  for (let count = 0; count < 20; count += 1) await channel.send('x', { attachments: [buffer, file] })
  buffer.close()
  await file.close()
  await partner.run(async (kit) => {
    for (let count = 0; count < 20; count += 1) await kit.channel.receive()
  })
  await until(async () => {
    await partner.run(() => globalThis.gc!())
    return (await partner.run(countHeld)) === 0
  }, 'every attachment is closed')
  t.is(channel.stats().attachmentsSent, 40)
})
