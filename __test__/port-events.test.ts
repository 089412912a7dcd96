// Unit tests of a port: its listeners, its state and its calls of the channel. port.test.ts uses it with a peer.

import { EventEmitter, getEventListeners, once } from 'node:events'
import { MessageChannel } from 'node:worker_threads'

import test from 'ava'
import { json, RingfenceError, type Channel, type Codec, type MessagePortLike } from 'ringfence'

import { internals } from './support/internals.js'
import { isPending, within, turn } from './support/until.js'

type Next = IteratorResult<unknown, undefined>

/** Not exported by the package. */
const { Port } = await internals<{
  Port: new (core: FakeCore, codec: Codec<unknown>, channel: Channel) => MessagePortLike
}>('adapters/port.js')

/** A fake channel, as far as a port uses one. */
class FakeCore {
  readonly calls: string[] = []
  readonly sent: unknown[] = []
  maxMessageSize = 1000
  bufferedAmount = 0
  isRead = false
  /** The error with which the next sends reject. */
  refusal: Error | undefined
  readonly closed: Promise<string>
  end!: () => void
  /** The channel that the port gets. */
  given!: Channel
  #calls: { resolve(next: Next): void; reject(error: unknown): void }[] = []
  #messages: (Buffer | Error | null)[] = []

  constructor() {
    this.closed = new Promise((resolve) => {
      this.end = () => resolve('closed')
    })
  }

  /** Adds a message, an error of the loop, or null: the end. */
  come(message: string | Error | null): void {
    this.#messages.push(typeof message === 'string' ? Buffer.from(message) : message)
    this.#serve()
  }

  #serve(): void {
    while (this.#calls.length > 0 && this.#messages.length > 0) {
      const { resolve, reject } = this.#calls.shift()!
      const message = this.#messages[0]
      // A message stays until it is taken.
      if (Buffer.isBuffer(message)) resolve({ done: false, value: undefined })
      else {
        this.#messages.shift()
        if (message instanceof Error) reject(message)
        else resolve({ done: true, value: undefined })
      }
    }
  }

  // A port uses these parts of a channel. Here one object is all of them.
  readonly native = this
  readonly queue = this
  readonly buffer = this

  arrivals() {
    this.calls.push('loop')
    return {
      next: () =>
        new Promise<Next>((resolve, reject) => {
          this.#calls.push({ resolve, reject })
          this.#serve()
        }),
      return: async () => {
        this.calls.push('leave')
        for (const { resolve } of this.#calls.splice(0)) resolve({ done: true, value: undefined })
        return { done: true, value: undefined }
      },
    }
  }

  endWithPeer(): void {
    this.calls.push('told')
  }

  keepAlive(alive: boolean): void {
    this.calls.push(alive ? 'ref' : 'unref')
  }

  async send(message: unknown): Promise<void> {
    this.sent.push(message)
    if (this.refusal !== undefined) throw this.refusal
  }

  async close(linger: number): Promise<void> {
    this.calls.push(`close ${linger}`)
    this.end()
  }

  tryReceive(): unknown {
    return this.#messages.shift() ?? null
  }

  /** The view that the port is made of. */
  get channel(): Channel {
    return { closed: this.closed } as unknown as Channel
  }
}

function portOf(): { core: FakeCore; port: MessagePortLike; calls: () => string[] } {
  const core = new FakeCore()
  core.given = core.channel
  const port = new Port(core, json(), core.given)
  // The calls since the last check.
  return { core, port, calls: () => core.calls.splice(0) }
}

