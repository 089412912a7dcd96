// A channel as a MessagePort behaves like Node's own.

import { once } from 'node:events'
import { createRequire } from 'node:module'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { MessageChannel } from 'node:worker_threads'

import test, { type ExecutionContext } from 'ava'
import { json, RingfenceError, SealedBuffer, type Codec, type MessagePortLike } from 'ringfence'

import { pair, type Pair } from './support/partner.js'
import { isPending, within, until } from './support/until.js'

const require = createRequire(import.meta.url)
const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const

/** A port in the partner that echoes messages. */
async function ports(t: ExecutionContext, settings = {}): Promise<Pair & { port: MessagePortLike }> {
  const made = await pair(t, settings)
  await made.partner.run((kit) => {
    const port = kit.channel.port()
    port.on('message', (value) => port.postMessage(value))
    const said: string[] = []
    port.on('close', () => said.push('close'))
    port.on('messageerror', (error: Error) => said.push(error.name))
    kit.keep['said'] = said
    kit.keep['port'] = port
  })
  return { ...made, port: made.channel.port() }
}

const values: unknown[] = [1, 'text', null, undefined, { a: [1n, new Map([[1, new Date(0)]])] }, new Uint8Array([1, 2])]

test.serial('values are exchanged with on, once, addEventListener and onmessage', async (t) => {
  const { port } = await ports(t)
  const found: [string, unknown][] = []
  port.on('message', (value: unknown) => found.push(['on', value]))
  port.once('message', (value: unknown) => found.push(['once', value]))
  port.addEventListener('message', (event: MessageEvent) => found.push(['event', event.data]))
  port.addEventListener('message', { handleEvent: (event: MessageEvent) => found.push(['object', event.data]) })
  port.addEventListener('message', (event: MessageEvent) => found.push(['event once', event.data]), { once: true })
  port.onmessage = (event) => {
    t.is(event.type, 'message')
    t.is(event.target as unknown, port)
    found.push(['onmessage', event.data])
  }
  for (const value of values) port.postMessage(value)
  await until(() => found.filter(([kind]) => kind === 'onmessage').length === values.length, 'all came back')
  const once1 = ['on', 'once', 'event', 'object', 'event once', 'onmessage']
  const kinds = ['on', 'event', 'object', 'onmessage']
  // An event has null instead of undefined, like Node's own.
  const as = (kind: string, value: unknown) => (kind.startsWith('on') && kind !== 'onmessage' ? value : (value ?? null))
  const wanted = values.flatMap((value, index) => (index === 0 ? once1 : kinds).map((kind) => [kind, as(kind, value)]))
  t.deepEqual(found, wanted as typeof found)
  t.is(port.listenerCount('message'), 4)
  t.deepEqual(await (port.postMessage('awaited'), once(port, 'message')), ['awaited'])
})

