// Every resource, each way in which it ends, and each way to read it: one table of what the reader and `closed` report.

import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import {
  connect,
  join,
  listen,
  member,
  merge,
  publish,
  spawn,
  subscribe,
  type Channel,
  type Closed,
  type Listener,
  type Membership,
  type Merge,
  type RingfenceError,
  type Subscriber,
  type Subscription,
} from 'ringfence'

import { abstractAddress } from './support/address.js'
import type { RemoteCall, RemoteEnding, RemoteOrder } from './support/remote.js'
import { within, turn, until } from './support/until.js'

const script = fileURLToPath(new URL('support/remote.js', import.meta.url))
/** The messages of a far end. */
const ALL = 'onetwothree'
const OPTIONS = { capacity: 16_384, handshakeTimeout: 60_000 }
const OWN_ERROR = new Error('as this test has it')

// Ways to read. Each resolves after a clean end, and rejects after any other.

type Found = (text: string) => void
type Endpoint = Listener | Membership
type Merged = Merge<Channel>

/** The ways of every source. `textOf`: what a message of it contains. */
function readingsOf<Item>(textOf: (item: Item) => string) {
  interface Readable {
    receive(): Promise<Item | undefined>
    tryReceive(): Item | undefined
    readonly readableEnded: boolean
    batches(): AsyncIterable<Item[]>
    readonly readable: ReadableStream<Item>
    [Symbol.asyncIterator](): AsyncIterator<Item>
  }
  return {
    async receive(source: Readable, found: Found) {
      for (let item = await source.receive(); item !== undefined; item = await source.receive()) found(textOf(item))
    },
    async 'for await'(source: Readable, found: Found) {
      for await (const item of source) found(textOf(item))
    },
    async tryReceive(source: Readable, found: Found) {
      while (!source.readableEnded) {
        const item = source.tryReceive()
        if (item === undefined) await turn()
        else found(textOf(item))
      }
    },
    async batches(source: Readable, found: Found) {
      for await (const items of source.batches()) found(items.map(textOf).join(''))
    },
    async readable(source: Readable, found: Found) {
      const reader = source.readable.getReader()
      for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read())
        found(textOf(value!))
      await reader.closed
    },
  }
}

const shown = (bytes: Uint8Array, offset: number, length: number) =>
  Buffer.from(bytes.subarray(offset, offset + length)).toString()

const bytesReadings = {
  ...readingsOf<Buffer>(String),
  async receiveEach(source: Channel | Subscription, found: Found) {
    while (await source.waitReadable())
      source.receiveEach((bytes, offset, length) => found(shown(bytes, offset, length)))
  },
}

const streamed = async (stream: NodeJS.ReadableStream, found: Found) => {
  for await (const chunk of stream) found(String(chunk))
}

const channelReadings = {
  ...bytesReadings,
  duplex: (channel: Channel, found: Found) => streamed(channel.duplex(), found),
  async port(channel: Channel, found: Found) {
    const port = channel.with({ encode: String, decode: String }).port()
    port.on('message', found)
    await once(port, 'close')
  },
}

const subscriptionReadings = {
  ...bytesReadings,
  stream: (subscription: Subscription, found: Found) => streamed(subscription.stream(), found),
}

const mergeReadings = {
  ...readingsOf<[Channel, Buffer]>(([, message]) => String(message)),
  async receiveEach(merged: Merged, found: Found) {
    while (await merged.waitReadable())
      merged.receiveEach((bytes, offset, length) => found(shown(bytes, offset, length)))
  },
}

const endpointReadings = {
  async 'for await'(endpoint: Endpoint, found: Found) {
    for await (const channel of endpoint) if (channel.address !== null) found(ALL)
  },
}

// Resources.

/** An open resource of this side. */
interface Near {
  /** What is read. */
  source: object
  /** The resource that this side closes. */
  resource: { closed: Promise<Closed>; close(): Promise<void>; destroy(error?: Error): void }
  /** Resolves with the end of the peer as it is reported here. */
  gone: Promise<Closed>
  /** The process of the peer, if it is a child of this one. */
  child?: ChildProcess
  /** Releases the remaining resources. */
  over?(): Promise<unknown> | void
}

interface Resource {
  far: RemoteCall
  open(address: string): Promise<Near>
  readings: Record<string, (source: never, found: Found) => Promise<void>>
  endings: readonly Ending[]
}

type Ending = RemoteEnding | 'own close' | 'own destroy' | 'own destroy with an error'

const OWN = ['own close', 'own destroy', 'own destroy with an error'] as const
const ENDINGS: readonly Ending[] = ['end', 'close', 'destroy', 'unsent', 'kill', 'worker', ...OWN]

const itself = (channel: Channel | Subscription): Near => ({
  source: channel,
  resource: channel,
  gone: channel.closed,
})

/** The event 'disconnect' reports the end of the peer. */
const gone = async (emitter: object): Promise<Closed> => (await once(emitter as never, 'disconnect'))[1] as Closed

