// Uses every name of the package's types in a strict program. types.test.ts compiles it in both module formats, and
// nothing runs it.

import type { ChildProcess } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once, type EventEmitter } from 'node:events'
import { Server, Socket } from 'node:net'
import type { Duplex, Readable } from 'node:stream'

import {
  type Channel,
  connect,
  fromParent,
  join,
  json,
  listen,
  type Listener,
  member,
  type Membership,
  merge,
  type Merge,
  publish,
  type Publisher,
  ReceivedDescriptor,
  RemoteError,
  RingfenceError,
  SealedBuffer,
  spawn,
  structured,
  subscribe,
  type Subscription,
  type Admit,
  type Attachable,
  type Attachment,
  type AttachmentOptions,
  type BatchOptions,
  type CallContext,
  type CallOptions,
  type ChannelStats,
  type ChildOptions,
  type Closed,
  type Codec,
  type ConnectOptions,
  type Delivery,
  type EndpointEvents,
  type EndpointStats,
  type ErrorDetails,
  type Evidence,
  type ExecutableFile,
  type Identity,
  type JoinOptions,
  type LineOptions,
  type ListenerStats,
  type ListenOptions,
  type MemberOptions,
  type MembershipStats,
  type MergeStats,
  type Message,
  type MessageInput,
  type MessagePortLike,
  type Options,
  type Policy,
  type PublisherStats,
  type PublishOptions,
  type Reservation,
  type Resource,
  type SendOptions,
  type ServeOptions,
  type Sink,
  type Source,
  type Spawned,
  type SubscribeOptions,
  type Subscriber,
  type SubscriberStats,
  type SubscriptionStats,
  type WaitOptions,
} from 'ringfence'

type Same<One, Other> = (<T>() => T extends One ? 1 : 2) extends <T>() => T extends Other ? 1 : 2 ? true : false

/** Compiles only if the value has exactly the wanted type, which `any` is not. */
declare function exactly<Wanted>(): <Found>(
  value: Found,
  ...same: Same<Wanted, Found> extends true ? [] : [never]
) => void

/** The optional properties that do not accept `undefined`. */
type Strict<T> = {
  [Key in keyof T]-?: object extends Pick<T, Key> ? (undefined extends Required<T>[Key] ? never : Key) : never
}[keyof T]
type IsLoose<T> = [Strict<T>] extends [never] ? true : Strict<T>

/** `{ signal: options.signal }` compiles for every option. */
export const loose: [
  IsLoose<Options>,
  IsLoose<JoinOptions>,
  IsLoose<MemberOptions>,
  IsLoose<ConnectOptions>,
  IsLoose<LineOptions>,
  IsLoose<ChildOptions>,
  IsLoose<ListenOptions>,
  IsLoose<PublishOptions>,
  IsLoose<SubscribeOptions>,
  IsLoose<WaitOptions>,
  IsLoose<BatchOptions>,
  IsLoose<CallOptions>,
  IsLoose<SendOptions>,
  IsLoose<ServeOptions>,
  IsLoose<Policy>,
  IsLoose<ExecutableFile>,
  IsLoose<Closed>,
  IsLoose<Evidence>,
  IsLoose<Identity>,
  IsLoose<Omit<RingfenceError, keyof Error>>,
] = [
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
]

interface Order {
  id: number
  note: string | null
}

const own: Codec<Order> = {
  encode: (order) => JSON.stringify(order),
  decode: (bytes: Buffer) => JSON.parse(bytes.toString()) as Order,
}

const policy: Policy = {
  uid: ['any', 'same', 1001, [1001, 1002]][0] as 'any',
  gid: [100, 101],
  executable: ['same', '/usr/bin/node', { path: '/usr/bin/node', sha256: '00' }],
  cgroup: '/agents',
  label: 'agent',
  namespace: 'any',
  confined: {
    noNewPrivs: true,
    seccomp: true,
    noCapabilities: true,
    userNamespace: 'other',
    networkNamespace: 'other',
  },
  authorize: async ({ pid, uid, gid, groups, cgroup, label, executable }) =>
    pid > 0 &&
    uid === gid &&
    groups?.[0] === 0 &&
    `${cgroup}${label}${executable?.path}${executable?.device}${executable?.inode}${executable?.sha256}` !== '',
}