const invalid = { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const

test('from its first to its last message listener, a port is started and keeps the process alive', async (t) => {
  const { port, calls } = portOf()
  t.deepEqual(calls(), ['unref'], 'without one it keeps no process alive')
  t.false(port.hasRef())
  const [one, two] = [() => {}, () => {}]
  for (const event of ['close', 'messageerror'] as const) {
    port.on(event, one)
    port.off(event, one)
  }
  t.deepEqual(calls(), [])
  port.on('message', one)
  t.deepEqual(calls(), ['ref', 'loop'])
  t.true(port.hasRef())
  port.on('message', two)
  port.off('message', one)
  port.off('message', one)
  port.off('close', two)
  await turn()
  t.deepEqual(calls(), [])
  port.off('message', two)
  t.deepEqual(calls(), ['unref', 'leave'])
  t.false(port.hasRef())
  port.off('message', two)
  t.deepEqual(calls(), [], 'of no listener none is removed')
  port.on('message', two)
  t.deepEqual(calls(), ['ref', 'loop'])
  port.unref()
  t.false(port.hasRef())
  port.ref()
  t.true(port.hasRef())
  t.deepEqual(calls(), ['unref', 'ref'])
  port.close()
  t.false(port.hasRef())
  port.ref()
  t.false(port.hasRef(), 'one that is closed keeps no process alive')
})

test('start reads messages without a listener, and works once', async (t) => {
  const { port, core, calls } = portOf()
  calls()
  port.start()
  port.start()
  t.deepEqual(calls(), ['loop'])
  core.come('"nobody hears it"')
  await turn()
  const found: unknown[] = []
  port.on('message', (value) => found.push(value))
  core.come('1')
  await turn()
  t.deepEqual(found, [1])
  t.deepEqual(calls(), ['ref'])
  port.close()
  calls()
  port.start()
  t.deepEqual(calls(), [])
})

test('the caller may add listeners before the first message is emitted', async (t) => {
  const { port, core } = portOf()
  core.come('1')
  const found: unknown[] = []
  port.on('message', (value) => found.push(['first', value]))
  port.on('message', (value) => found.push(['second', value]))
  await turn()
  t.deepEqual(found, [
    ['first', 1],
    ['second', 1],
  ])
})

test('listeners are counted, each once', (t) => {
  const { port } = portOf()
  const counts = () => (['message', 'messageerror', 'close'] as const).map((event) => port.listenerCount(event))
  const listener = () => {}
  t.deepEqual(counts(), [0, 0, 0])
  t.is(port.addListener('message', listener), port)
  port.addListener('message', listener)
  port.once('message', listener)
  port.addEventListener('message', listener)
  t.deepEqual(counts(), [1, 0, 0])
  t.is(port.removeListener('message', listener), port)
  t.deepEqual(counts(), [0, 0, 0])
  port.on('message', listener)
  port.off('message', () => {})
  t.deepEqual(counts(), [1, 0, 0], 'another listener was removed')
  port.on('close', listener).on('messageerror', listener)
  t.is(port.removeAllListeners('message'), port)
  t.deepEqual(counts(), [0, 1, 1])
  port.on('message', listener)
  port.removeAllListeners()
  t.deepEqual(counts(), [0, 0, 0])
})

test('a port is an emitter: an event of any name may have listeners', (t) => {
  const { port } = portOf()
  t.true(port instanceof EventEmitter)
  for (const event of ['other', '__proto__', 'constructor', 'toString']) {
    t.is(port.listenerCount(event), 0)
    const found: unknown[] = []
    t.is(
      port.on(event, (...values: unknown[]) => found.push(...values)),
      port,
    )
    port.addEventListener(event, ({ type }: Event) => found.push(type))
    t.is(port.listenerCount(event), 2)
    t.true(port.emit(event, 1, 2))
    t.deepEqual(found, [1, 2, event])
    t.is(port.removeAllListeners(event), port)
    t.false(port.emit(event))
  }
  const heard: unknown[] = []
  port.on('newListener', (name) => heard.push(name))
  port.prependListener('message', () => {})
  port.removeAllListeners()
  t.deepEqual(heard, ['message'])
  t.false(port.hasRef())
})

test('close calls back once the port has closed, whatever closes it', async (t) => {
  for (const by of ['close', 'the end of the channel'] as const) {
    const { port, core } = portOf()
    t.throws(() => port.close(5 as never), invalid)
    const found: string[] = []
    port.on('close', () => found.push('event'))
    core.isRead = true
    if (by === 'close') {
      port.close(() => found.push('first'))
      port.close(() => found.push('second'))
      t.deepEqual(found, [])
    } else core.end()
    await turn()
    t.deepEqual(found.splice(0), by === 'close' ? ['event', 'first', 'second'] : ['event'])
    port.close(() => found.push('late'))
    t.deepEqual(found, [])
    await turn()
    t.deepEqual(found, ['late'])
    t.is(port.channel, core.given)
  }
})

test('a listener is a function, or an object that handles events', (t) => {
  const { port } = portOf()
  const wrong = { ...invalid, message: /^a listener must be a function/ }
  for (const value of [undefined, null, 5, 'listener', {}])
    t.throws(() => port.on('message', value as never), wrong, String(value))
  for (const value of [undefined, 5, 'listener'])
    t.throws(() => port.addEventListener('message', value as never), wrong, String(value))
  t.notThrows(() => port.addEventListener('message', null))
  t.is(port.listenerCount('message'), 0)
  t.notThrows(() => port.addEventListener('message', { handleEvent() {} }))
  t.is(port.listenerCount('message'), 1)
})

test('a handler replaces the previous one', async (t) => {
  for (const [name, event] of [
    ['onmessage', 'message'],
    ['onmessageerror', 'messageerror'],
    ['onclose', 'close'],
  ] as const) {
    const { port } = portOf()
    t.is(port[name] as unknown, null)
    const [first, second] = [() => {}, () => {}]
    port[name] = first
    t.is(port[name], first)
    port[name] = second
    t.is(port[name], second as never)
    t.is(port.listenerCount(event), 1)
    port[name] = second
    t.is(port.listenerCount(event), 1)
    // The same function, added in both ways, is two listeners.
    port.addEventListener(event, first)
    port[name] = first
    t.is(port.listenerCount(event), 2)
    port[name] = null as never
    t.is(port.listenerCount(event), 1)
    t.is(port[name] as unknown, null)
    port[name] = 5 as never
    t.is(port[name] as unknown, null)
    t.is(port.listenerCount(event), 1)
  }
})

test('removing a handler removes no other listener, and the remaining ones get every message', async (t) => {
  const { port, core } = portOf()
  const found: string[] = []
  const [one, two] = [() => found.push('one'), () => found.push('two')]
  port.addEventListener('message', one)
  port.on('message', two)
  port.onmessage = () => found.push('handler')
  for (const value of ['1', '2']) core.come(value)
  await turn()
  t.deepEqual(found.splice(0), ['one', 'two', 'handler', 'one', 'two', 'handler'])
  port.onmessage = null
  core.come('3')
  await turn()
  t.deepEqual(found.splice(0), ['one', 'two'])
  port.removeEventListener('message', one)
  core.come('4')
  await turn()
  t.deepEqual(found, ['two'])
})

test('each listener is called according to its options', async (t) => {
  const { port, core } = portOf()
  const found: [string, unknown][] = []
  const events = new Set<Event>()
  port.on('message', function (this: unknown, value) {
    found.push(['on', value])
    t.is(this, port)
  })
  port.once('message', (value) => found.push(['once', value]))
  port.addEventListener('message', function (this: unknown, event: MessageEvent) {
    found.push(['event', event.data])
    events.add(event)
    t.is(this, port)
    t.is(event.type, 'message')
    for (const key of ['target', 'currentTarget', 'srcElement'] as const) t.is(event[key] as unknown, port)
  })
  const object = {
    handleEvent(this: unknown, event: MessageEvent) {
      found.push(['object', event.data])
      events.add(event)
      t.is(this, object)
    },
  }
  port.addEventListener('message', object)
  port.addEventListener('message', (event: MessageEvent) => found.push(['event once', event.data]), { once: true })
  port.addEventListener('message', (event: MessageEvent) => found.push(['capture', event.data]), true)
  port.addEventListener('message', (event: MessageEvent) => found.push(['null', event.data]), null as never)
  for (const value of ['1', '2']) core.come(value)
  await turn()
  const first = ['on', 'once', 'event', 'object', 'event once', 'capture', 'null'].map((kind) => [kind, 1])
  const second = ['on', 'event', 'object', 'capture', 'null'].map((kind) => [kind, 2])
  t.deepEqual(found, [...first, ...second] as typeof found)
  t.is(events.size, 2, 'one event a message')
})

/**
 * Programs that use a port, and the values that they find. `post` sends a message, and resolves once all sent messages
 * were emitted.
 */
const habits: Record<
  string,
  (port: MessagePortLike, found: unknown[], post: (value: number) => Promise<void>) => unknown
> = {
  'a listener is added twice': async (port, found, post) => {
    const listener = (value: unknown) => found.push(value)
    port.on('message', listener)
    port.on('message', listener)
    await post(1)
    found.push(port.listenerCount('message'))
    port.off('message', listener)
    found.push(port.listenerCount('message'), port.hasRef())
  },
  'a listener of values is added as one of events': async (port, found, post) => {
    const listener = (value: unknown) => found.push(typeof value)
    port.on('message', listener)
    port.addEventListener('message', listener)
    await post(1)
    port.removeEventListener('message', listener)
    found.push(port.listenerCount('message'))
  },
  'a listener of events is added as one of values': async (port, found, post) => {
    const listener = (value: unknown) => found.push(typeof value)
    port.addEventListener('message', listener)
    port.on('message', listener)
    await post(1)
    port.off('message', listener)
    found.push(port.listenerCount('message'))
  },
  'a listener is added once and for good': async (port, found, post) => {
    const listener = (value: unknown) => found.push(value)
    port.once('message', listener)
    port.on('message', listener)
    await post(1)
    found.push(port.listenerCount('message'))
    port.on('message', listener)
    port.once('message', listener)
    await post(2)
    await post(3)
    found.push(port.listenerCount('message'))
  },
  'a listener removes those behind it': async (port, found, post) => {
    const second = (value: unknown) => found.push(['second', value])
    port.on('message', (value) => {
      found.push(['first', value])
      port.off('message', second)
    })
    port.on('message', second)
    port.on('message', (value) => found.push(['third', value]))
    await post(1)
  },
  'a listener of events stops those behind it': async (port, found, post) => {
    port.on('message', (value) => found.push(['first', value]))
    let isStopping = true
    port.addEventListener('message', (event: MessageEvent) => {
      found.push(['second', event.data])
      if (isStopping) event.stopImmediatePropagation()
      isStopping = false
    })
    port.once('message', (value) => found.push(['third', value]))
    port.addEventListener('message', (event: MessageEvent) => found.push(['fourth', event.data]))
    await post(1)
    await post(2)
  },
  'the last listener adds one': async (port, found, post) => {
    port.once('message', (value) => {
      found.push(['first', value])
      port.on('message', (later) => found.push(['second', later]))
    })
    await post(1)
    await post(2)
  },
  'a listener for one message adds itself again': async (port, found, post) => {
    const listener = (value: unknown) => {
      found.push(value)
      port.once('message', listener)
    }
    port.once('message', listener)
    await post(1)
    await post(2)
  },
  'a handler is replaced, and removed': async (port, found, post) => {
    port.onmessage = () => found.push('handler')
    port.on('message', () => found.push('listener'))
    await post(1)
    port.onmessage = () => found.push('another')
    await post(2)
    port.onmessage = null
    await post(3)
    found.push(port.listenerCount('message'))
  },
  'a handler replaces itself': async (port, found, post) => {
    port.onmessage = () => {
      found.push('first')
      port.onmessage = () => found.push('second')
    }
    await post(1)
    await post(2)
  },
  'a listener is removed a moment after it was called': async (port, found, post) => {
    const listener = (value: unknown) => {
      found.push(value)
      queueMicrotask(() => port.off('message', listener))
    }
    port.on('message', listener)
    for (const value of [1, 2]) void post(value)
    await post(3)
    port.on('message', (value) => found.push(['later', value]))
    await post(4)
  },
  'a signal removes what was added with it, and not what was added again': async (port, found, post) => {
    const controller = new AbortController()
    port.addEventListener('message', () => found.push('event'), { signal: controller.signal })
    port.on('message', () => found.push('value'))
    await post(1)
    controller.abort()
    await post(2)
    found.push(port.listenerCount('message'))
  },
}

for (const [what, habit] of Object.entries(habits))
  test(`like Node’s own port: ${what}`, async (t) => {
    const own: unknown[] = []
    const { port, core } = portOf()
    await habit(port, own, async (value) => {
      core.come(String(value))
      await turn()
    })
    const nodes: unknown[] = []
    const { port1, port2 } = new MessageChannel()
    await habit(port1 as unknown as MessagePortLike, nodes, async (value) => {
      // A message that is posted later on another port is emitted later.
      const { port1: here, port2: there } = new MessageChannel()
      const arrived = once(here, 'message')
      port2.postMessage(value)
      there.postMessage(null)
      await arrived
      await turn()
      there.close()
    })
    port2.close()
    t.deepEqual(own, nodes)
    t.true(own.length > 0)
  })

test('an event that is stopped stays so, whatever other event is stopped during its dispatch', (t) => {
  const { port } = portOf()
  const found: unknown[] = []
  const events: Event[] = []
  port.addEventListener('message', (event: MessageEvent) => {
    found.push(event.data)
    events.push(event)
    event.stopImmediatePropagation()
    if (event.data === 'with another') port.emit('message', 'another')
    if (event.data === 'with an earlier one') events[0]!.stopImmediatePropagation()
  })
  port.on('message', (value) => found.push(['second', value]))

  for (const value of ['alone', 'with another', 'with an earlier one']) port.emit('message', value)
  t.deepEqual(found, ['alone', 'with another', 'another', 'with an earlier one'])
})

test('a listener that removes all listeners is the last one called', async (t) => {
  const { port, core } = portOf()
  const found: string[] = []
  port.on('message', () => {
    found.push('first')
    port.removeAllListeners('message')
  })
  port.on('message', () => found.push('second'))
  port.onmessage = () => found.push('third')
  core.come('1')
  await turn()
  t.deepEqual(found, ['first'])
  t.is(port.onmessage as unknown, null)
})

test('a listener that is added during a message gets the next one', async (t) => {
  const { port, core } = portOf()
  const found: string[] = []
  port.once('message', () => port.on('message', () => found.push('third')))
  port.on('message', () => found.push('second'))
  core.come('1')
  await turn()
  t.deepEqual(found, ['second'])
  core.come('2')
  await turn()
  t.deepEqual(found, ['second', 'second', 'third'])
})

test('a signal is watched only while its listener exists', async (t) => {
  const { port, core } = portOf()
  const { signal } = new AbortController()
  const watching = () => getEventListeners(signal, 'abort').length
  const first = new Promise((resolve) => port.addEventListener('message', resolve, { once: true, signal }))
  t.is(watching(), 1)
  core.come('1')
  await first
  t.is(watching(), 0)
  const listener = () => {}
  for (const remove of [() => port.removeEventListener('message', listener), () => port.removeAllListeners()]) {
    port.addEventListener('message', listener, { signal })
    t.is(watching(), 1)
    remove()
    t.is(watching(), 0)
  }
})

test('a signal removes an event listener, and one that is already aborted adds none', (t) => {
  const { port } = portOf()
  const controller = new AbortController()
  const { signal } = controller
  port.addEventListener('message', () => {}, { signal })
  port.addEventListener('close', () => {}, { signal })
  port.on('message', () => {})
  t.is(port.listenerCount('message'), 2)
  controller.abort()
  t.is(port.listenerCount('message'), 1)
  t.is(port.listenerCount('close'), 0)
  port.addEventListener('close', () => {}, { signal })
  t.is(port.listenerCount('close'), 0)
})

test('a signal that is none is refused, and nothing is added', (t) => {
  const { port } = portOf()
  for (const signal of [null, 5, 'signal', {}, new EventTarget()])
    t.throws(() => port.addEventListener('message', () => {}, { signal } as never), { ...invalid, message: /signal/ })
  t.is(port.listenerCount('message'), 0)
})

test('posted messages are sent, with no transfer list or an empty one', async (t) => {
  const { port, core } = portOf()
  for (const list of [undefined, null, [], {}, { transfer: undefined }, { transfer: null }, { transfer: [] }])
    port.postMessage(1, list as never)
  t.deepEqual(core.sent, Array(7).fill('1'))
  for (const list of [[new ArrayBuffer(8)], { transfer: [new ArrayBuffer(8)] }])
    t.throws(() => port.postMessage(1, list), { ...invalid, message: /nor a MessagePort can be transferred/ })
  for (const list of [new Set([1]), { transfer: new Set([1]) }])
    t.throws(() => port.postMessage(1, list as never), { ...invalid, message: /nor a MessagePort can be transferred/ })
  for (const list of [5, 'text', true, { transfer: 5 }, { transfer: {} }])
    t.throws(() => port.postMessage(1, list as never), { ...invalid, message: /^a transfer list must be an array/ })
  t.is(core.sent.length, 7)
})

test('a call of postMessage without a message throws', (t) => {
  const { port, core } = portOf()
  t.throws(() => Reflect.apply(port.postMessage, port, []), { ...invalid, message: 'postMessage needs a message' })
  t.is(core.sent.length, 0)
})

test('a message that is too long for the peer or for the memory throws at once', (t) => {
  const { core } = portOf()
  const codec: Codec<unknown> = { encode: (value) => value as string | Uint8Array, decode: (bytes) => bytes }
  const raw = new Port(core, codec, core.channel)
  for (const message of ['x'.repeat(1000), 'ü'.repeat(500), new Uint8Array(1000), new Float64Array(125)])
    raw.postMessage(message)
  t.is(core.sent.length, 4)
  const tooLarge = { code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE', message: /100[0-9] bytes/ }
  for (const message of ['x'.repeat(1001), 'ü'.repeat(501), new Uint8Array(1001), new Float64Array(126)])
    t.throws(() => raw.postMessage(message), tooLarge)
  core.bufferedAmount = 256 * 1024 * 1024
  raw.postMessage('x')
  t.is(core.sent.length, 5)
  core.bufferedAmount += 1
  t.throws(() => raw.postMessage('x'), { code: 'ERR_RINGFENCE_NO_SPACE' })
  t.is(core.sent.length, 5)
})

test('a failed send emits messageerror, unless the end of the channel reports it', async (t) => {
  const { port, core } = portOf()
  const found: unknown[] = []
  port.on('messageerror', (error) => found.push(error))
  for (const name of ['CLOSED', 'PEER_LOST', 'OBJECT_EXPOSED', 'RING_CORRUPT'] as const) {
    core.refusal = new RingfenceError(name, 'told by close')
    port.postMessage(1)
  }
  await turn()
  t.deepEqual(found, [])
  core.refusal = new RingfenceError('INVALID_ARGUMENT', 'a reservation is open')
  port.postMessage(1)
  await turn()
  t.deepEqual(found, [core.refusal])
})

test('a message that cannot be decoded is a messageerror, and the next one arrives', async (t) => {
  const { port, core } = portOf()
  const found: unknown[] = []
  port.on('messageerror', (error: RingfenceError) => found.push(error.code))
  port.addEventListener('messageerror', (event: MessageEvent) => {
    found.push(event.type, (event.data as RingfenceError).code)
  })
  port.on('message', (value) => found.push(value))
  core.come('{')
  core.come('2')
  await turn()
  t.deepEqual(found, ['ERR_RINGFENCE_MALFORMED', 'messageerror', 'ERR_RINGFENCE_MALFORMED', 2])
})

test('a message without memory is read again later; after other failures the port waits for the end', async (t) => {
  const { port, core } = portOf()
  const found: unknown[] = []
  port.on('messageerror', (error: RingfenceError) => found.push(error.code))
  port.on('message', (value) => found.push(value))
  port.on('close', () => found.push('close'))
  core.come(new RingfenceError('NO_SPACE', 'no memory'))
  core.come('1')
  await within(once(port, 'message'), 'the message')
  core.come(new RingfenceError('INVALID_ARGUMENT', 'another reads'))
  core.come('2')
  await turn()
  t.deepEqual(found, ['ERR_RINGFENCE_NO_SPACE', 1, 'ERR_RINGFENCE_INVALID_ARGUMENT'])
  core.end()
  await turn()
  t.deepEqual(found.at(-1), 'close')
})

test('only close reports the loss of the peer', async (t) => {
  for (const name of ['CLOSED', 'PEER_LOST', 'OBJECT_EXPOSED', 'RING_CORRUPT'] as const) {
    const { port, core } = portOf()
    const found: unknown[] = []
    port.on('messageerror', (error: RingfenceError) => found.push(error.code))
    port.on('message', (value) => found.push(value))
    port.on('close', () => found.push('close'))
    core.come('1')
    core.come(new RingfenceError(name, 'the end of the channel'))
    await turn()
    core.end()
    await turn()
    t.deepEqual(found, [1, 'close'], name)
  }
})

test('close sends posted messages first, and is emitted once', async (t) => {
  const { port, core, calls } = portOf()
  const found: unknown[] = []
  port.on('message', (value) => found.push(value))
  port.on('close', (value) => found.push(['close', value]))
  port.onclose = (event) => found.push([event.type, 'data' in event])
  calls()
  port.close()
  port.close()
  t.deepEqual(calls(), ['leave', 'close 5000'])
  port.postMessage(1)
  t.throws(() => port.postMessage(1, [new ArrayBuffer(8)]), invalid)
  t.deepEqual(core.sent, [], 'nothing is sent from then on')
  t.deepEqual(found, [], 'not within the call')
  await turn()
  t.deepEqual(found, [
    ['close', undefined],
    ['close', false],
  ])
  core.come('1')
  core.end()
  port.close()
  await turn()
  t.is(found.length, 2)
})

test('the end of the peer’s messages closes the channel, and then emits close', async (t) => {
  const { port, core, calls } = portOf()
  const found: unknown[] = []
  port.on('message', (value) => found.push(value))
  port.on('close', () => found.push('close'))
  calls()
  core.come('1')
  core.come(null)
  await turn()
  t.deepEqual(calls().slice(0, 2), ['told', 'close 5000'])
  t.deepEqual(found, [1, 'close'])
  port.postMessage(1)
  t.deepEqual(core.sent, [])
})

test('a channel that has ended ends a port that was not started, once no message is left', async (t) => {
  for (const isRead of [true, false]) {
    const { port, core } = portOf()
    core.isRead = isRead
    const found: unknown[] = []
    port.on('close', () => found.push('close'))
    core.end()
    await turn()
    t.deepEqual(found, isRead ? ['close'] : [], `everything was read: ${isRead}`)
    if (isRead) continue
    port.on('message', (value) => found.push(value))
    core.come('1')
    core.come(null)
    await turn()
    t.deepEqual(found, [1, 'close'])
  }
})

test('a started port reports the end of its channel after all messages', async (t) => {
  const { port, core } = portOf()
  core.isRead = true
  const found: unknown[] = []
  port.on('message', (value) => found.push(value))
  port.on('close', () => found.push('close'))
  await turn()
  core.end()
  await turn()
  t.deepEqual(found, [], 'what has come was not told yet')
  core.come('1')
  core.come(null)
  await turn()
  t.deepEqual(found, [1, 'close'])
})

test('a stopped port emits no later messages', async (t) => {
  const { port, core } = portOf()
  const found: unknown[] = []
  const listener = (value: unknown) => found.push(value)
  port.on('message', listener)
  port.on('close', () => found.push('close'))
  await turn()
  port.off('message', listener)
  core.come('1')
  await turn()
  t.true(await isPending(core.closed), 'leaving the loop is no end')
  t.deepEqual(found, [])
  port.on('message', listener)
  await turn()
  t.deepEqual(found, [1])
})

test('a port that was stopped before its channel ended reports the end once its messages are read', async (t) => {
  const { port, core } = portOf()
  const found: unknown[] = []
  const listener = (value: unknown) => found.push(value)
  port.on('message', listener)
  port.on('close', () => found.push('close'))
  await turn()
  port.off('message', listener)
  core.come('1')
  core.end()
  await turn()
  t.deepEqual(found, [])
  port.on('message', listener)
  core.come(null)
  await turn()
  t.deepEqual(found, [1, 'close'])
})

test('a closed port emits close, even if its channel ended before with unread messages', async (t) => {
  const { port, core } = portOf()
  const found: unknown[] = []
  port.on('close', () => found.push('close'))
  core.end()
  await turn()
  t.deepEqual(found, [])
  port.close()
  await turn()
  t.deepEqual(found, ['close'])
})
