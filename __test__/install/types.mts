// What a strict TypeScript program says, under both ways of finding modules.

import {
  connect,
  join,
  json,
  listen,
  publish,
  RingfenceError,
  structured,
  subscribe,
  type Channel,
  type Closed,
  type Codec,
  type ConnectOptions,
  type JoinOptions,
  type ListenOptions,
  type MessagePortLike,
  type Options,
  type SubscribeOptions,
} from 'ringfence'

export async function first(address: string, options: Options): Promise<string | null> {
  try {
    await using channel: Channel = await join(address, options)
    const reason: Promise<Closed> = channel.closed
    void reason
    for await (const message of channel) return message.toString('utf8')
    return null
  } catch (error) {
    if (error instanceof RingfenceError && error.code === 'ERR_RINGFENCE_ADDRESS_OCCUPIED') return null
    throw error
  }
}

interface Order {
  id: number
  note: string | null
}

/** The codec says what the values are; no more is undefined, and null is a value. */
export async function ordersOf(channel: Channel, own: Codec<Order>): Promise<number> {
  const orders: Channel<Order, Order> = channel.with(json<Order>())
  await orders.send({ id: 1, note: null })
  // @ts-expect-error -- it is no Order
  void orders.send({ id: '1', note: null })
  const next: Order | undefined = await orders.receive()
  let sum = next?.id ?? 0
  for await (const { id, note } of channel.with(own)) sum += id + (note?.length ?? 0)
  const back: Map<string, Order> | undefined = channel.with(structured<Map<string, Order>>()).tryReceive()
  return sum + (back?.size ?? 0)
}

export async function otherFaces(channel: Channel): Promise<void> {
  const { readable, writable } = channel
  await readable.pipeTo(writable)
  const port: MessagePortLike = channel.with(json()).port()
  port.on('message', (value: Order) => port.postMessage(value.id))
  const sent: boolean = channel.fill(64, (bytes, offset, length) => bytes.fill(0, offset, offset + length).length)
  using reservation = channel.reserve(4)
  reservation?.commit()
  void sent
}

export async function oneToMany(address: string): Promise<Order | undefined> {
  const options: SubscribeOptions = { delivery: 'latest' }
  await using publisher = (await publish(address)).with(json<Order>())
  await publisher.send({ id: 1, note: '' })
  await using subscription = (await subscribe(address, options)).with(json<Order>())
  return subscription.receive()
}

export function optionsOfCalls(address: string): Promise<unknown>[] {
  const joining: JoinOptions = { allowHalfOpen: true, mode: 0o600 }
  const listening: ListenOptions = { maxPeers: 5 }
  const connecting: ConnectOptions = { wait: true }
  // @ts-expect-error -- the socket's file is the service's
  const wrong: ConnectOptions = { mode: 0o600 }
  return [join(address, joining), listen(address, listening), connect(address, connecting), connect(address, wrong)]
}