const all = {
  timeout: 1,
  handshakeTimeout: 1,
  signal: new AbortController().signal,
  wait: true,
  backing: 'shm',
  capacity: 4096,
  maxMessageSize: 4096,
  maxPeerCapacity: 4096,
  policy,
  mode: 0o600,
  group: 'agents',
  busyPollMicros: 1,
  allowHalfOpen: true,
  harden: true,
  realtimeSignal: 50,
} as const satisfies Options

const { mode: _mode, group: _group, ...ofConnect } = all
const { wait, ...ofLine } = ofConnect
const ofListen = { ...all, maxPeers: 1, maxPeersPerProcess: 1, maxPeersPerUser: 1 } satisfies ListenOptions
const { allowHalfOpen: _allowHalfOpen, maxPeerCapacity: _maxPeerCapacity, ...forPublish } = ofListen
const ofPublish = {
  ...forPublish,
  backing: 'memfd',
  stall: 1,
  deliveries: ['reliable', 'best-effort', 'latest'],
} satisfies PublishOptions
const ofSubscribe = {
  timeout: 1,
  wait,
  maxMessageSize: 1,
  policy,
  delivery: 'latest',
  from: 'oldest',
} satisfies SubscribeOptions
const ofChild = {
  ...ofLine,
  admit: 'descendant',
  line: 'stdin',
  spawn: { stdio: 'inherit' },
  onSpawn: (child: ChildProcess) => void child.pid,
} satisfies ChildOptions

export const admits: Admit[] = ['child', 'descendant']
export const ofPlainChild: ChildOptions = { admit: 'child', line: 'descriptor' }

/** The halves that the classes share. */
export function halves(
  both: Channel<Order, string>,
  subscription: Subscription<Order>,
  merged: Merge<Channel, Message>,
  publisher: Publisher<string>,
): [Source<Order>[], Sink<string>[], Source<[Channel, Message]>] {
  return [[both, subscription], [both, publisher], merged]
}

export async function answers(typed: Channel<Order, Order>, { signal }: WaitOptions): Promise<void> {
  exactly<Order>()(await typed.call({ id: 1, note: null }, { timeout: 1, signal }))
  await typed.serve(
    async (request, context) => {
      exactly<Order>()(request)
      exactly<CallContext>()(context)
      exactly<AbortSignal>()(context.signal)
      exactly<number | undefined>()(context.deadline)
      exactly<Identity>()(context.peer)
      return request
    },
    { concurrency: 5 },
  )
  typed
    .serve((request) => request)
    .catch((error) => {
      if (error instanceof RemoteError) exactly<string | undefined>()(error.code)
    })
}

export async function calls(address: string): Promise<void> {
  exactly<Channel>()(await join(address))
  exactly<Channel>()(await join(address, all))
  exactly<Channel<Order, Order>>()(await join(address, { ...all, codec: own }))
  exactly<Channel>()(await connect(address, ofConnect))
  exactly<Channel<Order, Order>>()(await connect(address, { codec: json<Order>() }))
  exactly<Channel>()(await fromParent(ofLine))
  exactly<Channel<Order, Order>>()(await fromParent({ codec: own }))
  exactly<Listener>()(await listen(address, ofListen))
  exactly<Listener<Order, Order>>()(await listen(address, { codec: own }))
  exactly<Membership>()(await member(address, { ...all } satisfies MemberOptions))
  exactly<Membership<Order, Order>>()(await member(address, { codec: own }))
  exactly<Publisher>()(await publish(address, ofPublish))
  exactly<Publisher<Order>>()(await publish(address, { codec: own }))
  exactly<Subscription>()(await subscribe(address, ofSubscribe))
  exactly<Subscription<Order>>()(await subscribe(address, { codec: own }))
  exactly<Spawned>()(await spawn('node', ['agent.js'], ofChild))
  exactly<Spawned<Order, Order>>()(await spawn('node', [], { codec: structured<Order>() }))
  await using started: Spawned = await spawn('node')
  exactly<ChildProcess>()(started.child)
  exactly<Channel>()(started.channel)
}