test.serial('a port starts with its first listener of any kind, stops with its last, and loses nothing', async (t) => {
  const { channel, partner } = await pair(t)
  const port = channel.with(json()).port()
  t.false(port.hasRef(), 'without a listener it keeps no process alive')
  for (let number = 0; number < 10; number += 1)
    await partner.run((kit, what: number) => kit.channel.send(String(what)), number)
  const found: unknown[] = []
  const take = (value: unknown) => {
    found.push(value)
    if (found.length === 3) port.off('message', take)
  }
  port.on('message', take)
  t.true(port.hasRef())
  await until(() => found.length === 3, 'three have come')
  t.false(port.hasRef())
  t.is(await isPending(channel.closed), true)
  t.deepEqual(found, [0, 1, 2])
  const event = (message: MessageEvent) => {
    found.push(message.data)
    if (found.length === 6) port.removeEventListener('message', event)
  }
  port.addEventListener('message', event)
  port.addEventListener('message', event)
  await until(() => found.length === 6, 'six have come')
  port.onmessage = ({ data }) => {
    found.push(data)
    if (found.length === 8) port.onmessage = null
  }
  await until(() => found.length === 8, 'eight have come')
  const controller = new AbortController()
  port.addEventListener('message', (message: MessageEvent) => found.push(message.data), { signal: controller.signal })
  await until(() => found.length === 10, 'all have come')
  controller.abort()
  t.is(port.listenerCount('message'), 0)
  t.deepEqual(found, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  t.is(port.onmessage as unknown, null)
})

test.serial(
  'messages posted before close are sent, then both sides emit close, and posting does nothing',
  async (t) => {
    const { port, partner, channel } = await ports(t, { here: { capacity: 4096 } })
    await partner.run((kit) => {
      const sizes: number[] = []
      ;(kit.keep['port'] as MessagePortLike)
        .removeAllListeners('message')
        .on('message', (text: string) => sizes.push(text.length))
      kit.keep['sizes'] = sizes
    })
    const closed = once(port, 'close')
    for (const size of [10, 100_000, 20]) port.postMessage('x'.repeat(size))
    port.close()
    port.close()
    t.notThrows(() => port.postMessage('late'))
    await within(closed, 'close here')
    await until(() => partner.run((kit) => (kit.keep['said'] as string[]).includes('close')), 'close over there')
    t.deepEqual(await partner.run((kit) => kit.keep['sizes']), [10, 100_000, 20])
    t.is((await channel.closed).reason, 'closed')
    t.notThrows(() => port.postMessage('later'))
    t.notThrows(() => port.postMessage({ f: 1 }))
  },
)

test.serial('messages of a killed peer arrive, then close', async (t) => {
  const { port, partner } = await ports(t)
  await partner.run((kit) => {
    for (let number = 0; number < 100; number += 1) (kit.keep['port'] as MessagePortLike).postMessage(number)
  })
  await partner.kill()
  const found: unknown[] = []
  port.on('message', (value: unknown) => found.push(value))
  await within(once(port, 'close'), 'close')
  t.deepEqual(
    found,
    Array.from({ length: 100 }, (_, index) => index),
  )
  t.notThrows(() => port.postMessage('late'))
})

test.serial('close is emitted without a message listener, too, and to onclose', async (t) => {
  const { channel, partner } = await pair(t)
  const port = channel.port()
  const closed = new Promise<string>((resolve) => {
    port.onclose = ({ type }) => resolve(type)
  })
  await partner.kill()
  t.is(await within(closed, 'close'), 'close')
})

test.serial('values that cannot be posted and transfer lists throw, and nothing is sent', async (t) => {
  const { channel, port } = await ports(t, { there: { maxMessageSize: 1000 } })
  t.throws(() => port.postMessage(() => {}), { any: true, name: 'DataCloneError' })
  const closed = SealedBuffer.from(Buffer.from('closed'))
  closed.close()
  const foreign = (require('ringfence') as typeof import('ringfence')).SealedBuffer.from(Buffer.from('foreign'))
  for (const buffer of [closed, foreign])
    t.throws(() => port.postMessage({ buffer }), { any: true, name: 'DataCloneError' })
  const full = new RingfenceError('NO_SPACE', 'no memory for the bytes')
  const encode = () => {
    throw full
  }
  t.is(
    t.throws(() => channel.with({ encode, decode: Number }).port().postMessage(1)),
    full,
  )
  const memory = new ArrayBuffer(8)
  t.throws(() => port.postMessage(memory, [memory]), invalid)
  t.throws(() => port.postMessage(memory, { transfer: [memory] }), invalid)
  t.is(memory.byteLength, 8)
  t.throws(() => port.postMessage('x'.repeat(2000)), { code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' })
  port.postMessage('one', [])
  port.postMessage('two', {})
  const found: unknown[] = []
  port.on('message', (value: unknown) => found.push(value))
  await until(() => found.length === 2, 'both came back')
  t.deepEqual(found, ['one', 'two'])
})

test.serial('a message that is posted during a reservation is reported as not sent', async (t) => {
  const { channel, port } = await ports(t)
  const errors: RingfenceError[] = []
  port.on('messageerror', (error: RingfenceError) => errors.push(error))
  const found: unknown[] = []
  port.on('message', (value: unknown) => found.push(value))
  const reservation = channel.reserve(100)!
  port.postMessage('between')
  reservation.cancel()
  port.postMessage('after')
  const givenUp = new Error('given up')
  const fill = () =>
    channel.fill(100, () => {
      port.postMessage('within')
      throw givenUp
    })
  t.is(t.throws(fill), givenUp)
  await until(() => found.length === 1, 'what went came back')
  t.deepEqual(found, ['after'])
  t.deepEqual(
    errors.map(({ code }) => code),
    ['ERR_RINGFENCE_INVALID_ARGUMENT', 'ERR_RINGFENCE_INVALID_ARGUMENT'],
  )
})

test.serial('a malformed message is a messageerror, and the next one arrives', async (t) => {
  const { channel, partner } = await pair(t)
  const port = channel.with(json()).port()
  const found: unknown[] = []
  port.on('message', (value: unknown) => found.push(value))
  port.on('messageerror', (error: RingfenceError) => found.push(error.code))
  port.onmessageerror = (event) => found.push(String((event.data as RingfenceError).bytes))
  await partner.run(async (kit) => {
    for (const text of ['1', '{', '2']) await kit.channel.send(text)
  })
  await until(() => found.length === 4, 'all have come')
  t.deepEqual(found, [1, 'ERR_RINGFENCE_MALFORMED', '{', 2])
})

test.serial('a port with one listener after another keeps nothing of the earlier ones', async (t) => {
  const count = 20_000
  const { port, partner } = await ports(t)
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  const there = partner.run(async (kit, most: number) => {
    for (let number = 0; number < most; number += 1) {
      ;(kit.keep['port'] as MessagePortLike).postMessage(number)
      if (number % 100 === 0) await kit.until.turn()
    }
  }, count)
  gc()
  const before = process.memoryUsage().heapUsed
  for (let number = 0; number < count; number += 1) {
    const [value] = (await once(port, 'message')) as [number]
    if (value !== number) t.fail(`${value} came in place of ${number}`)
  }
  await there
  gc()
  const each = (process.memoryUsage().heapUsed - before) / count
  // It was 1060 in an earlier version, and was never freed.
  t.true(each < 300, `${each} bytes are kept of each`)
})

test.serial('a listener that is removed right after it was called costs no message', async (t) => {
  const { channel, partner } = await pair(t)
  const wanted = Array.from({ length: 30 }, (_, number) => number)
  await partner.run(async (kit, numbers: number[]) => {
    await Promise.all(numbers.map((value) => kit.channel.send(JSON.stringify(value))))
  }, wanted)
  const port = channel.with(json()).port()
  const found: number[] = []
  const first = (value: number) => {
    found.push(value)
    if (value % 10 === 5) queueMicrotask(() => port.off('message', first))
  }
  while (found.length < wanted.length) {
    port.on('message', first)
    await until(() => port.listenerCount('message') === 0 || found.length === wanted.length, 'the next have come')
  }
  t.deepEqual(found, wanted)
})

test.serial('an exception of a listener stops neither other listeners nor later messages', async (t) => {
  const { channel, partner } = await pair(t)
  const there = partner.run(async (kit) => {
    const uncaught: string[] = []
    process.on('uncaughtException', (error) => uncaught.push(error.message))
    const port = kit.channel.with(kit.ringfence.json()).port()
    const found: unknown[] = []
    port.on('message', (value: number) => {
      throw new Error(`at ${value}`)
    })
    port.on('message', (value: unknown) => found.push(value))
    await kit.until.until(() => found.length === 2, 'both have come')
    return { uncaught, found }
  })
  for (const value of [1, 2]) await channel.send(String(value))
  t.deepEqual(await there, { uncaught: ['at 1', 'at 2'], found: [1, 2] })
})

test.serial('an uncaught exception of a listener ends the program before the next message', async (t) => {
  const { channel, partner } = await pair(t)
  partner.mayFail()
  await partner.run((kit) => {
    kit.channel
      .with(kit.ringfence.json())
      .port()
      .on('message', (value: number) => {
        kit.channel.trySend(String(value))
        throw new Error('of the listener')
      })
  })
  // The port waits for these messages.
  void channel.send('1')
  void channel.send('2')
  t.is((await partner.exited).code, 1)
  t.is(String(await channel.receive()), '1')
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
})

test.serial('an exception precedes the next message, also if that has another listener', async (t) => {
  const { channel, partner } = await pair(t)
  const there = partner.run(async (kit) => {
    const found: unknown[] = []
    process.on('uncaughtException', (error) => found.push(error.message))
    const port = kit.channel.with(kit.ringfence.json()).port()
    const listen = () => {
      port.once('message', (value: number) => {
        found.push(value)
        listen()
        throw new Error(`at ${value}`)
      })
    }
    listen()
    port.on('close', () => found.push('close'))
    await kit.until.until(() => found.includes('close'), 'the port has closed')
    return found
  })
  for (const value of [1, 2, 3]) void channel.send(String(value))
  await channel.close()
  t.deepEqual(await there, [1, 'at 1', 2, 'at 2', 3, 'at 3', 'close'])
})

test.serial('messages to a stalled peer are limited, and close drops them after a while', async (t) => {
  const { port, partner, channel } = await ports(t, { options: { maxMessageSize: 2 ** 30 } })
  await partner.stop()
  const chunk = new Uint8Array(32 * 1024 * 1024)
  const error = t.throws(
    () => {
      for (let count = 0; count < 100; count += 1) port.postMessage(chunk)
    },
    { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_NO_SPACE' },
  )
  t.regex(error.message, /the peer does not read/)
  t.true(channel.bufferedAmount < 400 * 1024 * 1024, String(channel.bufferedAmount))
  const closed = once(port, 'close')
  port.close()
  await closed
  t.is(channel.bufferedAmount, 0)
})

test.serial('a process that only listens lives as long as the port, like with a MessagePort', async (t) => {
  const { port1, port2 } = new MessageChannel()
  t.false((port1 as unknown as { hasRef(): boolean }).hasRef())
  port1.on('message', () => {})
  t.true((port1 as unknown as { hasRef(): boolean }).hasRef(), 'so does Node’s own')
  port1.close()
  port2.close()

  const { channel, partner } = await pair(t)
  await partner.run((kit) => {
    const port = kit.channel.port()
    port.on('message', () => {})
    port.on('close', () => (process.exitCode = 7))
  })
  const exited = partner.detach()
  partner.mayFail()
  t.true(await isPending(exited))
  await channel.close()
  t.is((await within(exited, 'its end')).code, 7)
})

test('wrong codecs and listeners are INVALID_ARGUMENT', async (t) => {
  const { channel } = await pair(t)
  for (const codec of [null, {}, 'json'])
    t.throws(() => channel.with(codec as unknown as Codec<unknown>).port(), invalid)
  const port = channel.port()
  t.throws(() => port.on('message', undefined as never), invalid)
  t.notThrows(() => port.addEventListener('message', null))
  t.notThrows(() => port.off('message', () => {}))
})

test.serial('a port that is closed while it reads the messages of a lost peer emits close', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    const port = kit.channel.port()
    for (const value of [1, 2, 3]) port.postMessage(value)
    port.close()
    await kit.channel.closed
  })
  const port = channel.port()
  t.is((await within(channel.closed, 'the end of the peer')).reason, 'closed')
  const closed = once(port, 'close')
  const found: unknown[] = []
  port.on('message', (value: unknown) => {
    found.push(value)
    if (value === 2) port.close()
  })
  await within(closed, 'the event')
  t.deepEqual(found, [1, 2])
})