async function first<Peer>(endpoint: AsyncIterable<Peer>): Promise<Peer> {
  const { value } = await endpoint[Symbol.asyncIterator]().next()
  return value as Peer
}

const never = new Promise<never>(() => {})

const RESOURCES: Record<string, Resource> = {
  'a channel by join': {
    far: 'join',
    open: async (address) => itself(await join(address, OPTIONS)),
    readings: channelReadings,
    endings: ENDINGS,
  },
  'a channel by connect': {
    far: 'listen',
    open: async (address) => itself(await connect(address, { ...OPTIONS, wait: true })),
    readings: channelReadings,
    endings: ENDINGS,
  },
  'a channel by listen': {
    far: 'connect',
    async open(address) {
      const listener = await listen(address, OPTIONS)
      const channel = await first(listener)
      return { source: channel, resource: channel, gone: gone(listener), over: () => listener.close() }
    },
    readings: channelReadings,
    endings: ENDINGS,
  },
  'a channel by member': {
    far: 'member',
    async open(address) {
      const membership = await member(address, OPTIONS)
      const channel = await first(membership)
      return { source: channel, resource: channel, gone: gone(membership), over: () => membership.close() }
    },
    readings: channelReadings,
    endings: ENDINGS,
  },
  'a channel by spawn': {
    far: 'fromParent',
    async open() {
      let opened: Promise<void> | undefined
      const { child, channel } = await spawn(process.execPath, [script], {
        ...OPTIONS,
        spawn: { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] },
        onSpawn: (begun) => (opened = ask(begun, { call: 'fromParent', addresses: [''], inWorker: false, stall: 0 })),
      })
      await opened
      return { ...itself(channel), child, over: () => void child.kill('SIGKILL') }
    },
    readings: channelReadings,
    endings: ENDINGS.filter((ending) => ending !== 'worker'),
  },
  'a subscription': {
    far: 'publish',
    open: async (address) => itself(await subscribe(address, { handshakeTimeout: 60_000, wait: true })),
    readings: subscriptionReadings,
    endings: [...ENDINGS, 'evict'],
  },
  'a merge': {
    far: 'join',
    async open(address) {
      const channel = await join(address, OPTIONS)
      const merged = merge([channel])
      return { source: merged, resource: merged, gone: gone(merged), over: () => channel.close() }
    },
    readings: mergeReadings,
    endings: ENDINGS,
  },
  'the messages of a listener': {
    far: 'connect',
    async open(address) {
      const listener = await listen(address, OPTIONS)
      const merged = listener.messages()
      await until(() => listener.channels.length > 0, 'a client has connected')
      return { source: merged, resource: merged, gone: gone(merged), over: () => listener.close({ channels: 'close' }) }
    },
    readings: mergeReadings,
    // Its end is that of the listener, not of a peer.
    endings: OWN,
  },
  'a listener': {
    far: 'connect',
    async open(address) {
      const listener = await listen(address, OPTIONS)
      const close = () => listener.close({ channels: 'close' })
      const { closed } = listener
      return {
        source: listener,
        resource: { closed, close, destroy: (error) => listener.destroy(error) },
        gone: never,
        over: close,
      }
    },
    readings: endpointReadings,
    endings: OWN,
  },
  'a membership': {
    far: 'member',
    async open(address) {
      const membership = await member(address, OPTIONS)
      return { source: membership, resource: membership, gone: never }
    },
    readings: endpointReadings,
    endings: OWN,
  },
  'a subscriber': {
    far: 'subscribe',
    async open(address) {
      const publisher = await publish(address, OPTIONS)
      const ended = gone(publisher)
      const [subscriber] = (await once(publisher, 'connection')) as [Subscriber]
      const both = Promise.all([subscriber.closed, ended]).then(([own, reported]) => (own === reported ? own : never))
      return { source: publisher, resource: publisher, gone: both, over: () => publisher.close() }
    },
    // It is not read here.
    readings: { nothing: (_: never, found: Found) => (found(ALL), Promise.resolve()) },
    endings: ENDINGS.filter((ending) => ending !== 'end' && ending !== 'unsent'),
  },
}

// What is expected.

/** The end of a reading ('end', or the code of its error), and the reason that `closed` and 'disconnect' report. */
const OUTCOMES: Record<Ending, [reading: string, reason: Closed['reason']]> = {
  end: ['end', 'closed'],
  close: ['end', 'closed'],
  destroy: ['PEER_LOST', 'lost'],
  unsent: ['PEER_LOST', 'lost'],
  kill: ['PEER_LOST', 'lost'],
  worker: ['PEER_LOST', 'lost'],
  evict: ['EVICTED', 'evicted'],
  'own close': ['end', 'closed'],
  'own destroy': ['end', 'closed'],
  'own destroy with an error': ['CLOSED', 'failed'],
}

