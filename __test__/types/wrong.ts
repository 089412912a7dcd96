// Uses of the package that must not compile. types.test.ts compiles this file, and an expected error that does not occur is an error.

import {
  Channel,
  connect,
  json,
  join,
  listen,
  Listener,
  member,
  Membership,
  merge,
  publish,
  Publisher,
  ReceivedDescriptor,
  SealedBuffer,
  spawn,
  subscribe,
  Subscription,
  type Closed,
  type Identity,
  type Merge,
  type Policy,
} from 'ringfence'

interface Order {
  id: number
}
const codec = json<Order>()

export async function options(address: string): Promise<void> {
  // @ts-expect-error -- the socket's file belongs to the service
  await connect(address, { mode: 0o600 })
  // @ts-expect-error -- misspelt
  await join(address, { handshakeTimeOut: 5 })
  // @ts-expect-error -- only a service has many peers
  await member(address, { maxPeers: 5 })
  // @ts-expect-error -- a publisher receives nothing
  await publish(address, { allowHalfOpen: true })
  // @ts-expect-error -- a subscriber could write a shm object
  await publish(address, { backing: 'shm' })
  // @ts-expect-error -- a subscriber has no ring
  await subscribe(address, { capacity: 4096 })
  // @ts-expect-error -- no such delivery
  await subscribe(address, { delivery: 'fast' })
  // @ts-expect-error -- a private line has no address to wait for
  await spawn('node', [], { wait: true })
  // @ts-expect-error -- the line is on descriptor 3 or on stdin
  await spawn('node', [], { line: 'stdout' })
  // @ts-expect-error -- no such choice
  await spawn('node', [], { admit: 'any' })
  // @ts-expect-error -- the whole call is `timeout`, one handshake `handshakeTimeout`
  await connect(address, { handshake: 5 })
  // @ts-expect-error -- a subscription starts now, or with a message of the ring
  await subscribe(address, { from: 'never' })
  // @ts-expect-error -- a codec also decodes
  await listen(address, { codec: { encode: () => '' } })
  // @ts-expect-error -- a check is dropped by 'any'
  const policy: Policy = { uid: null }
  // @ts-expect-error -- only a check that must hold can be named
  await join(address, { policy: { ...policy, confined: { seccomp: false } } })
}

export async function values(open: Channel, typed: Channel<Order, Order>, { pid }: Identity): Promise<void> {
  // @ts-expect-error -- a number is no message
  await open.send(5)
  // @ts-expect-error -- it is no Order
  await typed.send({ id: '5' })
  // @ts-expect-error -- the end is undefined
  const order: Order = await typed.receive()
  // @ts-expect-error -- a visitor of values gets no bytes
  typed.receiveEach((bytes, offset, length) => [bytes, offset, length, order])
  // @ts-expect-error -- a call needs a request
  await open.call()
  // @ts-expect-error -- the request is an Order
  await typed.call('text')
  // @ts-expect-error -- a handler returns the reply
  await typed.serve(() => 'text')
  // @ts-expect-error -- a number of handlers
  await typed.serve((request) => request, { concurrency: 'all' })
  // @ts-expect-error -- an attachment is a sealed buffer or has a descriptor
  await open.send('text', { attachments: ['text'] })
  // @ts-expect-error -- a token is a whole number
  open.sendToken('5')
  // @ts-expect-error -- the kernel's answer does not change
  open.peer.pid = pid
  // @ts-expect-error -- what is open stays at its address
  open.address = '@elsewhere'
  // @ts-expect-error -- such a channel emits no messages
  open.on('message', () => {})
  // @ts-expect-error -- replaced by receiveEach
  open.drain(() => {})
  // @ts-expect-error -- a property, not a call
  open.readable()
  // @ts-expect-error -- replaced by waitWritable
  open.writable()
  // @ts-expect-error -- Closed has a reason and an error
  const reason: string = await open.closed
  // @ts-expect-error -- no such reason
  const closed: Closed = { reason: 'exited' }
  await open.close({ linger: reason.length + closed.reason.length })
}

export async function resources(listener: Listener, membership: Membership, merged: Merge<Channel>): Promise<void> {
  // @ts-expect-error -- no such choice
  await listener.close({ channels: 'all' })
  // @ts-expect-error -- replaced by close
  await membership.leave()
  // @ts-expect-error -- replaced by sources
  const { size } = merged
  // @ts-expect-error -- replaced by disconnect
  merged.on('end', () => size)
  // @ts-expect-error -- a number is no source
  merge([5])
  const typed = await listen('@orders', { codec })
  // @ts-expect-error -- its channels send orders
  typed.on('connection', (channel) => void channel.send('text'))
}

export function made(): unknown[] {
  return [
    // @ts-expect-error -- only join, connect and others make channels
    new Channel(),
    // @ts-expect-error -- only listen makes listeners
    new Listener(),
    // @ts-expect-error -- only member makes memberships
    new Membership(),
    // @ts-expect-error -- only publish makes publishers
    new Publisher(),
    // @ts-expect-error -- only subscribe makes subscriptions
    new Subscription(),
    // @ts-expect-error -- only SealedBuffer.create and SealedBuffer.from make sealed buffers
    new SealedBuffer(),
    // @ts-expect-error -- only messages bring descriptors
    new ReceivedDescriptor(),
  ]
}
