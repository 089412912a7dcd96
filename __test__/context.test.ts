// The async context (AsyncLocalStorage) in which callbacks of the program run: that of the call that made the object or took the callback.

import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

import test from 'ava'
import { json, type Channel } from 'ringfence'

import { abstractAddress } from './support/address.js'
import { joinHere, listenHere, pair, Partner } from './support/partner.js'
import { until } from './support/until.js'

const storage = new AsyncLocalStorage<string>()

test('handlers of calls and their signals', async (t) => {
  const { channel, partner } = await pair(t)
  const handlers: unknown[] = []
  const aborted = new Promise((resolve) => {
    const handler = (request: Buffer, { signal }: { signal: AbortSignal }) => {
      handlers.push(storage.getStore())
      if (String(request) !== 'hang') return 'served'
      return new Promise<string>((finish) => {
        signal.addEventListener('abort', () => {
          resolve(storage.getStore())
          finish('late')
        })
      })
    }
    void storage.run('serve', () => channel.serve(handler))
  })
  await partner.run(async (kit) => {
    void kit.channel.serve(() => 'served')
    for (let number = 0; number < 3; number += 1) await kit.channel.call('quick')
  })
  // The answer and a request of the peer are read together.
  const answered = storage.run('stranger', () => channel.call('anything'))
  await partner.run(async (kit) => {
    const over = new AbortController()
    const hanging = kit.channel.call('hang', { signal: over.signal })
    await kit.channel.call('quick')
    over.abort()
    await hanging.catch(() => {})
  })
  await answered
  t.deepEqual(
    handlers,
    Array.from({ length: 5 }, () => 'serve'),
  )
  t.is(await aborted, 'serve')
})

test('events of a listener and its channels', async (t) => {
  const seen: unknown[] = []
  const see = (event: string) => () => seen.push([event, storage.getStore()])
  const policy = {
    authorize: () => {
      see('authorize')()
      return true
    },
  }
  const address = abstractAddress()
  const listener = await storage.run('listen', () => listenHere(t, address, { policy }))
  for (const event of ['connection', 'disconnect', 'close'] as const) listener.on(event, see(event))
  const connected = once(listener, 'connection') as Promise<[Channel]>
  const partner = await Partner.start(t)
  await partner.connect(address)
  const [channel] = await connected
  const ended = once(channel, 'close')
  channel.on('close', see('close of the channel'))
  await storage.run('stranger', () => partner.run((kit) => kit.channel.close()))
  await ended
  const closed = once(listener, 'close')
  await storage.run('stranger', () => listener.close())
  await closed
  t.deepEqual(Object.fromEntries(seen as [string, unknown][]), {
    authorize: 'listen',
    connection: 'listen',
    'close of the channel': 'listen',
    disconnect: 'listen',
    close: 'listen',
  })
})

test('the callback of a policy and the end of a joined channel', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  const joined = partner.join(address)
  let asked: unknown
  const authorize = () => {
    asked = storage.getStore()
    return true
  }
  const channel = await storage.run('join', () => joinHere(t, address, { policy: { authorize } }))
  await joined
  t.is(asked, 'join')
  const ended = new Promise((resolve) => channel.on('close', () => resolve(storage.getStore())))
  await storage.run('stranger', () => channel.close())
  t.is(await ended, 'join')
})

test('data of a stream that another context reads', async (t) => {
  const { channel, partner } = await pair(t)
  const stream = storage.run('duplex', () => channel.duplex())
  const seen = new Promise((resolve) => {
    storage.run('stranger', () => stream.once('data', () => resolve(storage.getStore())))
  })
  // The stream waits for data before there are any.
  await new Promise((resolve) => setImmediate(resolve))
  await partner.run((kit) => kit.channel.send('data'))
  t.is(await seen, 'duplex')
})

test('an awaited message belongs to the caller', async (t) => {
  const { channel, partner } = await pair(t)
  const received = storage.run('receive', async () => {
    const message = await channel.receive()
    return [String(message), storage.getStore()]
  })
  await partner.run((kit) => kit.channel.send('hello'))
  t.deepEqual(await received, ['hello', 'receive'])
})

test('a channel keeps a view, and its context, only while the view has listeners', async (t) => {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  const { channel } = await pair(t)
  const noop = () => {}
  const ways: Record<string, (view: Channel<unknown, unknown>) => unknown> = {
    none: noop,
    off: (view) => view.on('close', noop).off('close', noop),
    once: (view) => view.once('close', noop).removeListener('close', noop),
    prepended: (view) => view.prependOnceListener('close', noop).off('close', noop),
    'the last of two': (view) => view.on('close', noop).on('close', noop).off('close', noop).off('close', noop),
    all: (view) => view.on('close', noop).removeAllListeners(),
    'all of an event': (view) => view.addListener('close', noop).removeAllListeners('close'),
    again: (view) => view.removeAllListeners().on('close', noop),
  }
  const contexts = new AsyncLocalStorage<object>()
  const kept = new Map<string, WeakRef<object>>()
  for (const [how, listen] of Object.entries(ways))
    contexts.run({}, () => {
      const view = channel.with(json())
      listen(view)
      kept.set(how, new WeakRef(view)).set(`the context of ${how}`, new WeakRef(contexts.getStore()!))
    })
  const left = () => {
    gc()
    return [...kept].filter(([, view]) => view.deref() !== undefined).map(([how]) => how)
  }
  await until(() => left().length <= 2, 'those without listeners are collected')
  t.deepEqual(left(), ['again', 'the context of again'])
})