export function errorDetails(): RingfenceError {
  const details: ErrorDetails = { cause: 'any value' }
  details.check = 'uid'
  details.exitCode = null
  return new RingfenceError('PEER_REFUSED', 'as a test says', details)
}

async function resource(open: Resource): Promise<void> {
  exactly<string | null>()(open.address)
  const { reason, error } = await open.closed
  exactly<'closed' | 'lost' | 'evicted' | 'corrupt' | 'exposed' | 'refused' | 'failed'>()(reason)
  exactly<RingfenceError | undefined>()(error)
  open.ref().unref().destroy()
  open.destroy(new Error('enough'))
  await open.close({ linger: 5 })
  await open[Symbol.asyncDispose]()
}

export async function reading<In>(
  source: Channel<In, never> | Subscription<In> | Merge<never, In>,
  { signal }: WaitOptions,
): Promise<void> {
  await source.receive({ signal })
  source.tryReceive()
  exactly<boolean>()(await source.waitReadable({ signal }))
  exactly<boolean>()(source.readableEnded)
  for await (const some of source.batches({ signal, max: 10 })) exactly<number>()(some.length)
  await resource(source as Channel)
}

export async function channel(open: Channel, typed: Channel<Order, Order>, { signal }: WaitOptions): Promise<void> {
  exactly<'host' | 'guest'>()(open.role)
  exactly<number>()(open.capacity)
  exactly<number>()(open.maxMessageSize)
  exactly<Identity>()(open.peer)
  exactly<readonly Evidence[]>()(open.evidence)
  exactly<Identity>()(await open.verify({ signal }))
  exactly<ChannelStats>()(open.stats())
  exactly<Channel<Order, Order>>()(open.with(own))

  exactly<Message | undefined>()(await open.receive())
  exactly<Order | undefined>()(await typed.receive())
  exactly<Order | undefined>()(typed.tryReceive())
  exactly<number>()(
    open.receiveEach((bytes, offset, length) => exactly<Uint8Array>()(bytes.subarray(offset, offset + length)), 5),
  )
  typed.receiveEach((order) => exactly<Order>()(order))
  for await (const message of open) exactly<Message>()(message)
  for await (const { id } of typed) exactly<number>()(id)
  for await (const [order] of typed.batches()) exactly<Order>()(order!)

  const inputs: MessageInput[] = [
    'text',
    Buffer.alloc(1),
    new Uint16Array(1),
    new DataView(new ArrayBuffer(1)),
    new ArrayBuffer(1),
  ]
  for (const input of inputs) await open.send(input, { signal })
  await typed.send({ id: 1, note: null })
  exactly<boolean>()(typed.trySend({ id: 1, note: '' }))
  exactly<boolean>()(open.fill(64, (bytes, offset, length) => bytes.fill(0, offset, offset + length).length))
  using reservation: Reservation | undefined = open.reserve(4)
  reservation?.bytes.fill(0)
  reservation?.commit(2)
  reservation?.cancel()
  await open.waitWritable()
  await open.waitWritable(100, { signal })
  exactly<number>()(open.bufferedAmount)
  await open.end({ signal })
  await open.close({ linger: 5 })

  exactly<ReadableStream<Message>>()(open.readable)
  exactly<WritableStream<MessageInput>>()(open.writable)
  await open.readable.pipeThrough(new TextDecoderStream()).pipeTo(new WritableStream<string>())
  await open.readable.pipeTo(open.writable)
  exactly<ReadableStream<Order>>()(typed.readable)
  exactly<Duplex>()(open.duplex())
  const port: MessagePortLike = typed.port()
  const emitter: EventEmitter = port
  emitter.once('close', () => {})
  exactly<Channel<unknown, unknown>>()(port.channel)
  port.on('message', (value: Order) => port.postMessage(value, []))
  port.start()
  port.ref()
  port.unref()
  port.close(() => {})

  open.sendToken(1)
  open.sendToken(1n)
  for await (const token of open.tokens()) exactly<bigint>()(token)
  open.on('close', (closed) => exactly<Closed>()(closed))
  await once(open, 'close')
  await resource(open)
}