function expectedReading(ending: Ending, reading: string, isMerge: boolean): string {
  const [outcome] = OUTCOMES[ending]
  // A port reports every end by 'close', and a merge reports the end of a source by 'disconnect'.
  if (reading === 'port' || reading === 'nothing' || (isMerge && !isOwn(ending))) return 'end'
  return reading === 'duplex' && outcome === 'PEER_LOST' ? 'ECONNRESET' : outcome
}

function isOwn(ending: Ending): ending is (typeof OWN)[number] {
  return ending.startsWith('own')
}

/** Whether an error is this one, or has it as a cause. */
function isCausedBy(error: unknown, origin: Error): boolean {
  return error === origin || (error instanceof Error && isCausedBy(error.cause, origin))
}

// The loop.

/** Sends an order to a far end's process. Resolves once it is carried out. */
async function ask(child: ChildProcess, order: RemoteOrder | RemoteEnding): Promise<void> {
  const answer = once(child, 'message')
  child.send(order)
  await answer
}

/** Makes the far ends end in this way. */
async function endThere(child: ChildProcess, ending: RemoteEnding): Promise<void> {
  if (ending !== 'kill') return ask(child, ending)
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
}

let idle: ChildProcess | null = null

/** Starts a process for far ends, or reuses the one of the previous row. */
function farProcess(t: ExecutionContext): ChildProcess {
  const child = idle ?? fork(script, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  idle = null
  t.teardown(() => void (idle !== child && child.kill('SIGKILL')))
  return child
}

test.after.always(() => void idle?.kill('SIGKILL'))

/** Reads until the end. Returns how it ended. */
async function readAll(reading: Promise<void>, ending: Ending): Promise<string> {
  try {
    await reading
    return 'end'
  } catch (error) {
    if (isOwn(ending) && !isCausedBy(error, OWN_ERROR)) return `not the error of this test: ${String(error)}`
    return (error as RingfenceError).code.replace('ERR_RINGFENCE_', '')
  }
}

for (const [name, { far, open, readings, endings }] of Object.entries(RESOURCES))
  for (const ending of endings)
    test.serial(`${name}, ${ending}: each way to read reports the end of the contract`, async (t) => {
      const isMerge = name.startsWith('a merge') || name.startsWith('the messages')
      // A waiting reader, and one that reads after the end. A child is tested with one of them, since each has its own
      // process. An eviction and unsent messages need a ring that is not read.
      const needsFullRing = ending === 'evict' || ending === 'unsent'
      const moments = isOwn(ending) ? ['waiting'] : needsFullRing ? ['after'] : ['waiting', 'after']
      const cases = Object.entries(readings).flatMap(([reading, read]) =>
        (far === 'fromParent' ? moments.slice(0, 1) : moments).map((moment) => ({
          reading,
          read,
          moment,
          address: abstractAddress(),
        })),
      )
      const child = far === 'fromParent' ? null : farProcess(t)
      const addresses = cases.map(({ address }) => address)
      const [nears] = await Promise.all([
        Promise.all(addresses.map(open)),
        child &&
          ask(child, { call: far, addresses, inWorker: ending === 'worker', stall: ending === 'evict' ? 1 : 600_000 }),
      ])
      const running = cases.map(({ reading, read, moment }, index) => {
        const near = nears[index]!
        let text = ''
        let isRead!: () => void
        const allRead = new Promise<void>((resolve) => (isRead = resolve))
        const start = () =>
          readAll(
            read(near.source as never, (found) => {
              text += found
              if (text.startsWith(ALL)) isRead()
            }),
            ending,
          )
        const outcome = moment === 'waiting' ? start() : null
        return { what: `${reading}, ${moment}`, reading, near, start, outcome, allRead, text: () => text }
      })
      await within(Promise.all(running.map(({ outcome, allRead }) => outcome && allRead)), 'the messages')
      if (isOwn(ending))
        await Promise.all(
          running.map(({ near: { resource } }) => {
            if (ending === 'own close') return resource.close()
            return resource.destroy(ending === 'own destroy' ? undefined : OWN_ERROR)
          }),
        )
      else if (child !== null) await endThere(child, ending)
      else await Promise.all(running.map(({ near }) => endThere(near.child!, ending)))
      for (const { what, reading, near, start, outcome, text } of running) {
        t.is(await within(outcome ?? start(), what), expectedReading(ending, reading, isMerge), what)
        if (ending !== 'evict') t.true(text().startsWith(ALL), `${what}: ${text().slice(0, 100)}`)
        const { reason, error } = await within(isOwn(ending) ? near.resource.closed : near.gone, `${what}: the reason`)
        t.is(reason, OUTCOMES[ending][1], what)
        t.is(error === undefined, reason === 'closed', what)
        if (reason === 'failed') t.true(isCausedBy(error, OWN_ERROR), what)
      }
      await Promise.all(
        running.map(async ({ near }) => {
          await near.over?.()
          await near.resource.close()
        }),
      )
      if (child !== null && ending !== 'kill') idle = child
    })
