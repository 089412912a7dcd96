// A topic that two hosts share: what is published on one is published on the other, and what many send on one reaches the collector on
// the other. The programs of each host know of their address alone.
//
//     node topic.mjs publish out ADDRESS SUBJECT SERVER [--stream]     subscribes at ADDRESS, where a program publishes
//     node topic.mjs publish in ADDRESS SUBJECT SERVER [--stream] [--audience N]     publishes at ADDRESS, once N have subscribed
//     node topic.mjs collect out ADDRESS SUBJECT SERVER [--stream]     listens at ADDRESS, for many senders
//     node topic.mjs collect in ADDRESS SUBJECT SERVER [--stream]      connects to ADDRESS, where a program listens
//
// It prints "carries" with its first message.
//
// --stream: the server keeps what it has until it was delivered (JetStream), and a bridge may be killed at any moment.

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

/** The first message is on its way. */
function carries() {
  if (silent) console.log('carries')
  silent = false
}

/** One publisher after the other. */
async function publishOut({ maxMessageSize }) {
  await lane.prepare()
  for (;;) {
    // The ring's messages are sent again, and the stream has what it knows by its number already: so the messages that were
    // published between the end of the last bridge and this one are not missing.
    const from = values.stream ? 'oldest' : 'now'
    const subscription = await subscribe(address, { wait: true, from })
    const publisher = incarnation(subscription.peer.pid)
    for await (const message of subscription) {
      if (message.length > maxMessageSize)
        throw new Error(`the server takes ${maxMessageSize} bytes, not ${message.length}`)
      await lane.put(message, { id: `${publisher}-${subscription.sequence}` })
      carries()
    }
    await subscription.close()
  }
}

/** A publisher that is started again counts from 1 again, and is another one. */
function incarnation(pid) {
  const started = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[19]
  return `${subject}-${pid}-${started}`
}

async function publishIn() {
  const publisher = await publish(address, { wait: true })
  const audience = Number(values.audience)
  for await (const { data, done } of lane.messages()) {
    // What is published without a subscriber is lost.
    while (publisher.subscribers.length < audience) await once(publisher, 'connection')
    await publisher.send(data)
    carries()
    // It is in the ring, and outlives this process.
    done()
  }
}

/** Each sender learns, by a message, how many of its own the stream has: what it has sent since, it must send again where this ends. */
async function collectOut({ maxMessageSize }) {
  await lane.prepare()
  const listener = await listen(address, { wait: true, maxMessageSize, allowHalfOpen: true })
  const kept = new WeakMap()
  for await (const [channel, message] of listener.messages()) {
    await lane.put(message, {
      kept() {
        const count = (kept.get(channel) ?? 0) + 1
        kept.set(channel, count)
        // One that has gone needs no word.
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