async function endpoint<Peer>(open: EventEmitter<EndpointEvents<Peer>> & { stats(): EndpointStats }): Promise<void> {
  open.on('connection', (peer) => exactly<Peer>()(peer))
  open.on('disconnect', (peer, closed) => {
    exactly<Peer>()(peer)
    exactly<Closed>()(closed)
  })
  open.on('refused', ({ code, message, check, wanted, found, identity, cause }) => [
    code,
    message,
    check,
    wanted,
    found,
    identity,
    cause,
  ])
  open.on('close', (closed) => exactly<Closed>()(closed))
  const { open: connected, accepted, refused } = open.stats()
  exactly<number>()(connected + accepted)
  exactly<number | undefined>()(refused['uid'])
}

export async function endpoints(address: string): Promise<void> {
  await using listener = await listen(address, { codec: own })
  exactly<readonly Channel<Order, Order>[]>()(listener.channels)
  exactly<string>()(listener.address)
  exactly<Merge<Channel<Order, Order>, Order>>()(listener.messages())
  for await (const [from, { id }] of listener.messages()) await from.send({ id, note: null })
  for await (const client of listener) exactly<Channel<Order, Order>>()(client)
  listener.on('connection', (client) => void client.send({ id: 1, note: null }))
  exactly<ListenerStats>()(listener.stats())
  await listener.close({ channels: 'keep' })
  await listener.close({ channels: 'close', linger: 1 })
  const plain = await listen(address)
  await endpoint<Channel>(plain)
  await resource(plain)

  await using membership = await member(address)
  exactly<'host' | 'guest'>()(membership.role)
  exactly<Channel | undefined>()(membership.channel)
  membership.on('role', (role) => exactly<'host' | 'guest'>()(role))
  for await (const partner of membership) exactly<Channel>()(partner)
  exactly<MembershipStats>()(membership.stats())
  await membership.close({ linger: 5 })
  await resource(membership)

  await using publisher = await publish(address)
  exactly<number>()(publisher.capacity + publisher.maxMessageSize + publisher.bufferedAmount)
  exactly<bigint>()(publisher.sequence)
  exactly<readonly Subscriber[]>()(publisher.subscribers)
  exactly<Publisher<Order>>()(publisher.with(own))
  exactly<PublisherStats>()(publisher.stats())
  exactly<WritableStream<MessageInput>>()(publisher.writable)
  await publisher.send('text')
  publisher.trySend('text')
  publisher.reserve(1)?.cancel()
  exactly<boolean>()(publisher.fill(1, (bytes, offset, length) => bytes.fill(0, offset).length + length))
  await publisher.waitWritable(1)
  await publisher.seal()
  await publisher.end()
  await publisher.close({ linger: 1 })
  await endpoint<Subscriber>(publisher)
  await resource(publisher)
  const [subscriber] = publisher.subscribers
  if (subscriber === undefined) return
  exactly<Identity>()(subscriber.peer)
  exactly<readonly Evidence[]>()(subscriber.evidence)
  exactly<Delivery>()(subscriber.delivery)
  exactly<Closed>()(await subscriber.closed)
  exactly<Identity>()(await subscriber.verify())
  exactly<SubscriberStats>()(subscriber.stats())
  await subscriber.disconnect()
}

export async function readers(address: string, first: Channel<Order, Order>, second: Channel): Promise<void> {
  await using subscription = await subscribe(address, { delivery: 'best-effort', from: 'latest' })
  exactly<Delivery>()(subscription.delivery)
  exactly<Identity>()(subscription.peer)
  exactly<readonly Evidence[]>()(subscription.evidence)
  exactly<bigint>()(subscription.sequence + subscription.lost)
  exactly<Subscription<Order>>()(subscription.with(own))
  exactly<Identity>()(await subscription.verify())
  exactly<Readable>()(subscription.stream())
  exactly<ReadableStream<Message>>()(subscription.readable)
  exactly<SubscriptionStats>()(subscription.stats())
  subscription.on('close', (closed) => exactly<Closed>()(closed))
  for await (const message of subscription) exactly<Message>()(message)

  valuesOf(merge([first]))
  const mixed = merge<Channel | Subscription>([second, subscription])
  exactly<readonly (Channel | Subscription)[]>()(mixed.sources)
  exactly<boolean>()(mixed.delete(second) || mixed.has(second))
  exactly<Merge<Channel | Subscription>>()(mixed.add(second))
  exactly<[Channel | Subscription, Message] | undefined>()(await mixed.receive())
  mixed.receiveEach((bytes, offset, length, source) => [source.peer, bytes.subarray(offset, offset + length)])
  mixed.on('disconnect', (source, closed) => {
    exactly<Channel | Subscription>()(source)
    exactly<Closed>()(closed)
  })
  mixed.on('close', (closed) => exactly<Closed>()(closed))
  exactly<MergeStats>()(mixed.stats())
  await resource(mixed)
}

