// A topic that two hosts share: messages published on one host are published on the other, and messages of many senders on one host
// reach the collector on the other. The programs of each host know only their address.
//
//     node topic.mjs publish out ADDRESS SUBJECT SERVER [--stream]     subscribes at ADDRESS, where a program publishes
//     node topic.mjs publish in ADDRESS SUBJECT SERVER [--stream] [--audience N]     publishes at ADDRESS, once N have subscribed
//     node topic.mjs collect out ADDRESS SUBJECT SERVER [--stream]     listens at ADDRESS, for many senders
//     node topic.mjs collect in ADDRESS SUBJECT SERVER [--stream]      connects to ADDRESS, where a program listens
//
// It prints "carries" with its first message.
//
// --stream: the server stores messages until they are delivered (JetStream), and a bridge may be killed at any moment.

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'

import { connect, listen, publish, subscribe } from 'ringfence'

import { openLane } from './lane.mjs'

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { stream: { type: 'boolean', default: false }, audience: { type: 'string', default: '0' } },
})
const [kind, way, address, subject, server] = positionals

const bridges = {
  'publish out': publishOut,
  'publish in': publishIn,
  'collect out': collectOut,
  'collect in': collectIn,
}
let silent = true
const lane = await openLane(server, subject, values.stream)
await bridges[`${kind} ${way}`](lane)

/** Reports that the first message was sent. */
function carries() {
  if (silent) console.log('carries')
  silent = false
}

/** Subscribes to one publisher after the other. */
async function publishOut({ maxMessageSize }) {
  await lane.prepare()
  for (;;) {
    // Sends the messages of the ring again. The stream ignores those that it has already, by their numbers. So the messages
    // published between the previous bridge and this one are not lost.
    const from = values.stream ? 'oldest' : 'now'
    const subscription = await subscribe(address, { wait: true, from })
    const publisher = incarnation(subscription.peer.pid)
    for await (const message of subscription) {
      if (message.length > maxMessageSize)
        throw new Error(`the server accepts ${maxMessageSize} bytes, not ${message.length}`)
      await lane.put(message, { id: `${publisher}-${subscription.sequence}` })
      carries()
    }
    await subscription.close()
  }
}

/** Identifies a publisher: a restarted one counts from 1 again. */
function incarnation(pid) {
  const started = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[19]
  return `${subject}-${pid}-${started}`
}

async function publishIn() {
  const publisher = await publish(address, { wait: true })
  const audience = Number(values.audience)
  for await (const { data, done } of lane.messages()) {
    // A message without a subscriber is lost.
    while (publisher.subscribers.length < audience) await once(publisher, 'connection')
    await publisher.send(data)
    carries()
    // The message is in the ring, which outlives this process.
    done()
  }
}

/** Sends each sender the number of its messages that are stored. If this bridge exits, the sender must repeat later ones. */
async function collectOut({ maxMessageSize }) {
  await lane.prepare()
  const listener = await listen(address, { wait: true, maxMessageSize, allowHalfOpen: true })
  const kept = new WeakMap()
  for await (const [channel, message] of listener.messages()) {
    await lane.put(message, {
      kept() {
        const count = (kept.get(channel) ?? 0) + 1
        kept.set(channel, count)
        // A sender that has exited needs no confirmation.
        channel.send(String(count)).catch(() => {})
      },
    })
    carries()
  }
}

async function collectIn() {
  const channel = await connect(address, { wait: true })
  for await (const { data, done } of lane.messages()) {
    await channel.send(data)
    carries()
    done()
  }
}