function valuesOf(merged: Merge<Channel<Order, Order>, Order>): void {
  exactly<Promise<[Channel<Order, Order>, Order] | undefined>>()(merged.receive())
}

export function figures(
  ofChannel: ChannelStats,
  ofPublisher: PublisherStats,
  ofSubscription: SubscriptionStats,
  { lag }: SubscriberStats,
): number {
  const { messagesSent, bytesSent, messagesReceived, bytesReceived, waits, waitedMicros, wakeupsSent, sleeps } =
    ofChannel
  const { tokensSent, tokensReceived, tokensStray, tokensDropped, ringUsed, ringCapacity, queuedBytes } = ofChannel
  const sums = [messagesSent, bytesSent, messagesReceived, bytesReceived, waits, waitedMicros, wakeupsSent, sleeps]
  sums.push(tokensSent, tokensReceived, tokensStray, tokensDropped, ringUsed, ringCapacity, queuedBytes)
  const { attachmentsSent, attachmentsReceived, callsInFlight, lateReplies } = ofChannel
  sums.push(attachmentsSent, attachmentsReceived, callsInFlight, lateReplies)
  sums.push(ofPublisher.messagesSent, ofPublisher.bytesSent, ofPublisher.evicted, ofPublisher.waits)
  sums.push(ofPublisher.waitedMicros, ofPublisher.ringUsed, ofPublisher.ringCapacity, ofPublisher.queuedBytes)
  sums.push(ofSubscription.messagesReceived, ofSubscription.bytesReceived, ofSubscription.lost, ofSubscription.lag)
  return sums.reduce((sum, figure) => sum + figure, ofSubscription.sleeps + lag)
}

export function evidenceOf({ step, check, wanted, found, outcome }: Evidence): string {
  exactly<'passed' | 'not-asked' | 'not-visible'>()(outcome)
  return outcome === 'passed' ? '' : `${step} ${check}: wanted ${wanted}, found ${found}`
}

export function told(error: unknown): string | undefined {
  if (!(error instanceof RingfenceError)) return undefined
  exactly<string>()(`${error.code}${error.name}`)
  exactly<number | null | undefined>()(error.exitCode)
  exactly<string | null | undefined>()(error.signalCode)
  exactly<string | undefined>()(error.stderr)
  return error.check ?? error.wanted ?? error.found
}

export async function attaches(
  through: Channel,
  sent: Attachable,
  { signal }: { signal?: AbortSignal },
): Promise<void> {
  const accepted: AttachmentOptions = { sealed: true, descriptors: false, maxBytes: 1, maxCount: undefined }
  const options: Options = { attachments: accepted }
  await join('@attaches', options)
  await through.send('text', {
    attachments: [sent, { fd: 5 }, new Socket(), new Server(), createSocket('udp4')],
    signal,
  })
  const message = (await through.receive())!
  exactly<readonly Attachment[] | undefined>()(message.attachments)
}

export async function attached(attachments: readonly Attachment[]): Promise<number> {
  using made = await SealedBuffer.create(5, async (bytes) => {
    exactly<Uint8Array>()(bytes)
  })
  using copied = SealedBuffer.from(new Float64Array(3))
  exactly<Uint8Array>()(copied.bytes())
  for (const attachment of attachments) {
    if (attachment instanceof ReceivedDescriptor) {
      exactly<'file' | 'directory' | 'pipe' | 'socket' | 'device' | 'other'>()(attachment.kind)
      return attachment.fd + attachment.take()
    }
    exactly<SealedBuffer>()(attachment)
    attachment.close()
  }
  return made.byteLength
}
